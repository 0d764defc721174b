"""What users' own heads, advantages and objectives hand over on the CPU reaches an update on
``cuda``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from harness.runs import fit
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead

CUDA = ["--trainer.accelerator=cuda", "--trainer.devices=1"]


class OnTheCPU(RewardHead):
    """Answers with tensors that are made where most are made."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        assert rollout.mask.device.type == "cuda"
        numbers = torch.tensor([len(text) for text in rollout.texts])
        keep = torch.arange(len(numbers)) != 1
        log = {"mine/longest": numbers.max()}
        return RewardOutput(numbers, keep, log, torch.full((rollout.num_prompts,), 0.5))  # type: ignore[arg-type]


class CPUAdvantage(GDPO):
    """An advantage that comes from the CPU."""

    def parts(self, rewards: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().parts(rewards.cpu(), weights.cpu(), None)

    def total(self, parts: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().total(parts.cpu(), None)


@dataclass(frozen=True)
class CPUMarks(KLCov):
    """Marks every other token, on the CPU."""

    def select(self, update: LossInputs) -> Tensor:
        marks = torch.zeros(update.mask.shape, dtype=torch.bool)
        marks[:, ::2] = True
        return marks


@pytest.mark.parametrize(
    "precision", [pytest.param("32-true", marks=pytest.mark.full), "bf16-mixed"]
)
def test_a_whole_update_with_what_came_from_the_cpu(tmp_path, precision):
    heads = {"mine": {"head": f"{__name__}.OnTheCPU"}, "certainty": {"head": "SelfCertainty"}}
    heads["certainty"]["gate"] = {"head": "mine", "at_least": 1}  # type: ignore[assignment]
    own = [f"--model.advantage={__name__}.CPUAdvantage", f"--model.objective={__name__}.CPUMarks"]
    run = fit(
        tmp_path,
        *CUDA,
        f"--trainer.precision={precision}",
        f"--model.rewards={json.dumps(heads)}",
        *own,
    )
    assert run.trainer.global_step == 8
    assert float(run.trainer.logged_metrics["mine/longest"]) >= 1
