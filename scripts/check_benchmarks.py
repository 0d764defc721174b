r"""Run the benchmark adapters and the paper's data pipeline on published rows, and judge the golds.

    python scripts/check_benchmarks.py FOLDER --tokenizer Qwen/Qwen2.5-1.5B --out judge.jsonl

FOLDER has the files that `SETS` names; a set without its file is left out. For each set the shipped
config (``configs/benchmarks/NAME.yaml``; ``configs/paper/base.yaml`` for MATH's training problems)
makes prompts and a checker as a run does. Printed are

1. problems, tokens of a prompt (least, median, most), golds not read (`GoldReader.check`);
2. ``itself``: golds whose text, put as the prompt asks for it (``\boxed{}``, or ``#### ``), is
   extracted and counted as right;
3. ``string``: the same for the text that math-verify extracts, and ``value``: for the expression
   that it reads, written as LaTeX by SymPy;
4. ``solution``: worked solutions of the set from which the extractor takes an answer equal to the
   gold one.

Rows where 2, 3 or 4 says "different" are written to ``--out``: judge each by hand. Rows are not
part of this repository, and neither is what this script writes. The last lines are the epochs of
the paper's two presets.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import disable_progress_bars

from benchmarks.results import write_results
from rlif_lightning.answers.checkers import AnswerChecker
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.answers.final_answers import equivalent, is_correct
from rlif_lightning.data.loaders import EncodedSplit, TrainLoader
from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.data.prompts import BenchmarkData, LocalFiles, PromptData
from rlif_lightning.data.tokenizer import load_tokenizer
from rlif_lightning.records import value_at

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BOXED, HASHED = r"So it is \boxed{%s}.", "So it is.\n#### %s"
VERDICTS = ("itself", "string", "value", "solution")
HEAD = ("problems", "tokens", "not read", *VERDICTS)
COMMAND = "python scripts/check_benchmarks.py FOLDER --tokenizer TOKENIZER --results FILE"
PRESETS = (882, 126)


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
        else BenchmarkData(**{**source, "name": str(path)}),
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
    from math_verify import LatexExtractionConfig, parse

    found = parse(rf"\boxed{{{gold}}}", [LatexExtractionConfig()], parsing_timeout=0)
    texts = [part for part in found if isinstance(part, str)][:1]
    # SymPy's LaTeX, as notebooks ask for it: between dollars.
    values = [part._repr_latex_().strip("$") for part in found if not isinstance(part, str)][:1]
    values = [text.replace(r"\displaystyle", "") for text in values]
    return texts + values if len(texts) + len(values) == 2 else []


def judged(
    chosen: BenchmarkSet, checker: AnswerChecker, problems: list[dict[str, Any]], column: str
) -> Iterator[dict[str, Any]]:
    """Yield each problem's gold with its verdicts; one that cannot be given is left out."""
    for problem in problems:
        gold = checker.gold(value_at(problem, column))
        row: dict[str, Any] = {"gold": gold[0] if gold else None}
        if gold:
            row["answer"] = checker.answer(chosen.ending % gold[0])
            row["itself"] = is_correct(row["answer"], gold[0])
            row["math_verify"] = readings(gold[0])
            pairs = zip(("string", "value"), row["math_verify"], strict=False)
            row |= {name: equivalent(gold[0], text) for name, text in pairs}
        if gold and chosen.solution:
            row["from_solution"] = checker.answer(str(problem[chosen.solution]))
            row["solution"] = is_correct(row["from_solution"], gold[0])
        yield row


def share(rows: list[dict[str, Any]], name: str) -> str:
    """Return "equal of asked" for one verdict; a dash where it was never asked."""
    verdicts = [row[name] for row in rows if name in row]
    return f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "-"


def problems_of(made: PromptData) -> EncodedSplit:
    """Return the training problems where there are any, else those to measure on."""
    split = made.split("train") or made.split("validation")
    assert split is not None
    return split


def epochs(split: EncodedSplit) -> Iterator[str]:
    """Yield a line on each preset's epoch, by the loader of a run."""
    for prompts in PRESETS:
        if prompts <= len(split):
            rollouts = len(TrainLoader(split, prompts, 0, 1, 0))
            yield f"{rollouts} rollouts of {prompts}: {rollouts * prompts} of {len(split)} problems"


def report(made: PromptData, rows: list[dict[str, Any]], unread: str | None) -> dict[str, str]:
    """Return the set's figures, by the names in `HEAD`."""
    split = problems_of(made)
    lengths = np.array([len(ids) for ids in split.token_ids or []])
    low, median, high = (int(np.percentile(lengths, q)) for q in (0, 50, 100))
    cells = [str(len(split)), f"{low} / {median} / {high}"]
    cells += [unread.split(" of ")[0] if unread else "0"]
    cells += [share(rows, verdict) for verdict in VERDICTS]
    return dict(zip(HEAD, cells, strict=True))


def main(given: list[str] | None = None) -> None:
    """Run, print and write out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the files that SETS names")
    parser.add_argument("--tokenizer", required=True, help="hub name or folder")
    parser.add_argument("--out", type=Path, help="JSON lines of rows that are not equal")
    parser.add_argument("--results", type=Path, help="result file (CSV) of the table")
    arguments = parser.parse_args(given)
    differ, lines, table = [], [], {}
    for name, chosen in SETS.items():
        path = arguments.folder / chosen.file
        if not path.is_file():
            continue
        data, checker = settings_of(chosen)
        made = pipeline(path, chosen, data, arguments.tokenizer)
        problems = [problem for _, problem in problems_of(made).problems()]
        column = data["answer_column"]
        golds = enumerate(value_at(problem, column) for problem in problems)
        unread = checker.check_gold(column, golds, chosen.file)
        rows = list(judged(chosen, checker, problems, column))
        table[name] = report(made, rows, unread)
        print(name, *table[name].values(), sep=" | ", flush=True)
        lines += epochs(problems_of(made)) if chosen.config == "paper/base.yaml" else []
        differ += [{"set": name} | row for row in rows if False in map(row.get, VERDICTS)]
    print(*lines, sep="\n")
    if arguments.results:
        size = len(load_tokenizer(arguments.tokenizer, None, False))
        conditions = f"a tokenizer of {size} tokens; math-verify {version('math-verify')}"
        notes = {"command": COMMAND, "conditions": conditions}
        write_results(arguments.results, notes, table, "set")
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in differ))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # of the whole process, so not in `main`
    disable_progress_bars()
    main()
