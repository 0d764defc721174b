"""What a teacher reads in a rollout's updates, and the candidates that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.model.head import CandidateReader, HeadReader, HeadRule, TopReader
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.token_stats import TeacherLogprobs
from rlif_lightning.parallel.passes import equal_passes, reshard_after_forward
from rlif_lightning.processes.collectives import all_rank_sum, broadcast_from_first
from rlif_lightning.records import Completions
from rlif_lightning.sampling import Sampling


@dataclass(frozen=True)
class Lesson:
    """What a teacher reads in the updates of one rollout.

    Attributes:
        model: the teacher; None = the policy without its adapters.
        prompts: the ids ``[L]`` before each of B completions; None where there is no feedback.
        top_k: K.
    """

    model: PolicyModel | None
    prompts: Sequence[Tensor | None]
    top_k: int

    def masked(self, inputs: LossInputs) -> LossInputs:
        """Return an update's inputs without the tokens of completions that have no feedback."""
        known = [prompt is not None for prompt in self.prompts]
        has_feedback = torch.tensor(known, device=inputs.mask.device)
        return replace(inputs, mask=inputs.mask & has_feedback.unsqueeze(1))

    def figures(self, device: torch.device) -> dict[str, Tensor]:
        """Return ``teacher/coverage``, the share of completions with feedback (a collective)."""
        known = [float(prompt is not None) for prompt in self.prompts]
        found, total = all_rank_sum(torch.tensor([sum(known), len(known)], device=device))
        return {"teacher/coverage": found / total}

    def read(
        self,
        policy: PolicyModel,
        completions: Completions,
        index: Tensor,
        sampling: Sampling,
        max_tokens: int,
    ) -> TeacherLogprobs:
        """Return the teacher's distribution at each token of some completions (a collective).

        Args:
            policy: is taught; its rule of sampling is the teacher's too.
            completions: b, with the mask of :meth:`masked`.
            index: ``[b]`` int64, which of the B completions these are.
            sampling: how they were drawn.
            max_tokens: budget of one pass.
        """
        mask = completions.mask
        chosen = [self.prompts[row] for row in index.tolist()]
        unread = torch.zeros(1, dtype=torch.int64, device=mask.device)
        prompts = [unread if prompt is None else prompt for prompt in chosen]
        completions = Completions(prompts, completions.completion_ids, mask, 1)
        reader = TopReader(self.top_k, self._rule(policy, sampling, mask.device))
        with policy.adapters_off() if self.model is None else nullcontext():
            model = self.model or policy
            found = read_completions(model, completions, sampling, reader, max_tokens)
        empty = mask.new_zeros(1, dtype=torch.float32)
        first = TeacherLogprobs(unread[None, None], empty[None, None], empty[None])
        like = found[0][1] if found else first
        return TeacherLogprobs(
            *(
                broadcast_from_first(_placed(name, getattr(like, name), found, mask))
                for name in ("ids", "logprobs", "tail")
            )
        )

    def _rule(self, policy: PolicyModel, sampling: Sampling, device: torch.device) -> HeadRule:
        """Return the policy's rule, within the ids that both models have."""
        rule = policy.rule(sampling, device)
        if self.model is None or self.model.vocab_size == policy.vocab_size:
            return rule
        known = min(rule.num_tokens or policy.vocab_size, self.model.vocab_size)
        return replace(rule, num_tokens=known)


@torch.no_grad()
def read_completions(
    model: PolicyModel,
    completions: Completions,
    sampling: Sampling,
    reader: HeadReader,
    max_tokens: int,
) -> list[tuple[Tensor, Any]]:
    """Read completions in packed passes without gradients (a collective).

    Returns:
        The rows ``[m]`` of each pass, and what the reader returned for them, ``[m, T, ...]``.
    """
    passes = equal_passes(model, list(pack(completions, max_tokens)), completions.mask.device)
    found = [
        (packed.rows, model(packed, sampling, reader) if is_own else model(packed, sampling))
        for packed, is_own in passes
    ]
    reshard_after_forward(model)
    own = [is_own for _, is_own in passes]
    return [each for each, is_own in zip(found, own, strict=True) if is_own]


def candidates_of(
    policy: PolicyModel,
    completions: Completions,
    teacher: TeacherLogprobs,
    sampling: Sampling,
    max_tokens: int,
) -> Tensor:
    """Return the policy's ``[b, T, K + 1]`` log-probs of the teacher's tokens (a collective).

    They have no graph, and are 0 outside the mask.
    """
    reader = CandidateReader(teacher.ids)
    found = read_completions(policy, completions, sampling, reader, max_tokens)
    like = teacher.logprobs
    candidates = like.new_zeros(*like.shape[:-1], like.shape[-1] + 1)
    for rows, (_, values) in found:
        candidates[rows] = values.to(candidates)
    return broadcast_from_first(candidates)


def _placed(
    name: str, like: Tensor, found: list[tuple[Tensor, TeacherLogprobs]], mask: Tensor
) -> Tensor:
    values = like.new_zeros(*mask.shape, *like.shape[2:])
    for rows, each in found:
        values[rows] = getattr(each, name)
    return values
