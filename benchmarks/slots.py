"""Simulate how full the places of decoding are: whole groups admitted, or single rows.

Only lengths are simulated. They are log-normal and cut at the longest: a few completions are much
longer than the others, like those of reasoning models. One step draws a token of every row. If
whole groups are admitted, places become free when all rows of a group have ended. If single rows
are admitted, a place becomes free when its row has ended.
"""

from __future__ import annotations

import argparse
import heapq
import random


def lengths_of(a: argparse.Namespace) -> list[int]:
    """Draw lengths of all completions, prompt-major; each prompt has a mean of its own."""
    generator = random.Random(a.seed)
    lengths = []
    for _ in range(a.prompts):
        typical = a.median * generator.lognormvariate(0, a.spread_of_prompts)
        drawn = [
            round(typical * generator.lognormvariate(0, a.spread)) for _ in range(a.group_size)
        ]
        lengths += [min(max(length, 1), a.max_new_tokens) for length in drawn]
    return lengths


def admitted(work: list[int], places: int) -> list[tuple[int, int]]:
    """Return the first and last step of each piece of work, with so many in parallel."""
    free, spans = [0] * min(places, len(work)), []
    for length in work:
        start = heapq.heappop(free)
        heapq.heappush(free, start + length)
        spans.append((start, start + length))
    return spans


def most_at_a_time(spans: list[tuple[int, int]]) -> tuple[int, float]:
    """Return the largest and the mean number of spans that overlap."""
    changes = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    under_way = most = 0
    for _, change in changes:
        under_way += change
        most = max(most, under_way)
    return most, sum(end - start for start, end in spans) / max(end for _, end in spans)


def main() -> None:
    """Print steps, the share of empty places and the prompts at a time, both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, default in (
        ("prompts", 882),
        ("group-size", 7),
        ("max-rows", 64),
        ("max-new-tokens", 3072),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default)
    for flag, default in (("median", 300.0), ("spread", 0.8), ("spread-of-prompts", 0.5)):
        parser.add_argument(f"--{flag}", type=float, default=default)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    lengths = lengths_of(a)
    grouped = [
        lengths[start : start + a.group_size] for start in range(0, len(lengths), a.group_size)
    ]
    groups = admitted([max(group) for group in grouped], max(a.max_rows // a.group_size, 1))
    rows = admitted(lengths, a.max_rows)
    members = [rows[start : start + a.group_size] for start in range(0, len(rows), a.group_size)]
    prompts = [(min(start for start, _ in each), max(end for _, end in each)) for each in members]
    print(
        f"{len(lengths)} completions of {sum(lengths) / len(lengths):.0f} tokens on average, at"
        f" most {max(lengths)}"
    )
    for name, spans, held in (("whole groups", groups, groups), ("single rows", rows, prompts)):
        steps = max(end for _, end in spans)
        empty = 1 - sum(lengths) / (steps * a.max_rows)
        most, mean = most_at_a_time(held)
        held_text = f"prompts at a time: {most} at most, {mean:.0f} on average"
        print(f"{name}: {steps} steps, {empty:.0%} of the places empty, {held_text}")


if __name__ == "__main__":
    main()
