"""The whole method in one loop, without Lightning: rollout, rewards, advantages, update.

    python examples/grpo_in_one_file.py --steps 20

Each step draws 8 completions for each of 16 sums, lets every group vote on its answer, turns the
votes into advantages and takes two optimiser steps on the clipped surrogate. Labels are only used
to print the accuracy. The library adds what is left out here: several rewards, KL-Cov, the
reference model, schedules, checkpoints, several processes.
"""

from __future__ import annotations

import argparse

import torch

from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.learning.losses import aggregation_weights, clipped_surrogate
from rlif_lightning.learning.normalization import group_normalize
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rewards.voting import vote_shares
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

# Prompts, completions of each, updates per rollout, tokens of a forward pass.
P, G, UPDATES, TOKENS = 16, 8, 2, 8192
SAMPLING = Sampling(max_new_tokens=48)


def draw_prompts(problems, tokenizer, step: int) -> Prompts:
    """Return the ``P`` problems of one step; their row numbers seed the sampling."""
    index = [(step * P + i) % len(problems) for i in range(P)]
    rows = problems.select(index)
    token_ids = [torch.tensor(tokenizer(question)["input_ids"]) for question in rows["question"]]
    return Prompts(token_ids, rows["question"], {"answer": rows["answer"]}, torch.tensor(index))


def main() -> None:
    """Train, and print one line a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="rollouts")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    policy = PolicyModel(Policy("rlif-arithmetic"))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=arguments.learning_rate, weight_decay=0.0)
    engine, extract = NativeEngine(), AnswerExtractor()
    engine.setup(policy, arguments.seed)
    problems = ArithmeticProblems(min_terms=3, max_terms=4).load("train")

    for step in range(arguments.steps):
        # 1. Rollout: B = P * G completions, with the log-probs that they were sampled with.
        prompts = draw_prompts(problems, policy.tokenizer, step)
        rollout = engine.generate(prompts, G, SAMPLING, step)

        # 2. Rewards: how much of its group agrees with a completion's answer.
        answers = [extract(text) for text in rollout.texts]
        rewards = vote_shares(answers, G)  # [B]

        # 3. Advantages: z-scores inside each group, the same for every token of a completion.
        scores = group_normalize(rewards.view(P, G)).float()  # [P, G]
        advantages = scores.view(-1, 1).expand(rollout.mask.shape)  # [B, T]

        # 4. Update: whole groups, packed with each prompt once; one optimiser step for each part.
        for part in range(UPDATES):
            groups = range(part, P, UPDATES)
            index, mine = rollout.completions.index(groups), rollout.completions.groups(groups)
            token_weights = aggregation_weights(mine.mask, "token_mean", SAMPLING.max_new_tokens)
            for packed in pack(mine, TOKENS):
                here = index[packed.rows]
                logprobs = policy(packed, SAMPLING).logprobs
                losses = clipped_surrogate(logprobs, rollout.stats.logprobs[here], advantages[here])
                (losses * token_weights[packed.rows]).sum().backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        golds = rollout.column("answer")
        accuracy = sum(a == gold for a, gold in zip(answers, golds, strict=True)) / len(golds)
        print(
            f"step {step:3d}   mean reward {rewards.mean():.3f}   accuracy {accuracy:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
