"""Compute the memory of one GPU by arithmetic: the table of docs/scale.md.

The tensors of a process are counted one by one. tests/test_memory_table.py compares the counts with
the real tensors of small models. The CUDA context, workspaces of libraries and fragmentation of the
allocator are not counted.

    python scripts/memory_table.py            # prints the table
    python scripts/memory_table.py --write    # writes it into docs/scale.md
    python scripts/memory_table.py --check    # exit code 1 if the page has another one
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memory_counts import (
    GROUP,
    HEAD_WORK,
    LENGTH,
    MODELS,
    PROMPT,
    Shape,
    cache,
    fullest,
    head_kept,
    head_work,
    kept,
)
from page_tables import command_line

from rlif_lightning.model.head import PIECE

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- written by scripts/memory_table.py -->", "<!-- end of the memory table -->"
GIB = 2**30
CARDS = (24, 40, 80, 141)  # GB by their names; as many GiB are there, within one
MARGIN = 0.9  # of a card's memory, for what is not counted
ROWS = 64  # configs/engine/native.yaml
# Bytes of vLLM's activations and captured graphs, in addition to weights and cache. This is an
# allowance and not a count.
SERVED = 2 * GIB


@dataclass(frozen=True)
class Run:
    """A row of the table for each model.

    Attributes:
        strategy: one | ddp | fsdp2 | reshard (gradients too) | keep (both, and weights during
            rollouts too).
        reference: a second model for the reference KL.
        recomputed: gradient checkpointing.
        rank: of LoRA adapters on bfloat16 weights; 0 = full fine-tuning of float32 weights.
        vllm: in the process, instead of the native engine.
    """

    name: str
    gpus: int = 1
    strategy: str = "one"
    reference: bool = True
    recomputed: bool = True
    rank: int = 0
    vllm: bool = False

    @property
    def divided(self) -> bool:
        """Return whether a process holds a shard only."""
        return self.strategy in ("fsdp2", "reshard", "keep")


RUNS = (
    Run("1 GPU"),
    Run("1 GPU, vLLM in the process", vllm=True),
    Run("1 GPU, no checkpointing", recomputed=False),
    Run("1 GPU, no reference KL", reference=False),
    Run("1 GPU, LoRA of rank 16, bfloat16 weights", reference=False, rank=16),
    Run("4 GPUs, `ddp.yaml`", 4, "ddp"),
    Run("4 GPUs, `fsdp2.yaml`", 4, "fsdp2"),
    Run("4 GPUs, and `reshard_gradients`", 4, "reshard"),
    Run("4 GPUs, and `keep_sharded`", 4, "keep"),
)


def state(shape: Shape, run: Run) -> dict[str, int]:
    """Return the bytes of an update's weights, gradients, AdamW's moments and reference."""
    parts = run.gpus if run.divided else 1
    trained = shape.adapters(run.rank) if run.rank else shape.parameters
    weights = 2 * shape.parameters + 4 * trained if run.rank else 4 * shape.parameters
    gradients = 4 * trained // (parts if run.strategy in ("reshard", "keep") else 1)
    if run.strategy in ("reshard", "keep"):
        gradients += 4 * max(shape.layer, shape.root)  # of the module that is being summed up
    gradients += 4 * trained * (run.strategy == "ddp")  # what DDP sends is a copy
    return {
        "weights": weights // parts,
        "gradients": gradients,
        "AdamW": 8 * trained // parts,
        "reference": 4 * shape.parameters // parts if run.reference else 0,
    }


def peaks(shape: Shape, run: Run) -> dict[str, int]:
    """Return the most bytes of a process, in an update and in a rollout."""
    held, line = state(shape, run), fullest()
    gathered = 2 * (shape.root + 2 * shape.layer)  # the root, a layer and the next one, in bfloat16
    activations = kept(
        shape, line, True, run.recomputed, not run.divided
    )  # with adapters less: bfloat16 throughout
    head = head_kept(shape, line, True, not run.divided) + head_work(shape, line)
    served = cache(shape, ROWS, -(-ROWS // GROUP), PROMPT, LENGTH - 1)
    work = 4 * HEAD_WORK * min(PIECE["cuda"], ROWS * shape.vocab)
    if run.divided:
        copies = gathered if run.strategy == "keep" else 2 * shape.parameters
    else:
        copies = 0 if run.rank else 2 * shape.cast
    share = 2 * shape.parameters + served + SERVED if run.vllm else 0
    constant = held["weights"] + held["AdamW"] + held["reference"] + share
    rollout = constant + (0 if run.vllm else copies + served + work)
    update = constant + held["gradients"] + activations + head + (gathered if run.divided else 0)
    return {
        **held,
        "activations": activations + head,
        "cache": share or served,
        "update": update,
        "rollout": rollout,
    }


def row(name: str, shape: Shape, run: Run) -> str:
    """Return a line of the table."""
    found = peaks(shape, run)
    largest = max(found["update"], found["rollout"])
    fits = next((f"{card} GB" for card in CARDS if largest <= MARGIN * card * GIB), "no")
    shown = (
        "weights",
        "gradients",
        "AdamW",
        "reference",
        "activations",
        "cache",
        "update",
        "rollout",
    )
    cells = [name, run.name, *(f"{found[column] / GIB:.1f}" for column in shown), fits]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the table as Markdown."""
    columns = [
        "model",
        "run",
        "weights",
        "gradients",
        "AdamW",
        "reference",
        "activations and head",
        "cache",
        "update",
    ]
    head = [
        "| " + " | ".join([*columns, "rollout", "smallest card"]) + " |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    return "\n".join(
        [*head, *(row(name, shape, run) for name, shape in MODELS.items() for run in RUNS)]
    )


def main() -> None:
    """Run the command line."""
    stale = "docs/scale.md has another table; run scripts/memory_table.py --write"
    command_line(__doc__, PAGE, (BEGIN, END), table(), stale)


if __name__ == "__main__":
    main()
