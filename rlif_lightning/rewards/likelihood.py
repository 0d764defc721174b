"""A reward by how likely the policy finds a hidden text: Turing-RL's baseline Logprob-RL."""

from __future__ import annotations

import math
from typing import Any

import torch

from rlif_lightning.data.columns import column_values
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.tokenizer import encoded_apart
from rlif_lightning.judges.base import RunModels
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.targets import measure_targets
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.unread import tell_unread, unread
from rlif_lightning.rewards.written import MARKER, Written


class TargetLogprob(RewardHead):
    """Scores reasoning by the mean log-prob of the human's reply after it, under the policy.

    Logprob-RL of https://arxiv.org/abs/2606.19336: nats, at least ``lowest``, plus the format bonus
    of :class:`PairwiseJudgeHead`. The policy is the one that drew the completion, at temperature 1.
    The reply is read behind the completion's own text up to ``[HUMAN]:`` and one space; a
    completion without reasoning and marker scores ``lowest``. Use it without a division by a
    spread (``DrGRPO``). Problems whose reply might not fit into the policy's context behind a
    prompt and a whole completion are refused; what does not fit nevertheless has no score (NaN).

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
        named = f"TargetLogprob.column={self.column!r}"
        problems.check_column(named, self.column)

    def check_contexts(self, problems: EncodedSplit, models: RunModels) -> None:
        """Refuse replies that the policy could not read behind a prompt and a completion."""
        policy, prompts = models.policy, problems.token_ids
        if prompts is None or not policy.limits.has_bound:
            return
        [marker] = encoded_apart(policy.tokenizer, [f"\n{MARKER}"])
        values = column_values(problems.dataset, self.column, problems.rows.tolist())
        for (row, value), prompt in zip(values, prompts, strict=True):
            [reply] = encoded_apart(policy.tokenizer, [_spaced(value)])
            total = len(prompt) + models.max_new_tokens + len(marker) + len(reply)
            if fault := _fault(policy, len(prompt), total):
                raise ValueError(
                    f"row {row} of the train split: the reply of TargetLogprob.column="
                    f"{self.column!r} has {len(reply)} tokens: {fault}, or leave the row out"
                )

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Return the scores of all completions (a collective)."""
        [policy] = self._policy
        device, tokenizer = rollout.mask.device, policy.tokenizer
        written = [Written.of(text) for text in rollout.texts]
        before = [f"{each.reasoning}\n{MARKER}" if each.is_valid else "" for each in written]
        humans = map(_spaced, rollout.column(self.column))
        after = [text if it.is_valid else "" for text, it in zip(humans, written, strict=True)]
        prefixes, targets = (
            [torch.from_numpy(ids).long().to(device) for ids in encoded_apart(tokenizer, texts)]
            for texts in (before, after)
        )
        faults = []
        for number, (prefix, target) in enumerate(zip(prefixes, targets, strict=True)):
            prompt = len(rollout.prompts.token_ids[number // rollout.group_size])
            faults.append(_fault(policy, prompt, prompt + len(prefix) + len(target)))
            if faults[-1]:
                prefixes[number], targets[number] = prefix[:0], target[:0]
        tell_unread(self, faults)
        found = measure_targets(policy, rollout.prompts.token_ids, prefixes, targets)
        scores = [
            max(float(logprobs.mean()), self.lowest) + each.bonus
            if each.is_valid and len(logprobs)
            else self.lowest
            for logprobs, each in zip(found, written, strict=True)
        ]
        values = torch.tensor(scores, dtype=torch.float32, device=device)
        return RewardOutput(values.masked_fill(unread(faults, device), torch.nan))


def _spaced(text: Any) -> str:
    return f" {str(text).strip()}"


def _fault(policy: PolicyModel, prompt: int, total: int) -> str:
    return policy.limits.fault(policy.name, prompt, total, " with a reply")
