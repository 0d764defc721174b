"""The bytes of a model's tensors in an update and in a rollout, counted from its shape.

What a run holds of them, and whether it fits, is in ``evaluation/memory_need.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlif_lightning.model.head import PIECE
from rlif_lightning.model.policy import KEPT_LOGITS, MAX_LOGITS

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

    @classmethod
    def of(cls, model: Any) -> Shape | None:
        """Return the shape of a Hugging Face model, also of one on the meta device.

        None where a shape does not describe the model: its number of parameters is another.
        """
        config, names = model.config, [name for name, _ in model.named_parameters()]
        heads: Any = getattr(config, "num_attention_heads", None)
        sizes: dict[str, Any] = {
            "hidden": getattr(config, "hidden_size", None),
            "intermediate": getattr(config, "intermediate_size", None),
            "layers": getattr(config, "num_hidden_layers", None),
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "vocab": getattr(config, "vocab_size", None),
        }
        if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
            return None
        found = cls(
            **sizes,
            head_dim=getattr(config, "head_dim", None) or sizes["hidden"] // heads,
            tied=bool(config.tie_word_embeddings),
            biases=any(name.endswith("q_proj.bias") for name in names),
            head_norms=any(name.endswith("q_norm.weight") for name in names),
        )
        counted = sum(parameter.numel() for parameter in model.parameters())
        return found if counted == found.parameters else None

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


@dataclass(frozen=True)
class Line:
    """A micro-batch: tokens of each prompt, completions of all, tokens of each, prompts."""

    prompt: int
    completions: int
    length: int
    prompts: int = 1

    @property
    def own(self) -> int:
        """Return the tokens of completions that are inputs, which the last of each is not."""
        return self.completions * (self.length - 1)

    @property
    def tokens(self) -> int:
        """Return the tokens of the line."""
        return self.prompts * self.prompt + self.own

    @property
    def scored(self) -> int:
        """Return the tokens that get logits."""
        return self.completions * self.length

    @property
    def keys(self) -> int:
        """Return the keys of completions: each has its prompt's and its own."""
        return self.own + self.completions * self.prompt


def fullest(budget: int, prompt: int, length: int, group: int, groups: int = 1) -> Line:
    """Return the largest micro-batch, where all prompts and completions have full length.

    Args:
        budget: tokens of a micro-batch.
        prompt: tokens of the longest prompt.
        length: of a completion, in tokens.
        group: completions of a prompt.
        groups: in one optimiser step.
    """
    own = max(1, length - 1)
    whole, rest = divmod(budget, prompt + group * own)
    completions = whole * group + max(0, min(group, (rest - prompt) // own))
    completions = max(1, min(completions, group * groups))
    return Line(prompt, completions, length, -(-completions // group))


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


def head_kept(
    shape: Shape, line: Line, mixed: bool, whole_weights: bool = True, device: str = "cuda"
) -> int:
    """Return the bytes that autograd keeps of the head."""
    size, logits = 2 if mixed else 4, line.scored * shape.vocab
    logits = logits if logits <= KEPT_LOGITS[device] else MAX_LOGITS[device]
    return size * (line.scored * shape.hidden + logits) + (
        2 * shape.embedding if mixed and whole_weights else 0
    )


def head_work(shape: Shape, line: Line, device: str = "cuda") -> int:
    """Return the bytes in use while a piece of logits is measured, and of the head's gradient."""
    return piece_work(shape, line.scored, device) + 2 * shape.embedding


def piece_work(shape: Shape, rows: int, device: str = "cuda") -> int:
    """Return the bytes in use while the logits of so many tokens are measured in pieces."""
    return 4 * HEAD_WORK * min(PIECE[device], rows * shape.vocab)


def cache(shape: Shape, rows: int, prompts: int, prompt: int, own: int, size: int = 2) -> int:
    """Return the bytes of the native engine's keys and values."""
    return 2 * size * shape.key * shape.layers * (prompts * prompt + rows * own)
