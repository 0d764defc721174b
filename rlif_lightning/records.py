"""The records that stages of one rollout hand to each other.

Axis letters, everywhere in this library:

    P  prompts of a rollout               G  completions per prompt (the group)
    B  rows = P * G, prompt-major: row b is completion ``b % G`` of prompt ``b // G``
    T  completion positions              V  vocabulary              R  rewards

``[B, T]`` tensors are right-padded; their boolean ``mask`` is True where a position counts.
Log-probabilities, entropies and self-certainties are in nats, float32 (float64 for a float64
model). Only ``model/`` and what calls it with packed tokens know the packed form.

Read in this order: Prompts -> Rollout (with TokenStats and Completions) -> RewardOutput ->
LossInputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


def root_column(names: Collection[str], path: str) -> str | None:
    """The column that a dotted path begins with: the longest one, so that a name with dots of its own comes first."""
    parts = path.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in names), None)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """A row's value in a column, or inside one: ``reward_model.ground_truth`` is ``["reward_model"]["ground_truth"]``.

    Returns:
        The value; None where it, or something on the way, is missing.

    Raises:
        KeyError: no such column.
        ValueError: something on the way holds no named values.
    """
    root = root_column(row, path)
    if root is None:
        raise KeyError(path)
    value = row[root]
    for key in path[len(root) + 1 :].split(".") if len(path) > len(root) else ():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"column {path!r}: there is nothing named {key!r} in {value!r:.100}")
        value = None if value is None else value.get(key)
    return value


def overlap(one: str, other: str) -> bool:
    """Whether one of two dotted paths lies inside the other, so that who sees the one sees the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


class VisibleColumns(dict[str, list[Any]]):
    """The columns that a reward head named.

    To ask for another one that the data set has is an error.
    """

    def __init__(self, shown: Mapping[str, list[Any]], hidden: Collection[str]):
        super().__init__(shown)
        self.hidden = frozenset(hidden)

    def __contains__(self, name: object) -> bool:
        if name in self.hidden:
            raise ValueError(
                f"column {name!r} is hidden from this reward head: name it in the class attribute"
                " `columns`, as in"
                f" `columns = ({name!r},)`; gold answers are shown to heads with `needs_gold ="
                " True` only"
            )
        return super().__contains__(name)

    def __missing__(self, name: str) -> list[Any]:
        if name in self:
            return super().__getitem__(name)
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dictionary, but an error for a hidden column."""
        found = name in self
        return self[name] if found else default


@dataclass(frozen=True)
class Prompts:
    """The prompts of one rollout, as read from the data set.

    Attributes:
        token_ids: P tensors of int64 token ids, each ``[L_p]`` (ragged, no padding), L_p >= 1.
        texts: the P prompt texts the ids were made from.
        columns: the data set's other columns, each a list of P values (gold answer, level, ...).
        index: ``[P]`` int64, each prompt's row in its data set (the counter that seeds its
            sampling).

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
        return replace(
            self, token_ids=[ids.to(device) for ids in self.token_ids], index=self.index.to(device)
        )

    def has(self, path: str) -> bool:
        """Whether there is such a column (of a dotted path: the one that it begins with)."""
        return root_column(self.columns, path) is not None

    def column(self, path: str) -> list[Any]:
        """The P values of a column, or of what a dotted path names inside one.

        Raises:
            ValueError: the data set has no such column; names those it has.
        """
        root = root_column(self.columns, path)
        if root is None:
            raise ValueError(
                f"column {path!r} is not in the data set (it has {sorted(self.columns)}); set"
                " data.answer_column, or the head's `column`, to a column that exists"
            )
        return [value_at({root: value}, path) for value in self.columns[root]]

    def rows(self, path: str) -> list[dict[str, Any]]:
        """P rows of all columns, with the value that ``path`` names under that name."""
        columns = {**self.columns, path: self.column(path)}
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def only(self, paths: Sequence[str]) -> Prompts:
        """The same prompts with these columns alone (for a reward head); those that do not exist are left out.

        Asking for one of the others raises a ValueError that says how to see it.
        """
        shown = {path: self.column(path) for path in paths if self.has(path)}
        return replace(self, columns=VisibleColumns(shown, set(self.columns) - set(shown)))


@dataclass(frozen=True)
class Completions:
    """G completions for each of P prompts: the tokens that a forward pass reads.

    Attributes:
        prompt_ids: P tensors of int64 token ids, each ``[L_p]``.
        completion_ids: ``[B, T]`` int64, right-padded, prompt-major, with B = P * G.
        mask: ``[B, T]`` bool, True on the first tokens of a completion, none or all of them.
        group_size: G.

    Raises:
        ValueError: the number of completions is not P * G.

    Example:
        >>> ids, mask = torch.tensor([[7, 8], [9, 0]]), torch.tensor([[True, True], [True, False]])
        >>> pair = Completions([torch.tensor([5]), torch.tensor([6])], ids, mask, group_size=1)
        >>> pair.groups([1]).completion_ids.tolist()
        [[9, 0]]
    """

    prompt_ids: Sequence[Tensor]
    completion_ids: Tensor
    mask: Tensor
    group_size: int

    def __post_init__(self) -> None:
        if len(self.completion_ids) != len(self.prompt_ids) * self.group_size:
            raise ValueError(
                f"group_size={self.group_size}: {len(self.completion_ids)} completions of"
                f" {len(self.prompt_ids)} prompts are not that many for each; pass the completions"
                " of whole groups"
            )

    def index(self, groups: Sequence[int]) -> Tensor:
        """Return ``[b]`` int64: which of the B completions belong to some groups, in their order."""
        size = self.group_size
        chosen = [p * size + g for p in groups for g in range(size)]
        return torch.tensor(chosen, dtype=torch.int64, device=self.mask.device)

    def groups(self, chosen: Sequence[int]) -> Completions:
        """Return the completions of some groups, in the order of ``chosen``."""
        index = self.index(chosen)
        prompt_ids = [self.prompt_ids[p] for p in chosen]
        return Completions(
            prompt_ids, self.completion_ids[index], self.mask[index], self.group_size
        )


@dataclass(frozen=True)
class TokenStats:
    """What one pass over the logits says about each completion token.

    The logits are those of the position that *produced* the token, divided by the sampling
    temperature. The distribution is the one before ``top_k`` and ``top_p``.

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
        completion_ids: ``[B, T]`` int64, right-padded; a final end-of-sequence token is a
            completion token.
        mask: ``[B, T]`` bool, True on completion tokens. Every row has at least one.
        stats: ``[B, T]`` token statistics under the sampling policy, 0 outside the mask.
        texts: B completion texts, without special tokens, cut before a stop string.
        ended: ``[B]`` bool, True where the completion ended by itself (not cut at the length
            limit).
        group_size: G.
        engine_logprobs: optional ``[B, T]``: by an engine whose log-probs are not the policy's, 0
            outside the mask.
        token_weights: optional ``[B, T]`` constants of the policy loss, which correct for sampling
            by such an engine.
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

    @property
    def completions(self) -> Completions:
        """The tokens alone, for a forward pass over them."""
        return Completions(self.prompts.token_ids, self.completion_ids, self.mask, self.group_size)

    def completion_numbers(self, rollout_number: int) -> Tensor:
        """``[B]`` int64: numbers of the completions, unique in a run of up to 2**31 rollouts."""
        completion = torch.arange(self.group_size, device=self.mask.device)
        within_rollout = (
            self.prompts.index.to(completion).unsqueeze(1) * self.group_size + completion
        )
        return within_rollout.flatten() + (rollout_number << 32)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64 completion lengths in tokens."""
        return self.mask.sum(-1)

    def column(self, name: str) -> list[Any]:
        """A prompt column, or what a dotted path names inside one, repeated for each completion: B values.

        Raises:
            ValueError: the data set has no such column; names those it has.
        """
        return [value for value in self.prompts.column(name) for _ in range(self.group_size)]


@dataclass(frozen=True)
class RewardOutput:
    """What a reward head answers for a rollout.

    Attributes:
        scores: ``[B]`` float32; NaN means "does not apply to this completion".
        keep_mask: optional ``[B]`` bool; False takes a completion out of the update altogether.
        log: extra numbers to log, already final (``{"vote/unanimous": 0.25}``).
        group_weight_factor: optional ``[P]``: multiplies the head's weight in each group.
        answers: optional, the B answers that a vote was held on (None = none found), for callbacks.
    """

    scores: Tensor
    keep_mask: Tensor | None = None
    log: dict[str, float] = field(default_factory=dict)
    group_weight_factor: Tensor | None = None
    answers: Sequence[str | None] | None = None


@dataclass(frozen=True)
class LossInputs:
    """Everything a loss sees, for the tokens of one optimiser update or of one of its micro-batches.

    Attributes:
        logprobs: ``[B, T]`` under the policy being trained (carries the graph inside a
            micro-batch).
        old_logprobs: ``[B, T]`` under the policy before the rollout's first update
            (learning/old_logprobs.py).
        advantages: ``[B, T]``, constant over a completion unless a token-level kind made it.
        mask: ``[B, T]`` bool.
        completion_numbers: ``[B]`` int64, a number of each completion that no other completion of the run has.
        entropy: optional ``[B, T]``, with the graph, for the entropy bonus.
        ref_logprobs: optional ``[B, T]`` under the frozen reference model.
        token_weights: optional ``[B, T]`` constants that multiply the policy loss
            (Rollout.token_weights).
        sampled_logprobs: optional ``[B, T]`` as the rollout came with them (Rollout.stats): what
            the sampler's gap is measured on, whatever the old log-probs are.
        noise_floor: optional scalar, nats: differences of log-probs up to here are rounding.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    completion_numbers: Tensor
    entropy: Tensor | None = None
    ref_logprobs: Tensor | None = None
    token_weights: Tensor | None = None
    sampled_logprobs: Tensor | None = None
    noise_floor: Tensor | None = None
