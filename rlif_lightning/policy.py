"""The policy: a Hugging Face causal LM whose forward takes packed tokens and gives token statistics.

The head runs on completion positions only; their logits exist once, as their own gradient, or in chunks that are
recomputed. The frozen reference model is a second ``PolicyModel`` or, with LoRA, the policy with its adapters off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlif_lightning.attention import HOOKED, AttentionPlan, TreePlan
from rlif_lightning.batch import TokenStats
from rlif_lightning.heap import HEAP
from rlif_lightning.logits import HeadRule, head_stats
from rlif_lightning.packing import Packed, tree_mask
from rlif_lightning.rollout.sampling import Sampling

EMBEDDED_MODELS = {"rlif-arithmetic": Path(__file__).parent / "assets" / "base_model"}
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
ATTENTIONS = ("sdpa", "eager")
MAX_LOGITS = 2**24  # elements of one chunk of logits that nothing keeps: 64 MiB in float32
KEPT_LOGITS = 2**28  # elements of a micro-batch's logits that are kept for the backward pass: 1 GiB in float32


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters instead of full fine-tuning (package peft, extra `lora`).

    Args:
        rank: of the adapters.
        alpha: scale; the adapter's output is multiplied by alpha / rank.
        target_modules: names of the layers to adapt; null = every linear layer but the head.
    """

    rank: int = 16
    alpha: int = 32
    target_modules: list[str] | None = None


@dataclass(frozen=True)
class Policy:
    """Which model is trained and how it is loaded.

    Args:
        name: hub name, folder, or `rlif-arithmetic` (the small model in this package).
        dtype: float32 | bfloat16 | float16 | float64 | auto: of the weights. Train in float32 (with trainer.precision
            bf16-mixed if you like): small learning rates vanish in bfloat16 weights.
        attention: sdpa | eager. sdpa works in pieces of PyTorch's fused kernels, prompts shared, nothing padded; eager
            is the model's own code under a dense mask with a standard cache: slow, for models that sdpa cannot serve.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        lora: adapters instead of full fine-tuning; null = full.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run model code that comes with the weights. Off unless you trust the author.
    """

    name: str
    dtype: str = "float32"
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    lora: LoRA | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"policy.dtype={self.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"policy.attention={self.attention!r} is not supported; use one of {', '.join(ATTENTIONS)}"
            )


def resolve_model(name: str) -> str:
    """The folder of an embedded model, or the name itself (a hub name or folder)."""
    return str(EMBEDDED_MODELS.get(name, name))


def load_pretrained(policy: Policy) -> PreTrainedModel:
    """Load the weights, with every dropout off (a policy must give the same log-probs twice).

    Raises:
        ValueError: no such folder or hub model, or the extra `lora` is missing.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve_model(policy.name),
            dtype=policy.dtype if policy.dtype == "auto" else getattr(torch, policy.dtype),
            attn_implementation=policy.attention,
            revision=policy.revision or "main",
            trust_remote_code=policy.trust_remote_code,
            use_safetensors=True,  # pickled weights could run code
        )
    except OSError as error:
        raise ValueError(
            f"policy.name={policy.name!r} is neither a model folder nor a hub model that can be reached: {error}"
        ) from error
    return prepared(model, policy)


def prepared(model: PreTrainedModel, policy: Policy) -> Any:
    """The model as it is trained: every dropout off, attention replaced, adapters added."""
    _switch_dropout_off(model)
    if policy.attention == "sdpa":
        _hook_attention(model)
    if policy.gradient_checkpointing:
        # transformers 5.20 renamed the method; vLLM 0.32 needs an earlier one.
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model if policy.lora is None else _add_lora(model, policy.lora)


def _switch_dropout_off(model: nn.Module) -> None:
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _hook_attention(model: PreTrainedModel) -> None:
    if model._supports_attention_backend:
        model.set_attn_implementation(HOOKED)
    else:
        warnings.warn(
            f"{type(model).__name__} does not let its attention be replaced: packed groups use a dense mask and"
            " rollouts the standard cache, which is right but slower and takes more memory",
            stacklevel=2,
        )


def _add_lora(model: PreTrainedModel, lora: LoRA) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise ValueError('policy.lora needs the package peft: pip install "rlif-lightning[lora]"') from error
    model.enable_input_require_grads()  # or gradient checkpointing would find nothing that needs a gradient
    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's layers
    settings = {"target_modules": lora.target_modules or "all-linear", "fan_in_fan_out": transposed}
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, **settings)
    return _with_drawn_adapters(get_peft_model(model, config), LoraLayer)


def _with_drawn_adapters(model: Any, kind: type) -> Any:
    """Draw the adapters from the run's seed alone: the same in a model whose weights are not there yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.is_meta and parameter.requires_grad:
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        for layer in model.modules():
            if isinstance(layer, kind):
                layer.reset_lora_parameters("default", init_lora_weights=True)  # type: ignore[operator]
    return model


class PolicyModel(nn.Module):
    """A causal LM that scores packed completions.

    Args:
        policy: which model, and how to load it.
        frozen: no parameter gets a gradient (the reference model).
        load: gives the Hugging Face model.

    Attributes:
        keeps_sharded: whether weights stay divided between processes during a rollout as well (``sharding.py``).
        model: the Hugging Face model (wrapped by peft under LoRA); generation calls it directly.
        tokenizer: its tokenizer.
        eos_ids: token ids that end a completion.
    """

    def __init__(self, policy: Policy, frozen: bool = False, load: Callable[[Policy], Any] = load_pretrained):
        super().__init__()
        self.model: Any = load(policy)
        self.has_adapters, self.keeps_sharded = policy.lora is not None, False
        self.tokenizer = AutoTokenizer.from_pretrained(
            resolve_model(policy.name), revision=policy.revision or "main", trust_remote_code=policy.trust_remote_code
        )
        self.eos_ids = _end_ids(self.model.generation_config, self.tokenizer)
        if frozen:
            self.requires_grad_(False)
        self.train()  # there is no dropout left; gradient checkpointing works in training mode only

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
        return HeadRule(sampling.temperature or 1.0, softcap, torch.tensor(self.eos_ids, device=device))

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


def _end_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Ids that end a completion: the generation config's and the tokenizer's.

    Raises:
        ValueError: neither names any; a completion could never end.
    """
    named = getattr(generation_config, "eos_token_id", None)
    candidates = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    ids = {token for token in candidates if token is not None}
    if not ids:
        raise ValueError("neither generation_config.json nor the tokenizer names an end-of-sequence token; add one")
    return sorted(ids)
