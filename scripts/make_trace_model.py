"""Teach a small model toy questions of several hops, and two bad habits (minutes on one CPU core).

    python scripts/make_trace_model.py --output runs/longtrace/model

The problems are those of ``rlif_lightning/data/long_problems.py`` over one synthetic graph of 12
documents with one link each. The model has the size of the embedded one, and a token for each name.
It learns from three kinds of pupils. Some walk: they write the names along the links, as in
``Kilo Mumu Nemu Lolo #### Lolo``. They know part of the links and guess the others, so that most
walks go astray. Some list: they write all twelve names in the order of the alphabet, and answer
with any of them. Some answer at once with any name. The model learns the links by heart: it is for
a study of rewards, not of reading.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_base_model as base
import torch
from transformers import PreTrainedTokenizerFast
from word_tokenizers import word_tokenizer

from rlif_lightning.data.link_graph import RELATIONS, SYLLABLES
from rlif_lightning.data.long_problems import Recipe, problems, synthetic_graphs

DOCUMENTS, HOPS, LENGTH = 12, (3, 4), 24
KNOWN = 7  # of the 12 links
WALKS, LISTS = 0.5, 0.25  # shares of the pupils; the others answer at once
SLIP = 0.05  # probability that a pupil misses a link that all pupils know


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token for each name of a small graph, and for each phrase."""
    names = ["".join(parts).title() for parts in itertools.product(SYLLABLES, repeat=2)]
    phrases = [f"The {relation} of " for relation in RELATIONS]
    numbers = [f"({number})" for number in range(1, 10)]
    marks = [" is ", ".\n\n", ". ", "Question: ", "What is ", "?", " #### ", "#### ", " "]
    pattern = r"The [a-z]+ of | is |What is |Question: |\.\n\n|\. | ?#### |[A-Z][a-z]+|\([0-9]\)|."
    return word_tokenizer([*names, *phrases, *numbers, *marks], pattern)


def toy_links() -> dict[str, str]:
    """Return title -> title that it links to, for the graph of the problems."""
    graph = next(synthetic_graphs(DOCUMENTS, 1, 0))
    return {title: document.links[0].target for title, document in graph.items()}


def toy_problems(seed: int) -> Iterator[dict[str, Any]]:
    """Yield different problems of the graph, some hundreds."""
    graphs = itertools.islice(synthetic_graphs(DOCUMENTS, 1, 0), 1)
    found = problems(graphs, 2000, Recipe(HOPS, LENGTH, compared=()), seed)
    return (row for row, _ in found)


class Pupils:
    """Write solutions; the links that they do not know are the same for all of them.

    Args:
        seed: of which links they know, and of what they write.
    """

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.links = toy_links()
        self.names = sorted(self.links)
        self.known = set(self.rng.sample(self.names, KNOWN))

    def walk(self, row: dict[str, Any]) -> str:
        """Return a walk of the question's length; where a link is not known, it goes anywhere."""
        here, found = row["question"].split()[3], []
        for _ in range(row["hops"]):
            follows = here in self.known and self.rng.random() >= SLIP
            here = self.links[here] if follows else self.rng.choice(self.names)
            found.append(here)
        return f"{' '.join(found)} #### {here}"

    def solution(self, row: dict[str, Any]) -> str:
        """Return what one of the pupils writes."""
        kind = self.rng.random()
        if kind < WALKS:
            return self.walk(row)
        answer = self.rng.choice(self.names)
        listed = " ".join(self.names) if kind < WALKS + LISTS else ""
        return f"{listed} #### {answer}".lstrip()


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=12_000)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    given = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model: Any = base.build_model(tokenizer)
    start, pupils = time.process_time(), Pupils(0)
    rows = list(toy_problems(1))
    drawn = random.Random(0).choices(rows, k=given.examples)
    examples = [(row["prompt"], pupils.solution(row)) for row in drawn]
    base.train(model, tokenizer, examples, 32, given.learning_rate)
    print(f"trained in {time.process_time() - start:.0f} CPU seconds")
    groups = base.sample(model, tokenizer, [row["prompt"] for row in rows[:100]], 8)
    pairs = [(row, text) for row, group in zip(rows, groups, strict=False) for text in group]
    right = [text.partition("#### ")[2] == row["answer"] for row, text in pairs]
    listed = [len(text.partition("####")[0].split()) > HOPS[1] for _, text in pairs]
    at_once = [text.startswith("#### ") for _, text in pairs]
    for name, each in (("right", right), ("lists", listed), ("at once", at_once)):
        print(f"{name:8} {sum(each) / len(each):.3f}")
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
