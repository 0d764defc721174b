"""Compute the memory of one GPU by arithmetic: the table of docs/scale.md.

What a process holds is counted tensor by tensor. tests/test_memory_table.py compares the counts
with the real tensors of small models. Not counted: the CUDA context, workspaces of libraries, and
holes in the allocator.

    python scripts/memory_table.py            # prints the table
    python scripts/memory_table.py --write    # writes it into docs/scale.md
    python scripts/memory_table.py --check    # exit code 1 if the page has another one
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from page_tables import command_line

from rlif_lightning.model.head import PIECE
from rlif_lightning.model.policy import KEPT_LOGITS, MAX_LOGITS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- written by scripts/memory_table.py -->", "<!-- end of the memory table -->"
GIB = 2**30
CARDS = (24, 40, 80, 141)  # GB by their names; as many GiB are there, within one
MARGIN = 0.9  # of a card's memory, for what is not counted
GROUP, PROMPT, LENGTH, BUDGET = (
    7,
    256,
    3072,
    16384,
)  # configs/paper/, and a prompt of MATH on the long side
ROWS = 64  # configs/engine/native.yaml
HEAD_WORK = 6  # float32 arrays of one piece of logits at a time (model/head.py), at most
# Bytes of vLLM's activations and captured graphs, in addition to weights and cache. This is an
# allowance and not a count.
SERVED = 2 * GIB


@dataclass(frozen=True)
class Shape:
    """A dense decoder, in names of Hugging Face configurations; q, k and v may have ``biases``."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = True
    biases: bool = True
    head_norms: bool = False

    @property
    def query(self) -> int:
        """Return the features of all queries."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Return the features of all keys."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> int:
        """Return the elements of one layer's matrices."""
        return 2 * self.hidden * (self.query + self.key) + 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Return the parameters of one layer."""
        norms = 2 * self.hidden + self.head_norms * 2 * self.head_dim
        return self.matrices + norms + self.biases * (self.query + 2 * self.key)

    @property
    def embedding(self) -> int:
        """Return the parameters of the embedding; the head has as many."""
        return self.vocab * self.hidden

    @property
    def root(self) -> int:
        """Return the parameters outside of layers."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """Return the number of parameters, a tied head once."""
        return self.layers * self.layer + self.root

    @property
    def cast(self) -> int:
        """Return the elements that bf16-mixed multiplies with in bfloat16."""
        return self.layers * self.matrices + self.embedding

    def adapters(self, rank: int) -> int:
        """Return the parameters of LoRA on every matrix of every layer."""
        ends = (
            2 * (self.hidden + self.query)
            + 2 * (self.hidden + self.key)
            + 3 * (self.hidden + self.intermediate)
        )
        return self.layers * rank * ends


# From config.json of the models at https://huggingface.co/Qwen.
MODELS = {
    "Qwen2.5-1.5B": Shape(1536, 8960, 28, 12, 2, 128, 151936),
    "Qwen3-1.7B-Base": Shape(2048, 6144, 28, 16, 8, 128, 151936, biases=False, head_norms=True),
    "Qwen2.5-3B": Shape(2048, 11008, 36, 16, 2, 128, 151936),
    "Qwen2.5-7B": Shape(3584, 18944, 28, 28, 4, 128, 152064, tied=False),
}


@dataclass(frozen=True)
class Line:
    """A micro-batch: tokens of its one prompt, number of completions, tokens of each."""

    prompt: int
    completions: int
    length: int

    @property
    def own(self) -> int:
        """Return the tokens of completions that are inputs, which the last of each is not."""
        return self.completions * (self.length - 1)

    @property
    def tokens(self) -> int:
        """Return the tokens of the line."""
        return self.prompt + self.own

    @property
    def scored(self) -> int:
        """Return the tokens that get logits."""
        return self.completions * self.length

    @property
    def keys(self) -> int:
        """Return the keys of completions: each has its prompt's and its own."""
        return self.own + self.completions * self.prompt


def fullest(
    budget: int = BUDGET, prompt: int = PROMPT, length: int = LENGTH, group: int = GROUP
) -> Line:
    """Return the largest micro-batch of one group, where all completions have full length."""
    return Line(prompt, max(1, min(group, (budget - prompt) // (length - 1))), length)


def layer_kept(shape: Shape, line: Line, mixed: bool, whole_weights: bool = True) -> int:
    """Return the bytes that autograd keeps of one layer, in addition to its parameters.

    Args:
        mixed: bf16-mixed; else float32.
        whole_weights: autocast keeps a bfloat16 copy of each matrix; not under FSDP2, which gathers
            them so.
    """
    number, size = line.tokens, 2 if mixed else 4
    stream = (
        4 * number * (4 * shape.hidden + 2)
    )  # both norms: what comes in, what is normalised, one scale each
    inputs = (
        5 if mixed else 2
    )  # autocast makes a copy for each of the five matrices that read a norm's output
    read = size * number * (inputs * shape.hidden + shape.query)
    gated = size * number * 4 * shape.intermediate
    # Queries, keys, values and outputs of the line; queries of completions and their keys, their
    # prompt's among them.
    attended = (
        2 * number * (shape.query + shape.key) + shape.query * line.own + 2 * shape.key * line.keys
    )
    attended = size * attended + 4 * shape.heads * number
    normed = (
        shape.head_norms
        * number
        * (4 * (shape.heads + shape.kv_heads) + (4 + size) * (shape.query + shape.key))
    )
    copies = 2 * shape.matrices if mixed and whole_weights else 0
    return stream + read + gated + attended + normed + copies


def kept(
    shape: Shape, line: Line, mixed: bool, recomputed: bool, whole_weights: bool = True
) -> int:
    """Return the most bytes that autograd keeps of a micro-batch's layers."""
    layer = layer_kept(shape, line, mixed, whole_weights)
    stream = 4 * line.tokens * shape.hidden
    layers = shape.layers * stream + layer if recomputed else shape.layers * layer
    return layers + 2 * stream + 8 * line.tokens * shape.head_dim


def head_kept(shape: Shape, line: Line, mixed: bool, whole_weights: bool = True) -> int:
    """Return the bytes that autograd keeps of the head."""
    size, logits = 2 if mixed else 4, line.scored * shape.vocab
    logits = logits if logits <= KEPT_LOGITS["cuda"] else MAX_LOGITS["cuda"]
    return size * (line.scored * shape.hidden + logits) + (
        2 * shape.embedding if mixed and whole_weights else 0
    )


def head_work(shape: Shape, line: Line) -> int:
    """Return the bytes in use while a piece of logits is measured, and of the head's gradient."""
    return 4 * HEAD_WORK * min(PIECE["cuda"], line.scored * shape.vocab) + 2 * shape.embedding


def cache(shape: Shape, rows: int, prompts: int, prompt: int, own: int, size: int = 2) -> int:
    """Return the bytes of the native engine's keys and values."""
    return 2 * size * shape.key * shape.layers * (prompts * prompt + rows * own)


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
