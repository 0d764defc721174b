"""How the next hidden states come about: by shared prompts, by Hugging Face's own cache, or by whole rows.

A decoder holds rows of the rollout's prompts at places. Whoever drives it draws tokens from the
hidden states that ``admit`` and ``advance`` give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.own_logits import body
from rlif_lightning.model.packing import Tree, positions, upload
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory
from rlif_lightning.rollout.places import Arrangement

CACHE_TOLERANCE = 0.05  # of the largest hidden state; in half precision a cache rounds differently


class Decoder(ABC):
    """Rows on their way from prompts to completions.

    Attributes:
        can_join: whether rows can be admitted while others are under way.
        exact: whether rows that ended must leave before the next pass and no place may be empty.
    """

    can_join: bool
    exact = True

    @abstractmethod
    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        """Rows of prompts ``owners`` (numbers) come to empty places; hidden states ``[rows, H]`` to begin with."""

    def prefills(self, owners: Sequence[int]) -> bool:
        """Whether admitting rows of these prompts takes a pass of the model (it never takes two)."""
        return True

    def num_places(self, rows: int) -> int:
        """Places that a pass computes when the first ``rows`` are in use."""
        return rows

    def prepare(self) -> None:  # noqa: B027 - most decoders plan nothing
        """Plan the next pass on the host; once before each :meth:`advance`."""

    @property
    def bucket(self) -> tuple[int, ...]:
        """Sizes of the prepared pass: two passes of the same ones run the same operations on the same addresses."""
        return ()

    @abstractmethod
    def advance(self, tokens: Tensor) -> Tensor:
        """Take one token of each place ``[n]``; hidden states ``[n, H]`` of what comes next."""

    @abstractmethod
    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        """Rows leave and move (``places.py``); ``waiting`` is the prompt of the next row to come."""

    def finish(self) -> None:  # noqa: B027 - most decoders have nobody to wait for
        """There are no more rows."""


class SharedPrefixDecoder(Decoder):
    """Prompts computed and stored once, rows joining and leaving at any step.

    On a GPU places are padded and may be empty, so that passes repeat in shape; ``advance`` can be
    captured there.

    Args:
        policy: the model, whose attention follows plans.
        prompt_ids: of all prompts.
        max_rows, max_tokens: rows at a time, and tokens of the longest completion.
        group_size: rows of a prompt.
    """

    can_join = True

    def __init__(
        self,
        policy: PolicyModel,
        prompt_ids: Sequence[Tensor],
        max_rows: int,
        max_tokens: int,
        group_size: int,
    ):
        self.policy, self.prompt_ids, self.device = policy, prompt_ids, prompt_ids[0].device
        self.exact = self.device.type == "cpu"
        # A last token need not be computed; on a GPU it is before it is known as such.
        own = max(max_tokens - 1, 1) if self.exact else max_tokens
        longest = max(map(len, prompt_ids))
        self.memory = SharedPrefixMemory(
            max_rows, -(-max_rows // group_size), longest, own, self.device
        )
        self.last: dict[int, Tensor] = {}  # hidden state of each stored prompt's last token

    def prefills(self, owners: Sequence[int]) -> bool:
        return any(owner not in self.last for owner in owners)

    def num_places(self, rows: int) -> int:
        return self.memory.num_places(rows)

    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        if new := [owner for owner in dict.fromkeys(owners) if owner not in self.last]:
            self._prefill(new)
        self.memory.add_rows(places, owners)
        return torch.stack([self.last[owner] for owner in owners])

    def _prefill(self, numbers: list[int]) -> None:
        trees, prompts, end = [], [self.prompt_ids[number] for number in numbers], 0
        for ids in prompts:
            trees.append(Tree(end, len(ids)))
            end += len(ids)
        self.memory.add_prompts(numbers, [len(ids) for ids in prompts])
        plan = TreePlan(trees, self.device, self.memory.keep_prompts)
        places = upload(positions(trees), self.device)
        hidden = self.policy.hidden(torch.cat(prompts)[None], places[None], plan)[0]
        for number, tree in zip(numbers, trees, strict=True):
            self.last[number] = hidden[tree.start + tree.size - 1].clone()

    def prepare(self) -> None:
        self.memory.prepare()

    @property
    def bucket(self) -> tuple[int, ...]:
        return self.memory.bucket

    def advance(self, tokens: Tensor) -> Tensor:
        places = self.memory.start_step()
        hidden = self.policy.hidden(tokens.unsqueeze(1), places, self.memory)[:, 0]
        self.memory.end_step()
        return hidden

    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        self.memory.arrange(arrangement, waiting)
        stored = self.memory.prompts.where()
        self.last = {number: hidden for number, hidden in self.last.items() if number in stored}


class StandardDecoder(Decoder):
    """Hugging Face's cache, repeated for each completion: for models whose attention cannot be replaced."""

    can_join = False

    def __init__(self, policy: PolicyModel, prompt_ids: Sequence[Tensor]):
        self.policy, self.prompt_ids = policy, prompt_ids

    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        numbers = list(dict.fromkeys(owners))
        prompts = [self.prompt_ids[number] for number in numbers]
        device = prompts[0].device
        lengths = torch.tensor([len(ids) for ids in prompts], device=device)
        width = max(map(len, prompts))
        padded = torch.stack(
            [torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids in prompts]
        )
        real = torch.arange(width, device=device) >= (width - lengths).unsqueeze(1)
        self.cache = DynamicCache(config=self.policy.causal_lm.config.get_text_config(decoder=True))
        hidden = self._forward(padded, real, (real.cumsum(-1) - 1).clamp(min=0))
        rows = torch.tensor([numbers.index(owner) for owner in owners], device=device)
        self.cache.batch_select_indices(rows)
        self.attended, self.position = real[rows], lengths[rows]
        return hidden[rows]

    def _forward(self, ids: Tensor, attended: Tensor, places: Tensor) -> Tensor:
        output = body(self.policy.causal_lm)(
            input_ids=ids,
            attention_mask=attended.long(),
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def advance(self, tokens: Tensor) -> Tensor:
        self.attended = torch.nn.functional.pad(self.attended, (0, 1), value=True)
        hidden = self._forward(tokens.unsqueeze(1), self.attended, self.position.unsqueeze(1))
        self.position = self.position + 1
        return hidden

    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        rows = arrangement.source.to(self.attended.device)
        self.cache.batch_select_indices(rows)
        self.attended, self.position = self.attended[rows], self.position[rows]


class RecomputingDecoder(Decoder):
    """Whole rows at every step, without any cache: for models whose state no cache of ours can hold."""

    can_join = True

    def __init__(self, policy: PolicyModel, prompt_ids: Sequence[Tensor]):
        self.policy, self.prompt_ids = policy, prompt_ids
        self.rows: list[Tensor] = []

    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        new = [self.prompt_ids[owner] for owner in owners]
        self.rows += new
        return self._last_hidden(new)

    def advance(self, tokens: Tensor) -> Tensor:
        self.rows = [
            torch.cat([row, token]) for row, token in zip(self.rows, tokens.split(1), strict=True)
        ]
        return self._last_hidden(self.rows)

    def _last_hidden(self, rows: list[Tensor]) -> Tensor:
        """What comes next; padding lies behind the rows, where they do not see it."""
        ids = pad_sequence(rows, batch_first=True)
        hidden = body(self.policy.causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        return hidden[torch.arange(len(rows), device=ids.device), last]

    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        self.rows = [self.rows[place] for place in arrangement.source.tolist()]


def choose_decoder(
    policy: PolicyModel,
    prompt_ids: Sequence[Tensor],
    max_rows: int,
    max_tokens: int,
    group_size: int,
    cached: Callable[[], bool] | None = None,
) -> Decoder:
    """What advances rows of these prompts: by shared prompts where the model's attention allows.

    Args:
        policy, prompt_ids, max_rows, max_tokens, group_size: as of :class:`SharedPrefixDecoder`.
        cached: says whether the standard cache serves the policy; None = it is tried out.
    """
    if policy.shares_prompts:
        return SharedPrefixDecoder(policy, prompt_ids, max_rows, max_tokens, group_size)
    serves = cache_is_right(policy, prompt_ids[0].device) if cached is None else cached()
    return StandardDecoder(policy, prompt_ids) if serves else RecomputingDecoder(policy, prompt_ids)


def cache_is_right(policy: PolicyModel, device: torch.device) -> bool:
    """Whether rows of different lengths, decoded by ``StandardDecoder``, get the hidden states of whole rows."""
    if policy.keeps_state:
        return False
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(policy.vocab_size, shape, generator=generator).to(device)  # noqa: E731
    prompts, completions = [draw(5), draw(2)], draw(2, 4)
    decoder = StandardDecoder(policy, prompts)
    try:
        found = [
            decoder.admit([0, 1], [0, 1]),
            *(decoder.advance(tokens) for tokens in completions.T[:-1]),
        ]
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False  # of a model whose cache is not the standard one
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.cat([prompt, completion[:-1]]).unsqueeze(0)
        whole = body(policy.causal_lm)(input_ids=ids, use_cache=False).last_hidden_state[
            0, len(prompt) - 1 :
        ]
        errors = (torch.stack([hidden[row] for hidden in found]) - whole).abs().amax(-1)
        # In half precision rounding may send single tokens to other experts.
        error = errors.median() if whole.dtype.itemsize < 4 else errors.max()
        if not error <= CACHE_TOLERANCE * whole.abs().max():
            return False
    return True
