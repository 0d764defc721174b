"""Each reward's share of the policy loss's gradient: by hand, by autograd, and in a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.rollouts import handmade
from harness.runs import fit
from rlif_lightning.learning.advantages import GDPO, GRPO, RLOO, DrGRPO
from rlif_lightning.learning.baselines import OPO
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import AGGREGATIONS, aggregation_weights
from rlif_lightning.learning.objectives import Clipped, KLCov
from rlif_lightning.learning.rollout_advantages import gradient_norms, score_rollout
from rlif_lightning.records import RewardOutput, Rollout

TEXTS = ["a"] * 8  # of 1, 2, 3, 1, 2, 3, 1, 2 tokens
SCORES = {
    "vote": torch.tensor([0.75, 0.75, 0.25, 0.0, 1.0, 0.5, 0.5, 0.0]),
    "certainty": torch.tensor([3.0, 11.0, 5.0, 2.0, 9.0, 1.0, 4.0, 8.0]),
}


def test_by_hand():
    """Two completions of 1 and 3 tokens, 4 in all: the norms are |part| sqrt(length) / 4, squared
    and summed.

    Parts 1 and -1: sqrt(1 + 3) / 4 = 1/2. Parts 0 and 3: sqrt(27) / 4.
    """
    mask = torch.tensor([[True, False, False], [True, True, True]])
    weights = aggregation_weights(mask, "token_mean", 3)
    parts = torch.tensor([[[1.0, -1.0]], [[0.0, 3.0]], [[0.0, 0.0]]], dtype=torch.float64)
    assert gradient_norms(parts, weights).tolist() == pytest.approx([0.5, 27**0.5 / 4, 0.0])


def inputs_of(rollout: Rollout, advantages: torch.Tensor) -> LossInputs:
    old = rollout.stats.logprobs
    numbers = rollout.completion_numbers(0)
    return LossInputs(
        old.clone().requires_grad_(),
        old,
        advantages,
        rollout.mask,
        numbers,
        token_weights=rollout.token_weights,
    )


def gradient(objective, rollout: Rollout, advantages: torch.Tensor, loss_weights: torch.Tensor):
    """That of the whole loss by the log-probs, by autograd."""
    given = inputs_of(rollout, advantages)
    loss = objective.token_loss(given, objective.select(given))
    return torch.autograd.grad((loss * loss_weights).sum(), given.logprobs)[0]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("advantage", [GDPO(), GRPO(), DrGRPO(), RLOO(), OPO()], ids=str)
@pytest.mark.parametrize("kind", [Clipped, KLCov])
def test_shares_are_of_the_real_loss_and_sum_to_its_gradient(kind, advantage, aggregation):
    """At ratio 1: the gradient of the loss with one reward's part as the advantage has the logged
    norm, and the rewards' gradients sum to that of the advantage. KL-Cov has no slope there.
    """
    rollout = handmade(TEXTS, 4)
    generator = torch.Generator().manual_seed(0)
    rollout = replace(rollout, token_weights=torch.rand(rollout.mask.shape, generator=generator))
    objective = kind(aggregation=aggregation)
    loss_weights = aggregation_weights(rollout.mask, aggregation, 3)
    outputs = {name: RewardOutput(scores) for name, scores in SCORES.items()}
    weights = torch.tensor([0.5, 0.3])
    advantages, figures = score_rollout(rollout, outputs, advantage, weights, loss_weights)
    rewards = torch.stack([output.scores.view(2, 4) for output in outputs.values()])
    parts = advantage.parts(rewards, weights, rollout.lengths.view(2, 4)).float()
    shares = []
    for name, part in zip(SCORES, parts, strict=True):
        of_tokens = part.reshape(-1, 1).expand_as(rollout.mask)
        shares.append(gradient(objective, rollout, of_tokens, loss_weights))
        found = float(figures[f"reward/{name}/gradient_norm"])
        assert found == pytest.approx(float(shares[-1].norm()), rel=1e-5)
        assert found > 0
    whole = gradient(objective, rollout, advantages, loss_weights)
    torch.testing.assert_close(sum(shares), whole, atol=1e-6, rtol=1e-5)


def test_summed_first_the_wider_reward_has_the_gradient():
    """The paper's finding as arithmetic: certainty's spread is 9 times the vote's here."""
    rollout = handmade(TEXTS, 4)
    outputs = {"vote": RewardOutput(SCORES["vote"]), "wide": RewardOutput(9 * SCORES["vote"])}
    loss_weights = aggregation_weights(rollout.mask, "token_mean", 3)
    ratio = {}
    for advantage in (GRPO(eps=0.0), GDPO(eps=0.0)):
        _, figures = score_rollout(rollout, outputs, advantage, torch.ones(2), loss_weights)
        vote, wide = (float(figures[f"reward/{name}/gradient_norm"]) for name in outputs)
        ratio[type(advantage)] = wide / vote
    assert ratio == {GRPO: pytest.approx(9.0), GDPO: pytest.approx(1.0)}


@pytest.mark.slow
def test_a_run_logs_it_by_its_own_aggregation(tmp_path):
    """One reward: its share is the whole, and the mean over tokens is logged as the mean over
    completions where the objective sums so.
    """
    norms = {}
    for aggregation in ("token_mean", "constant"):
        run = fit(
            tmp_path / aggregation,
            f"--model.objective.aggregation={aggregation}",
            "--trainer.limit_train_batches=1",
        )
        logged = run.trainer.callback_metrics
        norms[aggregation] = {
            name: float(logged[f"reward/{name}/gradient_norm"]) for name in run.model.rewards.names
        }
        tokens = float(logged["rollout/length"])
    length = run.model.sampling.max_new_tokens
    for name, norm in norms["token_mean"].items():
        assert norm > 0
        assert norms["constant"][name] == pytest.approx(norm * tokens / length, rel=1e-4)
