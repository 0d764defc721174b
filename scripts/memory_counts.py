"""Count the bytes of a model's tensors in an update and in a rollout, for ``memory_table.py``."""

from __future__ import annotations

from dataclasses import dataclass

from rlif_lightning.model.head import PIECE
from rlif_lightning.model.policy import KEPT_LOGITS, MAX_LOGITS

# configs/paper/, and a prompt of MATH on the long side.
GROUP, PROMPT, LENGTH, BUDGET = 7, 256, 3072, 16384
HEAD_WORK = 6  # float32 arrays of one piece of logits at a time (model/head.py), at most


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
