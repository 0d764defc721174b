"""The figures of episodes, and of heads that score them."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import SAME, Logged

_FIGURES = "rlif_lightning/learning/episode_figures.py"
_EPISODES = "mean over the episodes of all ranks"
_EVAL = "rlif_lightning/evaluation/evaluator.py"
_HELD_OUT = "mean over the episodes of all problems, all ranks"
_REUSE = "rlif_lightning/rewards/reuse.py"
_SOLVED = "mean over the solved episodes of all ranks; NaN without any"

ACTING = {
    "environment/<own>": Logged(
        "its own",
        "A figure of an environment's `metrics`; `solved` is the share of solved episodes.",
        "mean over the episodes of all ranks that did not fail; NaN without any",
        "rlif_lightning/rewards/environment.py",
    ),
    "reuse/phrases": Logged("phrases", "Learned phrases of two actions and more.", SAME, _REUSE),
    "reuse/saved": Logged(
        "share", "Bits that the learned phrases save; NaN without successes.", SAME, _REUSE
    ),
    "reuse/segments": Logged("phrases", "Phrases that spell a solved episode.", _SOLVED, _REUSE),
    "reuse/actions": Logged("actions", "Actions of a solved episode.", _SOLVED, _REUSE),
    "reuse/only_penalty": Logged(
        "share",
        "Groups whose only spread is the penalty.",
        "mean over the groups of all ranks",
        _REUSE,
    ),
    "<stage>/turns": Logged("turns", "Turns of the policy in an episode.", _HELD_OUT, _EVAL),
    "<stage>/solved": Logged("share", "Solved episodes; a failed one is not.", _HELD_OUT, _EVAL),
    "<stage>/reward": Logged(
        "its own",
        "What the environment paid for an episode.",
        f"{_HELD_OUT}, but for those that failed",
        _EVAL,
    ),
    "episode/turns": Logged("turns", "Turns of the policy in an episode.", _EPISODES, _FIGURES),
    "episode/observed": Logged(
        "tokens",
        "Tokens of an episode's observations, without the first, and of its new contexts' prompts.",
        _EPISODES,
        _FIGURES,
    ),
    "episode/contexts": Logged(
        "contexts", "Contexts of an episode, under `thoughts: fork`.", _EPISODES, _FIGURES
    ),
    "episode/<stop>": Logged(
        "share", "Episodes that ended in this way (docs/environments.md).", _EPISODES, _FIGURES
    ),
}
