"""Random walks over linked documents, and the questions that they answer.

The paper lets a language model write the question of a walk. Here a rule does (ours): each step is
the sentence of its link, in which numbers stand for the names that have to be found.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from rlif_lightning.data.entity_names import names
from rlif_lightning.data.link_graph import Graph, Link

ATTEMPTS = 1000


@dataclass(frozen=True)
class Walk:
    """A path from document to document.

    Attributes:
        start: title of the first document.
        links: one for each step.
    """

    start: str
    links: tuple[Link, ...]

    @property
    def sources(self) -> list[str]:
        """Titles of the documents that answer the question, in the order of the walk."""
        return [self.start, *(link.target for link in self.links[:-1])]

    @property
    def entities(self) -> list[str]:
        """The names that have to be found, in the order of the walk; the last is the answer."""
        return [link.target for link in self.links]

    def steps(self) -> list[str]:
        """Return the sentence of each step, with numbers for the names that have to be found.

        Example:
            >>> links = (Link("The rival of Ada is Bo.", "Bo", "Bo"),)
            >>> Walk("Ada", links).steps()
            ['The rival of Ada is (1).']
        """
        found = []
        for number, (source, link) in enumerate(zip(self.sources, self.links, strict=True), 1):
            shown, times = _replaced(link.sentence, link.anchor, f"({number})")
            if not times:  # the link itself is a part of a word
                shown = link.sentence.replace(link.anchor, f"({number})")
            known = source if number == 1 else f"({number - 1})"
            spelled, times = _replaced(shown, source, known)
            found.append(spelled if times else f"On {known}: {shown}")
        return found

    @property
    def question(self) -> str:
        """The steps, and what they ask for."""
        return f"{' '.join(self.steps())} What is ({len(self.links)})?"


def _replaced(sentence: str, name: str, by: str) -> tuple[str, int]:
    """Return a sentence with another name, and how often; parts of longer words stay."""
    return re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: by, sentence)


def random_walk(graph: Graph, hops: int, rng: random.Random) -> Walk:
    """Draw a walk without a circle whose question names none of its answers.

    Raises:
        ValueError: none was found.
    """
    titles = list(graph)
    for _ in range(ATTEMPTS):
        start = here = rng.choice(titles)
        seen, links = {start}, []
        for _ in range(hops):
            onward = [link for link in graph[here].links if link.target not in seen]
            if not onward:
                break
            links.append(rng.choice(onward))
            here = links[-1].target
            seen.add(here)
        walk = Walk(start, tuple(links))
        if len(links) == hops and not any(names(walk.question, walk.entities)):
            return walk
    raise ValueError(
        f"hops={hops}: no walk of that length in {ATTEMPTS} attempts over {len(graph)} documents;"
        " take fewer hops, or documents with more links"
    )
