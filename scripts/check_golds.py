"""Check answer checking on real gold answers.

    python scripts/check_golds.py FOLDER --out judge.jsonl

FOLDER has JSON-lines and Parquet files with gold answers in one of ``--columns``. A dotted path
names a nested column; the gold of a worked solution with ``#### x`` is x. Four counts are printed,
and all exceptions are written to ``--out``:

1. golds that are read, and that equal themselves;
2. re-spellings of golds (boxes, dollars, spaces, ``\\dfrac``, units, thousands, emphasis ...),
   which must stay equal;
3. random pairs of different golds, and hard neighbours (another base, order, sign, unit, power,
   last letter, last digit), which must not be equal; judge each pair that is, since two golds may
   be the same number;
4. ``18 X`` and ``18\\text{ X}`` for every X of "how many X" in the questions, which must equal 18.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlif_lightning.answers.final_answers import cluster, equivalent, normalise
from rlif_lightning.answers.readers import read
from rlif_lightning.answers.units import FACTORS

COLUMNS = "reward_model.ground_truth,answer,Answer,target"
_HOW_MANY = re.compile(r"\bhow many ([a-z]+(?:-[a-z]+)*)", re.IGNORECASE)
_INTEGER = re.compile(r"-?[0-9]+")


def rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file name, row) of every JSON-lines and Parquet file."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from ((path.stem, json.loads(line)) for line in lines if line.strip())
    for path in sorted(folder.glob("*.parquet")):
        import pyarrow.parquet as parquet

        yield from ((path.stem, row) for row in parquet.read_table(path).to_pylist())


def column(row: Any, path: str) -> Any:
    """Return the value at a dotted path; None where there is none."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def gold_answers(folder: Path, columns: list[str]) -> dict[str, list[str]]:
    """Return the golds of each file, as strings."""
    found: dict[str, list[str]] = {}
    for name, row in rows(folder):
        value = next((column(row, path) for path in columns if column(row, path) is not None), None)
        if value is not None:
            found.setdefault(name, []).append(str(value).rpartition("####")[2].strip())
    return found


def nouns(folder: Path) -> list[str]:
    """Return every X of "how many X" in any string of any row, lower-case."""
    return sorted(
        {match.lower() for _, row in rows(folder) for match in _HOW_MANY.findall(json.dumps(row))}
    )


def _thousands(gold: str) -> str:
    return f"{int(gold):,}" if _INTEGER.fullmatch(gold) else gold


def _has(pattern: str) -> Callable[[str], bool]:
    return lambda gold: bool(re.search(pattern, gold))


def _always(gold: str) -> bool:
    return True


def _number(gold: str) -> bool:
    return bool(_INTEGER.fullmatch(gold))


def _plain(gold: str) -> bool:
    return "$" not in gold


# Name, whether it applies to a gold, and the re-spelling.
SPELLINGS: list[tuple[str, Callable[[str], bool], Callable[[str], str]]] = [
    ("box", _always, lambda gold: rf"\boxed{{{gold}}}"),
    ("dollars", _plain, lambda gold: f"${gold}$"),
    ("brackets of TeX", _plain, lambda gold: rf"\( {gold} \)"),
    ("final period", _always, lambda gold: gold + "."),
    ("period and dollars", _plain, lambda gold: f"${gold}$."),
    ("emphasis", _always, lambda gold: f"**{gold}**"),
    ("dfrac", _has(r"\\frac"), lambda gold: gold.replace(r"\frac", r"\dfrac")),
    ("spaces", _has(r"[-+=,]"), lambda gold: re.sub(r"(?<![0-9{!])([-+=])", r" \1 ", gold)),
    ("left right", _has(r"^\(.*\)$"), lambda gold: r"\left" + gold[:-1] + r"\right)"),
    ("text unit", _number, lambda gold: gold + r"\text{ marbles}"),
    ("word unit", _number, lambda gold: gold + " marbles"),
    ("degrees", _has(r"\^\\circ$"), lambda gold: gold.removesuffix(r"^\circ") + "°"),
    ("thousands", _number, _thousands),
    ("thin thousands", _number, lambda gold: _thousands(gold).replace(",", r"\,")),
    ("decimal zero", _number, lambda gold: gold + ".0"),
    ("variable", _number, lambda gold: "x = " + gold),
    ("approximately", _number, lambda gold: r"\approx " + gold),
    (
        "slash",
        _has(r"^-?\\frac\{[0-9]+\}\{[0-9]+\}$"),
        lambda gold: re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", gold),
    ),
    (
        "root sign",
        _has(r"\\sqrt\{[0-9]+\}"),
        lambda gold: re.sub(r"\\sqrt\{([0-9]+)\}", r"√\1", gold),
    ),
    ("pi sign", _has(r"\\pi(?![A-Za-z])"), lambda gold: re.sub(r"\\pi(?![A-Za-z])", "π", gold)),
    (
        "swapped sum",
        _has(r"^[0-9a-z^]+\+[0-9a-z^]+$"),
        lambda gold: "+".join(gold.split("+")[::-1]),
    ),
    ("times", _has(r"^[0-9]+\\sqrt"), lambda gold: gold.replace(r"\sqrt", r"\cdot\sqrt")),
    ("minus sign", _has(r"^-"), lambda gold: "\u2212" + gold[1:]),
]
_OTHER_LETTER = {
    "x": "y",
    "y": "z",
    "t": "s",
    "n": "m",
    "a": "b",
    "b": "c",
    "k": "j",
    "r": "p",
    "m": "n",
    "z": "x",
}


def _last_letter(gold: str) -> str:
    alone = r"(?<![A-Za-z\\])[xytnabkrmz](?![A-Za-z])"
    return re.sub(rf"({alone})(?!.*{alone})", lambda match: _OTHER_LETTER[match[1]], gold)


def _swapped(gold: str) -> str:
    first, _, rest = gold[1:-1].partition(",")
    return f"({rest.strip()},{first.strip()})"


# Name, whether it applies, and a neighbour that is another answer.
NEIGHBOURS: list[tuple[str, Callable[[str], bool], Callable[[str], str]]] = [
    ("base left out", _has(r"_\{?[0-9]+\}?$"), lambda gold: re.sub(r"_\{?[0-9]+\}?$", "", gold)),
    (
        "another base",
        _has(r"_\{?[0-9]+\}?$"),
        lambda gold: re.sub(r"_\{?[0-9]+\}?$", "_{16}", gold),
    ),
    ("a base", _has(r"^[1-7]+$"), lambda gold: gold + "_9"),
    ("order", _has(r"^\([^(),]+,[^(),]+\)$"), _swapped),
    ("sign", _always, lambda gold: f"-({gold})" if not gold.startswith("-") else gold[1:]),
    ("unit", _number, lambda gold: gold + r"\text{ million}"),
    (
        "power",
        _has(r"\^[23]|\^\{[23]\}"),
        lambda gold: re.sub(r"\^\{?[23]\}?", "^5", gold, count=1),
    ),
    ("last letter", lambda gold: _last_letter(gold) != gold, _last_letter),
    ("last digit", _has(r"[0-9]$"), lambda gold: gold[:-1] + str((int(gold[-1]) + 1) % 10)),
    ("one more", _always, lambda gold: gold + "+1"),
]
_UNITS = [
    ("km", "m"),
    ("inches", "feet"),
    ("hours", "minutes"),
    ("apples", "eggs"),
    ("am", "pm"),
    ("dollars", "euros"),
]


def respellings(golds: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, gold, re-spelling) of every gold that the kind applies to and changes."""
    for kind, applies, spell in SPELLINGS:
        for gold in golds:
            if applies(gold) and spell(gold) != gold:
                yield kind, gold, spell(gold)


def neighbours(golds: list[str], rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, answer, another answer)."""
    for kind, applies, change in NEIGHBOURS:
        yield from (
            (kind, gold, change(gold)) for gold in golds if applies(gold) and change(gold) != gold
        )
    for gold in golds:
        if _number(gold):
            a, b = rng.choice(_UNITS)
            yield "two units", f"{gold} {a}", rf"{gold}\text{{ {b}}}"


def random_pairs(
    golds: list[str], number: int, rng: random.Random
) -> Iterator[tuple[str, str, str]]:
    """Yield pairs of golds in different spelling."""
    for _ in range(number):
        a, b = rng.sample(golds, 2)
        if normalise(a) != normalise(b):
            yield "random pair", a, b


def count(title: str, cases: Iterator[tuple[str, str, str]], wanted: bool) -> list[dict[str, Any]]:
    """Judge, print a line per kind, and return the pairs with another verdict than expected."""
    total, wrong = Counter(), []
    for kind, a, b in cases:
        total[kind] += 1
        if equivalent(a, b) is not wanted:
            wrong.append({"kind": kind, "a": a, "b": b, "equal": not wanted})
    misses = Counter(row["kind"] for row in wrong)
    print(
        f"{title}: {total.total()} pairs, {len(wrong)} not as wanted"
        f" ({1 - len(wrong) / max(total.total(), 1):.4%})"
    )
    for kind, number in total.items():
        print(f"  {kind:20}{number:7}{misses[kind]:6}")
    return wrong


def units_of(folder: Path) -> list[dict[str, Any]]:
    """Judge the nouns of "how many X", pairwise and in a group."""
    words = [word for word in nouns(folder) if word.removesuffix("s") not in FACTORS]
    wrong = []
    for word in words:
        for answer in (f"18 {word}", rf"18\text{{ {word}}}", f"18 {word}."):
            if not equivalent(answer, "18") or cluster([answer, "18", "18.0"]) != [0, 0, 0]:
                wrong.append({"kind": "noun", "a": answer, "b": "18", "equal": False})
    print(
        f"nouns of 'how many X': {len(words)}; {len(wrong)} answers of three spellings differ from"
        " 18"
    )
    return wrong


def main() -> None:
    """Judge, count and write out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of .jsonl and .parquet files")
    parser.add_argument(
        "--columns", default=COLUMNS, help=f"of gold answers, the first that is there ({COLUMNS})"
    )
    parser.add_argument("--pairs", type=int, default=26_000, help="random pairs (default: 26000)")
    parser.add_argument(
        "--pairs-of", help="the file that random pairs and neighbours come from (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs (default: 0)")
    parser.add_argument(
        "--out", type=Path, help="JSON lines of pairs whose verdict is not the wanted one"
    )
    arguments = parser.parse_args()
    files, rng = (
        gold_answers(arguments.folder, arguments.columns.split(",")),
        random.Random(arguments.seed),
    )
    every = [gold for golds in files.values() for gold in golds if gold]
    distinct = sorted(set(every))
    unread = [gold for gold in distinct if not read(normalise(gold)).known]
    print(
        f"{len(every)} golds in {len(files)} files, {len(distinct)} of them different; not read:"
        f" {len(unread)}"
    )
    assert all(equivalent(gold, gold) for gold in distinct)
    chosen = sorted(set(files[arguments.pairs_of])) if arguments.pairs_of else distinct
    wrong = count("re-spellings", respellings(sorted(set(distinct) - set(unread))), True)
    wrong += count("random pairs", random_pairs(chosen, arguments.pairs, rng), False)
    wrong += count(
        "hard neighbours", neighbours([gold for gold in chosen if gold not in unread], rng), False
    )
    wrong += units_of(arguments.folder)
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in wrong))


if __name__ == "__main__":
    main()
