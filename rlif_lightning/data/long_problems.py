"""Problems with long contexts: walks over linked documents among a search agent's distractors.

    python -m rlif_lightning.data.long_problems --output runs/longtrace/data
    python -m rlif_lightning.data.long_problems --wikipedia kilt.jsonl --hops 8 8 \\
        --length 100000 --tokenizer Qwen/Qwen3-4B-Thinking-2507 --output runs/longtrace/data

The data of LongTraceRL (https://arxiv.org/abs/2605.31584), as ``train.jsonl`` and
``validation.jsonl``. A line has ``prompt`` (documents and question), ``question``, ``answer``,
``entities`` (the names along the walk), ``hops`` and ``documents`` (their titles). The command
prints the share of distractors that name an entity of the walk, beside other ways of choosing
distractors of the same length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif_lightning.data.entity_names import names
from rlif_lightning.data.link_graph import Graph, synthetic_graph, wikipedia_graph
from rlif_lightning.data.link_walks import Walk, random_walk
from rlif_lightning.data.search_agent import Agent, Trajectory, WordSearch, rule_agent

TIERED = "trajectory, tiered"
WAYS = ("random", "search", "trajectory, random", TIERED)


def num_words(text: str) -> int:
    """Return the number of words between white space."""
    return len(text.split())


@dataclass(frozen=True)
class Recipe:
    """How a problem is made of a graph.

    Args:
        hops: fewest and most steps of a walk.
        length: of all documents together, as ``measure`` counts; the walk's own always fit.
        returned: results of each search.
        measure: the length of a text; words by default.
        agent: who searches.
        compared: ways of choosing distractors whose overlap is measured.
    """

    hops: tuple[int, int] = (2, 4)
    length: int = 400
    returned: int = 10
    measure: Callable[[str], int] = num_words
    agent: Agent = rule_agent
    compared: tuple[str, ...] = WAYS

    def __post_init__(self) -> None:
        if not 1 <= self.hops[0] <= self.hops[1] or self.length < 1 or self.returned < 1:
            raise ValueError(
                f"hops={self.hops}, length={self.length}, returned={self.returned}: need at least"
                " 1, and no more of the fewest hops than of the most"
            )


def filled(walk: Walk, candidates: Sequence[str], graph: Graph, recipe: Recipe) -> list[str]:
    """Return the candidates, in their order, that fit beside the walk's documents."""
    left = recipe.length - sum(recipe.measure(graph[title].text) for title in walk.sources)
    chosen = []
    for title in candidates:
        size = recipe.measure(graph[title].text)
        if title not in walk.sources and size <= left:
            chosen.append(title)
            left -= size
    return chosen


def overlap(walk: Walk, distractors: Sequence[str], graph: Graph) -> float:
    """Return the share of distractors whose text names an entity of the walk; NaN without any."""
    found = [any(names(graph[title].text, walk.entities)) for title in distractors]
    return sum(found) / len(found) if found else float("nan")


def candidates_of(
    way: str, walk: Walk, graph: Graph, search: WordSearch, trajectory: Trajectory, seed: str
) -> list[str]:
    """Return the distractors that one of ``WAYS`` would take, best first; tiers in random order."""
    rng = random.Random(f"{seed} {way}")
    if way == "random":
        return rng.sample(list(graph), len(graph))
    if way == "search":
        return search(walk.question, len(graph))
    tiers = trajectory.tiers
    if way != TIERED:
        tiers = (tiers[0] + tiers[1],)
    return [title for tier in tiers for title in rng.sample(tier, len(tier))]


def problem(
    graph: Graph, search: WordSearch, recipe: Recipe, seed: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return a problem, and the overlap of the distractors of each way that is compared.

    Args:
        graph: the documents.
        search: over the graph.
        recipe: how it is made.
        seed: of the walk, of the order of documents, and of the random ways.
    """
    rng = random.Random(seed)
    walk = random_walk(graph, rng.randint(*recipe.hops), rng)
    trajectory = recipe.agent(walk, graph, search, recipe.returned)
    chosen = {
        way: filled(walk, candidates_of(way, walk, graph, search, trajectory, seed), graph, recipe)
        for way in {TIERED, *recipe.compared}
    }
    titles = [*walk.sources, *chosen[TIERED]]
    rng.shuffle(titles)
    context = "\n\n".join(graph[title].text for title in titles)
    row = {
        "prompt": f"{context}\n\nQuestion: {walk.question}",
        "question": walk.question,
        "answer": walk.entities[-1],
        "entities": walk.entities,
        "hops": len(walk.links),
        "documents": titles,
    }
    return row, {way: overlap(walk, chosen[way], graph) for way in recipe.compared}


def problems(
    graphs: Iterable[Graph], per_graph: int, recipe: Recipe, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    """Yield different problems with their overlaps, up to ``per_graph`` of each graph."""
    known: set[str] = set()
    for number, graph in enumerate(graphs):
        search = WordSearch(graph)
        for each in range(per_graph):
            row, overlaps = problem(graph, search, recipe, f"{seed} {number} {each}")
            if row["prompt"] not in known:
                known.add(row["prompt"])
                yield row, overlaps


def synthetic_graphs(size: int, links: int, seed: int) -> Iterator[Graph]:
    """Yield synthetic graphs for ever."""
    for number in itertools.count():
        yield synthetic_graph(size, links, random.Random(f"{seed} graph {number}"))


def write_problems(
    folder: Path,
    made: Iterator[tuple[dict[str, Any], dict[str, float]]],
    sizes: tuple[int, int],
) -> dict[str, float]:
    """Write ``train.jsonl`` and ``validation.jsonl``; return the mean overlap of each way.

    A question that is trained on is no problem for validation, whatever documents stand beside it.

    Args:
        folder: is made where it is missing.
        made: problems with their overlaps.
        sizes: number of training and of validation problems.

    Raises:
        ValueError: there are fewer different problems.
    """
    found = list(itertools.islice(made, sizes[0]))
    asked = {_asked(row) for row, _ in found}
    unseen = (each for each in made if _asked(each[0]) not in asked)
    found += itertools.islice(unseen, sizes[1])
    if len(found) < sum(sizes):
        raise ValueError(
            f"{len(found)} different problems were found, not {sum(sizes)}; ask for fewer, or give"
            " more documents"
        )
    folder.mkdir(parents=True, exist_ok=True)
    rows = iter(found)
    for name, size in zip(("train", "validation"), sizes, strict=True):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for row, _ in itertools.islice(rows, size):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {way: _mean([overlaps[way] for _, overlaps in found]) for way in WAYS}


def _asked(row: dict[str, Any]) -> tuple[str, str]:
    return row["question"], row["answer"]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _tokens(name: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(name))
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--problems", type=int, default=2000, help="for training")
    parser.add_argument("--validation-problems", type=int, default=200)
    parser.add_argument("--hops", type=int, nargs=2, default=(2, 4), help="fewest and most")
    parser.add_argument("--length", type=int, default=400, help="of the documents together")
    parser.add_argument("--tokenizer", help="name or folder: count tokens; default: words")
    parser.add_argument("--returned", type=int, default=10, help="results of each search")
    parser.add_argument("--wikipedia", type=Path, nargs="+", help="files of pages (KILT's layout)")
    parser.add_argument("--documents", type=int, default=200, help="of a synthetic graph")
    parser.add_argument("--links", type=int, default=3, help="of a synthetic document")
    parser.add_argument("--per-graph", type=int, default=20, help="problems of a synthetic graph")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    sizes = (given.problems, given.validation_problems)
    measure = _tokens(given.tokenizer) if given.tokenizer else num_words
    recipe = Recipe(tuple(given.hops), given.length, given.returned, measure)
    graphs, per_graph = synthetic_graphs(given.documents, given.links, given.seed), given.per_graph
    if given.wikipedia:
        graphs, per_graph = [wikipedia_graph(given.wikipedia)], 10 * sum(sizes)
    overlaps = write_problems(given.output, problems(graphs, per_graph, recipe, given.seed), sizes)
    print("distractors that name an entity of the walk, mean over problems:")
    for way, share in overlaps.items():
        print(f"{way:20} {100 * share:6.2f} %")


if __name__ == "__main__":
    main()
