"""The hook that brings attention plans to the attention layers of Hugging Face models.

It is registered as the attention implementation ``HOOKED``. A model builds its masks by its own
rules, and transformers calls ``plan_mask`` to make each mask. During a planned forward the mask is
a single element that carries the plan and the window of its rule. Each layer passes the mask on to
``attend``, whatever other arguments it drops, also when its activations are recomputed. Outside of
a planned forward both functions are transformers' ordinary ``sdpa``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.masking_utils import sdpa_mask

from rlif_lightning.model.scores import AttentionPlan, Scores, in_one_precision

HOOKED = "rlif"
INSTEAD = "set model.policy.attention=eager"
# Arguments of attention that change its result, and that plans do not have.
UNKNOWN = ("position_bias", "indices", "block_indices", "sinks")
FAR = 64  # a rule without a window is tested up to this distance
MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class PlanError(ValueError):
    """A model whose attention does not follow a plan."""


@dataclass
class PlannedPass:
    """One forward of a model by a plan.

    Attributes:
        plan: the plan of all layers.
        asked: layer -> how often it asked the plan.
        open: whether the forward is running; a layer that is recomputed later is not counted.
    """

    plan: AttentionPlan
    asked: Counter[int] = field(default_factory=Counter)
    open: bool = True

    def check(self, layers: Mapping[int, str]) -> None:
        """Raise ``PlanError`` unless each of the layers (number -> name) asked once."""
        wrong = sorted(layer for layer in {*layers, *self.asked} if self.asked[layer] != 1)
        if wrong:
            name, times = layers.get(wrong[0], f"layer {wrong[0]}"), self.asked[wrong[0]]
            raise PlanError(
                f"{name} asked the attention plan {times} times in one forward instead of once;"
                f" {INSTEAD}"
            )


@dataclass(frozen=True)
class PlanView:
    """The content of a mask in a planned forward.

    Attributes:
        planned: the pass.
        window: of the layers that use the mask; None = causal without a window.
        problem: why no plan can follow the mask's rule. It is raised only if a layer uses the mask.
    """

    planned: PlannedPass
    window: int | None = None
    problem: str = ""


_layers: WeakKeyDictionary[nn.Module, dict[int, str]] = WeakKeyDictionary()
_current: ContextVar[PlannedPass | None] = ContextVar("planned_pass", default=None)


@cache
def register() -> None:
    """Make ``HOOKED`` known to transformers, whose models the command line imports with a run."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(HOOKED, attend)
    AttentionMaskInterface.register(HOOKED, plan_mask)


@contextmanager
def following(plan: AttentionPlan, layers: Mapping[int, str]) -> Iterator[None]:
    """Let models whose implementation is ``HOOKED`` attend by the plan.

    Args:
        plan: of the forward inside.
        layers: the attention layers (``attention_layers``), each of which must ask once.

    Raises:
        PlanError: a layer did not ask once, or no plan can follow the model's mask or attention.
    """
    planned = PlannedPass(plan)
    before = _current.set(planned)
    try:
        yield
    finally:
        planned.open = False
        _current.reset(before)
    planned.check(layers)


def attention_layers(model: nn.Module) -> dict[int, str]:
    """Return the names of a model's attention layers by their numbers."""
    if model in _layers:  # kept, since decoding runs a forward for each token
        return _layers[model]
    found = _layers[model] = {}
    for name, module in model.named_modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and "Attention" in type(module).__name__:
            found.setdefault(layer, f"{name} ({type(module).__name__})")
    return found


def plan_mask(
    *args: Any,
    mask_function: MaskRule,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """Make a mask for transformers; the arguments are those of its ``sdpa_mask``.

    Returns:
        In a planned forward ``[1, 1, 1, 1]`` with a ``PlanView``, else the mask of ``sdpa``.
    """
    planned = _current.get()
    if planned is None:
        return sdpa_mask(
            *args, mask_function=mask_function, local_size=local_size, device=device, **kwargs
        )
    mask: Any = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)
    try:
        mask.plan_view = PlanView(planned, window_of(mask_function, local_size))
    except PlanError as error:
        mask.plan_view = PlanView(planned, problem=str(error))
    return mask


def window_of(rule: MaskRule, local_size: int | None) -> int | None:
    """Return the window of a mask's rule; None = causal without a window.

    The rule is a function, so it is evaluated at distances around the window.

    Args:
        rule: returns bool for (batch, head, query, key) indices.
        local_size: the window that transformers gives for it.

    Raises:
        PlanError: the rule is of another kind.
    """
    size = local_size or FAR
    # The default device is the model's while it is loaded; a rule is evaluated on the CPU.
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    queries = torch.tensor(
        [1, size - 1, size, 2 * size + 1, 3 * size + FAR], device="cpu"
    ).unsqueeze(1)
    distances = torch.tensor([-1, 0, 1, size - 1, size, size + 1, 2 * size, FAR], device="cpu")
    keys = queries - distances  # [5, 8]
    inside = keys >= 0
    try:
        seen = rule(zero, zero, queries, keys.clamp(min=0)).cpu()
    except (IndexError, RuntimeError) as error:
        raise PlanError(f"whose rule cannot be read ({error})") from error
    for window in (None, local_size):
        expected = (distances >= 0) & (distances < (window or 3 * size + FAR))
        if torch.equal(seen & inside, expected & inside):
            return window
    raise PlanError("that is neither causal nor a sliding window")


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of a Hugging Face layer; the arguments are transformers'.

    Args:
        module: the attention layer.
        query, key, value: ``[n, heads, tokens, d]``; keys and values may have fewer heads.
        attention_mask: of ``plan_mask``.
        options: ``scaling``, ``softcap`` and ``s_aux`` (sinks) are followed, and without a plan
            ``dropout``. Under a plan those of ``UNKNOWN`` are refused.

    Raises:
        PlanError: the layer lost the plan, or asks for something that plans do not have.
    """
    view: PlanView | None = getattr(attention_mask, "plan_view", None)
    scaling, softcap, sinks = (options.get(name) for name in ("scaling", "softcap", "s_aux"))
    if view is None and _current.get() is None:
        if softcap is None and sinks is None:
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return Scores(scaling, None, softcap, sinks).attend(query, key, value, attention_mask), None
    name = f"{type(module).__name__} {getattr(module, 'layer_idx', '')}".strip()
    if view is None or view.problem:
        raise PlanError(
            f"{name} attends under a mask {'of its own' if view is None else view.problem};"
            f" {INSTEAD}"
        )
    unknown = [argument for argument in UNKNOWN if options.get(argument) is not None]
    if unknown or options.get("is_causal") is False:
        raise PlanError(f"{name} uses {[*unknown, 'is_causal=False'][0]}; {INSTEAD}")
    if view.planned.open:
        view.planned.asked[module.layer_idx] += 1
    query, key, value = in_one_precision(query, key, value)
    scores = Scores(scaling, view.window, softcap, sinks)
    return view.planned.plan.attend(module.layer_idx, query, key, value, scores), None
