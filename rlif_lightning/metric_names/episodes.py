"""The figures of episodes, under an environment."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import Logged

_FIGURES = "rlif_lightning/learning/episode_figures.py"
_ALL = "mean over the episodes of all ranks"

EPISODES = {
    "episode/turns": Logged("turns", "Turns of the policy in an episode.", _ALL, _FIGURES),
    "episode/observed": Logged(
        "tokens", "Tokens of an episode's observations, without the first one.", _ALL, _FIGURES
    ),
    "episode/<stop>": Logged(
        "share", "Episodes that ended in this way (docs/environments.md).", _ALL, _FIGURES
    ),
}
