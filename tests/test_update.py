"""How a rollout is cut into updates, which rows are trained on, and what stops a step."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.models import ARCHITECTURES
from harness.rollouts import handmade
from harness.runs import fit
from harness.scoring import completions_of
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.objectives import Clipped, KLCov
from rlif_lightning.learning.rollout_advantages import without_dropped
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import MiniBatch, UpdatePlan
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater, is_trained
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.sampling import Sampling


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 5), st.integers(2, 4))
def test_minibatches_are_the_same_on_any_number_of_ranks(updates, epochs, step, ranks):
    """Every pass uses each group once; prompt i of the step is group i // ranks of rank i %
    ranks.
    """
    plan = UpdatePlan(updates, epochs)
    per_rank = 2 * updates
    alone = list(plan.minibatches(per_rank * ranks, step, 3, data_rank=0, num_data_ranks=1))
    assert len(alone) == plan.num_updates == updates * epochs
    for epoch in range(epochs):
        used = [
            group for groups in alone[epoch * updates : (epoch + 1) * updates] for group in groups
        ]
        assert sorted(used) == list(range(per_rank * ranks))
    dealt = [list(plan.minibatches(per_rank, step, 3, rank, ranks)) for rank in range(ranks)]
    for number, groups in enumerate(alone):
        together = [group * ranks + rank for rank in range(ranks) for group in dealt[rank][number]]
        assert sorted(together) == groups


def test_minibatches_are_shuffled_anew_each_rollout_and_pass():
    plan = UpdatePlan(4, 2)
    first, second = (list(plan.minibatches(32, step, 0, 0, 1)) for step in (0, 1))
    assert first[:4] != first[4:]
    assert first != second


@pytest.mark.parametrize(
    "name", ["updates_per_rollout", "epochs_per_rollout", "micro_batch_tokens", "max_grad_norm"]
)
def test_plan_refuses_zero(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        UpdatePlan(**{name: 0})


def test_plan_refuses_unknown_old_logprobs():
    with pytest.raises(
        ValueError, match="old_logprobs='engine' is unknown; use one of sampler, rescored"
    ):
        UpdatePlan(old_logprobs="engine")


def update_of(advantages: list[float]) -> LossInputs:
    """Groups of two rows, three tokens each."""
    rows = len(advantages)
    logprobs = -torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(rows, 3, dtype=torch.bool)
    return LossInputs(
        logprobs,
        logprobs,
        torch.tensor(advantages).view(-1, 1).expand(rows, 3),
        mask,
        torch.arange(rows),
    )


def test_groups_without_any_advantage_are_skipped():
    update = update_of([0.0, 0.0, 1.0, 0.0])
    none = torch.zeros_like(update.mask)
    assert is_trained(update, none, Clipped(), 2).tolist() == [False, False, True, True]
    picked = none.clone()
    picked[1, 2] = True
    assert is_trained(update, picked, KLCov(), 2).tolist() == [True, True, True, True]
    for objective in (Clipped(reference_kl=ReferenceKL(weight=0.1)), Clipped(entropy_bonus=0.1)):
        assert is_trained(update, none, objective, 2).all()


def off_policy(policy: PolicyModel, sampling: Sampling) -> MiniBatch:
    """An update near the policy: old and reference log-probs; every token of its own advantage and
    weight.
    """
    completions = completions_of(policy.vocab_size)
    mask = completions.mask
    now = measure_tokens(policy, completions, sampling, 1000).logprobs
    generator = torch.Generator().manual_seed(2)
    old, reference = (
        now + 0.3 * torch.randn(now.shape, generator=generator, dtype=now.dtype) for _ in range(2)
    )
    advantages = torch.randn(now.shape, generator=generator, dtype=now.dtype)
    weights = torch.rand(now.shape, generator=generator, dtype=now.dtype) + 0.5
    update = LossInputs(
        old, old, advantages, mask, torch.arange(len(mask)), None, reference, weights
    )
    return MiniBatch(update, completions, torch.arange(len(mask)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_micro_batch_is_one_completion_at_a_time(tiny_models, architecture, checkpointing):
    """Loss, every gradient and the token figures: KL-Cov with reference KL and entropy bonus, in
    float64.
    """
    settings = Policy(str(tiny_models[architecture]), gradient_checkpointing=checkpointing)
    policy = PolicyModel(settings).double()
    policy.eos_ids = list(range(2, 20))
    sampling = Sampling(temperature=1.3, max_new_tokens=12, min_new_tokens=4)
    penalty = ReferenceKL(weight=0.1)
    objective = KLCov(
        fraction=0.2,
        weight=0.5,
        reference_kl=penalty,
        entropy_bonus=0.05,
        aggregation="sequence_mean",
    )
    mini_batch = off_policy(policy, sampling)
    found = {}
    for budget in (10_000, 1):
        policy.zero_grad()
        shares: list[float] = []
        meter = UpdateMeter(mini_batch.index.device)

        def backward(share: torch.Tensor, is_last: bool, shares=shares) -> None:
            shares.append(float(share.detach()))
            share.backward()

        calls = OptimizerCalls(backward, policy.zero_grad, float)
        updater = Updater(policy, objective, sampling, TokenBudget(budget), calls)
        updater.accumulate_gradient(mini_batch, meter)
        assert len(shares) == (1 if budget > 1 else len(mini_batch.index))
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
        found[budget] = sum(shares), gradients, meter.sums
    (loss, together, figures), (loss_alone, alone, figures_alone) = found.values()
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    torch.testing.assert_close(figures, figures_alone, rtol=1e-5, atol=1e-9)
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        scale = float(alone[name].abs().max())
        assert float((gradient - alone[name]).abs().max()) <= 1e-5 * max(scale, 1e-3), name
    assert max(float(gradient.abs().max()) for gradient in together.values()) > 0.01


def test_a_completion_that_a_head_drops_counts_nowhere():
    rollout = handmade(["1", "2", "3", "4"], 2)
    keep = torch.tensor([True, False, True, True])
    outputs = {
        "a": RewardOutput(torch.arange(4.0), keep_mask=keep),
        "b": RewardOutput(torch.ones(4)),
    }
    kept, scores = without_dropped(rollout, outputs)
    assert kept.mask.any(-1).tolist() == keep.tolist()
    assert torch.equal(kept.mask[keep], rollout.mask[keep])
    for output in scores.values():
        assert output.scores.isnan().tolist() == (~keep).tolist()


class Huge(RewardHead):
    """Scores that overflow float32 once they are multiplied with anything."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(torch.arange(len(rollout.texts), dtype=torch.float32) * 1e37)


def test_a_gradient_that_is_not_finite_stops_with_step_and_head(tmp_path):
    rewards = json.dumps({"big": {"head": f"{__name__}.Huge"}})
    with pytest.raises(
        RuntimeError, match=r"gradient of rollout 0 is not finite; .*big in \[0, .*e\+38\]"
    ):
        fit(
            tmp_path,
            f"--model.rewards={rewards}",
            "--model.advantage=DrGRPO",
            "--model.objective=Clipped",
        )


class KeepsOne(RewardHead):
    """Wants only the first completion of each group."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        first = torch.arange(len(rollout.texts)) % rollout.group_size == 0
        return RewardOutput(torch.rand(len(first)), keep_mask=first)


def test_a_rollout_with_nothing_to_train_on_changes_no_parameter(tmp_path):
    rewards = json.dumps({"one": {"head": f"{__name__}.KeepsOne"}})
    run = fit(tmp_path, f"--model.rewards={rewards}")
    assert run.trainer.global_step == 8
    fresh = replace(run.model.policy_settings)
    start = type(run.model.policy)(fresh).state_dict()
    assert all(
        torch.equal(value, start[name]) for name, value in run.model.policy.state_dict().items()
    )


def test_the_meters_figures_of_picked_tokens_by_hand():
    """Four tokens, one of them not of the batch; two of the other three picked, with entropies 1
    and 2.
    """
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -9.0]])
    old = torch.tensor([[-1.5, -2.0, -3.25, -1.0]])
    mask = torch.tensor([[True, True, True, False]])
    entropy = torch.tensor([[1.0, 4.0, 2.0, 50.0]])
    batch = LossInputs(
        logprobs, old, torch.zeros(1, 4), mask, torch.zeros(1, dtype=torch.int64), entropy
    )
    meter = UpdateMeter(mask.device)
    meter.add(batch, torch.tensor([[True, False, True, True]]), mask, Clipped())
    means = meter.means()
    assert float(means["policy/entropy_picked"]) == pytest.approx(1.5)
    assert float(means["policy/log_ratio_picked"]) == pytest.approx((0.5 + 0.25) / 2)
    assert float(means["policy/picked_fraction"]) == pytest.approx(2 / 3)
