"""Lines of packed trees, their masks, and attention over them written plainly."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlif_lightning.model.packing import Tree
from rlif_lightning.model.scores import Scores


def naive_mask(trees: list[Tree], window: int | None) -> list[list[bool]]:
    """Who sees whom, from each token's sequence: its prompt and the part of its own completion up
    to itself.
    """
    size = sum(tree.prompt_length + sum(tree.lengths) for tree in trees)
    allowed = [[False] * size for _ in range(size)]
    end = 0
    for tree in trees:
        prompt = list(range(end, end + tree.prompt_length))
        end += tree.prompt_length
        sequences = [prompt]
        for length in tree.lengths:
            sequences.append(prompt + list(range(end, end + length)))
            end += length
        for sequence in sequences:
            for i, query in enumerate(sequence):
                for key in (
                    sequence[: i + 1]
                    if window is None
                    else sequence[max(0, i + 1 - window) : i + 1]
                ):
                    allowed[query][key] = True
    return allowed


def line_of(shapes: list[tuple[int, list[int]]]) -> list[Tree]:
    trees, end = [], 0
    for prompt_length, lengths in shapes:
        trees.append(Tree(end, prompt_length, tuple(lengths)))
        end += prompt_length + sum(lengths)
    return trees


SHAPES = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=4)), min_size=1, max_size=4
)
HEADS, SIZE = 4, 3


def line(num_tokens: int, key_heads: int, seed: int) -> list[Tensor]:
    """Query, key and value ``[1, heads, N, d]`` in float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, num_tokens, SIZE) for heads in (HEADS, key_heads, key_heads)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scores: Scores
) -> Tensor:
    """One head at a time: softmax over the allowed keys and the head's sink; ``[1, N,
    heads, d]``.
    """
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for head in range(query.shape[1]):
        z = (
            query[0, head]
            @ key[0, head // repeats].T
            * (SIZE**-0.5 if scores.scaling is None else scores.scaling)
        )
        z = z if scores.softcap is None else scores.softcap * (z / scores.softcap).tanh()
        weights = z.exp() * allowed
        total = weights.sum(-1, keepdim=True) + (
            0 if scores.sinks is None else scores.sinks[head].exp()
        )
        outputs.append(weights / total @ value[0, head // repeats])
    return torch.stack(outputs, 1).unsqueeze(0)


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    ramp = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * ramp).sum(), inputs)]
