"""Every benchmark overlay through the real command line, on hand-written rows in the schema of the
published data.
"""

from __future__ import annotations

import base64
import functools
import json
import pickle
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from rlif_lightning import cli
from rlif_lightning.answers.code_tasks import TEST_COLUMNS
from rlif_lightning.data.benchmark_source import BenchmarkData

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "benchmarks"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


# Those of one kind differ in their data alone: one of each in the fast tier.
ALIKE = {"amc23", "aime24", "aime25", *(n for n in FILES if n.startswith("reasoning_gym_"))}
ALIKE -= {next(n for n in FILES if n.startswith("reasoning_gym_"))}


def each(names: Iterable[str]) -> list:
    return [pytest.param(n, marks=pytest.mark.full if n in ALIKE else ()) for n in names]


def cases(*pairs: tuple[str, str], kind: str = "stdin") -> str:
    return json.dumps(
        [{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs]
    )


def packed(text: str) -> str:
    """The published form of LiveCodeBench's private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


ROWS = {
    "gsm8k": [
        {
            "question": "Ann has 3 pens and buys 4. How many?",
            "answer": "3 + 4 = <<3+4=7>>7\n#### 7",
        },
        {
            "question": "A car costs $1,000 more than $500.",
            "answer": "It costs $<<500+1000=1500>>1500.\n#### 1,500",
        },
    ],
    "math500": [
        {
            "problem": "Find $x$ with $2x = 1$.",
            "solution": r"$x = \boxed{\frac{1}{2}}$",
            "answer": r"\frac{1}{2}",
            "subject": "Algebra",
            "level": level,
            "unique_id": f"test/algebra/{level}.json",
        }
        for level in (1, 5)
    ],
    "amc23": [
        {"id": 0, "answer": 27.0, "url": "https://example.org", "question": "What is $3^3$?"}
    ],
    "aime24": [
        {
            "id": 60,
            "problem": "Find $7 \\cdot 12$.",
            "solution": r"\boxed{084}",
            "answer": "084",
            "url": "https://example.org",
            "year": "2024",
        }
    ],
    "aime25": [{"problem": "Find $7 \\cdot 10$.", "answer": "70", "id": "0"}],
    "mmlu_pro": [
        {
            "question_id": 70,
            "question": "Which is even?",
            "options": ["1", "3", "4", "5"],
            "answer": "C",
            "answer_index": 2,
            "cot_content": "",
            "category": category,
            "src": "ori_mmlu",
        }
        for category in ("math", "physics")
    ],
    "cruxeval_o": [
        {
            "code": "def f(d):\n    return {k: v for k, v in d.items() if v}",
            "input": "{'a': 0, 'b': 1}",
            "output": "{'b': 1}",
            "id": "sample_0",
        }
    ],
    "humaneval": [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def double(x):\n    """Twice x, as in {x: 2 * x}."""\n',
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            "entry_point": "double",
        }
    ],
    "mbpp": [
        {
            "task_id": 11,
            "text": "Write a function that doubles a number.",
            "code": "def double(x):\n    return 2 * x",
            "test_list": ["assert double(1) == 2", "assert double(2) == 4"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
    ],
    "livecodebench_v6": [
        {
            "question_title": "sum",
            "question_content": "Return or print the sum of two numbers.",
            "platform": "leetcode" if starter else "atcoder",
            "question_id": "abc000_a",
            "contest_id": "abc000",
            "contest_date": "2025-01-04T00:00:00",
            "starter_code": starter,
            "difficulty": difficulty,
            "public_test_cases": public,
            "private_test_cases": packed(private),
            "metadata": metadata,
        }
        for starter, difficulty, metadata, public, private in (
            ("", "easy", "{}", cases(("1 2\n", "3\n")), cases(("5 5\n", "10\n"))),
            (
                "class Solution:\n    def add(self, a, b):",
                "hard",
                '{"func_name": "add"}',
                cases(("1\n2", "3"), kind="functional"),
                cases(("5\n5", "10"), kind="functional"),
            ),
        )
    ],
}
# A right and a wrong completion of the first row, as models write them.
COMPLETIONS = {
    "gsm8k": ("3 + 4 = 7.\n#### 7", "#### 8"),
    "math500": (r"so $x = 0.5$: \boxed{0.5}", r"\boxed{2}"),
    "amc23": (r"\boxed{27}", r"\boxed{27.5}"),
    "aime24": (r"\boxed{84}", r"\boxed{840}"),
    "aime25": (r"\boxed{070}", "70"),  # without a box there is no answer
    "mmlu_pro": ("4 is even. The answer is (C).", "The answer is (D)"),
    "cruxeval_o": ("[ANSWER]{'b':1}[/ANSWER]", "[ANSWER]{'a': 0}[/ANSWER]"),
    "humaneval": ("    return x + x\n\nprint(1)", "    return x\n"),
    "mbpp": (
        "Sure:\n```python\ndef double(n):\n    return 2 * n\n```",
        "```\ndef double(n): return 2\n```",
    ),  # 1 of 2
    # The wrong one passes what is public.
    "livecodebench_v6": (
        "```python\na, b = map(int, input().split())\nprint(a + b)\n```",
        "```\nprint(3)\n```",
    ),
}

# Code that solves each row.
SOLUTIONS = {
    "humaneval": [ROWS["humaneval"][0]["canonical_solution"]],
    "mbpp": [ROWS["mbpp"][0]["code"]],
    "livecodebench_v6": [
        "print(sum(map(int, input().split())))",
        "class Solution:\n    def add(self, a, b):\n        return a + b",
    ],
}


def run(
    command: str, name: str, folder: Path, *arguments: str, rows: list[dict] | None = None
) -> cli.RLIFCLI:
    source = []
    if not name.startswith("reasoning_gym"):
        path = folder / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, ROWS[name] if rows is None else rows)))
        source = [f"--data.source.init_args.name={path}"]
    model = [
        "--model.policy.name=rlif-arithmetic",
        f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu",
    ]
    short = ["--model.evaluation.sampling.max_new_tokens=4", "--trainer.enable_progress_bar=false"]
    if name in SOLUTIONS:  # any sandbox that the machine has: test_escape.py is about what it stops
        short.append("--model.evaluation.checker.sandbox.isolation=rlimits+")
    configs = [f"--config={ROOT}/configs/evaluate.yaml", f"--config={FOLDER}/{name}.yaml"]
    return cli.main([command, *configs, *source, *model, *short, *arguments])


def batch(built: cli.RLIFCLI):
    return next(iter(built.datamodule.val_dataloader()))


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Callable[[str], tuple[cli.RLIFCLI, Path]]:
    """Overlay -> the finished `validate` and its folder, run once for all tests."""

    @functools.cache
    def validate(name: str) -> tuple[cli.RLIFCLI, Path]:
        folder = tmp_path_factory.mktemp(name)
        fewer = [] if name in ROWS else ["--data.source.init_args.validation_size=4"]
        few = ["--model.evaluation.samples=2", "--model.evaluation.pass_at=[]"]
        return run("validate", name, folder, *fewer, *few), folder

    return validate


def test_the_issue_s_benchmarks_are_there():
    assert set(ROWS) <= set(FILES)
    assert sum(name.startswith("reasoning_gym_") for name in FILES) >= 3
    assert all(name in ROWS or name.startswith("reasoning_gym_") for name in FILES)


@pytest.mark.parametrize("name", each(FILES))
def test_each_overlay_measures(name, measured):
    if name not in ROWS:
        pytest.importorskip("reasoning_gym")
    built, folder = measured(name)
    (entry,) = json.loads(next(folder.rglob("evaluation.json")).read_text())
    assert entry["problems"] == len(ROWS.get(name, range(4)))
    assert {"accuracy", "greedy_accuracy"} <= set(entry["figures"])
    prompts = batch(built)
    assert all(
        "{" not in re.sub(r"boxed\{\}|\{x: 2 \* x\}|[{]'|[{]k:", "", text) for text in prompts.texts
    )
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    column = settings["model"]["evaluation"]["subset_column"]
    labels = {str(row[column]) for row in ROWS[name]} if column else set()
    assert set(entry.get("subsets", {})) == labels


def judged(built: cli.RLIFCLI, texts: list[str], rows: list[int]) -> list[bool]:
    """Verdicts of the overlay's checker on completions of the named rows."""
    checker, columns = built.model.evaluator.checker, batch(built).columns
    problems = [{column: values[row] for column, values in columns.items()} for row in rows]
    return checker.correct(
        [checker.answer(text) for text in texts], problems, built.model.answer_column
    )


@pytest.mark.parametrize("name", each(ROWS))
def test_right_and_wrong_completions_are_told_apart(name, measured):
    assert judged(measured(name)[0], [*COMPLETIONS[name], " \n"], [0, 0, 0]) == [True, False, False]


@pytest.mark.parametrize("name", each(ROWS))
def test_every_gold_answer_can_be_judged_and_is_right(name, measured):
    built, _ = measured(name)
    rows = list(range(len(ROWS[name])))
    if name in SOLUTIONS:
        assert judged(built, SOLUTIONS[name], rows) == [True] * len(rows)
        return
    problems = [
        {column: values[i] for column, values in batch(built).columns.items()} for i in rows
    ]
    column = built.model.answer_column
    gold = [str(problem[column]).rsplit("#### ", 1)[-1] for problem in problems]
    assert built.model.evaluator.checker.correct(gold, problems, column) == [True] * len(gold)


def test_prompts_show_what_the_problem_needs(measured):
    def text(name: str, row: int = 0) -> str:
        return batch(measured(name)[0]).texts[row]

    assert text("mmlu_pro").endswith(
        'A. 1\nB. 3\nC. 4\nD. 5\n\nThink step by step, then end with "The answer is (X)", X being'
        " the right letter.\n"
    )
    assert "assert double(1) == 2\nassert double(2) == 4\n" in text("mbpp")
    assert text("humaneval") == ROWS["humaneval"][0]["prompt"]
    assert "reads standard input" in text("livecodebench_v6", 0)
    assert "class Solution:\n    def add(self, a, b):" in text("livecodebench_v6", 1)
    assert text("cruxeval_o").endswith("f({'a': 0, 'b': 1})\n")
    assert text("math500").endswith("within \\boxed{}.\n")
    assert text("gsm8k").count("\n#### ") == 4
    assert text("gsm8k", 1).endswith("Answer:")


@pytest.mark.parametrize("name", ROWS)
def test_a_missing_column_is_named(name, tmp_path):
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["data"]["source"]["init_args"]
    needed = sorted(settings["columns"])[0]
    path = tmp_path / "rows.jsonl"
    rows = [
        {key: value for key, value in row.items() if key != needed} | {"other": 1}
        for row in ROWS[name]
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=rf"columns \['{needed}'\] are missing; it has"):
        BenchmarkData(**settings | {"name": str(path)}).load("validation")


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_columns_that_nothing_uses_need_not_be_there_and_stay_where_they_are(name, tmp_path):
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    source, whole = settings["data"]["source"]["init_args"], ROWS[name]
    bare = [{key: row[key] for key in source["columns"]} for row in whole]
    for rows in (whole, bare):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        assert set(rows[0]) <= set(
            BenchmarkData(**source | {"name": str(path)}).load("validation").column_names
        )
    used = {settings["data"]["prompt_column"], settings["data"]["answer_column"]}
    assert used | {settings["model"]["evaluation"]["subset_column"]} - {None} <= set(
        source["columns"]
    )


ADAPTED = {
    None: set(),
    "choices": {"options"},
    "shown_tests": {"test_list"},
    "answer_format": {"starter_code"},
}
READ_BY_CODE_CHECKER = {*TEST_COLUMNS, "prompt", "entry_point", "starter_code", "metadata"}


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("reasoning_gym")])
def test_no_column_is_demanded_that_nothing_uses(name):
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    data, source = settings["data"], settings["data"]["source"]["init_args"]
    evaluation = settings["model"]["evaluation"]
    shown = set(re.findall(r"(?<!\{)\{(\w+)\}", data["format"]["template"]))
    used = {data["prompt_column"], data["answer_column"], evaluation["subset_column"]} | shown
    used |= ADAPTED[source.get("adapter")]
    used |= READ_BY_CODE_CHECKER if evaluation["checker"] == "CodeChecker" else set()
    assert set(source["columns"]) <= used


def test_a_copy_in_csv_may_spell_an_integer(tmp_path):
    settings = yaml.safe_load((FOLDER / "math500.yaml").read_text())["data"]["source"]["init_args"]
    path = tmp_path / "rows.csv"
    path.write_text("problem,answer,level\nFind 1+1.,2,3\n")
    assert list(BenchmarkData(**settings | {"name": str(path)}).load("validation")["level"]) == [
        "3"
    ]


def test_a_column_of_another_kind_is_named(tmp_path, capsys):
    rows = [row | {"options": "1, 3, 4, 5"} for row in ROWS["mmlu_pro"]]
    with pytest.raises(SystemExit):
        run("validate", "mmlu_pro", tmp_path, rows=rows)
    assert "'options' is Value('string'), not list" in capsys.readouterr().err
    rows = [row | {"level": "Level 1"} for row in ROWS["math500"]]
    with pytest.raises(SystemExit):
        run("validate", "math500", tmp_path, rows=rows)
    assert "'level' is Value('string'), not integer" in capsys.readouterr().err


def test_there_is_no_training_split(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("fit", "gsm8k", tmp_path, "--trainer.max_epochs=1")
    assert "is for measuring only" in capsys.readouterr().err


def test_the_hub_is_asked_for_the_pinned_version_and_a_failure_says_what_to_do(
    tmp_path, monkeypatch
):
    asked = []

    def refuse(*arguments, **settings):
        asked.append((arguments, settings))
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    for name in sorted(ROWS):
        settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["data"]["source"][
            "init_args"
        ]
        with pytest.raises(ValueError, match="cannot be loaded: offline; check the"):
            BenchmarkData(**settings).load("validation")
        arguments, given = asked.pop()
        if name == "livecodebench_v6":
            url = given["data_files"]
            assert url == f"hf://datasets/{settings['name']}@{settings['revision']}/test6.jsonl"
        else:
            assert (arguments[0], given["revision"]) == (settings["name"], settings["revision"])
        assert name == "amc23" or re.fullmatch("[0-9a-f]{40}", settings["revision"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"a": "float"}}, "kind 'float' is unknown"),
        ({"columns": {}, "adapter": "x"}, "adapter='x' is unknown"),
        ({"columns": {}, "hub_file": "a.jsonl", "subset": "b"}, "a file has no subsets"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkData("x", **settings)
