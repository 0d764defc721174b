"""Gold answers through the real command line: refused, counted or judged before and after anything
is sampled.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from harness.runs import BASE
from rlif_lightning import cli

QUESTIONS = ("1+1=", "2+2=", "3+4=", "4+4=")
SUMS = ("2", "4", "7", "8")


def source(folder: Path, golds: list, **more: list) -> list[str]:
    """The arguments that read these gold answers, in verl's columns."""
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "reward_model": {"ground_truth": gold, "style": "rule"},
            **{name: values[k] for name, values in more.items()},
        }
        for k, (question, gold) in enumerate(zip(QUESTIONS, golds, strict=True))
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"class_path": "LocalFiles", "init_args": {"train": str(path), "validation": str(path)}}
    columns = ["--data.prompt_column=prompt", "--data.answer_column=reward_model.ground_truth"]
    small = [
        "--data.prompts_per_rollout=4",
        "--data.validation_prompts=null",
        "--model.evaluation.samples=2",
    ]
    return [
        f"--data.source={json.dumps(files)}",
        *columns,
        *small,
        f"--trainer.default_root_dir={folder}",
    ]


def run(command: str, folder: Path, golds: list, *arguments: str, **more: list) -> cli.RLIFCLI:
    kept = [argument for argument in BASE if "source" not in argument]
    only_fit = (
        () if command in ("fit", "preflight") else ("compare", "max_epochs", "max_steps", "min_")
    )
    kept = [argument for argument in kept if not any(name in argument for name in only_fit)]
    return cli.main([command, *kept, *source(folder, golds, **more), *arguments])


def refused(capsys, *given, **more) -> str:
    with pytest.raises(SystemExit) as info:
        run(*given, **more)
    assert info.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "preflight"])
def test_a_missing_gold_answer_is_refused_before_anything_is_sampled(tmp_path, capsys, command):
    told = refused(capsys, command, tmp_path, ["2", None, "7", "8"])
    assert "data.answer_column='reward_model.ground_truth': row 1 of the " in told
    assert "is None (NoneType), not an answer: leave such rows out" in told
    assert not list(tmp_path.rglob("*.json*"))[1:]  # but for the rows themselves


def test_named_values_are_refused_with_the_way_to_name_one_of_them(tmp_path, capsys):
    told = refused(capsys, "validate", tmp_path, list(SUMS), "--data.answer_column=reward_model")
    assert "row 0 of the validation split is {'ground_truth': '2'" in told
    assert "name one of ['ground_truth', 'style'] by a dotted path" in told


@pytest.mark.slow
def test_a_nested_subset_column_is_used_or_refused(tmp_path, capsys):
    named = "--model.evaluation.subset_column=reward_model."
    assert set(run("validate", tmp_path, list(SUMS), f"{named}style").model.report.subsets) == {
        "rule"
    }
    told = refused(capsys, "validate", tmp_path, list(SUMS), f"{named}level")
    assert (
        "evaluation.subset_column='reward_model.level' is not in the validation split; its columns"
        " are" in told
    )


def test_an_extractor_that_fits_no_row_is_refused(tmp_path, capsys):
    checker = {"class_path": "AnswerChecker", "init_args": {"gold_extractor": {"kind": "boxed"}}}
    given = f"--model.evaluation.checker={json.dumps(checker)}"
    told = refused(capsys, "validate", tmp_path, list(SUMS), given)
    assert "gold_extractor='boxed' finds no answer in 4 of 4 gold answers" in told


@pytest.mark.slow
def test_a_head_s_own_column_is_checked_and_the_prompt_may_not_show_it(tmp_path, capsys):
    gold = (
        '--model.rewards={"gold": {"head": {"class_path": "GoldAnswer", "init_args": {"column":'
        ' "key"}}}}'
    )
    unlabelled = (
        gold,
        "--data.answer_column=null",
        "--trainer.limit_val_batches=0",
        "--compare=false",
    )
    told = refused(capsys, "fit", tmp_path, list(SUMS), *unlabelled, key=[2, 4, float("nan"), 8])
    assert "GoldAnswer.column='key': row 2 of the train split is nan (float), not an answer" in told
    shown = (*unlabelled, "--data.format.template={prompt}{key}")
    told = refused(capsys, "fit", tmp_path, list(SUMS), *shown, key=[2, 4, 7, 8])
    assert "template='{prompt}{key}' shows the gold answer 'key'" in told
    told = refused(capsys, "fit", tmp_path, list(SUMS), *unlabelled)
    assert "the gold answers' column 'key' is not in the train split" in told


@pytest.mark.slow
def test_heads_are_not_asked_where_none_scores(tmp_path):
    gold = (
        '--model.rewards={"gold": {"head": {"class_path": "GoldAnswer", "init_args": {"column":'
        ' "key"}}}}'
    )
    assert run("validate", tmp_path, list(SUMS), gold).model.report.num_problems == 4


@pytest.mark.full  # test_gold_answers.py judges each kind of value
def test_lists_numbers_and_nested_columns_are_judged_as_texts_are(tmp_path, caplog):
    figures = []
    for name, golds in (
        ("texts", list(SUMS)),
        ("floats", [2.0, 4.0, 7.0, 8.0]),
        ("lists", [[s, "none"] for s in SUMS]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        figures.append(run("validate", folder, golds).model.report.figures())
    assert figures[0]["accuracy"].value > 0.2
    assert figures[0] == figures[1] == figures[2]


@pytest.mark.slow
def test_the_completion_writer_judges_by_the_evaluation_s_checker(tmp_path):
    writer = (
        '--trainer.callbacks+={"class_path": "CompletionWriter", "init_args": {"groups": 4,'
        ' "write_gold": true}}'
    )
    arguments = ("--trainer.max_epochs=1", "--trainer.limit_val_batches=0", writer)
    run("fit", tmp_path, [["no", s] for s in SUMS], *arguments)
    records = [
        json.loads(line)
        for line in next(tmp_path.rglob("completions.jsonl")).read_text().splitlines()
    ]
    assert {record["gold"] for record in records} == {json.dumps(["no", s]) for s in SUMS}
    assert [r["correct"] for r in records] == [
        r["answer"] in ("no", SUMS[r["index"]]) for r in records
    ]
    assert len({record["correct"] for record in records}) == 2
    # The same literals are right for a checker that reads literals, and no completion has one
    # between its marks.
    literal = ("--model.evaluation.checker=LiteralChecker", *arguments)
    (other := tmp_path / "literal").mkdir()
    run("fit", other, list(SUMS), *literal)
    records = [
        json.loads(line) for line in next(other.rglob("completions.jsonl")).read_text().splitlines()
    ]
    assert {(record["answer"], record["correct"]) for record in records} == {(None, False)}


def test_what_cannot_be_read_is_told_in_one_line_and_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        gold = """--model.rewards={"gold": {"head": {"class_path": "GoldAnswer",
                  "init_args": {"column": "reward_model.ground_truth"}}}}"""
        run(
            "fit",
            tmp_path,
            ["2", r"\frac{1", "7", "8"],
            "--trainer.max_epochs=1",
            "--compare=true",
            gold,
        )
    told = [record.message for record in caplog.records if "cannot be read" in record.message]
    assert len(told) == 2  # of the train and of the validation split
    assert all(line.startswith("1 of 4 gold answers of data.answer_column=") for line in told)
