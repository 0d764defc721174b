"""Decoders: ways to compute the next hidden states of completions that are being drawn.

There are three: with shared prompts, with Hugging Face's own cache, and without any cache. The
caller draws tokens from the hidden states that ``admit`` and ``advance`` return.

Example: prompt p of three tokens, prompt q of two, one completion of p and two of q:

    calls                  SharedPrefixDecoder     StandardDecoder        RecomputingDecoder
    admit([0, 1, 1])       computes 3 + 2 tokens   2 x 3, q padded left   3 x 3, q twice, padded
    advance(a0, b0, c0)    3 tokens                3 tokens               3 x 4
    advance(a1, b1, c1)    3 tokens                3 tokens               3 x 5
    a prompt's keys        stored once             once per completion    never stored

Each call returns hidden states ``[3, H]``: ``admit`` those of the prompts' last tokens, ``advance``
those of the given tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.own_logits import body
from rlif_lightning.model.packing import Tree, positions, upload
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.decoder_base import Decoder
from rlif_lightning.rollout.kv_extension import RowExtension
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory
from rlif_lightning.rollout.places import Arrangement

# Relative to the largest hidden state. In half precision a cache rounds differently.
CACHE_TOLERANCE = 0.05


class SharedPrefixDecoder(Decoder):
    """A decoder that computes and stores each prompt once; rows join and leave at any step.

    On a GPU places are padded and may be empty, so that passes repeat in shape and ``advance`` can
    be captured.

    Args:
        policy: the model, whose attention follows plans.
        prompt_ids: of all prompts.
        max_rows, max_tokens: most rows at a time, and tokens of the longest completion.
        group_size: completions of a prompt.
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
        # Nothing is drawn after a completion's last token, so its hidden state is not needed. A GPU
        # computes it all the same, before the host knows that the token is the last one.
        own = max(max_tokens - 1, 1) if self.exact else max_tokens
        longest, first_prompts = max(map(len, prompt_ids)), -(-max_rows // group_size)
        self.memory = SharedPrefixMemory(max_rows, first_prompts, longest, own, self.device)
        self.last: dict[int, Tensor] = {}  # hidden state of each stored prompt's last token

    def prefills(self, owners: Sequence[int]) -> bool:
        return any(owner not in self.last for owner in owners)

    def num_places(self, rows: int) -> int:
        return self.memory.num_places(rows)

    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        if new := [owner for owner in dict.fromkeys(owners) if owner not in self.last]:
            self._prefill(new)
        self.memory.add_rows(places, owners)
        return torch.stack([self.last[owner] for owner in owners])  # [rows, H]

    def _prefill(self, numbers: list[int]) -> None:
        trees, prompts, end = [], [self.prompt_ids[number] for number in numbers], 0
        for ids in prompts:
            trees.append(Tree(end, len(ids)))
            end += len(ids)
        self.memory.add_prompts(numbers, [len(ids) for ids in prompts])
        plan = TreePlan(trees, self.device, self.memory.keep_prompts)
        position_ids = upload(positions(trees), self.device)
        line = torch.cat(prompts)[None]  # [1, N]
        hidden = self.policy.hidden(line, position_ids[None], plan)[0]  # [N, H]
        for number, tree in zip(numbers, trees, strict=True):
            # A copy: a view would keep the whole line in memory.
            self.last[number] = hidden[tree.start + tree.size - 1].clone()

    def prepare(self) -> None:
        self.memory.prepare()

    @property
    def bucket(self) -> tuple[int, ...]:
        return self.memory.bucket

    def advance(self, tokens: Tensor) -> Tensor:
        position_ids = self.memory.start_step()  # [n, 1]
        hidden = self.policy.hidden(tokens.unsqueeze(1), position_ids, self.memory)[:, 0]
        self.memory.end_step()
        return hidden

    def extend(self, places: Sequence[int], ids: Sequence[Tensor]) -> Tensor:
        counts = [len(each) for each in ids]
        plan = RowExtension(self.memory, places, counts)
        padded = upload(pad_sequence(list(ids), batch_first=True), self.device)
        hidden = self.policy.hidden(padded, plan.position_ids, plan)  # [k, tokens, H]
        plan.finish()
        last = upload(torch.tensor([range(len(ids)), [n - 1 for n in counts]]), self.device)
        return hidden[last[0], last[1]]

    def restart(self, places: Sequence[int]) -> None:
        self.memory.restart(places, number=len(self.prompt_ids))

    def arrange(self, arrangement: Arrangement, waiting: int | None = None) -> None:
        self.memory.arrange(arrangement, waiting)
        stored = self.memory.prompts.where()
        self.last = {number: hidden for number, hidden in self.last.items() if number in stored}


class StandardDecoder(Decoder):
    """A decoder with Hugging Face's cache, for models whose attention cannot be replaced.

    The cache is repeated for each completion. Rows can leave, but join only when none is left.
    """

    can_join = can_extend = False

    def __init__(self, policy: PolicyModel, prompt_ids: Sequence[Tensor]):
        self.policy, self.prompt_ids = policy, prompt_ids

    def admit(self, owners: Sequence[int], places: Sequence[int]) -> Tensor:
        numbers = list(dict.fromkeys(owners))
        prompts = [self.prompt_ids[number] for number in numbers]
        device = prompts[0].device
        lengths = torch.tensor([len(ids) for ids in prompts], device=device)
        width = max(map(len, prompts))
        # Padding on the left, so that the next token of every row has the same index in the cache.
        padded = torch.stack(
            [torch.nn.functional.pad(ids, (width - len(ids), 0)) for ids in prompts]
        )
        real = torch.arange(width, device=device) >= (width - lengths).unsqueeze(1)  # [P, width]
        self.cache = DynamicCache(config=self.policy.causal_lm.config.get_text_config(decoder=True))
        hidden = self._forward(padded, real, (real.cumsum(-1) - 1).clamp(min=0))  # [P, H]
        rows = torch.tensor([numbers.index(owner) for owner in owners], device=device)
        self.cache.batch_select_indices(rows)
        self.attended, self.position = real[rows], lengths[rows]
        return hidden[rows]

    def _forward(self, ids: Tensor, attended: Tensor, position_ids: Tensor) -> Tensor:
        output = body(self.policy.causal_lm)(
            input_ids=ids,
            attention_mask=attended.long(),
            position_ids=position_ids,
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
    """A decoder without any cache, for models whose state no cache of ours can hold.

    It computes whole sequences in every step.
    """

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

    def extend(self, places: Sequence[int], ids: Sequence[Tensor]) -> Tensor:
        for place, new in zip(places, ids, strict=True):
            self.rows[place] = torch.cat([self.rows[place], new.to(self.rows[place])])
        return self._last_hidden([self.rows[place] for place in places])

    def restart(self, places: Sequence[int]) -> None:
        for place in places:
            self.rows[place] = self.rows[place][:0]

    def _last_hidden(self, rows: list[Tensor]) -> Tensor:
        """Return the last hidden states ``[rows, H]`` of whole sequences."""
        # Padding on the right: a causal model does not see it.
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
    """Return the decoder of these prompts; it shares prompts where the model's attention can.

    Args:
        policy, prompt_ids, max_rows, max_tokens, group_size: as of :class:`SharedPrefixDecoder`.
        cached: returns whether the standard cache serves the policy; None = :func:`cache_is_right`.
    """
    if policy.shares_prompts:
        return SharedPrefixDecoder(policy, prompt_ids, max_rows, max_tokens, group_size)
    serves = cache_is_right(policy, prompt_ids[0].device) if cached is None else cached()
    return StandardDecoder(policy, prompt_ids) if serves else RecomputingDecoder(policy, prompt_ids)


def cache_is_right(policy: PolicyModel, device: torch.device) -> bool:
    """Return whether ``StandardDecoder`` computes the hidden states of whole sequences.

    Two sequences of different lengths are decoded, and computed at once.
    """
    if policy.keeps_state:
        return False
    generator = torch.Generator().manual_seed(0)
    line = torch.randint(policy.vocab_size, (5 + 2 + 2 * 4,), generator=generator).to(device)
    prompts, completions = [line[:5], line[5:7]], line[7:].view(2, 4)
    decoder = StandardDecoder(policy, prompts)
    try:
        found = [decoder.admit([0, 1], [0, 1])]  # 4 x [2, H]
        found += [decoder.advance(tokens) for tokens in completions.T[:-1]]
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False  # raised by models whose cache is not the standard one
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.cat([prompt, completion[:-1]]).unsqueeze(0)
        whole = body(policy.causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
        whole = whole[0, len(prompt) - 1 :]  # [4, H]
        errors = (torch.stack([hidden[row] for hidden in found]) - whole).abs().amax(-1)  # [4]
        # In half precision rounding may send single tokens to other experts.
        error = errors.median() if whole.dtype.itemsize < 4 else errors.max()
        if not error <= CACHE_TOLERANCE * whole.abs().max():
            return False
    return True
