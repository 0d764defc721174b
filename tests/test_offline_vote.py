"""OfflineVote: labels from completions of a frozen policy, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from harness.command_line import evaluate
from harness.rollouts import handmade
from harness.runs import ONE, column, fit
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.data.training_problems import TrainingProblems
from rlif_lightning.rewards import OfflineVote, RewardSet, WeightedReward
from rlif_lightning.rewards.offline_vote import labels_of

COMPLETIONS = {0: "=7 =7 =8 no", 1: "=4.0 =4 =5 =5", 2: "no no no no"}


def predictions(folder: Path, completions: dict[int, str] = COMPLETIONS, **more) -> str:
    """A folder as `predict` writes it, of problems `problem 0`, `problem 1`, ..."""
    rows = [
        {"index": index, "completion_number": number, "prompt": f"problem {index}"}
        | {"completion": text, "scores": {"gold": 1.0}}
        | more
        for index, texts in completions.items()
        for number, text in enumerate(texts.split())
    ]
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "completions-00000.jsonl").write_text(text)
    return str(folder)


def test_hand_worked_scores(tmp_path):
    """Labels 7, 4 (a tie: 4.0 and 4 are equal, and 4 comes first) and none."""
    head = OfflineVote(predictions(tmp_path))
    assert {row: label for row, (_, label) in head.labels.items()} == {0: "7", 1: "4", 2: None}
    texts = ["=7.0", "=8", "no", "=4", "=5", "=4", "=1", "=1", "no"]
    output = head(handmade(texts, 3))
    expected = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, *[float("nan")] * 3]
    assert torch.equal(output.scores.nan_to_num(-1), torch.tensor(expected).nan_to_num(-1))
    assert output.answers is None  # no vote of this rollout


def test_labels_do_not_depend_on_the_order_of_completions():
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"index": index, "prompt": "p", "completion": f"={number % 3 + number % 2}"}
        for index in range(5)
        for number in range(index, 12)
    ]
    extractor = AnswerExtractor("last_number")
    expected = labels_of(rows, extractor)
    for _ in range(5):
        order = torch.randperm(len(rows), generator=generator).tolist()
        assert labels_of([rows[place] for place in order], extractor) == expected


def test_the_head_is_label_free(tmp_path):
    """It sees no column, the gold answers' least of all; and needs none."""
    rewards = RewardSet({"offline": WeightedReward(OfflineVote(predictions(tmp_path)))}, "answer")
    assert rewards.gold_columns == ["answer"]
    head = rewards.settings["offline"].head
    assert (head.needs_gold, tuple(head.columns), tuple(head.gold_columns)) == (False, (), ())
    rollout = handmade(["=7", "=8"], 2, answer=["8"])
    assert rewards(rollout)["offline"].scores.tolist() == [1.0, 0.0]  # not the gold answer


def test_predictions_of_other_problems_are_refused(tmp_path):
    head = OfflineVote(predictions(tmp_path, {0: "=1", 4: "=1"}))
    with pytest.raises(ValueError, match="problem 1 has the prompt 'problem 1', and in predictio"):
        head(handmade(["=1"] * 4, 2))
    other = OfflineVote(predictions(tmp_path, prompt="another"))
    with pytest.raises(ValueError, match="'another'; predict on the same training split"):
        other(handmade(["=1", "=2"], 2))
    for folder in (tmp_path / "nowhere", tmp_path):
        if folder == tmp_path:
            (folder / "completions-00000.jsonl").write_text('{"index": 0}\n')
        with pytest.raises(ValueError, match=r"predictions=.*(give the folder|no column 'comple)"):
            _ = OfflineVote(str(folder)).labels


def test_files_of_a_training_run_are_refused(tmp_path):
    written = Path(predictions(tmp_path, advantage=0.5)) / "completions-00000.jsonl"
    with pytest.raises(ValueError, match="written by a training run; give the folder that predict"):
        _ = OfflineVote(str(written)).labels


def test_half_finished_predictions_are_refused(tmp_path):
    head = OfflineVote(predictions(tmp_path, {0: "=1 =2 =2", 1: "=1"}))
    with pytest.raises(ValueError, match="1 completions of problem 1 and 3 of others; run predict"):
        _ = head.labels


def test_training_problems_are_those_of_the_source():
    source = ArithmeticProblems(size=5, validation_size=3)
    both = TrainingProblems(source)
    assert isinstance(both.load("validation"), Dataset)
    assert both.load("validation")[:] == both.load("train")[:] == source.load("train")[:]


SUMS = {"min_terms": 3, "max_terms": 4, "validation_size": 8}
SOURCE = {"class_path": "ArithmeticProblems", "init_args": {**SUMS, "size": 16}}
WRAPPED = {"class_path": "TrainingProblems", "init_args": {"source": SOURCE}}


def test_from_predict_to_training(tmp_path, capsys):
    """Votes of the start policy on the 16 training problems; then a run on these labels alone."""
    folder = tmp_path / "votes"
    evaluate("predict", tmp_path / "p", f"--data.source={json.dumps(WRAPPED)}",
             f"--predictions.folder={folder}")  # fmt: skip
    part = {"head": {"class_path": "OfflineVote", "init_args": {"predictions": str(folder)}}}
    rewards = f"--model.rewards={json.dumps({'offline': part})}"
    fit(tmp_path / "run", *ONE, f"--data.source={json.dumps(SOURCE)}", rewards)
    records = [
        json.loads(line) for line in (folder / "completions-00000.jsonl").read_text().splitlines()
    ]
    assert {record["index"] for record in records} == set(range(16))
    assert all(0 < mean < 1 for mean in column(tmp_path / "run", "reward/offline/mean"))
    more = json.dumps({**SOURCE, "init_args": {**SUMS, "size": 24}})
    with pytest.raises(SystemExit):
        fit(tmp_path / "more", f"--data.source={more}", rewards)
    printed = " ".join(capsys.readouterr().err.split())
    assert "has no completion of 8 training problems, such as number 16" in printed
