"""Documents that link to each other: a synthetic graph, and Wikipedia pages with their links.

A graph is a dictionary: title -> document.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

RELATIONS = ("mentor", "neighbour", "rival", "doctor", "cousin", "teacher", "captain", "guest")
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "ne", "ri", "so")
_ENDS = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Link:
    """A sentence of a document that leads to another document.

    Attributes:
        sentence: the whole sentence.
        anchor: the part of it that names the other document.
        target: the other document's title.
    """

    sentence: str
    anchor: str
    target: str


@dataclass(frozen=True)
class Document:
    """A document with its links to other documents of a graph."""

    title: str
    text: str
    links: tuple[Link, ...]


Graph = Mapping[str, Document]


def synthetic_graph(size: int, links: int, rng: random.Random) -> dict[str, Document]:
    """Make a graph of invented names, such as "The mentor of Bade is Kilo.".

    The first links form one circle through all documents, so that a walk may have any length
    below the size. The others lead anywhere.

    Args:
        size: number of documents, at least 2.
        links: of each document, all with different relations; 1 to 8.
        rng: draws the names, the relations and the targets.

    Raises:
        ValueError: a number out of range.
    """
    if size < 2 or not 1 <= links <= min(len(RELATIONS), size - 1):
        raise ValueError(
            f"size={size}, links={links}: need at least 2 documents, and 1 to {len(RELATIONS)}"
            " links of each to different other documents"
        )
    count = 2
    while len(SYLLABLES) ** count < 4 * size:
        count += 1
    pool = ["".join(parts).title() for parts in itertools.product(SYLLABLES, repeat=count)]
    titles = rng.sample(pool, size)
    found = {}
    for number, title in enumerate(titles):
        following = titles[(number + 1) % size]
        others = [other for other in titles if other not in (title, following)]
        targets = [following, *rng.sample(others, links - 1)]
        relations = rng.sample(RELATIONS, links)
        made = [
            Link(f"The {relation} of {title} is {target}.", target, target)
            for relation, target in zip(relations, targets, strict=True)
        ]
        rng.shuffle(made)
        text = " ".join(link.sentence for link in made)
        found[title] = Document(title, text, tuple(made))
    return found


def wikipedia_graph(paths: Sequence[Path]) -> dict[str, Document]:
    """Read pages of KILT's Wikipedia snapshot, or JSON lines in its layout.

    Of each line ``wikipedia_title``, ``text`` (paragraphs) and ``anchors`` (``text``, ``href``,
    ``paragraph_id``, ``start``) are read. Links to pages that are in none of the files are left
    out. https://github.com/facebookresearch/KILT

    Raises:
        ValueError: a line is no such page; names file and line.
    """
    pages = {}
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    page = _page(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(
                        f"{path}, line {number}: {type(error).__name__}: {error}; a line must be a"
                        " page of KILT's layout with wikipedia_title, text and anchors"
                    ) from error
                pages[page.title] = page
    return {
        title: replace(page, links=tuple(it for it in page.links if it.target in pages))
        for title, page in pages.items()
    }


def _page(row: Mapping[str, Any]) -> Document:
    title, paragraphs = row["wikipedia_title"], row["text"]
    links = {}
    for anchor in row["anchors"]:
        target = unquote(anchor["href"]).partition("#")[0].replace("_", " ").strip()
        sentence = _sentence(paragraphs[anchor["paragraph_id"]], anchor["start"])
        if target != title and anchor["text"].strip() and anchor["text"] in sentence:
            links.setdefault(target, Link(sentence, anchor["text"], target))
    text = "\n".join(paragraph.strip() for paragraph in paragraphs)
    return Document(title, text, tuple(links.values()))


def _sentence(paragraph: str, start: int) -> str:
    """Return the sentence of a paragraph in which a character stands."""
    begin = 0
    for end in _ENDS.finditer(paragraph):
        if end.end() > start:
            return paragraph[begin : end.start()].strip()
        begin = end.end()
    return paragraph[begin:].strip()
