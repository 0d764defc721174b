"""CheckerMonitor: whether a checker's signal has collapsed, or is gamed."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

import regex
import torch
from lightning.pytorch import Trainer

from callbacks.guard import Guard
from callbacks.guard_detectors import GuardDetector
from rlif_lightning.answers.extraction import compiled, pattern_found
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.records import Rollout
from rlif_lightning.rewards.checker import CheckerReward
from rlif_lightning.rewards.held_head import heads_in

CHECKER_DETECTORS = {
    "collapsed": GuardDetector(
        "checker/neutral",
        "above",
        bound=0.95,
        space="reward",
        meaning="The checker has no opinion: give it more evidence, plainer claims or a better"
        " scorer.",
    ),
    "hackable": GuardDetector(
        "checker/support",
        "above",
        bound=0.75,
        space="reward",
        meaning="The checker supports almost all claims, so it can be gamed: read some.",
    ),
    "shrinking": GuardDetector(
        "checker/answer_length",
        "below",
        factor=0.5,
        space="reward",
        meaning="Answers shrink: what says little is easily supported.",
    ),
    "skipped_search": GuardDetector(
        "checker/no_search",
        "above",
        bound=0.75,
        space="reward",
        meaning="Most completions no longer search.",
    ),
    "foreign_script": GuardDetector(
        "checker/foreign",
        "above",
        bound=0.1,
        space="reward",
        meaning="Completions are written in a script that their prompts do not use.",
    ),
}


class CheckerMonitor(Guard):
    """Watches a ``CheckerReward`` for a signal that has collapsed, or that is gamed.

    Symptoms (https://arxiv.org/abs/2605.25988; the limits are ours, after its figures): more than
    95 per cent of the claims neutral, more than 75 per cent supported, answers of less than half
    of their first length, more than 75 per cent of the completions without a search, more than 10
    per cent of their letters in a script without a letter in their prompt. Each is the median of
    three rollouts. What an alarm does: :class:`Guard`. To leave a checker out from an alarm on, set
    ``action: adjust`` and ``scale: {rewards.NAME.alpha: 0}``.

    Logs ``checker/no_search`` (with ``search``), ``checker/foreign`` and ``checker/alarms``.

    Args:
        action, scale, baseline, detectors, snapshot_every, max_actions: as for
            :class:`CollapseGuard`.
        search: regular expression that finds a search in a completion; null = there is none, and
            the detector ``skipped_search`` is left out.

    Raises:
        ValueError: as :class:`Guard`, or no regular expression. In setup: no reward of the run is a
            ``CheckerReward``.
    """

    usual = CHECKER_DETECTORS
    alarms = "checker/alarms"

    def __init__(
        self,
        action: str = "warn",
        scale: dict[str, float] | None = None,
        baseline: int = 5,
        detectors: dict[str, dict[str, Any] | None] | None = None,
        snapshot_every: int = 10,
        max_actions: int = 3,
        search: str | None = None,
    ):
        if search is None:
            detectors = {"skipped_search": None, **(detectors or {})}
        else:
            compiled(search, regex.DOTALL)  # refuses one that is none
        self.search = search
        super().__init__(action, scale, baseline, detectors, snapshot_every, max_actions)

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse a run without a checker, and what :class:`Guard` refuses."""
        tops = [reward.head for reward in pl_module.rewards.settings.values()]
        heads = [head for top in tops for head in heads_in(top)]
        if not any(isinstance(head, CheckerReward) for head in heads):
            raise ValueError(
                "CheckerMonitor watches a CheckerReward, and this run has none; its rewards:"
                f" {', '.join(pl_module.rewards.names)}; add one, or remove the callback"
            )
        super().setup(trainer, pl_module, stage)

    def measure(self, trainer: Trainer, pl_module: RLIFModule, outputs: Any) -> None:
        """Log the shares of completions without a search, and of letters of other scripts."""
        rollout = outputs["rollout"]
        skipped = sum(not pattern_found(self.search, text) for text in rollout.texts if self.search)
        sums = torch.tensor([skipped, len(rollout.texts), *foreign_letters(rollout)])
        missing, size, foreign, letters = all_rank_sum(sums.to(rollout.mask.device)).tolist()
        if self.search is not None:
            pl_module.log("checker/no_search", missing / size, batch_size=1)
        share = foreign / letters if letters else math.nan
        pl_module.log("checker/foreign", share, batch_size=1)


def foreign_letters(rollout: Rollout) -> tuple[int, int]:
    """Count the letters of completions whose script has no letter in the prompt, and all letters.

    A prompt without letters has every script.
    """
    foreign = total = 0
    for number, text in enumerate(rollout.texts):
        own = scripts_of(rollout.prompts.texts[number // rollout.group_size])
        found = [script(letter) for letter in text if letter.isalpha()]
        total += len(found)
        foreign += sum(each not in own for each in found) if own else 0
    return foreign, total


def scripts_of(text: str) -> set[str]:
    """Return the scripts of a text's letters."""
    return {script(letter) for letter in text if letter.isalpha()}


def script(letter: str) -> str:
    """Return the first word of a letter's Unicode name, which is its script.

    Example:
        >>> [script(letter) for letter in "aé漢жα"]
        ['LATIN', 'LATIN', 'CJK', 'CYRILLIC', 'GREEK']
    """
    return unicodedata.name(letter, "").partition(" ")[0]
