"""The policy: a Hugging Face causal LM whose forward takes packed tokens and gives token statistics.

The head runs on completion positions only; their logits exist once, as their own gradient, or in chunks that are
recomputed. The frozen reference model is a second ``PolicyModel`` or, with LoRA, the policy with its adapters off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer

from rlif_lightning.model.attention import HOOKED, AttentionPlan, TreePlan
from rlif_lightning.model.cpu_memory import HEAP
from rlif_lightning.model.head import HeadRule, head_stats
from rlif_lightning.model.loading import Policy, load_pretrained, resolve_model
from rlif_lightning.model.packing import Packed, tree_mask
from rlif_lightning.records import TokenStats
from rlif_lightning.sampling import Sampling

MAX_LOGITS = 2**24  # elements of one chunk of logits that nothing keeps: 64 MiB in float32
KEPT_LOGITS = 2**28  # elements of a micro-batch's logits that are kept for the backward pass: 1 GiB in float32


class PolicyModel(nn.Module):
    """A causal LM that scores packed completions.

    Args:
        policy: which model, and how to load it.
        frozen: no parameter gets a gradient (the reference model).
        load: gives the Hugging Face model.

    Attributes:
        keeps_sharded: whether weights stay divided between processes during a rollout as well (``parallel/fsdp.py``).
        settings: which model, and how it was loaded.
        model: the Hugging Face model (wrapped by peft under LoRA); generation calls it directly.
        tokenizer: its tokenizer.
        num_tokens: V, where ids beyond it are no tokens (``vocabulary: tokenizer``); None = every id of the model is.
        eos_ids: token ids that end a completion.
    """

    def __init__(self, policy: Policy, frozen: bool = False, load: Callable[[Policy], Any] = load_pretrained):
        super().__init__()
        self.settings = policy
        self.model: Any = load(policy)
        self.has_adapters, self.keeps_sharded = policy.lora is not None, False
        self.tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(policy.name), revision=policy.revision or "main", trust_remote_code=policy.trust_remote_code
        )
        self.num_tokens = _num_tokens(self.tokenizer, policy.vocabulary)
        self.eos_ids = _end_ids(self.model.generation_config, self.tokenizer, self.num_tokens)
        if frozen:
            self.requires_grad_(False)
        self.train()  # there is no dropout left; gradient checkpointing works in training mode only

    @property
    def stop_id(self) -> int:
        """The token that is appended where a stop string ended a completion (``Sampling.train_stop``)."""
        named = self.tokenizer.eos_token_id
        return named if named in self.eos_ids else self.eos_ids[0]

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model without peft's wrapper (its layers still carry the adapters)."""
        return self.model.get_base_model() if self.has_adapters else self.model

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Inside, a LoRA policy is its own reference model."""
        with self.model.disable_adapter():
            yield

    @property
    def shares_prompts(self) -> bool:
        """Whether attention follows a plan (``attention.py``), so that a group's prompt is computed and stored once."""
        return self.causal_lm.config._attn_implementation == HOOKED

    def rule(self, sampling: Sampling, device: torch.device) -> HeadRule:
        """How logits become those that are sampled from."""
        softcap = getattr(self.causal_lm.config, "final_logit_softcapping", None)
        end_ids = torch.tensor(self.eos_ids, device=device)
        return HeadRule(sampling.temperature or 1.0, softcap, end_ids, self.num_tokens)

    def forward(self, packed: Packed, sampling: Sampling) -> TokenStats:
        """Token statistics of every completion token.

        Args:
            packed: a line of trees, each a prompt and its completions.
            sampling: the temperature and minimum length that the completions were drawn with.

        Returns:
            ``[b, T]`` statistics, 0 where there is no token; with a graph if gradients are on.
        """
        hidden = self.line_hidden(packed).index_select(0, packed.source)
        HEAP.release(hidden.device)
        may_end = packed.steps >= sampling.min_new_tokens if sampling.min_new_tokens else None
        rule, vocab_size = self.rule(sampling, hidden.device), self.causal_lm.config.vocab_size
        if torch.is_grad_enabled() and len(hidden) * vocab_size <= KEPT_LOGITS:
            return self._head_stats(hidden, packed.tokens, may_end, rule).map(packed.unpack)
        parts = []
        for start in range(0, len(hidden), size := max(1, MAX_LOGITS // vocab_size)):
            rows = slice(start, start + size)
            chunk = (hidden[rows], packed.tokens[rows], None if may_end is None else may_end[rows], rule)
            parts.append(self._recomputed(*chunk) if torch.is_grad_enabled() else self._head_stats(*chunk))
        merged = (torch.cat([getattr(part, f.name) for part in parts]) for f in fields(TokenStats))
        return TokenStats(*merged).map(packed.unpack)

    def line_hidden(self, packed: Packed) -> Tensor:
        """``[N, H]`` last hidden states of the line."""
        if self.shares_prompts:
            plan = TreePlan(packed.trees, packed.input_ids.device)
            return self.hidden(packed.input_ids[None], packed.position_ids[None], plan)[0]
        config = self.causal_lm.config
        layer_types = getattr(config, "layer_types", None) or []
        mask: Any = self._as_attention(tree_mask(packed.trees, packed.position_ids))
        if "sliding_attention" in layer_types:
            sliding = self._as_attention(tree_mask(packed.trees, packed.position_ids, config.sliding_window))
            mask = {"full_attention": mask, "sliding_attention": sliding}
        output = self.causal_lm.base_model(
            input_ids=packed.input_ids[None],
            attention_mask=mask,
            position_ids=packed.position_ids[None],
            use_cache=False,
        )
        return output.last_hidden_state[0]

    def hidden(self, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        """Last hidden states ``[n, tokens, H]`` with attention by a plan; ids and positions are ``[n, tokens]``."""
        return self.causal_lm.base_model(
            input_ids=input_ids,
            # A mask of four dimensions is passed on as it is, so that none is built; the plan knows what is seen.
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=input_ids.device),
            position_ids=position_ids,
            use_cache=False,
            tree_plan=plan,
        ).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Raw logits ``[M, V]`` of hidden states ``[M, H]``."""
        return self.causal_lm.get_output_embeddings()(hidden)

    def _as_attention(self, allowed: Tensor) -> Tensor:
        if self.causal_lm.config._attn_implementation == "sdpa":
            return allowed
        return torch.where(allowed, 0.0, torch.finfo(self.causal_lm.dtype).min).to(self.causal_lm.dtype)

    def _head_stats(self, hidden: Tensor, tokens: Tensor, may_end: Tensor | None, rule: HeadRule) -> TokenStats:
        return head_stats(self.head(hidden), tokens, may_end, rule)

    def _recomputed(self, *chunk: Any) -> TokenStats:
        stats: Any = checkpoint(self._head_stats, *chunk, use_reentrant=False)
        return stats


def _num_tokens(tokenizer: Any, vocabulary: str) -> int | None:
    return max(tokenizer.get_vocab().values()) + 1 if vocabulary == "tokenizer" else None


def _end_ids(generation_config: Any, tokenizer: Any, num_tokens: int | None) -> list[int]:
    """Ids that end a completion: the generation config's and the tokenizer's, as far as they can be sampled.

    Raises:
        ValueError: neither names any; a completion could never end.
    """
    named = getattr(generation_config, "eos_token_id", None)
    candidates = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    ids = {token for token in candidates if token is not None and token < (num_tokens or math.inf)}
    if not ids:
        raise ValueError("neither generation_config.json nor the tokenizer names an end-of-sequence token; add one")
    return sorted(ids)
