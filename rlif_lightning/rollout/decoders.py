"""How the next hidden states come about: by shared prompts, by Hugging Face's own cache, or by whole rows.

A decoder holds n rows. Whoever drives it draws tokens from the hidden states that ``admit`` and ``advance`` give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.own_logits import body
from rlif_lightning.model.packing import Tree, positions
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import filler
from rlif_lightning.processes.collectives import all_rank_sum
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory

CACHE_TOLERANCE = 0.05  # of the largest hidden state; in half precision a cache rounds differently


class Decoder(ABC):
    """Rows on their way from prompts to completions.

    Attributes:
        can_join: whether rows can be admitted while others are under way.
    """

    can_join: bool

    @abstractmethod
    def admit(self, prompt_ids: Sequence[Tensor], group_size: int) -> Tensor:
        """Prefill prompts; hidden states ``[P * G, H]`` that the first tokens of the new, last rows are drawn from."""

    @abstractmethod
    def advance(self, tokens: Tensor) -> Tensor:
        """Take one token of each row ``[n]``; hidden states ``[n, H]`` of what comes next."""

    @abstractmethod
    def leave(self, holes: Tensor, movers: Tensor, num_left: int) -> None:
        """Rows ``movers`` take the places ``holes``; the first ``num_left`` rows stay (see ``kv_memory.moves``)."""

    def finish(self) -> None:  # noqa: B027 - most decoders have nobody to wait for
        """There are no more rows."""


class SharedPrefixDecoder(Decoder):
    """Prompts computed and stored once per group, rows joining and leaving at any step.

    Args:
        policy: the model, whose attention follows plans.
        max_groups, max_rows: at a time.
        max_prompt, max_own: tokens of the longest prompt, and of the longest completion that are attended to.
        device: of the prompts.
    """

    can_join = True

    def __init__(
        self,
        policy: PolicyModel,
        max_groups: int,
        max_rows: int,
        max_prompt: int,
        max_own: int,
        device: torch.device,
    ):
        self.policy = policy
        self.memory = SharedPrefixMemory(max_groups, max_rows, max_prompt, max_own, device)

    def admit(self, prompt_ids: Sequence[Tensor], group_size: int) -> Tensor:
        trees, end = [], 0
        for ids in prompt_ids:
            trees.append(Tree(end, len(ids)))
            end += len(ids)
        self.memory.add([len(ids) for ids in prompt_ids], group_size)
        plan = TreePlan(trees, prompt_ids[0].device, self.memory.keep_prompts)
        line, places = torch.cat(list(prompt_ids)), positions(trees).to(prompt_ids[0].device)
        last = torch.tensor([tree.start + tree.size - 1 for tree in trees], device=line.device)
        hidden = self.policy.hidden(line[None], places[None], plan)[0].index_select(0, last)
        return hidden.repeat_interleave(group_size, 0)

    def advance(self, tokens: Tensor) -> Tensor:
        places = self.memory.start_step()
        hidden = self.policy.hidden(tokens.unsqueeze(1), places, self.memory)[:, 0]
        self.memory.end_step()
        return hidden

    def leave(self, holes: Tensor, movers: Tensor, num_left: int) -> None:
        self.memory.leave(holes, movers, num_left)


class StandardDecoder(Decoder):
    """Hugging Face's cache, repeated for each completion: for models whose attention cannot be replaced."""

    can_join = False

    def __init__(self, policy: PolicyModel):
        self.policy = policy

    def admit(self, prompt_ids: Sequence[Tensor], group_size: int) -> Tensor:
        device = prompt_ids[0].device
        lengths = torch.tensor([len(ids) for ids in prompt_ids], device=device)
        width = int(lengths.max())
        padded = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids in prompt_ids])
        real = torch.arange(width, device=device) >= (width - lengths).unsqueeze(1)
        self.cache = DynamicCache(config=self.policy.causal_lm.config.get_text_config(decoder=True))
        hidden = self._forward(padded, real, (real.cumsum(-1) - 1).clamp(min=0))
        self.cache.batch_repeat_interleave(group_size)
        self.attended = real.repeat_interleave(group_size, 0)
        self.position = lengths.repeat_interleave(group_size)
        return hidden.repeat_interleave(group_size, 0)

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

    def leave(self, holes: Tensor, movers: Tensor, num_left: int) -> None:
        rows = torch.arange(num_left)
        rows[holes] = movers
        rows = rows.to(self.attended.device)
        self.cache.batch_select_indices(rows)
        self.attended, self.position = self.attended[rows], self.position[rows]


class RecomputingDecoder(Decoder):
    """Whole rows at every step, without any cache: for models whose state no cache of ours can hold."""

    can_join = True

    def __init__(self, policy: PolicyModel):
        self.policy = policy
        self.rows: list[Tensor] = []

    def admit(self, prompt_ids: Sequence[Tensor], group_size: int) -> Tensor:
        new = [ids for ids in prompt_ids for _ in range(group_size)]
        self.rows += new
        return self._last_hidden(new)

    def advance(self, tokens: Tensor) -> Tensor:
        self.rows = [torch.cat([row, token]) for row, token in zip(self.rows, tokens.split(1), strict=True)]
        return self._last_hidden(self.rows)

    def _last_hidden(self, rows: list[Tensor]) -> Tensor:
        """What comes next; padding lies behind the rows, where they do not see it."""
        ids = pad_sequence(rows, batch_first=True)
        hidden = body(self.policy.causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        return hidden[torch.arange(len(rows), device=ids.device), last]

    def leave(self, holes: Tensor, movers: Tensor, num_left: int) -> None:
        for hole, mover in zip(holes.tolist(), movers.tolist(), strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[num_left:]


def cache_is_right(policy: PolicyModel, device: torch.device) -> bool:
    """Whether rows of different lengths, decoded by ``StandardDecoder``, get the hidden states of whole rows."""
    if policy.keeps_state:
        return False
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(policy.vocab_size, shape, generator=generator).to(device)  # noqa: E731
    prompts, completions = [draw(5), draw(2)], draw(2, 4)
    decoder = StandardDecoder(policy)
    try:
        found = [decoder.admit(prompts, 1), *(decoder.advance(tokens) for tokens in completions.T[:-1])]
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False  # of a model whose cache is not the standard one
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.cat([prompt, completion[:-1]]).unsqueeze(0)
        whole = body(policy.causal_lm)(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
        errors = (torch.stack([hidden[row] for hidden in found]) - whole).abs().amax(-1)
        # In half precision rounding may send single tokens to other experts.
        error = errors.median() if whole.dtype.itemsize < 4 else errors.max()
        if not error <= CACHE_TOLERANCE * whole.abs().max():
            return False
    return True


class LockstepDecoder(Decoder):
    """A decoder of a policy whose layers are gathered anew in every pass: all ranks make equally many passes.

    A pass is a pass, whether one rank admits prompts in it and another advances rows; a rank that has finished makes
    passes for nothing until the last one has.

    Args:
        decoder: does the work.
        device: of the prompts.
    """

    def __init__(self, decoder: Decoder, policy: PolicyModel, device: torch.device):
        self.decoder, self.policy, self.device = decoder, policy, device
        self.can_join = decoder.can_join

    def admit(self, prompt_ids: Sequence[Tensor], group_size: int) -> Tensor:
        self._ranks_at_work(True)
        return self.decoder.admit(prompt_ids, group_size)

    def advance(self, tokens: Tensor) -> Tensor:
        self._ranks_at_work(True)
        return self.decoder.advance(tokens)

    def leave(self, holes: Tensor, movers: Tensor, num_left: int) -> None:
        self.decoder.leave(holes, movers, num_left)

    def finish(self) -> None:
        line = filler(self.policy, self.device)
        while self._ranks_at_work(False):
            self.policy.completion_hidden(line)

    def _ranks_at_work(self, this_one: bool) -> int:
        return int(all_rank_sum(torch.tensor(int(this_one), device=self.device)))
