"""Whole runs through the real command line: equivalences, determinism, resume, faults."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from harness import runs
from harness.runs import BASE, FEW, assert_same, column, metrics, parameters
from rlif_lightning import cli
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel

ONE = "--trainer.limit_train_batches=1"  # a rollout of four optimiser steps


def fit(folder: Path, *arguments: str) -> cli.RLIFCLI:
    return runs.fit(folder, *FEW, *arguments)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return fit(folder), folder


def test_training_changes_the_parameters(reference):
    run, _ = reference
    start = PolicyModel(Policy("rlif-arithmetic")).state_dict()
    assert (
        max(
            float((value - start[name]).abs().max())
            for name, value in run.model.policy.state_dict().items()
        )
        > 1e-4
    )


def test_same_seed_twice_gives_identical_metrics_and_parameters(reference, tmp_path):
    run, folder = reference
    again = fit(tmp_path)
    assert metrics(folder) == metrics(tmp_path)
    assert len(metrics(folder)) >= 2
    assert_same(parameters(run), parameters(again))


def test_another_seed_gives_other_completions(reference, tmp_path):
    fit(tmp_path, "--seed_everything=1", ONE)
    assert metrics(reference[1])[0] != metrics(tmp_path)[0]


@pytest.mark.parametrize(
    "objective",
    ["KLCov", *(pytest.param(name, marks=pytest.mark.full) for name in ("Clipped", "ClipCov"))],
)
def test_token_budget_does_not_change_the_parameters(tmp_path, objective):
    kind = [f"--model.objective={objective}", "--model.policy.dtype=float64", ONE]
    large = fit(tmp_path / "large", *kind, "--model.update.micro_batch_tokens=100000")
    small = fit(tmp_path / "small", *kind, "--model.update.micro_batch_tokens=40")
    assert_same(
        parameters(large), parameters(small), tolerance=5e-7
    )  # a step is 1e-4; Llama's norms round to float32


def problems(folder: Path, shuffled: bool) -> str:
    rows = [
        {"question": f"{a}+{b}+{c}=", "answer": str(a + b + c)}
        for a, b, c in [(1, 2, 3), (4, 5, 6), (7, 8, 9)] * 6
    ]
    if shuffled:
        answers = [row["answer"] for row in rows]
        random.Random(0).shuffle(answers)
        rows = [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True)]
    folder.mkdir(parents=True)
    path = folder / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_shuffled_gold_answers_change_nothing_in_a_label_free_run(tmp_path):
    ends = []
    for shuffled in (False, True):
        path = problems(tmp_path / str(shuffled), shuffled)
        source = (
            f'{{"class_path": "LocalFiles", "init_args": {{"train": "{path}", "validation":'
            f' "{path}"}}}}'
        )
        folder = tmp_path / f"run{shuffled}"
        arguments = [argument for argument in BASE if "source.init_args" not in argument]
        ends.append(
            cli.main(
                [
                    "fit",
                    *arguments,
                    *FEW[1:],
                    ONE,
                    f"--data.source={source}",
                    f"--trainer.default_root_dir={folder}",
                ]
            )
        )
    assert_same(parameters(ends[0]), parameters(ends[1]))


def test_a_head_of_weight_zero_is_measured_and_changes_nothing(reference, tmp_path):
    heads = {
        "vote": ("ClusterVote", 0.5),
        "certainty": ("MeanLogprob", 0.5),
        "gold": ("GoldAnswer", 0.0),
    }
    rewards = {name: {"head": head, "weight": weight} for name, (head, weight) in heads.items()}
    run = fit(tmp_path, f"--model.rewards={json.dumps(rewards)}")
    assert all(row["reward/gold/mean"] for row in metrics(tmp_path) if row["policy/entropy"])
    assert_same(parameters(reference[0]), parameters(run))


@pytest.mark.full  # test_objectives.py has the null settings, bit for bit
def test_null_kl_cov_is_clipped_bit_for_bit_and_kl_cov_is_not(tmp_path):
    null = '{"class_path": "KLCov", "init_args": {"fraction": 0.0}}'
    large = "--model.optimizer.lr=1e-2", ONE  # so that ratios reach the clip
    left = fit(tmp_path / "null", f"--model.objective={null}", *large)
    clipped = parameters(fit(tmp_path / "clipped", "--model.objective=Clipped", *large))
    assert_same(parameters(left), clipped)
    assert min(column(tmp_path / "clipped", "policy/clip_fraction")) > 0.01
    selected = parameters(fit(tmp_path / "selected", "--model.objective=KLCov", *large))
    assert any(not torch.equal(value, clipped[name]) for name, value in selected.items())


@pytest.mark.filterwarnings(
    "ignore:The dirpath has changed"
)  # on purpose: resumed into another folder
def test_resume_in_the_middle_of_an_epoch_is_the_uninterrupted_run(reference, tmp_path):
    saving = {
        "class_path": "ModelCheckpoint",
        "init_args": {"every_n_train_steps": 4, "save_top_k": -1},
    }
    callback = f"--trainer.callbacks+={json.dumps(saving)}"
    fit(tmp_path / "first", callback)
    checkpoint = next((tmp_path / "first").rglob("*step=4.ckpt"))
    resumed = fit(tmp_path / "second", callback, f"--ckpt_path={checkpoint}")
    assert resumed.trainer.global_step == 8
    assert int(resumed.model.num_rollouts) == 2
    assert_same(parameters(reference[0]), parameters(resumed))


def test_checkpoints_load_without_running_code(reference):
    path = next(reference[1].rglob("*.ckpt"))
    torch.load(path, weights_only=True)


def test_bf16_mixed_sees_each_update(tmp_path):
    """Adapters start at zero: with stale bfloat16 copies of them, every update would see the policy
    of the first.

    Lightning switches autocast's cache of cast weights off; with it on this is red.
    """
    pytest.importorskip("peft")
    arguments = [
        "--trainer.precision=bf16-mixed",
        "--model.policy.lora.rank=4",
        "--trainer.limit_train_batches=1",
    ]
    fit(tmp_path, *arguments, "--model.optimizer.lr=0.1", "--trainer.limit_val_batches=0")
    row = next(row for row in metrics(tmp_path) if row["policy/log_ratio"])
    assert float(row["policy/log_ratio"]) > 0.3


def test_reference_model_starts_at_kl_zero_and_stays_out_of_checkpoints(tmp_path):
    run = fit(
        tmp_path,
        ONE,
        '--model.objective={"class_path": "Clipped", "init_args": {"reference_kl": {"weight":'
        " 0.1}}}",
    )
    rows = [row for row in metrics(tmp_path) if row["policy/reference_kl"]]
    assert 0 < float(rows[0]["policy/reference_kl"]) < 0.05
    weights = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)["state_dict"]
    assert run.model.reference is not None
    assert not [name for name in weights if name.startswith("reference.")]


def test_lora_trains_adapters_only_with_itself_as_reference(tmp_path):
    pytest.importorskip("peft")
    run = fit(
        tmp_path,
        ONE,
        '--model.policy.lora={"rank": 4, "alpha": 8}',
        '--model.objective={"class_path": "Clipped", "init_args": {"reference_kl": {"weight":'
        " 0.1}}}",
    )
    assert run.model.reference is None
    trained = [
        name for name, parameter in run.model.policy.named_parameters() if parameter.requires_grad
    ]
    assert trained
    assert all("lora_" in name for name in trained)
    rows = [row for row in metrics(tmp_path) if row["policy/reference_kl"]]
    assert float(rows[-1]["policy/reference_kl"]) > 0


@pytest.mark.full  # test_architectures.py has its gradients
def test_gradient_checkpointing_changes_nothing(reference, tmp_path):
    run = fit(tmp_path, "--model.policy.gradient_checkpointing=true")
    assert_same(parameters(reference[0]), parameters(run), tolerance=1e-6)


def test_all_metrics_of_the_method_are_logged(reference):
    names = set().union(*(row.keys() for row in metrics(reference[1])))
    heads = {
        f"reward/{head}/{kind}"
        for head in ("vote", "certainty")
        for kind in ("mean", "std", "group_std", "share")
    }
    policy = (
        "entropy log_ratio log_ratio_picked picked_fraction reference_kl clip_fraction"
        " grad_norm"
        " learning_rate"
    )
    expected = heads | {f"policy/{name}" for name in policy.split()}
    expected |= {"rollout/length", "rollout/ended", "rollout/parseable"}
    expected |= {"vote/largest_cluster", "vote/unanimous", "vote/distinct_answers"}
    assert not expected - names


def test_the_written_settings_are_those_of_the_run(reference):
    """They are written without a second check, which would change nothing."""
    run, folder = reference
    (parser,) = run._subcommand_parsers.values()
    written = (folder / "version_0" / "config.yaml").read_text()
    assert written == parser.dump(run.config.fit, skip_unset=False)


def test_a_second_run_in_the_same_folder_overwrites_nothing(tmp_path):
    short = [ONE, "--trainer.limit_val_batches=0"]
    fit(tmp_path, *short)
    first = (tmp_path / "version_0" / "metrics.csv").read_text()
    fit(tmp_path, *short)
    assert (tmp_path / "version_0" / "metrics.csv").read_text() == first
    assert (tmp_path / "version_1" / "config.yaml").exists()
