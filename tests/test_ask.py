"""``rlif generate`` and ``rlif chat`` for a run, a checkpoint and a model's folder."""

from __future__ import annotations

import io

import pytest

from harness.runs import TINY, fit
from rlif_lightning.evaluation import ask
from rlif_lightning.module import RLIFModule


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(folder, *TINY)


def said(capsys, *words: str) -> list[str]:
    assert ask.command([*words], RLIFModule) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_a_checkpoint_and_an_exported_folder_answer_alike(run, capsys, tmp_path):
    folder, done = run
    done.model.save_pretrained(tmp_path / "model")
    newest = max(folder.rglob("rollout=*.ckpt"))
    greedy = ["1+2+3=", "--temperature=0", "--max_new_tokens=12"]
    places = (folder, folder / "version_0", newest, tmp_path / "model")
    answers = [said(capsys, "generate", str(place), *greedy) for place in places]
    assert answers == [answers[0]] * 4
    assert (
        answers[0]
        == done.model.generate(
            "1+2+3=", sampling=ask.replace(done.model.sampling, temperature=0.0, max_new_tokens=12)
        )[0]
    )


def test_several_samples_name_their_prompt(capsys):
    lines = said(capsys, "generate", "rlif-arithmetic", "1+2=", "3+4=", "--samples=3")
    assert [line[:4] for line in lines] == ["1+2="] * 3 + ["3+4="] * 3


def test_a_chat_answers_lines_until_an_empty_one(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2=\n3+4=\n\n5+6=\n"))
    lines = said(capsys, "chat", "rlif-arithmetic", "--temperature=0")
    assert len(lines) == 3  # the third prompt is left empty
    assert all(line.startswith("> ") for line in lines)


@pytest.mark.parametrize("asked", [[], ["1+1=", "--samples=0"]])
def test_nothing_to_answer_is_told_before_a_model_is_read(capsys, asked):
    assert ask.command(["generate", "nowhere", *asked], RLIFModule) == 2
    assert "give one prompt at least, and one sample" in capsys.readouterr().err


def test_a_folder_without_a_policy_is_told_in_one_line(capsys, tmp_path):
    assert ask.command(["generate", str(tmp_path), "1+1="], RLIFModule) == 2
    assert "has neither checkpoints nor a model's config.json" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["1+2=", "--samples=2"])
def test_a_chat_refuses_what_it_would_not_read(capsys, more):
    assert ask.command(["chat", "rlif-arithmetic", more], RLIFModule) == 2
    assert "a chat reads lines of standard input" in capsys.readouterr().err
