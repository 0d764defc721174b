"""How often STARE's rule is right: the share of its tokens that move the entropy as it says.

    python -m benchmarks.stare_signs     # a minute of one core

The embedded model draws completions of the quickstart's problems, as at the start of training. The
rule says that a step along the policy gradient of a marked token raises the entropy of its position
where A > 0, and lowers it where A < 0. The exact derivative says so where ``phi`` is negative.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.results import FOLDER, write_results
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.learning.advantages import GRPO
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.learning.stare import STARE
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rewards import GoldAnswer
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

SAMPLING, PROBLEMS, GROUP = Sampling(max_new_tokens=48), 16, 8


def phi(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return Phi of sampled tokens: an update with advantage A moves entropy by ``-A Phi``.

    ``Phi_a = p_a (ln p_a + H) - sum_v p_v² (ln p_v + H)``, from ``dH/dz_v = -p_v (ln p_v + H)`` of
    the logits z and the step ``A (1[v = a] - p_v)`` (https://arxiv.org/abs/2606.19236).

    Args:
        logits: ``[N, V]``.
        tokens: ``[N]`` int64, the sampled ones.
    """
    logprobs = logits.log_softmax(-1)
    p = logprobs.exp()
    excess = p * (logprobs - (p * logprobs).sum(-1, keepdim=True))  # [N, V], p (ln p + H)
    return excess.gather(1, tokens.unsqueeze(1)).squeeze(1) - (p * excess).sum(-1)


def entropy_slope(logits: Tensor, tokens: Tensor, advantage: float, step: float) -> Tensor:
    """Return ``[N]`` dH/deta of a step ``eta A grad log p`` on the logits, by differences."""
    gradient = -logits.softmax(-1)
    gradient[torch.arange(len(tokens)), tokens] += 1

    def entropy(eta: float) -> Tensor:
        return torch.distributions.Categorical(logits=logits + eta * advantage * gradient).entropy()

    return (entropy(step) - entropy(-step)) / (2 * step)


def drawn(policy: PolicyModel, number: int, seed: int) -> tuple[Rollout, Tensor]:
    """Return a rollout of the quickstart's problems and its ``[B, T]`` GRPO advantages."""
    table = ArithmeticProblems(3, 4, size=640, validation_size=200).load("train")
    rows = table.select(range(number * PROBLEMS, (number + 1) * PROBLEMS))
    ids = [torch.tensor(policy.tokenizer(text)["input_ids"]) for text in rows["question"]]
    index = torch.arange(PROBLEMS) + number * PROBLEMS
    prompts = Prompts(ids, rows["question"], {"answer": rows["answer"]}, index)
    engine = NativeEngine()
    engine.setup(policy, seed)
    rollout = engine.generate(prompts, GROUP, SAMPLING, number)
    rewards = RewardSet({"gold": WeightedReward(GoldAnswer())}, "answer")
    return rollout, score_rollout(rollout, rewards(rollout), GRPO(), rewards.weights)[0]


@torch.no_grad()
def signs_of(policy: PolicyModel, rollout: Rollout) -> Tensor:
    """Return ``[B, T]`` Phi of a rollout's tokens, 0 outside the mask."""
    found = torch.zeros_like(rollout.stats.logprobs)
    for packed in pack(rollout.completions, 4096):
        logits = policy.head(policy.completion_hidden(packed)).double()  # [M, V], temperature 1
        found[packed.rows] = packed.unpack(phi(logits, packed.tokens).float())
    return found


def measure(num_rollouts: int, fraction: float, seed: int) -> dict[str, float]:
    """Return shares: how often the rule is right, over tokens and by size.

    - ``agreement``: of the tokens with an advantage, those that are marked and have a negative Phi,
      or are neither.
    - ``agreement without marks``: the same of a rule that marks nothing.
    - ``right``: of the marked tokens (variant C2), those with a negative Phi; also by sign of A.
    - ``right by size``: the negative part of the marked tokens' sum of |Phi|.
    - ``found``: of the tokens with a negative Phi, those that are marked; ``found by size``: of
      their sum of |Phi|.
    """
    policy, sums = PolicyModel(Policy("rlif-arithmetic")), defaultdict[str, float](float)
    rule = STARE(fraction=fraction, negative_weight=0.9)
    for number in range(num_rollouts):
        rollout, advantages = drawn(policy, number, seed)
        old = rollout.stats.logprobs
        numbers = rollout.completion_numbers(number)
        marks = rule.select(LossInputs(old, old, advantages, rollout.mask, numbers))
        values, used = signs_of(policy, rollout).double(), rollout.mask & (advantages != 0)
        negative = (values < 0) & used
        groups = {"used": used, "A > 0": marks > 0, "A < 0": marks < 0, "marked": marks != 0}
        for name, chosen in groups.items():
            sums[name] += float(chosen.sum())
            sums[f"{name} right"] += float((chosen & negative).sum())
            sums[f"{name} size"] += float(values[chosen].abs().sum())
            sums[f"{name} right size"] += float(values[chosen & negative].abs().sum())
    wrong = sums["marked"] + sums["used right"] - 2 * sums["marked right"]
    return {
        "agreement": 1 - wrong / sums["used"],
        "agreement without marks": 1 - sums["used right"] / sums["used"],
        "right": sums["marked right"] / sums["marked"],
        "right where A > 0": sums["A > 0 right"] / sums["A > 0"],
        "right where A < 0": sums["A < 0 right"] / sums["A < 0"],
        "right by size": sums["marked right size"] / sums["marked size"],
        "found": sums["marked right"] / sums["used right"],
        "found by size": sums["marked right size"] / sums["used right size"],
        "tokens": sums["used"],
    }


def main() -> None:
    """Measure several fractions and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    rows = {}
    for fraction in (0.02, 0.05, 0.1, 0.2):
        found = measure(given.rollouts, fraction, seed=0)
        rows[str(fraction)] = {name: f"{value:.5g}" for name, value in found.items()}
        print(fraction, rows[str(fraction)], flush=True)
    notes = {
        "command": "python -m benchmarks.stare_signs",
        "conditions": f"CPU; the embedded model before training; {given.rollouts} rollouts, seed 0",
    }
    write_results(given.results / "stare_signs.csv", notes, rows, key="fraction")


if __name__ == "__main__":
    main()
