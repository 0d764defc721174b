"""Old log-probs: the first mini-batch is on-policy to the bit, and rounding moves nothing; in real
updates and runs.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoding import prompts_of
from harness.runs import FEW, assert_same, fit, metrics, parameters
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov
from rlif_lightning.learning.old_logprobs import rollout_logprobs, settle_old_logprobs
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import MiniBatch, select_groups
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=48)
# What differs between the precisions is the size of their rounding.
PRECISIONS = [
    "float32",
    *(pytest.param(name, marks=pytest.mark.full) for name in ("bfloat16", "bf16-mixed")),
]


def autocast(precision: str) -> Any:
    """As Lightning runs it: without the cache of cast weights."""
    mixed = precision == "bf16-mixed"
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext()


@cache
def sampled(precision: str) -> tuple[PolicyModel, Rollout, LossInputs]:
    """A real rollout of 4 groups of 8, every completion with an advantage."""
    dtype = "float32" if precision == "bf16-mixed" else precision
    policy = PolicyModel(Policy("rlif-arithmetic", dtype=dtype))
    engine = NativeEngine()
    engine.setup(policy, 0)
    with autocast(precision):
        rollout = engine.generate(prompts_of(policy, [0, 1, 2, 3]), 8, SAMPLING, 0)
    old = rollout.stats.logprobs
    advantages = torch.randn(32, 1, generator=torch.Generator().manual_seed(0)).expand(old.shape)
    inputs = LossInputs(
        old, old, advantages, rollout.mask, rollout.completion_numbers(0), sampled_logprobs=old
    )
    return policy, rollout, inputs


def mini_batch(precision: str, on_policy: bool = True) -> MiniBatch:
    _, rollout, inputs = sampled(precision)
    return select_groups(inputs, rollout.completions, [0, 1, 2, 3], on_policy)


def gradient(
    precision: str, objective: Objective, batch: MiniBatch, tokens: int = 8192
) -> tuple[Any, UpdateMeter]:
    """Of every parameter, in one vector, and the token figures."""
    policy, meter = sampled(precision)[0], UpdateMeter(batch.index.device)
    policy.zero_grad()
    calls = OptimizerCalls(lambda share, _: share.backward(), policy.zero_grad, float)
    updater = Updater(policy, objective, SAMPLING, TokenBudget(tokens), calls)
    with autocast(precision):
        updater.accumulate_gradient(batch, meter)
    found = torch.cat([parameter.grad.flatten().double() for parameter in policy.parameters()])
    assert float(found.norm()) > 0
    return found, meter


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_on_the_first_mini_batch_kl_cov_is_clipped_bit_for_bit(precision):
    """At a weight that rounding would blow up to more than the whole gradient."""
    batch = mini_batch(precision)
    found, meter = gradient(precision, KLCov(weight=1000.0), batch)
    means = meter.means()
    assert float(means["policy/picked_fraction"]) > 0.01
    assert float(means["policy/log_ratio"]) == 0
    assert torch.equal(found, gradient(precision, Clipped(), batch)[0])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_with_the_samplers_log_probs_rounding_would_act_there(precision):
    """The same mini-batch as if it were a later one: what the test above and the noise floor are
    against.
    """
    later, (_, rollout, inputs) = mini_batch(precision, on_policy=False), sampled(precision)
    clipped = gradient(precision, Clipped(), later)[0]
    changes = {
        weight: float(
            (gradient(precision, KLCov(weight=weight), later)[0] - clipped).norm() / clipped.norm()
        )
        for weight in (0.05, 1.0)
    }
    assert changes[0.05] > 0.002
    assert changes[1.0] > 0.04
    with autocast(precision):
        now = score(precision)
    settled, figures = settle_old_logprobs(
        inputs, torch.arange(32), now.masked_fill(~rollout.mask, math.nan), list
    )
    assert 0 < float(figures["policy/noise_floor"]) < (1e-4 if precision == "float32" else 0.5)
    floored = replace(later, inputs=replace(later.inputs, noise_floor=settled.noise_floor))
    change = (
        gradient(precision, KLCov(weight=1.0), floored)[0]
        - gradient(precision, KLCov(weight=0.0), floored)[0]
    )
    assert float(change.norm() / clipped.norm()) < changes[1.0] / 20


def score(precision: str) -> torch.Tensor:
    policy, rollout, _ = sampled(precision)
    return rollout_logprobs(policy, rollout.completions, SAMPLING, 8192)


@pytest.mark.slow
def test_the_first_mini_batch_in_many_passes_is_the_one_in_one():
    """Each micro-batch has ratio 1 to its own forward; float32 differs in the order of sums
    alone.
    """
    batch = mini_batch("float32")
    whole, alone = (
        gradient("float32", KLCov(weight=1000.0), batch, tokens) for tokens in (8192, 1)
    )
    torch.testing.assert_close(whole[0], alone[0], rtol=1e-3, atol=1e-6)
    assert float(alone[1].means()["policy/log_ratio"]) == 0


@pytest.mark.parametrize(("on_policy", "passes"), [(True, 1), (False, 2)])
@pytest.mark.parametrize(
    "objective", [ClipCov(fraction=0.1, band=(0.01, 5.0)), KLCov(rank_by="current")], ids=str
)
def test_the_current_log_probs_cost_a_pass_but_on_the_first_mini_batch(
    objective, on_policy, passes
):
    counted: list[int] = []
    hook = sampled("float32")[0].register_forward_hook(lambda *_: counted.append(1))
    gradient("float32", objective, mini_batch("float32", on_policy))
    hook.remove()
    assert len(counted) == passes


def inputs_of(old: torch.Tensor, sampled_logprobs: torch.Tensor, mask: torch.Tensor) -> LossInputs:
    rows = torch.arange(len(old))
    return LossInputs(
        old, old, torch.zeros_like(old), mask, rows, sampled_logprobs=sampled_logprobs
    )


def never() -> torch.Tensor:
    raise AssertionError("nothing had to be scored")


def test_old_log_probs_and_their_noise_by_hand():
    """Rows 2 and 0 of three are the first mini-batch; of row 0 no pass was made. Row 2 has two
    tokens.
    """
    nan = math.nan
    old = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -4.0, -5.0], [-0.5, -0.25, 9.0]])
    asked = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -4.0, -5.0], [-0.75, -0.25, 9.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, False]])
    forward = torch.tensor([[-0.5625, -0.125, nan], [nan, nan, nan]])
    settled, figures = settle_old_logprobs(
        inputs_of(old, asked, mask), torch.tensor([2, 0]), forward, never
    )
    assert settled.old_logprobs.tolist() == [
        [-1.0, -2.0, 0.0],
        [-3.0, -4.0, -5.0],
        [-0.5625, -0.125, 9.0],
    ]
    assert torch.equal(settled.logprobs, settled.old_logprobs)
    assert float(figures["policy/sampler_gap"]) == (0.1875 + 0.125) / 2
    assert float(figures["policy/noise_floor"]) == float(settled.noise_floor) == 0.125
    assert torch.equal(settled.sampled_logprobs, asked)


def test_where_the_first_mini_batch_trained_on_nothing_the_rollout_is_scored():
    old = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    mask = torch.tensor([[True, True], [True, False]])
    now = old + torch.tensor([[0.25, 0.0], [-0.5, 99.0]])
    forward = torch.full((1, 2), math.nan)
    settled, figures = settle_old_logprobs(
        inputs_of(old, old, mask), torch.tensor([1]), forward, lambda: now
    )
    assert torch.equal(settled.old_logprobs, old)
    assert float(figures["policy/sampler_gap"]) == 0.25
    assert float(figures["policy/noise_floor"]) == 0.5
    empty = inputs_of(old, old, torch.zeros_like(mask))
    settled, figures = settle_old_logprobs(empty, torch.tensor([1]), forward, lambda: now)
    assert math.isnan(figures["policy/sampler_gap"])
    assert float(settled.noise_floor) == 0


def test_one_token_in_a_thousand_may_be_noisier_than_the_floor():
    old = torch.zeros(1, 2000)
    forward = torch.full((1, 2000), 0.5)
    forward[0, :2] = 8.0
    mask = torch.ones(1, 2000, dtype=torch.bool)
    for noisy, expected in ((2, 0.5), (3, 8.0)):
        forward[0, :noisy] = 8.0
        figures = settle_old_logprobs(inputs_of(old, old, mask), torch.tensor([0]), forward, never)[
            1
        ]
        assert float(figures["policy/noise_floor"]) == expected


class Never(RewardHead):
    """A reward that applies to no completion."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(torch.full((len(rollout.texts),), torch.nan))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({}, "rescored"),
        pytest.param({"weight": 100.0, "rank_by": "current"}, "sampler", marks=pytest.mark.full),
        pytest.param({}, "sampler", marks=pytest.mark.full),
        pytest.param({"weight": 100.0, "rank_by": "current"}, "rescored", marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_run_without_any_reward_moves_no_parameter(tmp_path, settings, source):
    """Rounding is there to act on (the gap), and no token is picked: not even in later
    mini-batches.
    """
    rewards = json.dumps({"none": {"head": f"{__name__}.Never"}})
    objective = json.dumps({"class_path": "KLCov", "init_args": {"fraction": 0.3, **settings}})
    given = (
        f"--model.rewards={rewards}",
        f"--model.objective={objective}",
        f"--model.update.old_logprobs={source}",
    )
    run = fit(tmp_path, *FEW, *given, "--model.optimizer.lr=0.01")
    assert run.trainer.global_step == 8
    start = PolicyModel(Policy("rlif-arithmetic")).state_dict()
    assert_same(parameters(run), start)
    rows = metrics(tmp_path)
    assert len(rows) == 2
    assert all(float(row["policy/picked_fraction"]) == 0 for row in rows)
    assert all(0 < float(row["policy/sampler_gap"]) < 1e-5 for row in rows)


def floors(folder: Path) -> list[float]:
    return [float(row["policy/noise_floor"]) for row in metrics(folder)]


@pytest.mark.full  # both floors of a run with stale weights: below
@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        (["--model.policy.dtype=float64"], 0, 1e-5),
        ([], 1e-8, 1e-5),
        (["--model.update.old_logprobs=rescored"], 0, 1e-5),
        (["--trainer.precision=bf16-mixed"], 1e-4, 0.2),
    ],
    ids=str,
)
def test_the_noise_floor_is_measured_in_each_rollout(tmp_path, settings, low, high):
    fit(tmp_path, *FEW, *settings)
    found = floors(tmp_path)
    assert len(found) == 2
    assert all(low <= floor < high for floor in found)


@pytest.mark.parametrize("source", [pytest.param("sampler", marks=pytest.mark.full), "rescored"])
def test_stale_weights_are_seen_whatever_the_old_log_probs(tmp_path, source):
    """Rescored log-probs are the trained policy's; the alarm reads the sampled ones."""
    arguments = (
        "--model.engine=harness.decoding.StaleEngine",
        f"--model.update.old_logprobs={source}",
    )
    with pytest.warns(
        UserWarning,
        match=r"SamplerGap, rollout 2: policy/sampler_gap bound: policy/sampler_gap, .*, is above",
    ):
        fit(tmp_path, *FEW, *arguments)
    gaps = [float(row["policy/sampler_gap"]) for row in metrics(tmp_path)]
    assert gaps[0] < 1e-5
    assert gaps[1] > 1e-3
    found = floors(tmp_path)
    assert found[0] < 1e-5
    assert found[1] > 1e-2 if source == "sampler" else found[1] < 1e-5


TWICE = [
    "--model.update.old_logprobs=rescored",
    "--model.update.epochs_per_rollout=2",
    "--model.optimizer.lr=1e-3",
]


@pytest.mark.slow
def test_rescored_in_two_passes_does_not_depend_on_the_token_budget(tmp_path):
    settings = [*TWICE, "--model.policy.dtype=float64", "--model.objective.weight=1.0"]
    large = fit(tmp_path / "large", *settings, "--model.update.micro_batch_tokens=100000")
    small = fit(tmp_path / "small", *settings, "--model.update.micro_batch_tokens=40")
    assert_same(parameters(large), parameters(small), tolerance=5e-6)  # a step is 1e-3


@pytest.mark.full  # test_run.py resumes; two passes are one: below
@pytest.mark.filterwarnings(
    "ignore:The dirpath has changed"
)  # on purpose: resumed into another folder
def test_rescored_in_two_passes_resumes_bit_for_bit(tmp_path):
    saving = {
        "class_path": "ModelCheckpoint",
        "init_args": {"every_n_train_steps": 8, "save_top_k": -1},
    }
    callback = f"--trainer.callbacks+={json.dumps(saving)}"
    whole = fit(tmp_path / "first", callback, *TWICE)
    checkpoint = next((tmp_path / "first").rglob("*step=8.ckpt"))
    resumed = fit(tmp_path / "second", callback, f"--ckpt_path={checkpoint}", *TWICE)
    assert int(resumed.model.num_rollouts) == 2
    assert_same(parameters(whole), parameters(resumed))
    assert metrics(tmp_path / "first")[-1] == metrics(tmp_path / "second")[-1]
