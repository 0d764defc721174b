"""A search agent's trajectory for a question: what it was shown, what it read, what it cited.

The paper runs a language model with a search tool. :func:`rule_agent` is ours: it searches for the
sentence of each step, and reads results until it finds the one that completes it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from rlif_lightning.data.entity_names import spelled
from rlif_lightning.data.link_graph import Graph
from rlif_lightning.data.link_walks import Walk

READ = 3  # results that the agent opens of each search, at least


class WordSearch:
    """Searches documents by words they share with a query; rare words count more.

    A document's score is the sum of ``ln(1 + N / n_w)`` over the query's different words w in it;
    n_w of all N documents have the word. Equal scores keep the graph's order.

    Args:
        graph: the documents.
    """

    def __init__(self, graph: Graph):
        self.titles = list(graph)
        self.holders: dict[str, list[int]] = defaultdict(list)
        for number, title in enumerate(self.titles):
            for word in set(spelled(f"{title} {graph[title].text}").split()):
                self.holders[word].append(number)

    def __call__(self, query: str, count: int) -> list[str]:
        """Return up to ``count`` titles, best first."""
        scores: Counter[int] = Counter()
        for word in sorted(set(spelled(query).split())):
            holders = self.holders.get(word, [])
            for number in holders:
                scores[number] += math.log1p(len(self.titles) / len(holders))  # pyright: ignore
        best = sorted(scores, key=lambda number: (-scores[number], number))
        return [self.titles[number] for number in best[:count]]


@dataclass(frozen=True)
class Trajectory:
    """Titles that an agent's searches returned, that it opened, and that it cited, in order."""

    returned: tuple[str, ...]
    opened: tuple[str, ...]
    cited: tuple[str, ...]

    @property
    def tiers(self) -> tuple[list[str], list[str]]:
        """Distractors: opened but not cited (tier 1); returned but never opened (tier 2)."""
        cited, opened = set(self.cited), set(self.opened)
        first = [title for title in self.opened if title not in cited]
        second = [title for title in self.returned if title not in opened | cited]
        return list(dict.fromkeys(first)), list(dict.fromkeys(second))


Agent = Callable[[Walk, Graph, WordSearch, int], Trajectory]


def rule_agent(walk: Walk, graph: Graph, search: WordSearch, count: int) -> Trajectory:
    """Search for each step of a question by rule, with the names that were found before.

    Args:
        walk: the question's; its steps are searched for, and its documents are cited.
        graph: the documents.
        search: the search tool.
        count: results of each search.
    """
    returned: list[str] = []
    opened: list[str] = []
    for number, (source, step) in enumerate(zip(walk.sources, walk.steps(), strict=True), 1):
        query = step.replace(f"({number})", "").replace(f"({number - 1})", source)
        results = search(query, count)
        needed = results.index(source) + 1 if source in results else 0
        returned += results
        opened += results[: max(READ, needed)]
    return Trajectory(tuple(returned), tuple(opened), tuple(walk.sources))
