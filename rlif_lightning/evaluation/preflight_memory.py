"""What preflight says about memory before any weights are loaded: needed, free, and a verdict."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table

from rlif_lightning.data.prompts import PromptData
from rlif_lightning.evaluation.memory_need import (
    GIB,
    ROLLOUT,
    UPDATE,
    held_by,
    layout_of,
    peaks,
    sizes_of,
)
from rlif_lightning.evaluation.preflight_report import WIDTH, print_verdict
from rlif_lightning.model.cpu_memory import available_bytes

USABLE = 0.9  # of the free memory: libraries, fragmentation and small tensors take the rest
ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "optimiser's moments",
    "frozen": "reference and teacher",
    "activations": "activations of a micro-batch",
    "logits": "its logits",
    "gathered": "gathered layers",
    "cache": "keys and values",
    "cast": "weights for decoding",
    "drawing": "logits of a token",
}
STATE = "set model.policy.lora, or divide it over more processes (configs/strategy/fsdp2.yaml)"
MICRO_BATCH = "lower model.update.micro_batch_tokens"
REMEDIES = {
    "activations": f"{MICRO_BATCH}, or set model.policy.gradient_checkpointing=true",
    "logits": MICRO_BATCH,
    "cache": "lower model.engine.max_rows",
    "drawing": "lower model.engine.max_rows",
}


@dataclass(frozen=True)
class Need:
    """What one process of a run needs.

    Attributes:
        parts: bytes by name, with the sums ``update`` and ``rollout`` (`peaks`).
        free: bytes that it can have; None = not known for this device.
        not_counted: what the arithmetic does not know, in words; empty = nothing.
    """

    parts: dict[str, int]
    free: int | None
    not_counted: str = ""

    @property
    def peak(self) -> int:
        """Return the larger of both sums."""
        return max(self.parts["update"], self.parts["rollout"])

    def verdict(self) -> tuple[str, str]:
        """Return good, caution or poor, and why."""
        is_update = self.parts["update"] >= self.parts["rollout"]
        when, least = ("update" if is_update else "rollout"), "at least " * bool(self.not_counted)
        needs = f"the {when} needs {least}{_size(self.peak)}"
        if self.free is None:
            return "caution", f"{needs}; how much is free on this device is not known"
        said = f"{needs} of {_size(self.free)} that are free for a process"
        if self.peak <= USABLE * self.free:
            return (
                ("caution", f"{said}; {self.not_counted}") if self.not_counted else ("good", said)
            )
        largest = max(UPDATE if is_update else ROLLOUT, key=lambda name: self.parts[name])
        remedy = REMEDIES.get(largest, STATE)
        verdict = "poor" if self.peak > self.free else "caution"
        return verdict, f"{said}; most are {ROWS[largest]}: {remedy}"


def need_of(trainer: Any, module: Any, data: PromptData) -> Need | None:
    """Return what a process of a run needs; None where the arithmetic does not know its strategy.

    Args:
        trainer: with its strategy set up.
        module: before its models are loaded.
        data: with its training problems loaded.
    """
    layout = layout_of(trainer, module)
    if layout is None:
        return None
    held, shape = held_by(module)
    free = free_bytes(trainer)
    if shape is None or module.policy_settings.attention == "eager":
        parts = {"weights": held.weights, "gradients": held.trained, "moments": held.moments}
        parts["frozen"] = held.frozen
        total = sum(parts.values())
        parts |= dict.fromkeys(ROWS.keys() - parts.keys(), 0)
        parts |= {"update": total, "rollout": total - held.trained}
        unknown = "activations, logits, keys and values of this architecture are not counted"
        return Need(parts, free, unknown)
    line, drawn = sizes_of(module, data, trainer.world_size)
    return Need(peaks(shape, held, layout, line, drawn), free)


def free_bytes(trainer: Any) -> int | None:
    """Return how much of its device's memory a process can have; None where that is not known."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or (available := available_bytes()) is None:
        return None
    return available // max(1, trainer.num_devices)  # the processes of a machine share it


class MemoryNotice(Callback):
    """Loads the training problems and prints what memory a run needs, before any model is loaded.

    Attributes:
        need: what was printed; None before, and where the strategy is not counted.
    """

    def __init__(self, data: PromptData) -> None:
        self.data = data
        self.need: Need | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Count and print."""
        self.data.setup("fit")
        self.need = need_of(trainer, pl_module, self.data)
        if not trainer.is_global_zero:
            return
        if self.need is None:
            print("memory: not counted for tensor parallelism and cpu_offload (docs/scale.md)")
            return
        print_need(self.need)


def print_need(need: Need) -> None:
    """Print the parts of both sums as a table, and the verdict."""
    table = Table(title="Memory of one process, by arithmetic", title_justify="left")
    table.add_column("")
    for heading in ("update", "rollout"):
        table.add_column(heading, justify="right")
    for name, label in ROWS.items():
        cells = [_size(need.parts[name]) if name in part else "" for part in (UPDATE, ROLLOUT)]
        if need.parts[name]:
            table.add_row(label, *cells)
    table.add_row("sum", _size(need.parts["update"]), _size(need.parts["rollout"]), style="bold")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    print_verdict(console, "memory", *need.verdict())


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
