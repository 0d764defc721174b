"""Another sampler's completions: the policy's own statistics, the gap, and weights that correct for
it.

The other sampler is a real one: the native engine on a bfloat16 copy of the policy. vLLM itself:
test_vllm.py.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from restatement import loss_and_gradient, update

from harness.decoding import GROUP, SAMPLINGS, Bfloat16Sampler, load, prompts_of, rescored, sampler
from harness.rollouts import handmade
from harness.runs import FEW, ONE, assert_same, fit, metrics, parameters
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.records import RewardOutput, TokenStats
from rlif_lightning.rollout.importance_weights import Correction
from rlif_lightning.sampling import request_seed


# The marks: "hot" has a temperature and a smallest length as well.
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "hot" else pytest.mark.full) for n in SAMPLINGS]
)
def test_statistics_are_the_policys_whoever_sampled(tiny_models, architecture, name):
    policy, sampling = load(tiny_models[architecture]), SAMPLINGS[name]
    engine = Bfloat16Sampler(max_ratio=1.1)
    engine.setup(policy, 7)
    rollout = engine.generate(prompts_of(policy, [0, 1, 2, 3]), GROUP, sampling, 0)
    assert len(set(rollout.lengths.tolist())) > 2
    scored = rescored(policy, rollout, sampling)
    for field in fields(TokenStats):
        torch.testing.assert_close(
            getattr(rollout.stats, field.name), getattr(scored, field.name), rtol=1e-4, atol=1e-4
        )
    assert rollout.engine_logprobs is not None
    assert rollout.token_weights is not None
    gap = (rollout.engine_logprobs - rollout.stats.logprobs)[rollout.mask].abs()
    assert 1e-4 < float(gap.mean()) < 0.3  # the engine's are not the policy's, but nearly
    assert not rollout.engine_logprobs[~rollout.mask].any()
    assert rollout.texts == engine.native.generate(rollout.prompts, GROUP, sampling, 0).texts


@given(st.floats(-40, 0), st.floats(-40, 0), st.floats(1, 10))
def test_truncated_ratio_matches_restatement(mine, theirs, bound):
    logprobs = torch.tensor([[[mine]], [[theirs]]], dtype=torch.float64)  # [2, B, T]
    found, _ = Correction(bound).weights(*logprobs, torch.ones(1, 1, dtype=torch.bool))
    expected = min(math.exp(mine - theirs) if mine - theirs < 20 else math.inf, bound)
    assert float(found) == pytest.approx(max(expected, math.exp(-20)), rel=1e-9)


OBJECTIVES = [
    Clipped(),
    KLCov(fraction=0.3),
    ClipCov(fraction=0.2, band=(0.01, 5.0)),
    KLCov(fraction=0.3, unselected="plain"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_weights_multiply_the_policy_loss_of_each_token_and_nothing_else(objective):
    batch = update()
    penalised = replace(objective, reference_kl=ReferenceKL(weight=0.1), entropy_bonus=0.05)
    batch = replace(batch, entropy=batch.logprobs.abs(), ref_logprobs=batch.logprobs.detach() - 0.3)
    marks = objective.select(batch)
    weights = torch.linspace(0.2, 2.0, marks.numel(), dtype=batch.logprobs.dtype).view(marks.shape)
    weighted = replace(batch, token_weights=weights)
    assert torch.equal(objective.select(weighted), marks)
    loss, gradient = loss_and_gradient(objective, batch, marks)
    found, slope = loss_and_gradient(objective, weighted, marks)
    torch.testing.assert_close(found[batch.mask], (loss * weights)[batch.mask])
    torch.testing.assert_close(slope[batch.mask], (gradient * weights)[batch.mask])
    more, _ = loss_and_gradient(penalised, batch, marks)
    more_found, _ = loss_and_gradient(penalised, weighted, marks)
    torch.testing.assert_close((more_found - found)[batch.mask], (more - loss)[batch.mask])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_weights_of_one_change_no_bit(objective):
    batch = update()
    marks = objective.select(batch)
    ones = replace(batch, token_weights=torch.ones_like(batch.old_logprobs))
    for plain, weighted in zip(
        loss_and_gradient(objective, batch, marks),
        loss_and_gradient(objective, ones, marks),
        strict=True,
    ):
        assert torch.equal(plain[batch.mask], weighted[batch.mask])


def test_the_metrics_of_the_gap_by_hand():
    """Tokens that count: 1, 2, 3 of three rows; |differences| .5 .1 .2 .3 .4 .6, the others
    absurd.
    """
    rollout = handmade(["a", "b", "c"], 3)
    gap = torch.tensor([[0.5, 9.0, 9.0], [-0.1, 0.2, 9.0], [0.3, 0.4, -0.6]])
    outputs = {"a": RewardOutput(torch.arange(3.0))}
    assert not [
        name
        for name in score_rollout(rollout, outputs, GDPO(), torch.ones(1))[1]
        if "engine" in name
    ]
    weights = torch.tensor([[2.0, 9.0, 9.0], [1.0, 1.0, 9.0], [1.0, 1.0, 0.6]])
    rollout = replace(rollout, engine_logprobs=rollout.stats.logprobs + gap, token_weights=weights)
    found = score_rollout(rollout, outputs, GDPO(), torch.ones(1))[1]
    assert float(found["rollout/engine_gap"]) == pytest.approx(2.1 / 6, abs=1e-6)
    assert float(found["rollout/engine_gap_max"]) == pytest.approx(0.6, abs=1e-6)
    assert float(found["rollout/engine_weight"]) == pytest.approx(6.6 / 6, abs=1e-6)


def without_engine(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if "engine" not in name} for row in rows]


@pytest.fixture(scope="module")
def uncorrected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncorrected")
    return fit(folder, *FEW, *sampler()), folder


@pytest.mark.slow
def test_noise_of_the_engines_log_probs_reaches_neither_marks_nor_losses(uncorrected, tmp_path):
    """KL-Cov ranks, ratios and rewards are of the policy's log-probs: one nat of noise changes no
    bit.
    """
    run, folder = uncorrected
    noisy = fit(tmp_path, *FEW, *sampler(noise=1.0))
    gaps = [
        float(row["rollout/engine_gap"]) for row in metrics(tmp_path) if row["rollout/engine_gap"]
    ]
    assert min(gaps) > 0.5
    assert any(float(row["policy/picked_fraction"] or 0) > 0 for row in metrics(tmp_path))
    assert without_engine(metrics(folder)) == without_engine(metrics(tmp_path))
    assert_same(parameters(run), parameters(noisy))


@pytest.mark.full  # weights of one change no bit: above
def test_an_engine_with_the_policys_log_probs_is_not_corrected(uncorrected, tmp_path):
    exact = fit(tmp_path, *FEW, *sampler(exact="true", max_ratio=2.0))
    assert {
        row["rollout/engine_weight"] for row in metrics(tmp_path) if row["rollout/engine_weight"]
    } == {"1.0"}
    assert_same(parameters(uncorrected[0]), parameters(exact))


def test_weights_reach_the_parameters_and_no_mark(uncorrected, tmp_path):
    _, folder = uncorrected
    weighted = fit(tmp_path, *FEW, *ONE, *sampler(noise=0.3, max_ratio=2.0))
    first, other = metrics(folder)[0], metrics(tmp_path)[0]
    assert first["policy/picked_fraction"] == other["policy/picked_fraction"]
    assert 0.9 < float(other["rollout/engine_weight"]) < 1.1
    assert first["policy/grad_norm"] != other["policy/grad_norm"]
    assert int(weighted.model.num_rollouts) == 1


def test_request_seeds_depend_on_seed_step_and_row_alone():
    seeds = {
        request_seed(seed, step, row)
        for seed in (0, 1)
        for step in (0, 1, 2**62)
        for row in (0, 1, 5)
    }
    assert len(seeds) == 18
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert request_seed(3, 4, 5) == request_seed(3, 4, 5)
