"""Pick word problems that a model of 135 million parameters can do, from published files.

    python scripts/make_mawps.py --data data --output runs/mawps

A problem is kept if its text has two numbers, whole ones up to 20, and its answer is their sum or
difference. ``--data`` is a folder with these files, as the data sets are published on the model
hub. They are not part of this repository:

* ``mawps_singleop.jsonl``, ``mawps_addsub.jsonl``, ``mawps_singleeq.jsonl`` of MAWPS
  (https://aclanthology.org/N16-1136), columns ``input`` and ``target``;
* ``svamp.jsonl`` of SVAMP (https://arxiv.org/abs/2103.07191), columns ``Body``, ``Question`` and
  ``Answer``.

The problems of ``singleop`` are held out. The others are for training, without those that stand in
``singleop`` too. Written are ``train.jsonl`` and ``validation.jsonl``, columns ``question`` and
``answer``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

HELD_OUT, OTHERS = "mawps_singleop", ("mawps_addsub", "mawps_singleeq", "svamp")
LARGEST = 20
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def problem(row: dict[str, str | float]) -> tuple[str, float]:
    """Return text and answer of a published row."""
    if "Body" in row:
        return f"{str(row['Body']).rstrip('. ')}. {row['Question']}", float(row["Answer"])
    return str(row["input"]), float(row["target"])


def is_small(text: str, answer: float) -> bool:
    """Return whether it asks for one sum or difference of two small numbers."""
    numbers = [float(found.replace(",", "")) for found in NUMBER.findall(text)]
    if len(numbers) != 2 or any(not x.is_integer() or x > LARGEST for x in numbers):
        return False
    return answer in (sum(numbers), abs(numbers[0] - numbers[1]))


def small_problems(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what is kept of a file: the words of its text in small letters, and its row.

    Raises:
        SystemExit: the file is not there.
    """
    if not file.exists():
        raise SystemExit(f"{file} is missing; put the published file there, or name --data")
    with file.open(encoding="utf-8") as lines:
        for text, answer in map(problem, map(json.loads, lines)):
            if is_small(text, answer):
                words = " ".join(re.findall(r"\w+", text.lower()))
                yield words, {"question": " ".join(text.split()), "answer": f"{answer:.0f}"}


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/mawps"))
    given = parser.parse_args()
    held_out = dict(small_problems(given.data / f"{HELD_OUT}.jsonl"))
    rest = {
        words: row for name in OTHERS for words, row in small_problems(given.data / f"{name}.jsonl")
    }
    train = {words: row for words, row in rest.items() if words not in held_out}
    given.output.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("validation", held_out)):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows.values())
        (given.output / f"{split}.jsonl").write_text(lines)
        print(f"{len(rows)} problems in {given.output / split}.jsonl")


if __name__ == "__main__":
    main()
