"""A reward by how likely the policy finds a hidden text: Turing-RL's baseline Logprob-RL."""

from __future__ import annotations

import math

import torch

from rlif_lightning.data.columns import has_column
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.tokenizer import encoded_apart
from rlif_lightning.judges.base import RunModels
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.targets import measure_targets
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.written import MARKER, Written


class TargetLogprob(RewardHead):
    """Scores reasoning by the mean log-prob of the human's reply after it, under the policy.

    Logprob-RL of https://arxiv.org/abs/2606.19336: nats, at least ``lowest``, plus the format bonus
    of :class:`PairwiseJudgeHead`. The policy is the one that drew the completion, at temperature 1.
    The reply is read behind the completion's own text up to ``[HUMAN]:`` and one space; a
    completion without reasoning and marker scores ``lowest``. Use it without a division by a
    spread (``DrGRPO``).

    Args:
        column: of the human's replies, or a dotted path.
        lowest: least score, below 0.

    Raises:
        ValueError: ``lowest`` is not below 0.
    """

    needs_gold = reads_one_text = True

    def __init__(self, column: str = "reply", lowest: float = -8.0):
        super().__init__()
        if not -math.inf < lowest < 0:
            raise ValueError(f"lowest={lowest} must be below 0: no log-prob is above it")
        self.column, self.lowest, self.gold_columns = column, lowest, (column,)
        self._policy: list[PolicyModel] = []  # in a list it is no submodule

    def bind(self, models: RunModels) -> None:
        self._policy = [models.policy]

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse a column that the data set has not."""
        if not has_column(problems.dataset.features, self.column):
            raise ValueError(f"column={self.column!r} of TargetLogprob is not in the data set")

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Return the scores of all completions (a collective)."""
        [policy] = self._policy
        device, tokenizer = rollout.mask.device, policy.tokenizer
        written = [Written.of(text) for text in rollout.texts]
        before = [f"{each.reasoning}\n{MARKER}" if each.is_valid else "" for each in written]
        humans = [f" {str(text).strip()}" for text in rollout.column(self.column)]
        prefixes, targets = (
            [torch.from_numpy(ids).long().to(device) for ids in encoded_apart(tokenizer, texts)]
            for texts in (before, humans)
        )
        found = measure_targets(policy, rollout.prompts.token_ids, prefixes, targets)
        scores = [
            max(float(logprobs.mean()), self.lowest) + each.bonus
            if each.is_valid and len(logprobs)
            else self.lowest
            for logprobs, each in zip(found, written, strict=True)
        ]
        return RewardOutput(torch.tensor(scores, dtype=torch.float32, device=device))
