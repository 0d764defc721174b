"""Objectives with other bounds of the ratio: overlays, refused settings, and micro-batches."""

from __future__ import annotations

import pytest
import torch

from harness.command_line import build
from harness.files import ROOT
from harness.runs import ONE, fit
from harness.scoring import completions_of
from rlif_lightning.learning.advantages import GDPO, GRPO
from rlif_lightning.learning.baselines import OPO, ReinforcePlusPlus
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.ratio_objectives import CISPO, DPPO, GMPO, GSPO, SAPO
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import MiniBatch
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.sampling import Sampling

ADVANTAGES = {
    "leave_one_out_gdpo": GDPO(leave_one_out=True),
    "reinforce_plus_plus": ReinforcePlusPlus(),
    "opo": OPO(),
    "batch_normalized": GRPO(normalize="batch"),
}
OVERLAYS = {"gspo": GSPO(), "cispo": CISPO(), "sapo": SAPO(), "gmpo": GMPO(), "dppo": DPPO()}
NARROW = [
    GSPO(clip_low=0.02, clip_high=0.05),
    CISPO(clip_low=0.2, clip_high=0.2),
    SAPO(),
    GMPO(clip_low=0.1, clip_high=0.2),
    DPPO(clip_low=0.01, clip_high=0.02),
]


def overlay(name: str) -> str:
    return f"--config={ROOT / 'configs' / 'objectives' / f'{name}.yaml'}"


def test_every_overlay_is_tested():
    files = {path.stem for path in (ROOT / "configs" / "objectives").glob("*.yaml")}
    elsewhere = {"dynamic_sampling", "overlong", "replay"}  # tests of their own
    assert files == {*OVERLAYS, *ADVANTAGES, *elsewhere}


@pytest.mark.parametrize("name", [*OVERLAYS, *ADVANTAGES])
def test_an_overlay_is_the_default(name):
    made = build(["--config=configs/quickstart.yaml", overlay(name)]).model
    assert made.objective == OVERLAYS.get(name, Clipped())
    assert made.advantage == ADVANTAGES.get(name, GDPO())


# Their losses and advantages have tests by hand; a kind of each trains here.
FAST = ("gspo", "batch_normalized")


@pytest.mark.slow  # what each of them sets: above
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.full)
        for name in (*OVERLAYS, *ADVANTAGES)
    ],
)
def test_an_overlay_trains(name, tmp_path):
    run = fit(tmp_path, overlay(name), *ONE)
    assert run.trainer.global_step == 4
    assert float(run.trainer.callback_metrics["policy/grad_norm"]) > 0
    assert float(run.trainer.callback_metrics["policy/log_ratio"]) > 0


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GSPO, {"clip_low": 0.0}, r"clip_low=0\.0"),
        (CISPO, {"clip_low": 0.0}, r"clip_low=0\.0"),
        (CISPO, {"clip_high": 0.0}, r"clip_high=0\.0"),
        (CISPO, {"clip_low": 1.1}, r"clip_low=1\.1.* need 0 < clip_low <= 1,"),
        (SAPO, {"temperatures": (0.0, 1.0)}, r"temperatures=\(0\.0, 1\.0\)"),
        (SAPO, {"temperatures": (1.0, float("inf"))}, r"temperatures=\(1\.0, inf\)"),
        (GMPO, {"clip_low": 0.0}, r"clip_low=0\.0"),
        (GMPO, {"clip_high": -1.0}, r"clip_high=-1\.0"),
        (DPPO, {"divergence": "js"}, "divergence='js' is unknown; use one of tv, kl"),
        (DPPO, {"clip_low": 0.0}, r"clip_low=0\.0"),
        (DPPO, {"highest_ratio": 1.0}, r"highest_ratio=1\.0"),
        (SAPO, {"aggregation": "sum"}, "aggregation='sum'"),
    ],
)
def test_bad_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize("objective", NARROW, ids=lambda each: type(each).__name__)
def test_one_micro_batch_is_one_completion_at_a_time(tiny_models, objective: Objective):
    """Gradients and figures, in float64, with one advantage a completion and ratios off 1."""
    policy = PolicyModel(Policy(str(tiny_models["llama"]))).double()
    policy.eos_ids = list(range(2, 20))
    sampling = Sampling(max_new_tokens=12)
    completions = completions_of(policy.vocab_size)
    generator = torch.Generator().manual_seed(2)
    old = measure_tokens(policy, completions, sampling, 1000).logprobs
    old = old + 0.2 * torch.randn(old.shape, generator=generator, dtype=old.dtype)
    advantages = torch.randn(len(old), 1, generator=generator, dtype=old.dtype).expand_as(old)
    index = torch.arange(len(old))
    batch = MiniBatch(LossInputs(old, old, advantages, completions.mask, index), completions, index)
    found = []
    for budget in (10_000, 1):
        policy.zero_grad()
        meter = UpdateMeter(index.device)
        calls = OptimizerCalls(lambda loss, is_last: loss.backward(), policy.zero_grad, float)
        updater = Updater(policy, objective, sampling, TokenBudget(budget), calls)
        updater.accumulate_gradient(batch, meter)
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        found.append((gradient, meter.sums))
    (together, figures), (alone, figures_alone) = found
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6 * float(alone.abs().max()))
    torch.testing.assert_close(figures, figures_alone, rtol=1e-5, atol=1e-9)
    assert float(alone.abs().max()) > 0.001
    clipped = float(figures[UpdateMeter.NAMES.index("clipped")])
    assert (clipped > 0) == (not isinstance(objective, CISPO | SAPO))
