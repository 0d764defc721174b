"""The command line: configurations that parse again, help, one clear line per mistake, and the
other subcommands.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from harness.children import in_child
from harness.command_line import base, evaluate, refused
from harness.runs import BASE, FEW, ONE, fit
from rlif_lightning import cli
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead


class Buggy(RewardHead):
    """A user's head with a mistake in it."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(rollout.no_such_field)


def local(
    folder: Path, content: str = '{"question": "1+2+3=", "answer": "6"}\n', copies: int = 8
) -> list[str]:
    """Arguments that read a small file instead of made-up problems."""
    path = folder / "problems.jsonl"
    path.write_text(content * copies)
    source = {
        "class_path": "LocalFiles",
        "init_args": {"train": str(path), "validation": str(path)},
    }
    return [f"--data.source={json.dumps(source)}"]


def test_print_config_gives_a_config_that_parses(capsys, tmp_path):
    with pytest.raises(SystemExit) as info:
        cli.main(["fit", "--config=configs/quickstart.yaml", "--print_config"])
    assert info.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["objective"]["init_args"]["fraction"] == 0.02
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    with pytest.raises(SystemExit):
        cli.main(["fit", f"--config={path}", "--print_config"])
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("command", "word", "user"),
    [
        ("fit", "--predictions.folder=x", "predict"),
        ("fit", '--predictions={"folder":"x"}', "predict"),
        ("validate", "--compare=true", "fit"),
        ("validate", "--compare True", "fit"),
    ],
)
def test_an_argument_without_effect_is_refused(command, word, user, capsys, tmp_path):
    """It is in files that several subcommands read; on the command line somebody means it."""
    cli_words = [
        command,
        *base("--compare"),
        *word.split(" ", 1),
        f"--trainer.default_root_dir={tmp_path}",
    ]
    with pytest.raises(SystemExit) as info:
        cli.main(cli_words)
    assert info.value.code == 2
    shown = word.replace("compare ", "compare=")
    said = f"{shown}: {command} does not use it, {user} does; leave it out"
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_help_names_the_units(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for text in (
        "token budget of one forward and backward pass",
        "longest prompt allowed, in tokens",
        "optimiser steps of warm-up",
        "limit of a completion's length, in tokens",
        "Evaluate before and after fit",
    ):
        assert text in printed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.update.updates_per_rollout=1", "updates_per_rollout=1 makes KL-Cov do nothing"),
        ("--model.objective.init_args.fraction=2", "fraction=2.0 must lie in [0, 1)"),
        ("--model.no_such_key=1", "no_such_key"),
        ("--seed_everything=-1", "seed_everything=-1: "),
        ("--model.schedule.warmup_steps=fast", "model.schedule.warmup_steps"),
        ("--optimizer=SGD", "--optimizer=SGD"),
        ("--data.tokenizer=x", 'Linked "data.tokenizer" must be given via "model.policy.name"'),
        ("--model.optimizer.lr=0", "model.optimizer.lr=0.0 must be positive"),
        ("--model.optimizer.weight_decay=-1", "model.optimizer: Invalid weight_decay"),
        ("--model.schedule.name=coZine", "schedule.name='coZine' is unknown; use one of"),
        ("--model.policy.name=no/such/folder", "no/such/folder"),
        ("--data.format.chat=true", "has no chat template"),
        ("--data.prompt_column=problem", "prompt_column='problem' is not in the train split"),
        ("--data.answer_column=gold", "answer_column='gold' is not in the"),
        (
            "--data.prompts_per_rollout=3",
            "prompts_per_rollout=3 is less than model.update.updates_per_rollout=4",
        ),
        ("--data.max_prompt_tokens=2", "raise it, or set overlong=filter"),
        ("--model.sampling.top_k=5", "truncated sampling biases the importance ratio"),
        ("--model.sampling.temperature=0", "use a positive value to train"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, tmp_path, argument, message):
    line = refused(capsys, "fit", *BASE, f"--trainer.default_root_dir={tmp_path}", argument)
    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "1+1="}\n', "its columns are ['problem']"),
        ("", "problems.jsonl"),
        (None, "missing.jsonl"),
    ],
)
def test_unusable_data_is_told_in_one_line(capsys, tmp_path, content, message):
    source = local(tmp_path, content or "")
    if content is None:
        source = [source[0].replace("problems.jsonl", "missing.jsonl")]
    arguments = [
        "fit",
        *base("source.init_args"),
        *source,
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert message in refused(capsys, *arguments)


def test_the_same_callback_twice_is_told_in_one_line(capsys, tmp_path):
    guard = "--trainer.callbacks+=CollapseGuard"
    line = refused(capsys, "fit", *BASE, f"--trainer.default_root_dir={tmp_path}", guard, guard)
    assert "trainer.callbacks=CollapseGuard: more than once" in line


def test_a_run_s_settings_are_read_by_other_subcommands(tmp_path, capsys):
    run = fit(tmp_path, *FEW, *ONE, "--trainer.limit_val_batches=1")
    given = f"--config={run.trainer.log_dir}/config.yaml"
    place = f"--trainer.default_root_dir={tmp_path / 'validated'}"
    done = cli.main(["validate", given, place])
    assert done.model.sampling == run.model.sampling
    line = refused(capsys, "validate", given, place, "--fork_from=a.ckpt")
    assert "fork_from=a.ckpt: only fit uses it; name it as ckpt_path" in line


@pytest.mark.slow
def test_a_bug_in_a_user_s_head_keeps_its_traceback(tmp_path):
    head = json.dumps({"mine": {"head": {"class_path": "test_cli.Buggy"}}})
    with pytest.raises(RuntimeError, match=r"'mine' \(Buggy\) raised AttributeError") as info:
        fit(tmp_path, f"--model.rewards={head}")
    assert isinstance(info.value.__cause__, AttributeError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "prefix"),
    [("validate", "val"), pytest.param("test", "test", marks=pytest.mark.full)],
)
def test_evaluation_prints_figures_in_range(tmp_path, command, prefix):
    run = evaluate(command, tmp_path)
    found = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    shares = {
        "accuracy",
        "pass@8",
        "maj@8",
        "greedy_accuracy",
        "ended",
        "parseable",
        "agreement",
        "diversity",
    }
    names = shares | {"entropy", "length"}
    assert set(found) == {
        f"{kind}/{name}" for kind in (prefix, f"{prefix}_low", f"{prefix}_high") for name in names
    }
    assert all(found[f"{prefix}_low/{name}"] <= found[f"{prefix}_high/{name}"] for name in names)
    assert all(0 <= found[f"{prefix}/{name}"] <= 1 for name in shares)
    assert found[f"{prefix}/pass@8"] >= found[f"{prefix}/accuracy"] > 0
    assert 1 <= found[f"{prefix}/length"] <= 48


@pytest.mark.slow
def test_figures_without_an_answer_column_need_no_labels(tmp_path):
    run = evaluate("validate", tmp_path, "--data.answer_column=null")
    assert not [name for name in run.trainer.callback_metrics if "accuracy" in name or "@" in name]
    assert "val/agreement" in run.trainer.callback_metrics


@pytest.mark.slow
def test_a_file_of_prompts_alone_trains_without_a_validation_split(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"question": "1+2+3="}\n' * 16)
    source = json.dumps({"class_path": "LocalFiles", "init_args": {"train": str(path)}})
    arguments = [
        *base("source.init_args", "compare"),
        f"--data.source={source}",
        "--data.answer_column=null",
    ]
    run = cli.main(
        [
            "fit",
            *arguments,
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.limit_val_batches=0",
        ]
    )
    assert run.trainer.global_step == 8


@pytest.mark.slow
def test_the_script_rlif_ends_quietly_with_exit_code_0(tmp_path):
    """A result handed to the shell would be printed and read as a failure."""
    arguments = [
        "validate",
        *base("compare", "limit_train"),
        f"--trainer.default_root_dir={tmp_path}",
    ]

    def script() -> None:
        """What pip writes into it."""
        (entry,) = entry_points(group="console_scripts", name="rlif")
        sys.argv[1:] = arguments
        sys.exit(entry.load()())

    code, said = in_child(script, tmp_path)
    assert code == 0, said
    assert "Validation" in said
    assert "RLIFCLI object" not in said
