"""The records that the stages of one rollout pass on.

Axis letters, everywhere in this library:

    P  prompts of a rollout               G  completions per prompt (the group)
    B  completions = P * G, prompt-major: b is completion ``b % G`` of prompt ``b // G``
    T  positions in a completion          V  vocabulary              R  rewards

``[B, T]`` tensors are right-padded; their boolean ``mask`` is True where a position counts: on the
tokens that the policy drew. Observations of an environment lie between them: forward passes read
every token up to the last drawn one (``masked.extents``), and observations count nowhere.
Log-probabilities, entropies and self-certainties are in nats, float32 (or the model's float64).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlif_lightning.data.turns import EnvironmentTask
    from rlif_lightning.environments.base import Episode
    from rlif_lightning.rewards.step_scores import StepScores


def root_column(names: Collection[str], path: str) -> str | None:
    """Return the longest column name that a dotted path begins with; a name may hold dots."""
    parts = path.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in names), None)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return a problem's value in a column, or inside one.

    ``reward_model.ground_truth`` is ``["reward_model"]["ground_truth"]``.

    Returns:
        The value; None where it, or a step of the path, is missing.

    Raises:
        KeyError: no such column.
        ValueError: a step of the path holds no named values.
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
    """Say whether one of two dotted paths lies inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


class VisibleColumns(dict[str, list[Any]]):
    """The columns that a reward head named; asking for another one of the data set is an error."""

    def __init__(self, shown: Mapping[str, list[Any]], hidden: Collection[str]):
        super().__init__(shown)
        self.hidden = frozenset(hidden)

    def __contains__(self, name: object) -> bool:
        if name in self.hidden:
            raise ValueError(
                f"column {name!r} is hidden from this reward head: name it in the class attribute"
                f" `columns`, as in `columns = ({name!r},)`; gold answers are shown to heads with"
                " `needs_gold = True` only"
            )
        return super().__contains__(name)

    def __missing__(self, name: str) -> list[Any]:
        if name in self:
            return super().__getitem__(name)
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return as any dictionary does, but raise for a hidden column."""
        found = name in self
        return self[name] if found else default


@dataclass(frozen=True)
class Prompts:
    """The prompts of one rollout, as read from the data set.

    Attributes:
        token_ids: P tensors of int64 token ids, each ``[L_p]`` (ragged, no padding), L_p >= 1.
        texts: the P prompt texts the ids were made from.
        columns: the data set's other columns, each a list of P values (gold answer, level, ...).
        index: ``[P]`` int64, each problem's number in its data set; it seeds the sampling.
        messages: P conversations that the chat template made the texts of; None without a chat.
        environment: what the completions are turns of; None = single turns.

    Example:
        >>> ids, index = [torch.tensor([5, 6])], torch.tensor([0])
        >>> Prompts(ids, ["2+2="], {"answer": ["4"]}, index).column("answer")
        ['4']
    """

    token_ids: Sequence[Tensor]
    texts: Sequence[str]
    columns: dict[str, list[Any]]
    index: Tensor
    messages: Sequence[list[dict[str, str]]] | None = None
    environment: EnvironmentTask | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def to(self, device: torch.device | str) -> Prompts:
        """Return the same prompts with their tensors on a device; Lightning calls this."""
        return replace(
            self, token_ids=[ids.to(device) for ids in self.token_ids], index=self.index.to(device)
        )

    def has(self, path: str) -> bool:
        """Say whether the data set has the column that a dotted path begins with."""
        return root_column(self.columns, path) is not None

    def column(self, path: str) -> list[Any]:
        """Return the P values of a column, or of what a dotted path names inside one.

        Raises:
            ValueError: the data set has no such column; names those it has.
        """
        if (root := root_column(self.columns, path)) is None:
            known = sorted({*self.columns, *getattr(self.columns, "hidden", ())})
            raise ValueError(
                f"column {path!r} is not in the data set (it has {known}); set data.answer_column,"
                " or the head's `column`, to a column that exists"
            )
        return [value_at({root: value}, path) for value in self.columns[root]]

    def rows(self, path: str) -> list[dict[str, Any]]:
        """Return P problems with all columns, and under ``path`` the value that it names."""
        columns = {**self.columns, path: self.column(path)}
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]

    def only(self, paths: Sequence[str]) -> Prompts:
        """Return the same prompts with these columns alone, as far as they exist.

        Asking for one of the others raises a ValueError that says how to see it.
        """
        shown = {path: self.column(path) for path in paths if self.has(path)}
        return replace(self, columns=VisibleColumns(shown, set(self.columns) - set(shown)))


@dataclass(frozen=True)
class Completions:
    """G completions for each of P prompts: the tokens that a forward pass reads.

    Attributes:
        prompt_ids: P tensors of int64 token ids, each ``[L_p]``.
        completion_ids: ``[B, T]`` int64, right-padded.
        mask: ``[B, T]`` bool, True on the tokens that are predicted: all, some or none. Every token
            before the last of these is read.
        group_size: G.
        context_starts: optional ``[B, T]`` bool, as of ``Rollout``.

    Raises:
        ValueError: B is not P * G.
    """

    prompt_ids: Sequence[Tensor]
    completion_ids: Tensor
    mask: Tensor
    group_size: int
    context_starts: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.completion_ids) != len(self.prompt_ids) * self.group_size:
            raise ValueError(
                f"group_size={self.group_size}: {len(self.completion_ids)} completions of"
                f" {len(self.prompt_ids)} prompts are no whole groups; pass whole groups"
            )

    def index(self, groups: Sequence[int]) -> Tensor:
        """Return ``[b]`` int64: which of the B completions some groups are, in their order."""
        size = self.group_size
        chosen = [p * size + g for p in groups for g in range(size)]
        return torch.tensor(chosen, dtype=torch.int64, device=self.mask.device)

    def groups(self, chosen: Sequence[int], index: Tensor | None = None) -> Completions:
        """Return some groups, in the order of ``chosen``; their ``index`` saves an upload."""
        index = self.index(chosen) if index is None else index
        prompt_ids = [self.prompt_ids[p] for p in chosen]
        starts = None if self.context_starts is None else self.context_starts[index]
        own = self.completion_ids[index], self.mask[index], self.group_size
        return Completions(prompt_ids, *own, starts)


@dataclass(frozen=True)
class TokenStats:
    """The figures of each completion token, from the logits of the position that *produced* it.

    The logits are divided by the temperature. The distribution is before ``top_k`` and ``top_p``.

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
    """G sampled completions for each prompt, with the statistics of their sampling logits.

    Attributes:
        prompts: the P prompts.
        completion_ids: ``[B, T]`` int64, right-padded, with a final end-of-sequence token.
        mask: ``[B, T]`` bool, True on the tokens that the policy drew. Every completion has one.
        stats: ``[B, T]`` token statistics under the sampling policy, 0 outside the mask.
        texts: B completion texts, without special tokens, cut before a stop string; the texts of an
            episode's turns are lines.
        ended: ``[B]`` bool, True unless the completion was truncated at the length limit.
        group_size: G.
        engine_logprobs: optional ``[B, T]``, of an engine whose log-probs are not the policy's.
        token_weights: optional ``[B, T]`` factors of the policy loss that correct for it.
        is_bounded: optional ``[B, T]`` bool, True where a bound has lowered the weight.
        staleness: optional ``[B]`` int64, rollouts trained on since the drawing weights were new.
        turn_ids: optional ``[B, T]`` int64, the turn (from 0) that each token was drawn in; -1 on
            observations and padding. None = single turns.
        context_starts: optional ``[B, T]`` bool, True where a new context begins: later tokens are
            read without the prompt and the tokens before (docs/environments.md).
        episodes: optional, the B episodes that the completions are turns of.
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
    is_bounded: Tensor | None = None
    staleness: Tensor | None = None
    turn_ids: Tensor | None = None
    context_starts: Tensor | None = None
    episodes: Sequence[Episode] | None = None

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    @property
    def sampled(self) -> Tensor:
        """``[B, T]`` bool: the tokens that the policy drew, which is ``mask``."""
        return self.mask

    @property
    def completions(self) -> Completions:
        """The tokens alone, for a forward pass over them."""
        given = self.prompts.token_ids, self.completion_ids, self.mask, self.group_size
        return Completions(*given, self.context_starts)

    def completion_numbers(self, rollout_number: int) -> Tensor:
        """Return ``[B]`` int64 numbers, unique in a run of up to 2**31 rollouts."""
        number = torch.arange(self.group_size, device=self.mask.device)  # [G]
        within_rollout = self.prompts.index.to(number).unsqueeze(1) * self.group_size + number
        return within_rollout.flatten() + (rollout_number << 32)  # [P, G] to [B]

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64: drawn tokens of each completion."""
        return self.mask.sum(-1)

    def column(self, name: str) -> list[Any]:
        """Return B values: a prompt column, or what a path names inside one, by completion.

        Raises:
            ValueError: the data set has no such column; names those it has.
        """
        return [value for value in self.prompts.column(name) for _ in range(self.group_size)]


@dataclass(frozen=True)
class RewardOutput:
    """A reward head's scores for a rollout.

    Attributes:
        scores: ``[B]`` float32; NaN means "does not apply to this completion".
        keep_mask: optional ``[B]`` bool; False takes a completion out of the whole update.
        log: extra numbers to log, already final (``{"vote/unanimous": 0.25}``).
        group_weight_factor: optional ``[P]``: multiplies the head's weight in each group.
        answers: optional, the B answers that a vote was held on (None = none found), for callbacks.
        steps: optional, the scores of each completion's steps, for ``StepDelta``.
        columns: extra columns of completion tables: name -> B values.
    """

    scores: Tensor
    keep_mask: Tensor | None = None
    log: dict[str, float] = field(default_factory=dict)
    group_weight_factor: Tensor | None = None
    answers: Sequence[str | None] | None = None
    steps: StepScores | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
