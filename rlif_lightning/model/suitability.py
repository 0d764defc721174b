"""Choose a model's attention by trying, and refuse models that cannot be policies.

A model gets the first of these that works: plans (``plan_hook.py``), its own ``sdpa``, its own
``eager``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlif_lightning.model import plan_hook
from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.own_logits import body
from rlif_lightning.model.packing import Tree
from rlif_lightning.model.plan_hook import HOOKED, PlanError, attention_layers, following
from rlif_lightning.model.scores import AttentionPlan
from rlif_lightning.model.transformers_internals import attention_of, takes_other_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Layers whose output depends on all earlier tokens by other means than attention: first their kinds
# in configurations, then names of their classes.
STATE_KINDS = re.compile("mamba|conv|compressed|linear|recurrent|hybrid|ssm|lstm")
STATE_LAYERS = re.compile(
    "Mamba|SSM|DeltaNet|DeltaAttention|ShortConv|Recurrent|LightningAttention|LinearAttention|LSTM"
)
KIND_FIELDS = ("layer_types", "layers_block_type", "block_types")
TRIAL = 4  # tokens


def state_of(model: Any) -> str | None:
    """Return what holds state that is not attention, or None.

    Models with such state are neither packed nor cached.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = [str(kind) for field in KIND_FIELDS for kind in getattr(config, field, None) or ()]
    for kind in kinds:
        if STATE_KINDS.search(kind):
            return f"layers of the kind {kind!r}"
    for path, module in model.named_modules():
        if STATE_LAYERS.search(type(module).__name__):
            return f"{path or 'all of it'} ({type(module).__name__})"
    return "a state" if not kinds and getattr(model, "_is_stateful", False) else None


def choose_attention(model: Any, name: str, replace: bool) -> None:
    """Set the attention implementation of a model.

    Args:
        model: as it was built, with an implementation of its own.
        name: of the model, for messages.
        replace: whether plans may replace it.

    Raises:
        ValueError: in the model's own code tokens see later ones, or its weights differ between
            modes.
    """
    if getattr(model.config, "rescale_every", 0):  # RWKV divides its weights in evaluation mode
        raise ValueError(
            f"model.policy.name={name!r}: {type(model).__name__} changes its weights between"
            f" training and evaluation (rescale_every={model.config.rescale_every}); set"
            " rescale_every to 0 in its config.json"
        )
    reason = _replace(model) if replace else None
    if replace and reason is None:
        return
    if reason is not None:
        warnings.warn(
            f"{type(model).__name__} does not let its attention be replaced ({reason}): every"
            " completion is computed with a prompt of its own in a padded row, also in rollouts;"
            " results are correct, but slower and with more memory",
            stacklevel=2,
        )
    if model.device.type == "meta" or _is_causal(model):
        return
    if attention_of(model) != "eager":
        model.set_attn_implementation("eager")
        if _is_causal(model):
            return
    raise ValueError(
        f"model.policy.name={name!r}: in {type(model).__name__} tokens see later ones, so it"
        " predicts nothing; use a causal model, or make this one causal in its config.json"
        " (is_decoder=true)"
    )


def _replace(model: Any) -> str | None:
    """Let the model attend by plans; return the reason if it cannot, or None.

    A model that cannot keeps its own implementation.
    """
    own, state = attention_of(model), state_of(model)
    if state is not None:
        return f"it holds state that is not attention: {state}"
    if not takes_other_attention(model):
        return "it supports no other backend"
    plan_hook.register()
    model.set_attn_implementation(HOOKED)
    if model.device.type == "meta":
        return None
    ids = _trial_ids(model)
    try:
        with _evaluating(model):
            # A plan is made on the CPU. While a model is loaded, the default device is its own.
            with torch.device("cpu"):
                plan = TreePlan([Tree(0, TRIAL // 2, (TRIAL // 2,))], ids.device)
            planned_hidden(body(model), ids, torch.arange(TRIAL, device=ids.device)[None], plan)
    except PlanError as error:
        model.set_attn_implementation(own)
        return str(error).partition(";")[0]
    return None


def planned_hidden(
    base: Any, input_ids: Tensor, position_ids: Tensor, plan: AttentionPlan
) -> Tensor:
    """Compute last hidden states ``[n, tokens, H]`` with attention by a plan.

    Ids and positions are ``[n, tokens]``.

    Raises:
        PlanError: the model does not follow the plan.
    """
    with following(plan, attention_layers(base)):
        return base(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state


def _is_causal(model: Any) -> bool:
    """Return whether hidden states stay the same when later tokens change."""
    ids = _trial_ids(model)
    other = ids.clone()
    other[:, TRIAL // 2 :] = ids[:, :1]
    with _evaluating(model):
        one, two = (
            body(model)(input_ids=each, use_cache=False).last_hidden_state for each in (ids, other)
        )
    one, two = one[:, : TRIAL // 2].float(), two[:, : TRIAL // 2].float()
    return bool(torch.isfinite(one).all() and ((one - two).abs().max() <= 1e-2 * one.abs().max()))


def _trial_ids(model: Any) -> Tensor:
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    return torch.arange(3, 3 + TRIAL, device=model.device)[None] % vocab_size


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)
