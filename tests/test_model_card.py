"""The model card of an exported policy, through real runs, and what is uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from lightning.pytorch import Callback

from callbacks import HubExporter
from harness.episodes import ACTING
from harness.local_hub import TOKEN, LocalHub, local_hub
from harness.runs import ONE, adding, fit
from rlif_lightning.data.described import Described

# huggingface_hub 2.4 uploads large files by an argument that httpx2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
MEASURED = ["--compare=true", "--trainer.check_val_every_n_epoch=99"]
GATED = {
    "vote": {"head": "ClusterVote", "weight": 0.5, "gate": {"head": "gold", "at_least": 0.5}},
    "gold": {"head": "GoldAnswer", "weight": 0.0},
}


def card_of(folder: Path, name: str = "last") -> tuple[dict, str]:
    text = (folder / "version_0" / "export" / name / "README.md").read_text()
    return ModelCard(text).data.to_dict(), text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, LocalHub]:
    """A run with an evaluation before and after, uploaded by the hub's own client."""
    folder = tmp_path_factory.mktemp("card")
    with local_hub() as hub:
        fit(folder, *MEASURED, adding("HubExporter", repo="me/tiny"))
    return folder, hub


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
    assert "measured with weights in" not in text
    assert f"| accuracy | {cells[0]} | {cells[1]} |" in text
    assert "On 8 held-out problems" in text


def test_what_arrives_at_the_hub(run):
    folder, hub = run
    (made,) = hub.made
    assert (made["organization"], made["name"], made["visibility"]) == ("me", "tiny", "private")
    exported = folder / "version_0" / "export" / "last"
    written = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert written.pop("made_by.json")
    assert {"README.md", "model.safetensors", "config.json"} <= {*written}
    assert hub.files == written
    assert hub.commits == ["rollout 2", "evaluation after training"]
    assert len(hub.stored) == 1  # the weights, once
    assert hub.requests[0] == "/api/repos/create"
    plain = [
        path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".md")
    ]
    assert plain
    assert not [path for path in plain if TOKEN in path.read_text()]


@pytest.mark.full  # test_environment_faults.py has the line; the card: above
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


@pytest.mark.full  # test_label_uses.py has both lines; the card: above
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


@pytest.mark.slow
def test_merged_adapters_are_a_whole_model_and_other_numbers_are_said_to_be_other(tmp_path):
    """The hub tells readers by `library_name` how to load it: peft finds no adapters there."""
    pytest.importorskip("peft")
    fit(
        tmp_path,
        *ONE,
        "--model.policy.lora={rank: 4}",
        adding("HFExporter", merge_lora=True, dtype="bfloat16"),
        *MEASURED,
    )
    front, text = card_of(tmp_path)
    assert front["library_name"] == "transformers"
    assert "measured with weights in float32, and these are in bfloat16" in text


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


def test_a_refused_login_is_told_before_the_first_rollout(tmp_path, capsys):
    with local_hub("hf_of_somebody") as hub, pytest.raises(SystemExit):
        fit(tmp_path, adding("HubExporter", repo="me/tiny"))
    told = " ".join(capsys.readouterr().err.split())
    assert "HubExporter.repo='me/tiny' cannot be made or written: Client error '401" in told
    assert hub.requests == ["/api/repos/create"]
    assert not list(tmp_path.rglob("model.safetensors"))


def test_an_upload_that_fails_names_its_cause_and_the_command_that_repeats_it(tmp_path):
    exporter = HubExporter("me/tiny")
    exporter.root = tmp_path
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "model.safetensors").write_bytes(b"some weights")
    told = (
        r"Error while uploading 'model.safetensors' .*403.*repeat with `hf upload me/tiny .*last`"
    )
    with local_hub() as hub:
        hub.is_full = True
        with pytest.raises(RuntimeError, match=told):
            exporter._push(SimpleNamespace(is_global_zero=True), None, "rollout 1")


class Reporter(Described, Callback):
    """A user's callback with an address that a card must not tell."""

    def __init__(self, server: str):
        super().__init__()
        self.server = server


@pytest.mark.slow
def test_a_users_callback_does_not_reach_the_card(tmp_path):
    own = {"class_path": "test_model_card.Reporter", "init_args": {"server": "http://mine:81"}}
    fit(tmp_path, *ONE, f"--trainer.callbacks+={json.dumps(own)}", adding("HFExporter"))
    text = card_of(tmp_path)[1]
    assert "mine:81" not in text
    assert "`trainer.callbacks`" in text
