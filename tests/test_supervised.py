"""A stage on a column of texts: its loss and gradient against torch, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.command_line import refused
from harness.files import ROOT
from harness.launches import launch, on
from harness.runs import BASE, assert_same, column, fit, parameters, whole_and_resumed
from rlif_lightning import RLIFModule, Supervised, cli
from rlif_lightning.data.tokenizer import resolve_model
from rlif_lightning.evaluation.label_checks import label_uses
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.given_texts import text_rollout
from rlif_lightning.sampling import Sampling

OVERLAY = f"--config={ROOT / 'configs/related/supervised.yaml'}"
# Texts of several lengths. A part of the rows has a text of one token, and so two with its end.
ROWS = [
    {"question": f"{a}+{a + 1}=", "answer": f"{2 * a + 1}", "worked": "+".join("1" * (a % 5 + 1))}
    for a in range(16)
]
NAME = resolve_model("rlif-arithmetic")


@pytest.fixture
def given(tmp_path) -> list[str]:
    """Arguments of a run whose optimiser is plain gradient descent, one step a rollout."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    files = {"train": str(path), "validation": str(path)}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    return [
        OVERLAY,
        "--data.source=" + json.dumps({"class_path": "LocalFiles", "init_args": files}),
        "--data.group_size=1",
        "--model.objective.column=worked",
        "--model.update.updates_per_rollout=1",
        "--model.update.max_grad_norm=null",
        f"--model.optimizer={json.dumps(sgd)}",
        "--model.policy.dtype=float64",
        "--trainer.limit_val_batches=0",
    ]


@pytest.fixture
def small(given):
    """The arguments without what ``BASE`` sets of another source."""
    return [each for each in BASE if "source" not in each and "group_size" not in each], given


def run(small, folder: Path, *arguments: str) -> cli.RLIFCLI:
    base, given = small
    root = f"--trainer.default_root_dir={folder}"
    return cli.main(["fit", *base, *given, root, *arguments])


def by_torch(prompts: list[str], texts: list[str], model, tokenizer) -> torch.Tensor:
    """torch's cross-entropy over the texts' tokens and their ends, each sequence alone."""
    logits, targets = [], []
    for prompt, text in zip(prompts, texts, strict=True):
        before = tokenizer(prompt)["input_ids"]
        own = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        out = model(input_ids=torch.tensor([[*before, *own]])).logits[0]
        logits.append(out[len(before) - 1 : -1])
        targets.append(torch.tensor(own))
    return cross_entropy(torch.cat(logits), torch.cat(targets))


def plain_model():
    model = AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float64)
    return model, AutoTokenizer.from_pretrained(NAME)


def test_two_steps_are_those_of_torchs_cross_entropy(small, tmp_path):
    """The weights after two rollouts of 8 problems, and the logged losses before each."""
    made = run(small, tmp_path)
    model, tokenizer = plain_model()
    losses = []
    loader = made.datamodule.train_dataloader()
    loader.batches_drawn = 1  # `upcoming(n)` is then the n-th batch
    for number in range(2):
        batch = loader.upcoming(number)
        loss = by_torch(batch.texts, batch.columns["worked"], model, tokenizer)
        losses.append(float(loss.detach()))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.5 * parameter.grad
    expected = {f"model.{name}": value for name, value in model.state_dict().items()}
    # The library's norms and rotary angles stay in float32.
    assert_same(expected, parameters(made), 1e-6)
    assert column(tmp_path, "supervised/loss") == pytest.approx(losses, abs=1e-6)
    assert made.trainer.global_step == 2


def test_a_text_that_is_too_long_is_cut_without_an_end():
    policy = PolicyModel(Policy("rlif-arithmetic"))
    prompts = Prompts([torch.tensor([5])] * 2, ["1", "1"], {}, torch.arange(2))
    rollout = text_rollout(policy, prompts, ["1+1", "2"], Sampling(max_new_tokens=3), 100)
    end = policy.stop_id
    assert rollout.completion_ids.tolist() == [[5, 114, 5], [6, end, 0]]
    assert rollout.mask.tolist() == [[True] * 3, [True, True, False]]
    assert rollout.ended.tolist() == [False, True]
    assert list(rollout.texts) == ["1+1", "2"]
    cut = text_rollout(policy, prompts, ["1+1", "2"], Sampling(max_new_tokens=2), 100)
    assert list(cut.texts) == ["1+", "2"]  # a reward reads no answer that was cut off
    whole = text_rollout(policy, prompts, ["1+1", "2"], Sampling(max_new_tokens=4), 100)
    assert whole.completion_ids[0].tolist() == [5, 114, 5, end]
    assert whole.ended.tolist() == [True, True]


@pytest.mark.full  # test_old_logprobs.py: many passes are the one
def test_the_token_budget_changes_nothing(small, tmp_path):
    whole = run(small, tmp_path / "whole")
    cut = run(small, tmp_path / "cut", "--model.update.micro_batch_tokens=12")
    assert_same(parameters(whole), parameters(cut), 1e-9)


@pytest.mark.full  # test_run.py resumes; this has no state of its own
def test_a_resumed_run_is_the_uninterrupted_one(small, tmp_path, monkeypatch):
    base, given = small
    monkeypatch.setattr("harness.runs.BASE", base)
    whole, second = whole_and_resumed(tmp_path, "EntropyMonitor", *given)
    assert whole.trainer.global_step == second.trainer.global_step == 4
    assert_same(parameters(whole), parameters(second))


@pytest.mark.slow
def test_two_processes_are_one(small, tmp_path):
    """Each has 4 of 8 texts of a rollout; the losses before both updates are those of one."""
    base, given = small
    run(small, tmp_path / "alone")
    launch(tmp_path, {"both": ["fit", *base, *on("ddp", 2), *given]}, forks=2)
    losses = [column(tmp_path / name, "supervised/loss") for name in ("alone", "both")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert len(losses[0]) == 2
    folders = [tmp_path / name for name in ("alone", "both")]
    exported = [next(folder.rglob("export/last/model.safetensors")) for folder in folders]
    alone, both = map(load_file, exported)
    assert_same(alone, both, 1e-9)


@pytest.mark.full  # test_hf_exporter.py goes on with an export
def test_the_next_stage_starts_from_exactly_the_exported_weights(small, tmp_path):
    """Stage 1 on texts, then a stage with rewards: at learning rate 0 it keeps what it began with,
    and with one it trains.
    """
    first = run(small, tmp_path / "one")
    [folder] = (tmp_path / "one").rglob("export/last")
    start = parameters(first)
    card = (folder / "README.md").read_text()
    assert "Trained by supervised learning from " in card
    assert "reinforcement" not in card
    assert any((start[name] != value).any() for name, value in untrained().items())
    named = ["--model.policy.dtype=float64", f"--model.policy.name={folder}"]
    kept = fit(tmp_path / "two", *named, "--model.optimizer.lr=1e-30")
    assert_same(start, parameters(kept))
    trained = fit(tmp_path / "three", *named)
    assert any((start[name] != value).any() for name, value in parameters(trained).items())
    assert trained.trainer.global_step == 8


def untrained() -> dict[str, torch.Tensor]:
    model, _ = plain_model()
    return {f"model.{name}": value for name, value in model.state_dict().items()}


@pytest.mark.full  # test_commands_in_docs.py parses it; two steps by hand
def test_the_overlay_is_the_default_and_trains_the_quickstart(tmp_path):
    made = fit(tmp_path, OVERLAY, "--data.group_size=1")
    assert made.model.objective == Supervised()
    assert made.model.rewards.names == []
    losses = column(tmp_path, "supervised/loss")
    assert losses[1] < losses[0]
    assert made.trainer.callback_metrics["policy/grad_norm"] > 0
    assert len(list(tmp_path.rglob("export/last/model.safetensors"))) == 1


def test_a_curriculum_sees_what_rewards_say_of_the_texts(small, tmp_path):
    files = next(each for each in small[1] if each.startswith("--data.source="))
    inner = json.loads(files.removeprefix("--data.source="))
    settings = {"reward": "sure", "source": inner}
    source = json.dumps({"class_path": "LearnableFirst", "init_args": settings})
    rewards = "--model.rewards={sure: {head: MeanLogprob}}"
    made = run(small, tmp_path, rewards, f"--data.source={source}")
    means = made.model.prompt_table.columns["curriculum/sure"].values
    assert sorted(means) == list(range(16))
    assert all(value < 0 for [value] in means.values())


@pytest.mark.slow
def test_rewards_may_measure_the_texts(small, tmp_path):
    run(small, tmp_path, "--model.rewards={sure: {head: MeanLogprob}}")
    sure = column(tmp_path, "reward/sure/mean")
    assert len(sure) == 2
    assert all(value < 0 for value in sure)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.group_size=2", "data.group_size=2: model.objective=Supervised has one text"),
        ("--model.sampling.temperature=0.5", "temperature=0.5, min_new_tokens=0"),
        ("--model.sampling.min_new_tokens=2", "min_new_tokens=2"),
        ("--model.objective.column=absent", "column='absent'"),
        ("--data.format.template={prompt}{worked}", "shows the gold answer 'worked'"),
        ('--model.dynamic_sampling={"heads": ["sure"]}', "dynamic_sampling"),
        ("--model.replay.groups=2", "model.replay"),
        ("--model.objective=Clipped", "at least one reward with a weight other than 0"),
    ],
)
def test_what_cannot_work_is_refused(small, tmp_path, capsys, argument, message):
    base, given = small
    root = f"--trainer.default_root_dir={tmp_path}"
    assert message in refused(capsys, "fit", *base, *given, root, argument)


def test_a_problem_without_a_text_is_refused(small, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*ROWS, {**ROWS[0], "worked": ""}])))
    base, given = small
    root = f"--trainer.default_root_dir={tmp_path}"
    said = refused(capsys, "fit", *base, *given, root)
    assert "row 16 of the train split has no text but ''" in said


def test_texts_are_labels():
    module = RLIFModule("rlif-arithmetic", {}, objective=Supervised(column="worked"))
    assert label_uses(module) == ["the policy is trained on the texts of the column `worked`"]


def test_preflight_judges_rewards_and_there_are_none(small, tmp_path, capsys):
    base, given = small
    kept = [each for each in [*base, *given] if "--compare" not in each]
    root = f"--trainer.default_root_dir={tmp_path}"
    said = refused(capsys, "preflight", *kept, root, "--prompts=2")
    assert "model.objective=Supervised needs no rewards, and preflight judges rewards" in said
