"""The policy: a Hugging Face causal LM that computes token statistics of packed completions.

The head runs on completion tokens only. Their logits are stored once and overwritten by their
gradient, or computed in chunks and recomputed in the backward pass. The frozen reference model is a
second ``PolicyModel`` or, with LoRA, the policy with its adapters off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer

from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.context import ContextLimits
from rlif_lightning.model.cpu_memory import HEAP
from rlif_lightning.model.four_bits import hold_adapters_only
from rlif_lightning.model.head import Asked, HeadReader, HeadRule, StatsReader, rows_within
from rlif_lightning.model.loading import Policy, load_pretrained, resolve_model
from rlif_lightning.model.noise import set_quiet_mode, switch_noise_off
from rlif_lightning.model.own_logits import body, cast_head, own_logits
from rlif_lightning.model.packing import Packed, own_rows
from rlif_lightning.model.plan_hook import HOOKED
from rlif_lightning.model.scores import AttentionPlan
from rlif_lightning.model.suitability import choose_attention, planned_hidden, state_of
from rlif_lightning.model.transformers_internals import attention_of
from rlif_lightning.sampling import Sampling

# Elements of one chunk of logits that is not stored: 64 MiB in float32; on a GPU 512 MiB in
# bfloat16.
MAX_LOGITS = {"cpu": 2**24, "cuda": 2**28}
# Most elements of a micro-batch's logits that are stored for the backward pass: 1 GiB in float32;
# on a GPU 2 GiB in bfloat16.
KEPT_LOGITS = {"cpu": 2**28, "cuda": 2**30}
STATS = StatsReader()


class PolicyModel(nn.Module):
    """A causal LM that measures the tokens of packed completions.

    Args:
        policy: settings: which model, and how to load it.
        frozen: no parameter gets a gradient (the reference model).
        load: returns the Hugging Face model.

    Raises:
        ValueError: the model cannot be a policy.

    Attributes:
        keeps_sharded: whether weights stay sharded during a rollout as well (``parallel/fsdp.py``).
        settings: which model, and how it was loaded.
        model: the Hugging Face model (wrapped by peft under LoRA); generation calls it directly.
        tokenizer: its tokenizer.
        num_tokens: V, where ids beyond it are no tokens (``vocabulary: tokenizer``); None = every
            id of the model is a token.
        eos_ids: token ids that end a completion.
    """

    def __init__(
        self, policy: Policy, frozen: bool = False, load: Callable[[Policy], Any] = load_pretrained
    ):
        super().__init__()
        self.settings = policy
        self.model: Any = load(policy)
        self.name = policy.name
        self.has_adapters, self.keeps_sharded = policy.lora is not None, False
        self.tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(policy.name),
            revision=policy.revision or "main",
            trust_remote_code=policy.trust_remote_code,
        )
        self.num_tokens = _num_tokens(self.tokenizer, policy.vocabulary)
        self.eos_ids = _end_ids(self.model.generation_config, self.tokenizer, self.num_tokens)
        self._end_ids: dict[tuple[Any, ...], Tensor] = {}
        if frozen:
            self.requires_grad_(False)
        choose_attention(self.causal_lm, policy.name, replace=policy.attention == "sdpa")
        switch_noise_off(self.causal_lm)
        self.limits = ContextLimits.of(self.causal_lm)
        if policy.in_4bit:
            hold_adapters_only(self)
        self.train()

    @property
    def stop_id(self) -> int:
        """Return the token appended after a stop string (``Sampling.train_stop``)."""
        named = self.tokenizer.eos_token_id
        return named if named in self.eos_ids else self.eos_ids[0]

    @property
    def causal_lm(self) -> Any:
        """Return the Hugging Face model without peft's wrapper; its layers keep the adapters."""
        return self.model.get_base_model() if self.has_adapters else self.model

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Switch a LoRA policy's adapters off, which makes it its own reference model."""
        with self.model.disable_adapter():
            yield

    @property
    def shares_prompts(self) -> bool:
        """Return whether a group's prompt is computed and stored once: attention follows plans."""
        return attention_of(self.causal_lm) == HOOKED

    @property
    def vocab_size(self) -> int:
        """Return V of the model."""
        return self.causal_lm.config.get_text_config(decoder=True).vocab_size

    @property
    def keeps_state(self) -> bool:
        """Return whether layers hold state that is not attention."""
        return state_of(self.causal_lm) is not None

    def rule(self, sampling: Sampling, device: torch.device) -> HeadRule:
        """Return the rule from the model's logits to those that are sampled from."""
        key = (device, *self.eos_ids)
        if key not in self._end_ids:
            with torch.inference_mode(False):  # an evaluation may make it, and training use it
                self._end_ids = {key: torch.tensor(self.eos_ids, device=device)}
        return HeadRule(sampling.temperature or 1.0, self._end_ids[key], self.num_tokens)

    def check_context(
        self, prompt_ids: Sequence[Tensor], max_new_tokens: int, max_observation_tokens: int = 0
    ) -> None:
        """Refuse prompts that the model cannot read, or cannot continue by so many tokens.

        Raises:
            ValueError: names the limit, and what to change.
        """
        lengths = [len(ids) for ids in prompt_ids]
        self.limits.check_ids(self.name, prompt_ids)
        longest = [length + max_new_tokens + max_observation_tokens for length in lengths]
        asked = f" with sampling.max_new_tokens={max_new_tokens}"
        if max_observation_tokens:
            asked += f" and data.environment.max_observation_tokens={max_observation_tokens}"
        self.limits.check(self.name, lengths, longest, asked)

    def forward(self, packed: Packed, sampling: Sampling, reader: HeadReader = STATS) -> Any:
        """Compute the statistics of every completion token, or what another reader reads.

        Args:
            packed: a line of trees, each a prompt and its completions.
            sampling: the temperature and minimum length that the completions were drawn with.
            reader: what is read of the head's output.

        Returns:
            ``TokenStats`` of ``[b, T]``, or what the reader returns; 0 where there is no token;
            with a graph if gradients are on.
        """
        hidden = self.completion_hidden(packed)  # [M, H]
        HEAP.release(hidden.device)
        may_end = packed.positions >= sampling.min_new_tokens if sampling.min_new_tokens else None
        rule, graph = self.rule(sampling, hidden.device), torch.is_grad_enabled()
        asked = Asked(packed.tokens, reader.given(packed), may_end)
        if graph and len(hidden) <= rows_within(KEPT_LOGITS, hidden.device, self.vocab_size):
            found = self._read(reader, rule, hidden, asked)
            return reader.result(*map(packed.unpack, found))
        parts, weight = [], cast_head(self.causal_lm, hidden.device)
        for start in range(0, len(hidden), size := self.rows_at_once(hidden.device)):
            rows = slice(start, start + size)
            chunk = (reader, rule, hidden[rows], asked.of(rows), weight)
            parts.append(self._recomputed(*chunk) if graph else self._read(*chunk))
        merged = (torch.cat(column) for column in zip(*parts, strict=True))
        return reader.result(*map(packed.unpack, merged))

    def completion_hidden(self, packed: Packed) -> Tensor:
        """Compute the last hidden states ``[M, H]`` that the completion tokens are predicted from.

        Raises:
            ValueError: a context is longer than the model computes correctly.
        """
        # In every call, since Lightning switches modes back without a hook.
        set_quiet_mode(self.model, self.training)
        trees = [tree for tree in packed.trees if tree.lengths]
        longest = [tree.prompt_length + max(tree.lengths) + 1 for tree in trees]
        self.limits.check(self.name, [tree.prompt_length for tree in trees], longest)
        if self.shares_prompts:
            plan = TreePlan(packed.trees, packed.input_ids.device)
            line = self.hidden(packed.input_ids[None], packed.position_ids[None], plan)[0]  # [N, H]
            return line.index_select(0, packed.source)
        ids, source = own_rows(packed)  # [b, L], [M]
        hidden = body(self.causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, source)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Compute last hidden states ``[n, tokens, H]`` with attention by a plan.

        Ids and positions are ``[n, tokens]``.
        """
        return planned_hidden(body(self.causal_lm), input_ids, position_ids, plan)

    def rows_at_once(self, device: torch.device) -> int:
        """Return how many rows of logits are computed at a time where none are stored."""
        return max(1, rows_within(MAX_LOGITS, device, self.vocab_size))

    def head(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute the model's own logits ``[M, V]`` of hidden states ``[M, H]``.

        ``weight`` is the head's, as ``cast_head`` returns it.
        """
        return own_logits(self.causal_lm, hidden, weight)

    def _read(
        self,
        reader: HeadReader,
        rule: HeadRule,
        hidden: Tensor,
        asked: Asked,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        return reader.read(self.head(hidden, weight), asked, rule)

    def _recomputed(self, *chunk: Any) -> tuple[Tensor, ...]:
        found: Any = checkpoint(self._read, *chunk, use_reentrant=False)
        return found


def _num_tokens(tokenizer: Any, vocabulary: str) -> int | None:
    return max(tokenizer.get_vocab().values()) + 1 if vocabulary == "tokenizer" else None


def _end_ids(generation_config: Any, tokenizer: Any, num_tokens: int | None) -> list[int]:
    """Return the ids that end a completion: the generation config's and the tokenizer's.

    Ids that cannot be sampled are left out.

    Raises:
        ValueError: there is none, so that a completion could never end.
    """
    named = getattr(generation_config, "eos_token_id", None)
    candidates = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    ids = {token for token in candidates if token is not None and token < (num_tokens or math.inf)}
    if not ids:
        raise ValueError(
            "neither generation_config.json nor the tokenizer names an end-of-sequence token; add"
            " one"
        )
    return sorted(ids)
