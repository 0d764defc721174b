"""What became of each problem's majority between two evaluations of the same problems.

    python -m benchmarks.majorities runs/a/version_0/evaluated/val-rollout-000000.jsonl \\
        runs/a/version_0/evaluated/val-rollout-000300.jsonl --out majorities.csv

A file (or several, by a pattern in quotes) has a JSON object for each completion: what `validate`
writes into ``evaluated/``, or what `predict` writes, with ``--correct scores.gold`` where a head
`gold` judged it. The classes are ours, after https://arxiv.org/abs/2605.19444:

    learnt       the majority was wrong and is right
    degraded     it was right and is wrong
    sharpened    it was right and is right, and more completions are right than before
    kept         it was right and is right, and no more are
    wrong        it was wrong and is wrong
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.records import value_at
from rlif_lightning.rewards.voting import group_clusters

OUTCOMES = ("learnt", "degraded", "sharpened", "kept", "wrong")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Majority:
    """What a problem's completions agree on.

    Attributes:
        answer: that of the largest cluster, as its first completion gave it; None without answers.
            Of two clusters of one size that with the most frequent string counts.
        share: the cluster's share of all completions.
        is_right: whether it is right.
        accuracy: the share of all completions that are right.
    """

    answer: str | None
    share: float
    is_right: bool
    accuracy: float


def majority_of(answers: Sequence[str | None], correct: Sequence[bool]) -> Majority:
    """Return the majority of one problem's completions.

    Example:
        >>> majority_of(["7", "7.0", "8", None], [True, True, False, False])
        Majority(answer='7', share=0.5, is_right=True, accuracy=0.5)
    """
    accuracy = sum(correct) / len(correct)
    (ids,), _ = group_clusters(answers, len(answers), "exact")
    sizes = Counter(number for number in ids if number is not None)
    if not sizes:
        return Majority(None, 0.0, False, accuracy)
    largest = max(sizes, key=lambda number: (sizes[number], -number))
    members = [place for place, number in enumerate(ids) if number == largest]
    is_right = any(correct[place] for place in members)
    return Majority(answers[members[0]], len(members) / len(ids), is_right, accuracy)


def outcome(start: Majority, end: Majority) -> str:
    """Return which of ``OUTCOMES`` became of a problem."""
    if start.is_right != end.is_right:
        return "learnt" if end.is_right else "degraded"
    if not start.is_right:
        return "wrong"
    return "sharpened" if end.accuracy > start.accuracy else "kept"


def majorities(
    records: Sequence[Record], correct: str = "correct", extractor: AnswerExtractor | None = None
) -> dict[int, Majority]:
    """Return the majority of each problem, by its number in the data set.

    Args:
        records: a completion each, with ``index``, and ``answer`` or ``completion``. Greedy ones
            (``kind``) are left out.
        correct: the verdict's place: true, false, 1 or 0.
        extractor: finds the answer of records without one.

    Raises:
        ValueError: a record without a verdict.
    """
    groups: dict[int, list[Record]] = {}
    for record in records:
        if record.get("kind", "sample") == "sample":
            groups.setdefault(int(record["index"]), []).append(record)
    find = extractor or AnswerExtractor()
    found = {}
    for index, group in sorted(groups.items()):
        verdicts = [_verdict(record, correct) for record in group]
        answers = [
            record["answer"] if "answer" in record else find(record["completion"])
            for record in group
        ]
        found[index] = majority_of(answers, verdicts)
    return found


def _verdict(record: Record, correct: str) -> bool:
    try:
        value = value_at(record, correct)
    except KeyError:
        value = None
    if value is None:
        raise ValueError(
            f"problem {record['index']} has no verdict under {correct!r}: evaluate with labels, or"
            " name the place of a gold head's score, as in --correct scores.gold"
        )
    return bool(value)


def compared(start: Mapping[int, Majority], end: Mapping[int, Majority]) -> list[dict[str, object]]:
    """Return a row for each problem: both majorities, and what became of it.

    Raises:
        ValueError: the two have not the same problems.
    """
    if start.keys() != end.keys():
        alone = sorted(start.keys() ^ end.keys())
        raise ValueError(
            f"{len(alone)} problems are in one of the files only, such as {alone[:5]}; compare two"
            " evaluations of the same problems"
        )
    rows = []
    for index, first in start.items():
        row: dict[str, object] = {"index": index, "outcome": outcome(first, end[index])}
        for name, majority in (("start", first), ("end", end[index])):
            row |= {f"{name}_{field}": value for field, value in vars(majority).items()}
        rows.append(row)
    return rows


def shares(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    """Return the share of problems with each outcome."""
    counts = Counter(row["outcome"] for row in rows)
    return {name: counts[name] / len(rows) for name in OUTCOMES}


def read(pattern: str) -> list[dict[str, Any]]:
    """Read the records of a file, or of all files of a pattern (one for each process).

    Raises:
        ValueError: there is no such file.
    """
    files = sorted(glob.glob(pattern))
    if not files:
        raise ValueError(f"there is no file {pattern!r}")
    lines = [line for file in files for line in Path(file).read_text().splitlines() if line]
    return [json.loads(line) for line in lines]


def main(args: list[str] | None = None) -> None:
    """Compare two files; print the shares, and write a row for each problem if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start", help="completions of the first evaluation")
    parser.add_argument("end", help="completions of the second")
    parser.add_argument("--correct", default="correct", help="place of the verdict (%(default)s)")
    parser.add_argument("--out", type=Path, help="CSV with a row for each problem")
    given = parser.parse_args(args)
    start, end = (majorities(read(name), given.correct) for name in (given.start, given.end))
    rows = compared(start, end)
    for name, share in shares(rows).items():
        print(f"{name:10} {100 * share:5.1f} % of {len(rows)} problems")
    if given.out is not None:
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
