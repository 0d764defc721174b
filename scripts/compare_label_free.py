"""Compare SCRL and FlipWeight with the code that the authors of SCRL and TTRL-Guard released.

    git clone https://github.com/Jasper-Yan/SCRL
    git clone https://github.com/linhxkkkk/TTRL-Guard
    python scripts/compare_label_free.py SCRL TTRL-Guard

Their files run as they are, on random groups of answers that are equal where their texts are. The
script prints the largest differences. SCRL's code pays the positive answer its share p, the paper
and we p minus the positive share: that much is taken off before continuous scores are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rewards import SCRL, ClusterVote, FlipWeight

LIMITS = [(0.375, 0.125, 0.125), (0.5, 0.15, 0.15), (0.3, 0.05, 0.3)]


def theirs(path: Path) -> Any:
    """Load one of their files; what it imports of its own package tells answers by their texts."""
    stand_in: Any = ModuleType("verl.utils.reward_score.ttrl_math")
    stand_in.extract_answer = lambda text: None if text == "no" else text
    stand_in.simplify_expression_string = lambda text: text
    stand_in.grade = lambda one, other, fast=True: one == other
    stand_in.compute_score = None
    names = stand_in.__name__.split(".")
    for end in range(1, len(names)):
        sys.modules[".".join(names[:end])] = ModuleType(".".join(names[:end]))
    sys.modules[stand_in.__name__] = stand_in
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rollout_of(texts: list[str], group_size: int, entropies: list[float]) -> Rollout:
    """Return completions of one token each."""
    values = torch.tensor(entropies).unsqueeze(1)
    mask, size = torch.ones_like(values, dtype=torch.bool), len(texts) // group_size
    prompts = Prompts([torch.tensor([1])] * size, [""] * size, {}, torch.arange(size))
    stats, ended = TokenStats(-values, values, values), torch.ones(len(texts), dtype=torch.bool)
    return Rollout(prompts, mask.long(), mask, stats, texts, ended, group_size)


def compare_scrl(labels: Any, rewards: Any, groups: int) -> float:
    """Return the largest difference of a score over random groups, binary and continuous."""
    rng, worst = random.Random(0), 0.0
    for _ in range(groups):
        size, kinds = rng.choice([7, 8, 11, 16]), rng.choice([2, 3, 5])
        texts = [rng.choice(["no", *map(str, range(3, 3 + kinds))]) for _ in range(size)]
        entropies = [rng.uniform(0.1, 1.5) for _ in texts]
        limits, mode = rng.choice(LIMITS), rng.choice(["binary", "continuous"])
        given = np.array(entropies, np.float32)
        [positive], [negative], [found] = labels.determine_pseudo_labels(
            texts, given, size, *limits
        )
        known = {
            **{name: found[name] for name in ("answer_proportions", "intra_class_entropys")},
            "overall_avg_entropy": found["overall_avg_entropy"], "negative_set": negative,
            "reward_mode": mode, "tau_pos": limits[0], "tau_low": limits[2], "lambda_h": 0.1,
        }  # fmt: skip
        scores = [rewards.reward_func("", text, positive, known)["score"] for text in texts]
        if mode == "continuous":
            scores = [s - limits[0] * (t == positive) for s, t in zip(scores, texts, strict=True)]
        ours = SCRL(mode, *limits)(rollout_of(texts, size, entropies)).scores
        worst = max(worst, float((ours - torch.tensor(scores)).abs().max()))
    return worst


def compare_guard(guard: Any, runs: int) -> float:
    """Return the largest difference of a weight over runs of 25 visits of three problems."""
    worst = 0.0
    for seed in range(runs):
        rng, own = random.Random(seed), guard.TTRLGuard()
        head, table = FlipWeight(ClusterVote(mode="hard")), PromptTable()
        head.use_table(table, "vote")
        for visit in range(25):
            groups = []
            for _ in range(3):
                votes = rng.choice([4, 5, 7, 8, 9, 10])
                majority = str(3 + (rng.random() < (0.0, 0.05, 0.3)[seed % 3]))
                groups.append([majority] * votes + [str(100 + n) for n in range(10 - votes)])
            majorities, shares = zip(*map(guard._majority_vote, groups), strict=True)
            weights = own.step([0, 1, 2], list(shares), list(majorities))[0]
            with table.visiting(visit, 0):
                texts = [text for group in groups for text in group]
                output = head(rollout_of(texts, 10, [0.0] * 30))
            table.gather()
            assert output.group_weight_factor is not None
            worst = max(worst, float(np.abs(output.group_weight_factor.numpy() - weights).max()))
    return worst


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scrl", type=Path, help="a clone of Jasper-Yan/SCRL")
    parser.add_argument("guard", type=Path, help="a clone of linhxkkkk/TTRL-Guard")
    arguments = parser.parse_args()
    labels = theirs(arguments.scrl / "verl/verl/trainer/ppo/scrl_utils.py")
    rewards = theirs(arguments.scrl / "verl/verl/utils/reward_score/scrl_math/__init__.py")
    guard = theirs(arguments.guard / "verl/verl/trainer/ppo/ttrl_utils.py")
    print(f"SCRL, 800 groups: {compare_scrl(labels, rewards, 800):.1e}")
    print(f"TTRL-Guard, 4500 weights: {compare_guard(guard, 60):.1e}")


if __name__ == "__main__":
    main()
