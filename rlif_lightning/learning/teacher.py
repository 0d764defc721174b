"""The settings of a teacher, which reads a completion's tokens after a prompt with feedback."""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from rlif_lightning.model.loading import Policy
from rlif_lightning.setting_types import check_types

SIBLING, CALLBACK = "sibling", "callback"
FIELDS = {"prompt", "feedback"}
TEMPLATE = (
    "{prompt}\n\nThis is what is known about an attempt at it:\n{feedback}\n\nSolve the original"
    " problem.\n"
)


@dataclass(frozen=True)
class Teacher:
    """Who teaches, and what it has read before a completion's tokens.

    Args:
        feedback: sibling | callback | a data column: sibling = the solution of another completion
            of the group with a score of at least 0.5 by the only reward with a weight; callback =
            what the run's `FeedbackWriter` writes; else the column's text, as a dotted path. A
            completion without feedback has no loss.
        template: the problem in the teacher's prompt; it must show `{prompt}` and `{feedback}`.
            Few-shot examples and the chat's mark-up stay around it. The wording is ours.
        needs_gold: consent that the feedback shows gold answers. The run is then not label-free.
        ema_rate: share of the policy that joins the teacher's weights after each rollout, in [0,
            1); 0 = the frozen start, or `model` (SDPO: 0.05).
        model: a second, frozen model with the policy's tokenizer that teaches; null = the average.
        top_k: the teacher's likeliest tokens that are compared one by one; all others are compared
            together (SDPO: 100).

    Raises:
        ValueError: a number out of range, a template without its fields, or a model that would be
            averaged.
    """

    feedback: str = SIBLING
    template: str = TEMPLATE
    needs_gold: bool = False
    ema_rate: float = 0.05
    model: Policy | None = None
    top_k: int = 100

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.ema_rate < 1:
            raise ValueError(f"teacher.ema_rate={self.ema_rate} must lie in [0, 1)")
        if self.top_k < 1:
            raise ValueError(f"teacher.top_k={self.top_k} must be at least 1")
        if self.model is not None and self.ema_rate > 0:
            raise ValueError(
                f"teacher.ema_rate={self.ema_rate} would have no effect: teacher.model="
                f"{self.model.name!r} is frozen; set ema_rate=0, or leave model out"
            )
        if self.model is not None and self.model.lora is not None:
            raise ValueError("teacher.model.lora would be untrained adapters; leave it out")
        if {
            name for _, name, _, _ in Formatter().parse(self.template) if name is not None
        } != FIELDS:
            raise ValueError(
                f"teacher.template={self.template!r:.200} must have the fields {{prompt}} and"
                " {feedback}, and no other; write {{ and }} for braces that should be printed"
            )
        if self.needs_gold and self.feedback == SIBLING:
            raise ValueError(
                "teacher.needs_gold=true has no effect with feedback=sibling, which shows the"
                " policy's own completions; leave it out"
            )

    @property
    def averages(self) -> bool:
        """Whether the teacher's weights follow the policy's, and are in checkpoints."""
        return self.ema_rate > 0
