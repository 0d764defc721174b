"""How much memory a process of a run needs, by arithmetic, and whether that much is free.

Read `Held` (what a run keeps), `Layout` (how it is divided), `peaks` (the arithmetic, from which
docs/scale.md has its table), then `held_by`, `layout_of` and `sizes_of`, which read them off a run.
Nothing is loaded: models are made on the meta device. Counts: ``model/memory_counts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from rlif_lightning.learning.muon import VOCABULARY, mark_embeddings
from rlif_lightning.learning.optimizer import build_optimizer
from rlif_lightning.model.adapters import is_adapter
from rlif_lightning.model.four_bits import quantized_bytes
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.memory_counts import (
    Line,
    Shape,
    cache,
    fullest,
    head_kept,
    head_work,
    kept,
    piece_work,
)
from rlif_lightning.parallel.partial_loading import empty_model

GIB = 2**30
# Bytes of vLLM's activations and captured graphs, in addition to weights and cache. This is an
# allowance and not a count.
SERVED = 2 * GIB
CONSTANT = ("weights", "moments", "frozen")
UPDATE = (*CONSTANT, "gradients", "activations", "logits", "gathered")
ROLLOUT = (*CONSTANT, "cache", "cast", "drawing")


@dataclass(frozen=True)
class Held:
    """Bytes that a run keeps, before they are divided.

    Attributes:
        weights: of the policy, adapters included.
        trained: of the parameters to train; their gradients have as many.
        moments: of the optimiser.
        frozen: of reference and teacher.
    """

    weights: int
    trained: int
    moments: int
    frozen: int = 0


@dataclass(frozen=True)
class Layout:
    """How a run's tensors are divided and computed.

    Attributes:
        strategy: one | ddp | fsdp2 | reshard (gradients too) | keep (both, and weights during
            rollouts too).
        parts: processes.
        mixed: computed in half precision.
        recomputed: gradient checkpointing.
        has_adapters: the base weights are in the precision that they are used in.
        engine: as `RolloutEngine.memory`.
        device: cuda | cpu.
    """

    strategy: str = "one"
    parts: int = 1
    mixed: bool = True
    recomputed: bool = True
    has_adapters: bool = False
    engine: str = "native"
    device: str = "cuda"

    @property
    def divided(self) -> bool:
        """Return whether a process holds a shard only."""
        return self.strategy in ("fsdp2", "reshard", "keep")


@dataclass(frozen=True)
class Drawn:
    """The largest rollout of a process: completions at a time, tokens of prompt and completion."""

    rows: int
    prompts: int
    prompt: int
    length: int


def state(shape: Shape, held: Held, layout: Layout) -> dict[str, int]:
    """Return the bytes of a process's weights, gradients, moments and frozen models."""
    parts = layout.parts if layout.divided else 1
    gradients = held.trained
    if layout.strategy in ("reshard", "keep"):
        # Beside its part, a process holds those of the module that is being summed up.
        gradients = held.trained // parts + 4 * max(shape.layer, shape.root)
    gradients += held.trained * (layout.strategy == "ddp")  # what DDP sends is a copy
    return {
        "weights": held.weights // parts,
        "gradients": gradients,
        "moments": held.moments // parts,
        "frozen": held.frozen // parts,
    }


def peaks(shape: Shape, held: Held, layout: Layout, line: Line, drawn: Drawn) -> dict[str, int]:
    """Return the most bytes of a process, in an update and in a rollout, and their parts."""
    found, whole = state(shape, held, layout), not layout.divided
    # The root, a layer and the next one.
    gathered = 0 if whole else (2 if layout.mixed else 4) * (shape.root + 2 * shape.layer)
    logits = head_kept(shape, line, layout.mixed, whole, layout.device)
    logits += head_work(shape, line, layout.device)
    size = 2 if layout.mixed else 4
    served = cache(shape, drawn.rows, drawn.prompts, drawn.prompt, drawn.length - 1, size)
    engine = 2 * shape.parameters + served + SERVED if layout.engine == "vllm" else 0
    is_native = layout.engine == "native"
    parts = {
        **found,
        "activations": kept(shape, line, layout.mixed, layout.recomputed, whole),
        "logits": logits,
        "gathered": gathered,
        "cache": engine or (served if is_native else 0),
        "cast": _cast(shape, layout) if is_native else 0,
        "drawing": piece_work(shape, drawn.rows, layout.device) if is_native else 0,
    }
    update = sum(parts[name] for name in UPDATE) + engine  # vLLM holds its memory all the time
    return parts | {"update": update, "rollout": sum(parts[name] for name in ROLLOUT)}


def _cast(shape: Shape, layout: Layout) -> int:
    """Return the bytes of weights in half precision, or gathered, that decoding multiplies with."""
    size = 2 if layout.mixed else 4
    if layout.strategy == "keep":
        return size * (shape.root + 2 * shape.layer)
    if layout.divided:
        return size * shape.parameters
    return 2 * shape.cast if layout.mixed and not layout.has_adapters else 0


def held_by(module: Any) -> tuple[Held, Shape | None]:
    """Return what a run keeps of its models, and the policy's shape, if one describes it.

    Args:
        module: the ``RLIFModule``, before its models are loaded.
    """
    settings, objective = module.policy_settings, module.objective
    model, has_adapters = empty_model(settings), settings.lora is not None
    weights = _bytes(model.parameters()) - _saved_by_4_bits(model, settings)
    mark_embeddings(model)
    trained = [each for each in model.parameters() if each.requires_grad]
    frozen = weights if objective.needs_reference and not has_adapters else 0
    teacher = objective.teacher
    if teacher is not None and teacher.model is not None:
        frozen += _bytes(empty_model(teacher.model).parameters())
    elif teacher is not None and (teacher.averages or not has_adapters):
        frozen += weights
    moments = moments_of(module.make_optimizer, trained)
    base = empty_model(replace(settings, lora=None)) if has_adapters else model
    return Held(weights, _bytes(trained), moments, frozen), Shape.of(base)


def _saved_by_4_bits(model: Any, settings: Policy) -> int:
    """Return by how many bytes weights in 4 bits are smaller; the head is not among them."""
    if (bits := settings.four_bits) is None:
        return 0
    saved, head = 0, model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and not is_adapter(name):
            elements, size = module.weight.numel(), module.weight.element_size()
            saved += elements * size - quantized_bytes(elements, bits["bnb_4bit_use_double_quant"])
    return saved


def _bytes(parameters: Any) -> int:
    return sum(each.numel() * each.element_size() for each in parameters)


def moments_of(make_optimizer: Any, trained: list[Parameter]) -> int:
    """Return the bytes of an optimiser's state, in proportion to that of small parameters.

    That is exact where a parameter's state has its shape, as of Adam, SGD and Muon, and more than
    is used where it has not, as of Adafactor.
    """
    total = 0
    for is_matrix in (True, False):
        chosen = [each for each in trained if _is_matrix(each) == is_matrix]
        if not chosen:
            continue
        small = Parameter(torch.zeros((64, 64) if is_matrix else (64,), dtype=chosen[0].dtype))
        small.grad = torch.ones_like(small)
        optimizer = build_optimizer(make_optimizer, [small])
        optimizer.step()
        states = [each for entry in optimizer.state.values() for each in entry.values()]
        kept_bytes = _bytes(each for each in states if isinstance(each, Tensor) and each.dim())
        total += kept_bytes * sum(each.numel() for each in chosen) // small.numel()
    return total


def _is_matrix(parameter: Parameter) -> bool:
    return parameter.ndim == 2 and not getattr(parameter, VOCABULARY, False)


def layout_of(trainer: Any, module: Any) -> Layout | None:
    """Return how a run's tensors are divided; None for tensor parallelism and CPU offload."""
    strategy, parts = trainer.strategy, trainer.world_size
    name = getattr(strategy, "division", "one" if parts == 1 else "ddp")
    if name is None:
        return None
    settings: Policy = module.policy_settings
    return Layout(
        strategy=name,
        parts=parts,
        mixed=not str(trainer.precision).startswith(("32", "64")) or "16" in settings.dtype,
        recomputed=settings.gradient_checkpointing,
        has_adapters=settings.lora is not None,
        engine=module.engine.memory,
        device="cpu" if strategy.root_device.type == "cpu" else "cuda",
    )


def sizes_of(module: Any, data: Any, data_ranks: int) -> tuple[Line, Drawn]:
    """Return the largest micro-batch and rollout of a process, with prompts as long as the longest.

    Args:
        module: the ``RLIFModule``.
        data: the data module, whose training problems are loaded.
        data_ranks: processes that share a rollout.
    """
    prompt = max(map(len, data.split("train").token_ids))
    length, group = module.sampling.max_new_tokens, module.group_size
    if (environment := getattr(data, "environment", None)) is not None:
        length += environment.max_observation_tokens
    own = -(-data.prompts_per_rollout // data_ranks)
    in_step = min(own, -(-data.prompts_per_rollout // module.plan.updates_per_rollout))
    line = fullest(module.budget.tokens, prompt, length, group, in_step)
    rows = min(getattr(module.engine, "max_rows", own * group), own * group)
    return line, Drawn(rows, min(own, -(-rows // group)), prompt, length)
