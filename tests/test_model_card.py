"""The model card of an exported policy, through real runs, and what is uploaded."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from lightning.pytorch import Callback

from callbacks import HubExporter
from harness.episodes import ACTING
from harness.runs import ONE, adding, fit
from rlif_lightning.data.described import Described

MEASURED = ["--compare=true", "--trainer.check_val_every_n_epoch=99"]
GATED = {
    "vote": {"head": "ClusterVote", "weight": 0.5, "gate": {"head": "gold", "at_least": 0.5}},
    "gold": {"head": "GoldAnswer", "weight": 0.0},
}


def card_of(folder: Path, name: str = "last") -> tuple[dict, str]:
    text = (folder / "version_0" / "export" / name / "README.md").read_text()
    return ModelCard(text).data.to_dict(), text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[tuple[str, dict]]]:
    """A run with an evaluation before and after, uploaded to a hub that writes down its calls."""
    folder, calls = tmp_path_factory.mktemp("card"), []

    def recording(name: str):
        signature = inspect.signature(getattr(HfApi, name))

        def call(self, *given, **named):
            bound = signature.bind(self, *given, **named).arguments
            files = (
                sorted(path.name for path in Path(bound["folder_path"]).iterdir())
                if ("folder_path" in bound)
                else []
            )
            calls.append((name, {**bound, "files": files}))

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("create_repo", "upload_folder"):
            patch.setattr(HfApi, name, recording(name))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        fit(folder, *MEASURED, adding("HubExporter", repo="me/tiny"))
    return folder, calls


def test_the_card_says_what_the_policy_is(run):
    front, text = card_of(run[0])
    assert front["library_name"] == "transformers"
    assert front["tags"] == ["rlif-lightning", "reinforcement-learning", "label-free"]
    assert "base_model" not in front  # `rlif-arithmetic` is no name of the hub
    assert "from 2 rollouts in 8 optimiser steps of `KLCov`" in text
    assert "No gold answers reached the weights in this run." in text
    assert "| `vote` | ClusterVote | 0.5 |  | no |" in text
    assert "| `source` | ArithmeticProblems |" in text
    assert "| train problems | 16 |" in text
    assert "| `model.objective.init_args.fraction` |" in text
    assert "| torch | " in text
    assert str(run[0]) not in text


def test_figures_are_those_of_evaluation_json_with_intervals(run):
    before, after = json.loads((run[0] / "version_0" / "evaluation.json").read_text())
    assert (before["rollouts"], after["rollouts"]) == (0, 2)
    cells = [
        "{value:.4g} [{low:.4g}, {high:.4g}]".format(**entry["figures"]["accuracy"])
        for entry in (before, after)
    ]
    text = card_of(run[0])[1]
    assert f"| accuracy | {cells[0]} | {cells[1]} |" in text
    assert "On 8 held-out problems" in text


def test_what_is_uploaded(run):
    (made, made_with), (pushed, first), (again, second) = run[1]
    assert (made, pushed, again) == ("create_repo", "upload_folder", "upload_folder")
    assert (made_with["repo_id"], made_with["private"], made_with["exist_ok"]) == (
        "me/tiny", True, True,
    )  # fmt: skip
    assert Path(first["folder_path"]) == run[0] / "version_0" / "export" / "last"
    assert {"README.md", "model.safetensors", "config.json"} <= set(first["files"])
    assert first["ignore_patterns"] == ["made_by.json"]
    assert first["allow_patterns"] is None
    assert second["allow_patterns"] == ["README.md"]  # the figures after training
    assert all("token" not in given for _, given in run[1])


def test_an_environment_that_is_given_gold_answers_is_on_the_card(tmp_path):
    """Nothing is paid by it, and what it says may still show them."""
    rewards = {"vote": {"head": "ClusterVote"}, "game": {"head": "EnvironmentReward", "weight": 0}}
    given = [*ONE, *ACTING, f"--model.rewards={json.dumps(rewards)}"]
    fit(tmp_path, *given, adding("HFExporter"))
    front, text = card_of(tmp_path)
    assert "label-free" not in front["tags"]
    make = "data.environment.make='harness.episodes.Talker'"
    assert f"- {make} is given the column `answer` of gold answers, and may show it" in text
    assert "| `game` | EnvironmentReward | 0 |  | perhaps |" in text


def test_labels_by_a_gate_and_by_the_choice_are_on_the_card(tmp_path):
    fit(
        tmp_path,
        *ONE,
        f"--model.rewards={json.dumps(GATED)}",
        "--trainer.check_val_every_n_epoch=1",
        adding("HFExporter", monitor="val/accuracy"),
    )
    front, text = card_of(tmp_path, "best")
    assert "label-free" not in front["tags"]
    assert "- the gate of reward `vote` reads `gold` (GoldAnswer)" in text
    assert "- this policy was chosen by `val/accuracy`, which needs gold answers" in text
    assert "chosen by" not in card_of(tmp_path)[1].split("This is derived")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repo": "tiny"}, "repo='tiny' must be owner/name"),
        ({"repo": "me/tiny", "last": False}, "last=false without monitor"),
    ],
)
def test_settings_of_an_upload_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        HubExporter(**settings)


def test_a_missing_login_is_told_before_the_first_rollout(tmp_path, capsys, monkeypatch):
    def refused(self, *given, **named):
        raise OSError("401 Client Error:\nUnauthorized")

    monkeypatch.setattr(HfApi, "create_repo", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(SystemExit):
        fit(tmp_path, adding("HubExporter", repo="me/tiny"))
    told = " ".join(capsys.readouterr().err.split())
    assert "HubExporter.repo='me/tiny' cannot be made or written: 401 Client Error:" in told
    assert not list(tmp_path.rglob("model.safetensors"))


class Reporter(Described, Callback):
    """A user's callback with an address that a card must not tell."""

    def __init__(self, server: str):
        super().__init__()
        self.server = server


def test_a_users_callback_does_not_reach_the_card(tmp_path):
    own = {"class_path": "test_model_card.Reporter", "init_args": {"server": "http://mine:81"}}
    fit(tmp_path, *ONE, f"--trainer.callbacks+={json.dumps(own)}", adding("HFExporter"))
    text = card_of(tmp_path)[1]
    assert "mine:81" not in text
    assert "`trainer.callbacks`" in text
