"""CollapseGuard: watches for collapse without labels, records symptoms, and acts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from callbacks.guard import Guard, certainty_part
from callbacks.guard_detectors import DETECTORS
from callbacks.majorities import majority_column, majority_figures
from callbacks.symptoms import symptoms
from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.collectives import all_process_means
from rlif_lightning.rewards.voting import vote_metrics


class CollapseGuard(FindsAnswers, Guard):
    """Watches a run's own figures for symptoms of collapse and acts on an alarm.

    Symptoms and limits: ``callbacks/guard_detectors.py``. Most limits are relative to the run's
    first ``baseline`` rollouts. What an alarm does: :class:`Guard`.

    Logs ``rollout/repetition``, ``vote/top_answer``, ``vote/flip_rate``, ``vote/majority_ratio``,
    ``guard/vote_alignment``, ``guard/certainty_share``, ``guard/alarms`` (how many are active) and,
    without a head that logs it, what ClusterVote would log.

    Args:
        action: warn | stop | adjust | rollback.
        scale: setting -> factor, applied at each adjustment or rollback: `learning_rate`,
            `objective.weight`, `rewards.certainty.weight`, `rewards.checker.alpha`, ... null =
            {learning_rate: 0.5}.
        baseline: first rollouts, whose mean relative limits are relative to; these limits judge
            nothing in them.
        detectors: changes to the detectors: name -> settings, or null to take it out; a new name
            adds one.
        snapshot_every: rollouts between two snapshots (rollback); none is taken while a figure is
            beyond its limit.
        max_actions: adjustments or rollbacks at most.
        extractor: finds the final answer of a completion; where a head votes, its answers (or
            behaviours) count, and are equal where they are for that head.
    """

    usual = DETECTORS
    alarms = "guard/alarms"

    def __init__(
        self,
        action: str = "warn",
        scale: dict[str, float] | None = None,
        baseline: int = 5,
        detectors: dict[str, dict[str, Any] | None] | None = None,
        snapshot_every: int = 10,
        max_actions: int = 3,
        extractor: AnswerExtractor = AnswerExtractor(),
    ):
        Guard.__init__(self, action, scale, baseline, detectors, snapshot_every, max_actions)
        FindsAnswers.__init__(self, extractor)

    def measure(self, trainer: Trainer, pl_module: RLIFModule, outputs: Any) -> None:
        """Log symptoms that nothing else logs."""
        rollout, logged = outputs["rollout"], trainer.callback_metrics
        heads, rewards = pl_module.rewards.heads, outputs["rewards"]
        voter = next((name for name, each in rewards.items() if each.answers is not None), None)
        if voter is None:
            answers, equivalence = [self.extractor(text) for text in rollout.texts], "exact"
        else:
            answers = rewards[voter].answers
            equivalence = getattr(heads[voter], "equivalence", "exact")
        measured = symptoms(rollout, answers, outputs["advantages"], equivalence)
        column = majority_column(pl_module.prompt_table)
        measured |= majority_figures(rollout, answers, column, equivalence)
        pl_module.prompt_table.gather()  # into the checkpoint of this rollout
        if not any("vote/unanimous" in each.log for each in rewards.values()):
            measured |= vote_metrics(answers, rollout.group_size)
        parts = {name: certainty_part(head) for name, head in heads.items()}
        measured["guard/certainty_share"] = sum(
            part * float(logged[f"reward/{name}/share"]) for name, part in parts.items() if part
        )
        for name, value in all_process_means(measured, pl_module.device).items():
            pl_module.log(name, value, batch_size=1)
