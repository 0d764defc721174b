"""The records that stages of one training step hand to each other.

Axis letters, everywhere in this library:

    P  prompts of a step                 G  completions per prompt (the group)
    B  rows = P * G, prompt-major: row b is completion ``b % G`` of prompt ``b // G``
    T  completion positions              V  vocabulary              R  rewards

``[B, T]`` tensors are right-padded; their boolean ``mask`` is True where a position counts. Log-probabilities,
entropies and self-certainties are in nats, float32 (float64 for a float64 model). Only ``model/`` and what calls it
with packed tokens know the packed form.

Read in this order: Prompts -> Rollout (with TokenStats) -> RewardOutput -> LossInputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """The prompts of one step, as read from the data set.

    Attributes:
        token_ids: P tensors of int64 token ids, each ``[L_p]`` (ragged, no padding), L_p >= 1.
        texts: the P prompt texts the ids were made from.
        columns: the data set's other columns, each a list of P values (gold answer, level, ...).
        index: ``[P]`` int64, each prompt's row in its data set (the counter that seeds its sampling).

    Example:
        >>> prompts = Prompts([torch.tensor([5, 6])], ["2+2="], {"answer": ["4"]}, torch.tensor([0]))
        >>> len(prompts)
        1
    """

    token_ids: Sequence[Tensor]
    texts: Sequence[str]
    columns: dict[str, list[Any]]
    index: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)

    def to(self, device: torch.device | str) -> Prompts:
        """Move the tensors (Lightning calls this; the records are frozen, so a new one is returned)."""
        return replace(self, token_ids=[ids.to(device) for ids in self.token_ids], index=self.index.to(device))

    def without(self, column: str | None) -> Prompts:
        """The same prompts with one column hidden (the gold answer, from label-free rewards)."""
        kept = {name: values for name, values in self.columns.items() if name != column}
        return replace(self, columns=kept)


@dataclass(frozen=True)
class TokenStats:
    """What one pass over the logits says about each completion token.

    The logits are those of the position that *produced* the token, divided by the sampling temperature.

    Attributes:
        logprobs: ``[B, T]`` log-probability of the sampled token, nats.
        entropy: ``[B, T]`` entropy of the next-token distribution, nats.
        self_certainty: ``[B, T]`` KL(uniform || next-token distribution), nats.
    """

    logprobs: Tensor
    entropy: Tensor
    self_certainty: Tensor

    def map(self, function) -> TokenStats:
        """Apply ``function`` to each of the three tensors."""
        return TokenStats(*(function(getattr(self, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Rollout:
    """G sampled completions for each prompt, with the statistics of the logits they were drawn from.

    Attributes:
        prompts: the P prompts.
        completion_ids: ``[B, T]`` int64, right-padded; a final end-of-sequence token is a completion token.
        mask: ``[B, T]`` bool, True on completion tokens. Every row has at least one.
        stats: ``[B, T]`` token statistics under the sampling policy, 0 outside the mask.
        texts: B completion texts, without special tokens, cut before a stop string.
        ended: ``[B]`` bool, True where the completion ended by itself (not cut at the length limit).
        group_size: G.
        engine_logprobs: optional ``[B, T]``: by an engine whose log-probs are not the policy's, 0 outside the mask.
        token_weights: optional ``[B, T]`` constants of the policy loss, which correct for sampling by such an engine.
    """

    prompts: Prompts
    completion_ids: Tensor
    mask: Tensor
    stats: TokenStats
    texts: Sequence[str]
    ended: Tensor
    group_size: int
    engine_logprobs: Tensor | None = None
    token_weights: Tensor | None = None

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    def row_ids(self, step: int) -> Tensor:
        """``[B]`` int64: a number of each completion that no other one of the run has (up to 2**31 rows and steps)."""
        completion = torch.arange(self.group_size, device=self.mask.device)
        within_step = self.prompts.index.to(completion).unsqueeze(1) * self.group_size + completion
        return within_step.flatten() + (step << 32)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64 completion lengths in tokens."""
        return self.mask.sum(-1)

    def column(self, name: str) -> list[Any]:
        """A prompt column repeated for each completion: B values.

        Raises:
            ValueError: the data set has no such column; names those it has.
        """
        if name not in self.prompts.columns:
            raise ValueError(
                f"column {name!r} is not in the data set (it has {sorted(self.prompts.columns)}); set"
                " data.answer_column, or the head's `column`, to a column that exists"
            )
        return [value for value in self.prompts.columns[name] for _ in range(self.group_size)]


@dataclass(frozen=True)
class RewardOutput:
    """What a reward head answers for a rollout.

    Attributes:
        scores: ``[B]`` float32; NaN means "does not apply to this completion".
        keep: optional ``[B]`` bool; False takes a completion out of the update altogether.
        log: extra numbers to log, already final (``{"vote/unanimous": 0.25}``).
        strength: optional ``[P]``: multiplies the head's weight in each group.
        answers: optional, the B answers that a vote was held on (None = none found), for callbacks.
    """

    scores: Tensor
    keep: Tensor | None = None
    log: dict[str, float] = field(default_factory=dict)
    strength: Tensor | None = None
    answers: Sequence[str | None] | None = None


@dataclass(frozen=True)
class LossInputs:
    """Everything a loss sees, for the tokens of one optimiser update or of one of its micro-batches.

    Attributes:
        logprobs: ``[B, T]`` under the policy being trained (carries the graph inside a micro-batch).
        old_logprobs: ``[B, T]`` under the policy before the rollout's first update (learning/old_logprobs.py).
        advantages: ``[B, T]``, constant over a completion unless a token-level kind made it.
        mask: ``[B, T]`` bool.
        row_ids: ``[B]`` int64, a number of each completion that no other completion of the run has.
        entropy: optional ``[B, T]``, with the graph, for the entropy bonus.
        ref_logprobs: optional ``[B, T]`` under the frozen reference model.
        token_weights: optional ``[B, T]`` constants that multiply the policy loss (Rollout.token_weights).
        sampled_logprobs: optional ``[B, T]`` as the rollout came with them (Rollout.stats): what the sampler's gap is
            measured on, whatever the old log-probs are.
        noise_floor: optional scalar, nats: differences of log-probs up to here are rounding.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    row_ids: Tensor
    entropy: Tensor | None = None
    ref_logprobs: Tensor | None = None
    token_weights: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    noise_floor: Tensor | None = None
