"""Time the matrix products that sampling and training with shared prompts cannot avoid.

Every weight is multiplied once per prompt token and once per completion token in decoding (for all
rows of a step together), and three times in the update: forward, gradient of inputs, gradient of
weights. The head is multiplied for completion tokens only. Attention, element-wise work and the
optimizer are left out.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
import workload
from torch import Tensor


def shapes(a: argparse.Namespace) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return (inputs, outputs) of every linear layer of the body, and of the head."""
    heads = a.heads or max(1, a.hidden // 64)
    size = a.hidden // heads
    key_width, inner = (a.kv_heads or heads) * size, a.intermediate or 4 * a.hidden
    layer = [
        (a.hidden, heads * size),
        (a.hidden, key_width),
        (a.hidden, key_width),
        (heads * size, a.hidden),
    ]
    return (layer + [(a.hidden, inner)] * 2 + [(inner, a.hidden)]) * a.layers, (a.hidden, a.vocab)


def forward(weights: list[Tensor], rows: int) -> None:
    """Multiply ``rows`` tokens with each weight."""
    for weight in weights:
        torch.nn.functional.linear(weight.new_ones((rows, weight.shape[1])), weight)


def backward(weights: list[Tensor], rows: int) -> None:
    """Compute the products of the two gradients."""
    for weight in weights:
        outputs = weight.new_ones((rows, weight.shape[0]))
        _ = outputs @ weight
        _ = outputs.t() @ weight.new_ones((rows, weight.shape[1]))


def step(a: argparse.Namespace, body: list[Tensor], head: list[Tensor], lengths: list[int]) -> None:
    """Compute all products of one rollout and its update."""
    forward(body, a.prompt_len * a.prompts_per_rollout)
    under_way = Counter(t for length in lengths for t in range(length))
    for t in range(max(lengths)):
        forward(body if t else [], under_way[t])
        forward(head, under_way[t])
    for start in range(0, len(lengths), a.group_size):
        tokens = sum(lengths[start : start + a.group_size])
        for weights, rows in ((body, tokens + a.prompt_len), (head, tokens)):
            forward(weights, rows)
            backward(weights, rows)


def main() -> None:
    """Run the products and print one line of JSON."""
    a = workload.parse_arguments(__doc__ or "")
    torch.set_num_threads(a.threads)
    dtype = torch.bfloat16 if a.bf16 else torch.float32
    layers, last = shapes(a)
    body = [torch.randn(outputs, inputs).to(dtype) for inputs, outputs in layers]
    head = [torch.randn(last[1], last[0]).to(dtype)]
    meter = workload.Meter()
    meter.start()
    for rollout in range(a.steps):
        lengths = workload.planned(a, rollout)
        step(a, body, head, lengths)
        meter.end_step(sum(lengths))
    meter.report(
        a, "floor", {"torch": torch.__version__}, sum(weight.numel() for weight in body + head)
    )


if __name__ == "__main__":
    main()
