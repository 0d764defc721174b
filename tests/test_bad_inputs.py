"""Bad inputs of a first afternoon: each is refused in at most three lines that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.command_line import base, build
from rlif_lightning import cli

GOOD = '{"question": "1+2+3=", "answer": "6"}\n'
MANY = GOOD * 8
USER = '{"role": "user", "content": "1+1="}'


def messages(*turns: str) -> str:
    return f'{{"question": [{", ".join(turns)}], "answer": "2"}}\n' * 8


# name of a file, what is in it, and what the message says of it
FILES = {
    "blank": ("a.jsonl", "", "the file is empty; give a file with one problem per row"),
    "blank lines": ("a.jsonl", "\n \n\n", "it has no rows; give a file with one problem"),
    "a blank CSV": ("a.csv", "\n\n", "it has no rows; give a file with one problem"),
    "a header alone": ("a.csv", "question,answer\n", "it has no rows; give a file"),
    "an empty list": ("a.json", "[]", "it has no rows; give a file with one problem"),
    "malformed line": ("a.jsonl", f'{MANY}{{"question": "1+\n', "a.jsonl, line 9: no JSON"),
    "malformed list": ("a.json", '[{"question": "1+', "a.json: no JSON in UTF-8: Unterminated"),
    "rows that are lists": ("a.jsonl", "[1, 2]\n" * 8, "line 1: [1, 2] is no object {column:"),
    "latin-1": ("a.jsonl", MANY.encode() + b'{"question": "\xe9"}\n', "line 9: not UTF-8"),
    "UTF-16": ("a.jsonl", MANY.encode("utf-16"), "line 1: not UTF-8"),
    "latin-1 in CSV": ("a.csv", b"question,answer\n\xe9,1\n", "save the file as UTF-8"),
    "a field too many": ("a.csv", "question,answer\n1,2,3\n", "line 2: 3 fields, but 2 columns"),
    "texts and numbers": ("a.jsonl", MANY + '{"question": "1", "answer": 2}\n', "2 in "),
    "null prompt": ("a.jsonl", MANY + '{"question": null}\n', "row 8 of the train split is None"),
    "empty prompt": ("a.jsonl", MANY + '{"question": ""}\n', "row 8 of the train split has no"),
    "null answer": (
        "a.jsonl",
        MANY + '{"question": "1+1=", "answer": null}\n',
        "row 8 of the train split is None (NoneType), not an answer: leave such rows out",
    ),
    "other columns": ("a.jsonl", '{"problem": "1"}\n' * 8, "its columns are ['problem']"),
    "too few": ("a.jsonl", GOOD * 3, "prompts_per_rollout=8, but the train split has only 3"),
    "unknown role": ("a.jsonl", messages(USER.replace("user", "human")), "a role of ['system'"),
    "an answer shown": (
        "a.jsonl",
        messages(USER, '{"role": "assistant", "content": "2"}'),
        "ends with the turn of the assistant, '2': the last message must be the user's",
    ),
    "unknown suffix": ("a.txt", GOOD, "unknown suffix '.txt'; known are"),
    "no file": ("a.jsonl", None, "no such file (current folder:"),
}
ARGUMENTS = {
    "--data.format.template=Solve it": "shows nothing of a problem",
    "--data.format.template={promt}": "unknown field 'promt'; fields are 'prompt' and",
    "--data.format.template={prompt": "expected '}' before end of string; write {{ and }}",
    "--data.format.template={prompt:d}": "cannot be filled with",
    "--data.format.template={prompt[99]}": "string index out of range",
    "--data.max_prompt_tokens=3": "raise it, or set overlong=filter",
    "--data.answer_column=solution": "its columns are ['answer', 'question']",
    "--model.rewards={a: {head: ClusterVote}, a: {head: MeanLogprob}}": "'a' is given twice",
    "--model.rewards={a: {head: ClusterVot}}": "did you mean ClusterVote?",
    "--model.rewards={a: {head: ClusterVote, wieght: 1}}": "did you mean weight?",
    "--model.rewards={a: clustervote}": "did you mean ClusterVote?",
    "--model.rewards={a: {head: {class_path: ClusterVote, init_args: {moed: hard}}}}": "mean mode?",
    "--model.rewards={}": "at least one reward with a weight other than 0 is needed",
    "--model.objective=KlCov": "did you mean KLCov?",
    "--trainer.callbacks+=CollapsGuard": "did you mean CollapseGuard?",
    "--trainer.logger=WandLogger": "did you mean WandbLogger",
    "--model.samplng.temperature=1": "did you mean model.sampling.temperature",
    "--model.sampling.temprature=1": "did you mean model.sampling.temperature?",
    "--model.engine.staleness=1": "staleness is a setting of VLLMServerEngine: name the class",
    "--model.engine={class_path: NativeEngine, init_args: {staleness: 1}}": "of VLLMServerEngine:",
    "--model.objective.positive_weight=2": "positive_weight is a setting of STARE: name the class",
    "--data.source.train=x": "train is a setting of LocalFiles: name the class before the setting",
    "--trainer.callbacks+={class_path: EntropyMonitor, init_args: {target: 1}}": "STAREController",
    "--trainer.callbacks+={class_path: STAREController, init_args: {target: x}}": "Got value: x",
    "--trainer.callbacks=[{class_path: STAREController, init_args: {target: x}}]": "Got value: x",
    "--data.sorce=LocalFiles": "did you mean data.source?",
    "--config=nowhere.yaml": "File does not exist: '",
    "--ckpt_path=nowhere.ckpt": "ckpt_path=nowhere.ckpt: there is no such file",
}


def said(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as info:
        cli.main(["fit", *arguments])
    assert info.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = printed[printed.index("error: ") :].strip().splitlines()
    assert len(lines) <= 3, lines
    assert max(map(len, lines)) < 600
    assert printed.count("is a setting of") <= 1
    return " ".join(lines)


# test_local_files.py reads files like these, and has the same messages.
READ_ALONE = {"malformed line", "malformed list", "rows that are lists", "latin-1", "UTF-16"}
READ_ALONE |= {"latin-1 in CSV", "a field too many", "texts and numbers"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(*each, id=name, marks=pytest.mark.full if name in READ_ALONE else ())
        for name, each in FILES.items()
    ],
)
def test_a_bad_file_is_told_with_its_place(capsys, tmp_path: Path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    files = {"train": str(path), "validation": str(path)}
    source = json.dumps({"class_path": "LocalFiles", "init_args": files})
    given = [*base("source.init_args"), f"--data.source={source}"]
    assert message in said(capsys, *given, f"--trainer.default_root_dir={tmp_path}")


@pytest.mark.parametrize(("argument", "message"), ARGUMENTS.items())
def test_a_bad_setting_is_told_with_the_remedy(capsys, tmp_path, argument, message):
    assert message in said(capsys, *base(), f"--trainer.default_root_dir={tmp_path}", argument)


@pytest.mark.parametrize("argument", ["target=x", "nonsense=1"])
def test_a_callbacks_mistake_is_told_once(capsys, argument):
    """The list of callbacks is tried as one callback too, which has neither setting."""
    given = ["--trainer.callbacks+=STAREController", f"--trainer.callbacks.{argument}"]
    line = said(capsys, *base(), *given)
    assert line.count("callbacks.STAREController") == 1
    assert "lightning.Callback" not in line
    assert "is a setting of" not in line
    assert "Subclass types" not in line


def test_a_key_given_twice_in_a_config_is_told_with_its_lines(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  rewards:\n    a: {head: ClusterVote}\n    a: {head: MeanLogprob}\n")
    assert "'a' is given twice, in lines 3 and 4" in said(capsys, *base(), f"--config={path}")


@pytest.mark.slow
def test_a_head_alone_is_a_reward_with_weight_1():
    spelled = ["{agree: ClusterVote}", "{agree: {head: ClusterVote}}"]
    both = [build([*base("--compare"), f"--model.rewards={rewards}"]) for rewards in spelled]
    short, long = (run.config.model.rewards for run in both)
    assert short == long
    assert [run.model.rewards.weights.tolist() for run in both] == [[1.0]] * 2
