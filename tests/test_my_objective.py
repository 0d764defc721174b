"""The example of an objective: its loss worked by hand, and a run by its documented command."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from rlif_lightning import Clipped, LossInputs, cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def batch(logprobs: list[float], old: list[float], advantages: list[float]) -> LossInputs:
    leaf = torch.tensor([logprobs], dtype=torch.float64, requires_grad=True)
    rest = [torch.tensor([values], dtype=torch.float64) for values in (old, advantages)]
    return LossInputs(leaf, *rest, torch.ones(1, len(old), dtype=torch.bool), torch.zeros(1).long())


def gradient(objective, inputs: LossInputs) -> list[float]:
    loss = objective.token_loss(inputs, objective.select(inputs))
    return torch.autograd.grad(loss.sum(), inputs.logprobs)[0][0].tolist()


def test_loss_by_hand():
    from examples.my_objective import WReinforce

    # Ratios e^0.5 = 1.65 (above 1.2), e^-0.5 = 0.61 (below 0.8) and 1.1; advantages 2, -1 and 3.
    inputs = batch([-0.5, -1.5, math.log(0.55)], [-1.0, -1.0, math.log(0.5)], [2.0, -1.0, 3.0])
    objective = WReinforce(positive_weight=0.5)
    losses = objective.token_loss(inputs, objective.select(inputs))[0].tolist()
    # 0.5 * -1.2 * 2; 0.8; 0.5 * -1.1 * 3
    assert losses == pytest.approx([-1.2, 0.8, -1.65])
    assert gradient(objective, inputs) == pytest.approx([0.0, 0.0, -1.65])


def test_weight_one_is_clipped_bit_for_bit():
    from examples.my_objective import WReinforce

    inputs = batch([-0.5, -2.0, -1.0], [-0.6, -2.0, -0.1], [1.5, -0.5, -2.0])
    assert gradient(WReinforce(positive_weight=1.0), inputs) == gradient(Clipped(), inputs)
    assert gradient(WReinforce(), inputs) != gradient(Clipped(), inputs)


def test_a_negative_weight_is_refused():
    from examples.my_objective import WReinforce

    with pytest.raises(ValueError, match=r"positive_weight=-0\.1 must not be negative"):
        WReinforce(positive_weight=-0.1)


def test_the_documented_command_trains(tmp_path):
    text = (ROOT / "examples" / "my_objective.py").read_text()
    command = re.search(r"rlif_lightning (fit .*?)\n\n", text, re.S)[1].replace("\\\n", " ").split()
    small = [
        "--compare=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_val_batches=0",
    ]
    small += ["--trainer.enable_model_summary=false", "--trainer.limit_train_batches=1"]
    small += [
        "--data.source.init_args.size=16",
        "--data.prompts_per_rollout=8",
        "--data.group_size=4",
    ]
    folder = f"--trainer.default_root_dir={tmp_path}"
    run = cli.main([*(part for part in command if part != "\\"), *small, folder])
    assert type(run.model.objective).__name__ == "WReinforce"
    assert run.model.objective.positive_weight == 0.3
    assert run.trainer.global_step == 4  # a rollout of four updates
    assert float(run.trainer.callback_metrics["policy/grad_norm"]) > 0
    assert float(run.trainer.callback_metrics["policy/log_ratio"]) > 0  # the policy has moved
