r"""Run the benchmark adapters and the paper's data pipeline on published rows, and judge the golds.

    python scripts/check_benchmarks.py FOLDER --tokenizer Qwen/Qwen2.5-1.5B --out judge.jsonl

FOLDER has the files that `SETS` names; a set without its file is left out. For each set the shipped
config (``configs/benchmarks/NAME.yaml``; ``configs/paper/base.yaml`` for MATH's training problems)
makes prompts and a checker as a run does. Printed are

1. problems, prompts' lengths in tokens, and golds that cannot be read (`GoldReader.check`);
2. ``itself``: golds whose text, put as the prompt asks for it (``\boxed{}``, or ``#### ``), is
   extracted and counted as right;
3. ``string``: the same for the text that math-verify extracts, and ``value``: for the expression
   that it reads, written as LaTeX by SymPy;
4. ``solution``: worked solutions of the set from which the extractor takes an answer equal to the
   gold one.

Rows where 2, 3 or 4 says "different" are written to ``--out``: judge each by hand. Rows are no part
of this repository, and neither is what this script writes.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlif_lightning.answers.checkers import AnswerChecker
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.answers.final_answers import equivalent, is_correct
from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.data.prompts import BenchmarkData, LocalFiles, PromptData
from rlif_lightning.records import value_at

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BOXED, HASHED = r"So it is \boxed{%s}.", "So it is.\n#### %s"
PAPER = "configs/paper/base.yaml"


@dataclass(frozen=True)
class BenchmarkSet:
    """A set of rows and how it is measured.

    Attributes:
        file: its name in the folder.
        config: below ``configs``; empty where none is shipped for the set.
        changed: settings of ``data`` that differ from the config's, or all of them.
        gold: kind of the gold extractor; None = the config's.
        ending: how a completion ends, with the answer in place of ``%s``.
        solution: column with a worked solution; None = there is none.
    """

    file: str
    config: str = ""
    changed: dict[str, Any] | None = None
    gold: str | None = None
    ending: str = BOXED
    solution: str | None = None


def _words(prompt: str, answer: str, template: str) -> dict[str, Any]:
    return {"prompt_column": prompt, "answer_column": answer, "format": {"template": template}}


_MATH_TRAIN = {"prompt_column": "prompt", "answer_column": "reward_model.ground_truth"}
_MAWPS = _words("input", "target", "{prompt}\n")
SETS = {
    "MATH train": BenchmarkSet("math_train.parquet", "paper/base.yaml", _MATH_TRAIN, "text"),
    "MATH-500": BenchmarkSet("math500.jsonl", "benchmarks/math500.yaml", solution="solution"),
    "GSM8K test": BenchmarkSet(
        "gsm8k.jsonl", "benchmarks/gsm8k.yaml", ending=HASHED, solution="answer"
    ),
    "AIME 2024": BenchmarkSet("aime24.jsonl", "benchmarks/aime24.yaml", solution="solution"),
    "AIME 2025": BenchmarkSet("aime25.jsonl", "benchmarks/aime25.yaml"),
    "AMC 2023": BenchmarkSet("amc23.jsonl", "benchmarks/amc23.yaml"),
    "SVAMP": BenchmarkSet(
        "svamp.jsonl", changed=_words("Question", "Answer", "{Body} {prompt}\n"), gold="text"
    ),
    **{
        f"MAWPS {part}": BenchmarkSet(f"mawps_{part.lower()}.jsonl", changed=_MAWPS, gold="text")
        for part in ("SingleOp", "AddSub", "SingleEq", "MultiArith")
    },
}


def settings_of(chosen: BenchmarkSet) -> tuple[dict[str, Any], AnswerChecker]:
    """Return the settings of ``data`` but the source, and the checker, as the config has them."""
    data: dict[str, Any] = {}
    kinds = {"extractor": {"kind": "boxed"}, "gold_extractor": {"kind": chosen.gold}}
    if chosen.config:
        config = yaml.safe_load((CONFIGS / chosen.config).read_text())
        data = dict(config["data"])
        kinds |= config["model"]["evaluation"]["checker"]["init_args"]
    if chosen.gold:
        kinds["gold_extractor"] = {"kind": chosen.gold}
    data |= chosen.changed or {}
    return data, AnswerChecker(**{name: AnswerExtractor(**kind) for name, kind in kinds.items()})


def pipeline(path: Path, chosen: BenchmarkSet, data: dict[str, Any], tokenizer: str) -> PromptData:
    """Return the set's problems as a run makes them, rendered and tokenised."""
    source = data.get("source", {}).get("init_args", {})
    trains = "columns" not in source  # no adapter of a benchmark
    made = PromptData(
        source=LocalFiles(train=str(path), validation=str(path))
        if trains
        else BenchmarkData(**source, file=str(path)),
        tokenizer=tokenizer,
        group_size=data.get("group_size", 7),
        prompts_per_rollout=data.get("prompts_per_rollout", 1),
        prompt_column=data["prompt_column"],
        answer_column=data["answer_column"],
        format=PromptFormat(**data["format"]),
    )
    made.setup("fit" if trains else "validate")
    return made


def readings(gold: str) -> list[str]:
    """Return what math-verify takes from a boxed gold: its text, and its value as LaTeX of SymPy.

    Fewer where it reads nothing.
    """
    import sympy
    from math_verify import LatexExtractionConfig, parse

    found = parse(rf"\boxed{{{gold}}}", [LatexExtractionConfig()], parsing_timeout=0)
    texts = [part for part in found if isinstance(part, str)][:1]
    values = [sympy.latex(part) for part in found if not isinstance(part, str)][:1]
    return texts + values if len(texts) + len(values) == 2 else []


def judged(
    chosen: BenchmarkSet, checker: AnswerChecker, problems: Iterator[dict[str, Any]], column: str
) -> Iterator[dict[str, Any]]:
    """Yield for each problem its gold and the verdicts: True, False, or None where none applies."""
    for problem in problems:
        gold = checker.gold(value_at(problem, column))
        row: dict[str, Any] = {"gold": gold[0] if gold else None}
        if gold:
            row["answer"] = checker.answer(chosen.ending % gold[0])
            row["itself"] = checker.correct(
                [row["answer"]], [problem | {column: value_at(problem, column)}], column
            )[0]
            read = readings(gold[0])
            row["math_verify"] = read
            names = ("string", "value")
            row |= {n: equivalent(gold[0], text) for n, text in zip(names, read, strict=False)}
        if gold and chosen.solution and problem.get(chosen.solution):
            row["from_solution"] = checker.answer(str(problem[chosen.solution]))
            row["solution"] = is_correct(row["from_solution"], gold[0])
        yield row


def share(rows: list[dict[str, Any]], name: str) -> str:
    """Return "equal of asked" for one verdict; a dash where it was never asked."""
    verdicts = [row[name] for row in rows if name in row]
    return f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "-"


def report(name: str, made: PromptData, rows: list[dict[str, Any]], unread: str | None) -> str:
    """Return the set's line of a Markdown table."""
    split = made.split("train") or made.split("validation")
    assert split is not None
    lengths = np.array([len(ids) for ids in split.token_ids or []])
    low, median, high = (int(np.percentile(lengths, q)) for q in (0, 50, 100))
    cells = [name, str(len(split)), f"{low} / {median} / {high}"]
    cells += [unread.split(" of ")[0] if unread else "0"]
    cells += [share(rows, verdict) for verdict in ("itself", "string", "value", "solution")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run, print and write out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the files that SETS names")
    parser.add_argument("--tokenizer", default="rlif-arithmetic", help="hub name or folder")
    parser.add_argument("--out", type=Path, help="JSON lines of rows that are not equal")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    differ = []
    print(
        "| set | problems | tokens of a prompt, least / median / most | golds not read | itself |"
        " string | value | solution |\n" + "| --- " * 8 + "|"
    )
    for name, chosen in SETS.items():
        path = arguments.folder / chosen.file
        if not path.is_file():
            continue
        data, checker = settings_of(chosen)
        made = pipeline(path, chosen, data, arguments.tokenizer)
        split = made.split("train") or made.split("validation")
        assert split is not None
        problems = [problem for _, problem in split.problems()]
        column = data["answer_column"]
        golds = enumerate(value_at(problem, column) for problem in problems)
        unread = checker.check_gold(column, golds, chosen.file)
        rows = list(judged(chosen, checker, iter(problems), column))
        print(report(name, made, rows, unread), flush=True)
        verdicts = ("itself", "string", "value", "solution")
        differ += [{"set": name} | row for row in rows if False in [row.get(v) for v in verdicts]]
        differ += [{"set": name} | row for row in rows if row.get("math_verify") == []]
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in differ))


if __name__ == "__main__":
    main()
