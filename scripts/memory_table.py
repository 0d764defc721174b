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

from page_tables import command_line

from rlif_lightning.evaluation.memory_need import GIB, Drawn, Held, Layout
from rlif_lightning.evaluation.memory_need import peaks as peaks_of
from rlif_lightning.model.memory_counts import Shape, fullest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- written by scripts/memory_table.py -->", "<!-- end of the memory table -->"
CARDS = (24, 40, 80, 141)  # GB by their names; as many GiB are there, within one
MARGIN = 0.9  # of a card's memory, for what is not counted
ROWS = 64  # configs/engine/native.yaml
# configs/paper/, and a prompt of MATH on the long side.
GROUP, PROMPT, LENGTH, BUDGET = 7, 256, 3072, 16384
# From config.json of the models at https://huggingface.co/Qwen.
MODELS = {
    "Qwen2.5-1.5B": Shape(1536, 8960, 28, 12, 2, 128, 151936),
    "Qwen3-1.7B-Base": Shape(2048, 6144, 28, 16, 8, 128, 151936, biases=False, head_norms=True),
    "Qwen2.5-3B": Shape(2048, 11008, 36, 16, 2, 128, 151936),
    "Qwen2.5-7B": Shape(3584, 18944, 28, 28, 4, 128, 152064, tied=False),
}


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
    def layout(self) -> Layout:
        """Return how it is divided and computed."""
        engine = "vllm" if self.vllm else "native"
        adapted = self.rank > 0
        return Layout(self.strategy, self.gpus, True, self.recomputed, adapted, engine)

    def held(self, shape: Shape) -> Held:
        """Return what it keeps of a model, with AdamW's moments."""
        trained = shape.adapters(self.rank) if self.rank else shape.parameters
        weights = 2 * shape.parameters + 4 * trained if self.rank else 4 * shape.parameters
        frozen = 4 * shape.parameters if self.reference else 0
        return Held(weights, 4 * trained, 8 * trained, frozen)


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


def peaks(shape: Shape, run: Run) -> dict[str, int]:
    """Return the most bytes of a process, in an update and in a rollout, and their parts."""
    line = fullest(BUDGET, PROMPT, LENGTH, GROUP)
    drawn = Drawn(ROWS, -(-ROWS // GROUP), PROMPT, LENGTH)
    return peaks_of(shape, run.held(shape), run.layout, line, drawn)


def row(name: str, shape: Shape, run: Run) -> str:
    """Return a line of the table."""
    found = peaks(shape, run)
    largest = max(found["update"], found["rollout"])
    fits = next((f"{card} GB" for card in CARDS if largest <= MARGIN * card * GIB), "no")
    found["both"] = found["activations"] + found["logits"]
    shown = ("weights", "gradients", "moments", "frozen", "both", "cache", "update", "rollout")
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
