"""SandboxTrace: what the sandbox saw of the first failed test, as feedback for a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlif_lightning.answers.code_tasks import CodeExtractor, task_of
from rlif_lightning.answers.code_verdicts import RunsCode, judge_code
from rlif_lightning.data.described import Described
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.learning.feedback import FeedbackWriter
from rlif_lightning.module import RLIFModule
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.sandbox.pool import Sandbox

ALL_PASS = "all tests pass"
COLUMNS = ("test_list", "test_imports", "test_setup_code")


class SandboxTrace(RunsCode, Described, FeedbackWriter, Callback):
    """Shows a teacher the first test that a completion's code fails, and what its call gave.

    For ``teacher.feedback: callback``. Such a text is ``assert f(2) == 7`` and below it ``f(2)
    returned 5``, or ``f(2) raised NameError in line 2``; ``all tests pass`` where all do. Tests of
    other columns are neither run for it nor shown. Where a column is ``data.answer_column`` the
    teacher needs ``needs_gold: true``.

    Args:
        columns: with the tests that the teacher may see, in a layout that ``CodeTests`` reads.
            Without LiveCodeBench's ``private_test_cases`` its private tests stay hidden.
        extractor: finds the code of a completion.
        sandbox: where and within which limits the code runs.

    Raises:
        ValueError: no sandbox that is strong enough, or a problem without tests in the columns.
    """

    def __init__(
        self,
        columns: Sequence[str] = COLUMNS,
        extractor: CodeExtractor = CodeExtractor(),
        sandbox: Sandbox | None = None,
    ):
        RunsCode.__init__(self, extractor, sandbox)
        self.columns = tuple(columns)

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse problems without tests that can be read in these columns."""
        data = getattr(trainer, "datamodule", None)
        split = data.split("train") if stage == "fit" and isinstance(data, PromptData) else None
        for row, problem in () if split is None else split.problems(self.columns):
            try:
                task_of(problem)
            except ValueError as error:
                raise ValueError(f"columns={[*self.columns]}, row {row}: {error}") from error

    def feedback(
        self, rollout: Rollout, outputs: Mapping[str, RewardOutput]
    ) -> Sequence[str | None]:
        """Return a trace of each completion's code."""
        columns = rollout.prompts.columns
        size = rollout.group_size
        problems: list[dict[str, Any]] = [
            {name: values[row // size] for name, values in columns.items()}
            for row in range(len(rollout.texts))
        ]
        found = judge_code(rollout.texts, problems, self.extractor, self.sandbox)
        return [trace or ALL_PASS for _, trace in found]
