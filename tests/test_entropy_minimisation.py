"""EntropyMinimisation: its steps against torch's own, and what it needs no reward for."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.command_line import refused
from harness.runs import BASE, TINY, assert_same, column, fit, parameters
from rlif_lightning.data.tokenizer import resolve_model
from rlif_lightning.learning.entropy_minimisation import EntropyMinimisation
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
PLAIN = [
    "--model.rewards={}",
    "--model.objective.class_path=EntropyMinimisation",
    "--data.group_size=1",
    "--model.update.updates_per_rollout=1",
    "--model.update.max_grad_norm=null",
    "--model.policy.dtype=float64",
    f"--model.optimizer={json.dumps(SGD)}",
]


def test_the_loss_is_the_entropy():
    """Of .7 .1 .1 .1 and .4 .3 .2 .1, nats."""
    rows = [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]]
    entropy = torch.tensor([[-sum(p * math.log(p) for p in row) for row in rows]])
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    batch = LossInputs(zeros, zeros, zeros, mask, torch.zeros(1), entropy=entropy)
    loss = EntropyMinimisation().token_loss(batch, torch.zeros_like(mask))
    assert loss.tolist()[0] == pytest.approx([0.940448, 1.279854], abs=1e-6)


class Recording(RewardHead):
    """Keeps the rollouts that it sees."""

    seen: ClassVar[list[Rollout]] = []

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.seen.append(rollout)
        return RewardOutput(torch.zeros(len(rollout.mask)))


def mean_entropy(model, rollout: Rollout, temperature: float) -> torch.Tensor:
    """By each completion alone, with the gradient."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for prompt, ids, mask in zip(
        rollout.prompts.token_ids, rollout.completion_ids, rollout.mask, strict=True
    ):
        logits = model(input_ids=torch.cat([prompt, ids[mask]])[None]).logits[0]
        own = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        total, count = total - (own.exp() * own).sum(), count + int(mask.sum())
    return total / count


@pytest.mark.parametrize("temperature", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_step_is_that_of_torch(tmp_path, temperature):
    """One rollout: plain gradient descent on the mean entropy of the same completions."""
    Recording.seen.clear()
    seen = {"seen": {"head": "test_entropy_minimisation.Recording", "weight": 0.0}}
    given = [f"--model.sampling.temperature={temperature}", "--trainer.limit_train_batches=1"]
    run = fit(tmp_path, *TINY, *PLAIN, *given, f"--model.rewards={json.dumps(seen)}")
    [rollout] = Recording.seen
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model("rlif-arithmetic"), dtype=torch.float64
    )
    loss = mean_entropy(model, rollout, temperature)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()
            parameter -= 0.5 * parameter.grad
    expected = {f"model.{name}": value for name, value in model.state_dict().items()}
    # The library's norms and rotary angles stay in float32.
    assert_same(expected, parameters(run), 1e-6)
    assert column(tmp_path, "policy/entropy") == pytest.approx([loss.item()], rel=1e-5)


def test_there_is_nothing_to_examine_before_it(tmp_path, capsys):
    given = [*BASE, *TINY, *PLAIN, f"--trainer.default_root_dir={tmp_path}"]
    said = refused(capsys, "preflight", *given)
    assert "EntropyMinimisation needs no rewards" in said
