"""STARE: its marks and losses by hand, its null setting, and the identity that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from restatement import loss_and_gradient, surrogate, update

from benchmarks.stare_signs import entropy_slope, measure, phi
from harness.files import ROOT
from harness.runs import FEW, assert_same, fit, parameters, run_with
from harness.scoring import completions_of
from rlif_lightning.learning.advantages import GRPO
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.marks import count_of, earliest_first
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.stare import STARE
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import MiniBatch
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.sampling import Sampling

C2 = STARE(fraction=0.25, positive_weight=1.5, negative_weight=0.5)


def by_hand(surprisal: list[list[float]], advantages: list[list[float]], **given) -> LossInputs:
    """An update from surprisals; every position counts."""
    values = -torch.tensor(surprisal)
    mask = torch.ones_like(values, dtype=torch.bool)
    return LossInputs(
        values, values, torch.tensor(advantages), mask, torch.arange(len(values)), **given
    )


def test_the_most_surprising_tokens_of_each_sign_by_hand():
    """4 tokens with A > 0, 3 with A < 0, 1 with A = 0: ceil(4 / 4) = 1 and ceil(3 / 4) = 1."""
    batch = by_hand(
        [[1.0, 3.0, 0.5, 2.0], [9.0, 0.1, 0.3, 0.2]],
        [[0.7, 0.7, 0.7, 0.7], [0.0, -2.0, -2.0, -2.0]],
    )
    assert C2.select(batch).tolist() == [[0, 1, 0, 0], [0, 0, -1, 0]]
    assert replace(C2, negative_weight=1.0).select(batch).tolist() == [[0, 1, 0, 0], [0] * 4]
    assert replace(C2, fraction=0.3).select(batch).tolist() == [[0, 1, 0, 1], [0, 0, -1, 0]]
    assert replace(C2, fraction=0.99).select(batch).tolist() == [[1] * 4, [0, -1, -1, -1]]


def test_of_equal_surprisals_the_earliest_are_marked():
    batch = by_hand([[2.0, 2.0, 1.0], [2.0, 2.0, 2.0]], [[1.0] * 3] * 2)
    marks = replace(C2, fraction=0.5).select(batch)
    assert marks.tolist() == [[1, 1, 0], [1, 0, 0]]
    later = replace(batch, completion_numbers=torch.tensor([(7 << 32) + 1, 7 << 32]))
    assert replace(C2, fraction=0.5).select(later).tolist() == [[0, 0, 0], [1, 1, 1]]
    micro = replace(C2, fraction=0.5, scope="micro")
    assert micro.micro_batch_marks(batch, marks).tolist() == marks.tolist()


def test_an_old_and_a_new_completion_of_one_problem_are_not_marked_together():
    """Replay: they have the same place in their rollouts, and the newer one comes first."""
    batch = by_hand([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [[1.0] * 2] * 3)
    same_place = torch.tensor([4 << 32, 7 << 32, 5 << 32])
    batch = replace(batch, completion_numbers=same_place)
    for fraction, expected in (
        (1 / 6, [[0, 0], [1, 0], [0, 0]]),
        (2 / 6, [[0, 0], [1, 0], [1, 0]]),
        (3 / 6, [[1, 0], [1, 0], [1, 0]]),
        (4 / 6, [[1, 0], [1, 1], [1, 0]]),
    ):
        assert replace(C2, fraction=fraction).select(batch).tolist() == expected


@pytest.mark.slow
def test_places_in_a_rollout_have_an_order_of_their_own():
    numbers = torch.tensor([(5 << 32) + 2**32 - 1, 5 << 32])
    order = earliest_first(numbers, 2**20)
    assert order.dtype == torch.float64
    assert order[0, -1] == 1.0
    assert len(order.unique()) == order.numel()
    assert (order[:, :-1] > order[:, 1:]).all()
    assert (order[1] > order[0].max()).all()


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_an_update_with_one_sign_or_none_marks_that_alone(sign):
    marks = C2.select(by_hand([[1.0, 2.0, 3.0, 4.0]], [[sign] * 4]))
    assert marks.tolist() == [[0.0, 0.0, 0.0, sign]]


def restated_marks(batch: LossInputs, fraction: Fraction) -> list[list[float]]:
    """Sorted one token at a time; ties by place."""
    marks = [[0.0] * batch.mask.shape[1] for _ in range(batch.mask.shape[0])]
    for sign in (1.0, -1.0):
        chosen = [
            (float(batch.old_logprobs[b, t]), b, t)
            for b, t in batch.mask.nonzero().tolist()
            if float(batch.advantages[b, t]) * sign > 0
        ]
        for _, b, t in sorted(chosen)[: math.ceil(len(chosen) * fraction)]:
            marks[b][t] = sign
    return marks


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12), st.integers(1, 99))
def test_marks_match_a_restatement(seed, rows, columns, percent):
    batch = update(rows, columns, seed)
    rounded = (batch.old_logprobs * 4).round() / 4  # with ties
    batch = replace(batch, old_logprobs=rounded)
    objective = replace(C2, fraction=percent / 100)
    assert objective.select(batch).tolist() == restated_marks(batch, Fraction(percent, 100))


@given(st.integers(1, 1000), st.integers(0, 10_000))
def test_counts_are_rounded_up_exactly(mille, total):
    assert count_of(mille / 1000, total) == math.ceil(Fraction(mille, 1000) * total)


def test_losses_and_gradients_are_the_surrogate_times_the_weight():
    """With old log-probs far above, so that the dual clip holds as well."""
    batch = update(6, 8, seed=3)
    far = torch.where(torch.arange(8) == 0, batch.logprobs - 3.0, batch.old_logprobs)
    batch = replace(batch, old_logprobs=far)
    marks = C2.select(batch)
    loss, gradient = loss_and_gradient(C2, batch, marks)
    _, usual = loss_and_gradient(Clipped(clip_high=0.28, dual_clip=10.0), batch, marks)
    weights = {0.0: 1.0, 1.0: 1.5, -1.0: 0.5}
    assert {float(mark) for mark in marks[batch.mask]} == set(weights)
    for b, t in batch.mask.nonzero().tolist():
        token = (float(x[b, t]) for x in (batch.logprobs, batch.old_logprobs, batch.advantages))
        weight = weights[float(marks[b, t])]
        assert float(loss[b, t]) == pytest.approx(weight * surrogate(*token, 0.2, 0.28, 10.0))
        assert float(gradient[b, t]) == pytest.approx(weight * float(usual[b, t]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 10.0}, r"fraction=10\.0 must lie in \[0, 1\)"),
        ({"fraction": -0.1}, r"fraction=-0\.1"),
        ({"positive_weight": -1.0}, r"positive_weight=-1\.0"),
        ({"negative_weight": math.inf}, "negative_weight=inf"),
        ({"scope": "batch"}, "scope='batch' is unknown; use one of update, micro"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        STARE(**settings)


def updater_of(policy: PolicyModel, objective, budget: int) -> Updater:
    calls = OptimizerCalls(lambda loss, is_last: loss.backward(), policy.zero_grad, float)
    return Updater(policy, objective, Sampling(max_new_tokens=12), TokenBudget(budget), calls)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_micro_batches_change_nothing_but_where_the_scope_is_one(tiny_models, scope):
    """Gradients and figures in float64, in one micro-batch and in one for each completion."""
    policy = PolicyModel(Policy(str(tiny_models["llama"]))).double()
    policy.eos_ids = list(range(2, 20))
    completions = completions_of(policy.vocab_size)
    old = measure_tokens(policy, completions, Sampling(max_new_tokens=12), 1000).logprobs
    generator = torch.Generator().manual_seed(2)
    advantages = torch.randn(len(old), 1, generator=generator, dtype=old.dtype).expand_as(old)
    index = torch.arange(len(old))
    inputs = LossInputs(old, old, advantages, completions.mask, index)
    found = {}
    for each in {scope, "update"}:
        for budget in (10_000, 1):
            policy.zero_grad()
            meter = UpdateMeter(index.device)
            updater = updater_of(policy, replace(C2, scope=each), budget)
            updater.accumulate_gradient(MiniBatch(inputs, completions, index), meter)
            gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
            found[each, budget] = gradient, float(meter.means()["policy/picked_fraction"])
    together, alone = found[scope, 10_000], found[scope, 1]
    size = float(alone[0].abs().max())
    is_equal = torch.allclose(together[0], alone[0], rtol=1e-5, atol=1e-6 * size)
    assert is_equal == (scope == "update")
    assert (together[1] == alone[1]) == is_equal  # each completion has a token of its own
    assert together[1] == found["update", 10_000][1] > 0.25
    # All in one micro-batch, by log-probs that are the old ones: the scopes are the same.
    torch.testing.assert_close(together[0], found["update", 10_000][0], rtol=1e-5, atol=1e-6 * size)


@dataclass(frozen=True)
class EntropyWeighted(Clipped):
    """An own objective with float marks, from the entropies of sampling."""

    def select(self, update: LossInputs) -> torch.Tensor:
        assert update.sampled_entropy is not None
        return torch.where(update.mask, update.sampled_entropy, 0.0)

    def policy_loss(self, batch: LossInputs, marks: torch.Tensor) -> torch.Tensor:
        assert batch.sampled_entropy is None  # only `select` has them
        return marks * self.clipped(batch)


@pytest.mark.slow
def test_select_has_the_entropies_of_sampling_and_may_return_weights(tmp_path, monkeypatch):
    seen = []
    select = EntropyWeighted.select

    def spied(self, update):
        seen.append((update.sampled_entropy, select(self, update)))
        return seen[-1][1]

    monkeypatch.setattr(EntropyWeighted, "select", spied)
    where = f"--model.objective={__name__}.EntropyWeighted"
    run = fit(tmp_path, where, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0")
    assert len(seen) == 4  # one for each optimiser step
    entropies = torch.cat([entropy[marks != 0] for entropy, marks in seen])
    logged = run.trainer.callback_metrics
    assert float(entropies.mean()) == pytest.approx(float(logged["policy/entropy"]), rel=1e-3)
    assert float(logged["policy/picked_fraction"]) > 0.9  # certain tokens have entropy 0


def test_float_marks_leave_the_clip_where_it_is():
    """Tokens 0 and 1 are beyond the clip; a bool mark takes one out, float marks none."""
    new = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    old, mask = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    batch = LossInputs(new, old, torch.ones(1, 4), mask, torch.tensor([0]), torch.ones(1, 4))
    for marks, clipped, picked in (
        (torch.tensor([[1.0, 0.0, -1.0, 0.0]]), 2 / 4, 2 / 4),
        (torch.tensor([[True, False, True, False]]), 1 / 4, 2 / 4),
    ):
        meter = UpdateMeter(mask.device)
        meter.add(batch, marks, mask, STARE())
        means = meter.means()
        assert float(means["policy/clip_fraction"]) == clipped
        assert float(means["policy/picked_fraction"]) == picked
        assert float(means["policy/log_ratio_picked"]) == 1 / 2


@pytest.mark.full  # test_commands_in_docs.py parses it; the null settings train
def test_the_overlay_is_the_default_and_trains(tmp_path):
    assert {path.name for path in (ROOT / "configs" / "related").glob("stare*")} == {"stare.yaml"}
    run = fit(tmp_path, f"--config={ROOT / 'configs' / 'related' / 'stare.yaml'}")
    assert run.model.objective == STARE()
    assert run.model.advantage == GRPO()
    logged = run.trainer.callback_metrics
    assert float(logged["stare/gate"]) == float(float(logged["policy/entropy"]) < 0.3)
    assert float(logged["policy/grad_norm"]) > 0
    assert run.trainer.global_step == 8


NULLS = {
    "the gate is off": ({"negative_weight": 0.5}, {"target": 1e-9}),
    "weights are 1": ({"positive_weight": 1.0}, None),
    "nothing is weighed": ({"fraction": 0.0}, None),
}


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    """Clipped GRPO with STARE's clip bounds."""
    folder = tmp_path_factory.mktemp("grpo")
    clip = ["--model.objective.clip_high=0.28", "--model.objective.dual_clip=10.0"]
    return parameters(
        fit(folder, *FEW, "--model.advantage=GRPO", "--model.objective=Clipped", *clip)
    )


@pytest.mark.parametrize(
    "name",
    ["the gate is off", *(pytest.param(each, marks=pytest.mark.full) for each in [*NULLS][1:])],
)
def test_the_null_settings_are_clipped_grpo_bit_for_bit(tmp_path, grpo, name):
    settings, controller = NULLS[name]
    given_ = [*FEW, "--model.advantage=GRPO", "--model.objective=STARE"]
    given_ += [f"--model.objective.{key}={value}" for key, value in settings.items()]
    if controller is None:
        run = fit(tmp_path, *given_)
    else:
        run = run_with(tmp_path, "STAREController", *given_, **controller)
        assert float(run.trainer.callback_metrics["stare/gate"]) == 0
        assert run.model.objective.negative_weight == 0.5  # its own again after the run
    assert_same(parameters(run), grpo)


@pytest.mark.slow
def test_it_is_not_clipped_grpo_with_the_gate_on(tmp_path, grpo):
    given_ = [*FEW, "--model.advantage=GRPO", "--model.objective=STARE"]
    run = run_with(tmp_path, "STAREController", *given_, target=9.0)
    assert float(run.trainer.callback_metrics["policy/picked_fraction"]) > 0.01
    assert any(not torch.equal(value, grpo[name]) for name, value in parameters(run).items())


def test_entropy_moves_by_minus_advantage_times_phi():
    """dH / deta = -A Phi(p) of a step along the policy gradient, by finite differences."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 11, generator=generator, dtype=torch.float64)
    tokens = torch.arange(7)
    for advantage in (1.0, -0.7):
        found = entropy_slope(logits, tokens, advantage, 1e-5)
        expected = -advantage * phi(logits, tokens)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert (phi(logits, logits.argmin(-1)) < 0).all()  # the most surprising token
    assert (phi(logits, logits.argmax(-1)) > 0).all()


def test_phi_by_hand():
    """p = (3/4, 1/4): H = .562335; p(ln p + H) = .205989, -.205989; squares sum to .102995."""
    logits = torch.tensor([[math.log(3.0), 0.0]] * 2, dtype=torch.float64)
    found = phi(logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([0.1029949, -0.3089848], abs=1e-6)


@pytest.mark.slow
def test_the_rule_on_the_embedded_model():
    shares = measure(num_rollouts=1, fraction=0.1, seed=0)
    assert shares["agreement"] > 0.9
    assert shares["right where A < 0"] > shares["right where A > 0"]
    few = measure(num_rollouts=1, fraction=0.02, seed=0)
    assert few["right"] > 0.85 > shares["right"]
