"""What the README says is run: its commands, its reward, its table; and it stays short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import rlif_lightning
from benchmarks.results import FOLDER, read_results
from harness.python_runs import QUIET
from harness.python_runs import ROWS as PROBLEMS
from rlif_lightning import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
ROWS = {"accuracy": "accuracy", "maj@8": "maj@8", "greedy accuracy": "greedy_accuracy"}


# Every command of the page, and the test here that runs it.
COMMANDS = {
    "make quickstart": "test_make_quickstart_prints_its_table",
    # The tests cannot run themselves: the gate calls this target in a fresh clone.
    "make test": "test_its_make_targets_run_what_it_says",
    "source .venv/bin/activate": "test_its_environment_has_what_it_says",
    "python -m rlif_lightning fit --config configs/quickstart.yaml": "test_its_reward_trains",
}


def block(content: str) -> str:
    [found] = [text for _, text in BLOCKS if content in text]
    return found


def test_it_is_read_in_a_minute():
    prose = re.sub(r"```.*?```|<!--.*?-->", "", README, flags=re.S)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    assert len(prose.split()) <= 700
    # What was not run stands before anything that invites to run it.
    assert README.index("## Limits") < README.index("## Two commands") < 3000


def test_its_make_targets_run_what_it_says():
    targets = re.findall(r"^make (\S+)", block("make quickstart"), re.M)
    assert targets == ["quickstart", "test"]
    would = {
        target: subprocess.run(
            ["make", "-n", "--no-print-directory", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for target in targets
    }
    assert "rlif_lightning fit --config configs/quickstart.yaml" in would["quickstart"]
    assert all(tool in would["test"] for tool in ("ruff check", "pyright", "pytest"))


def rows_of(table: str) -> list[tuple[str, str, str]]:
    """Name, figure before and figure after of each row in per cent."""
    return re.findall(r"│ ([^│]+?) +│ +([\d.]+) % │ +([\d.]+) % │", table)


def test_every_command_is_run_by_a_test():
    """Those of its blocks and of its text; comments behind them are left out."""
    lines = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S))
    said = {" ".join(re.sub(r"  +#.*", "", text).split()) for text in (*spans, *lines)}
    programs = re.compile(r"(make|python|pip|rlif|source|bash|git|torchrun|\.venv\S*) ")
    assert {text for text in said if programs.match(text)} == set(COMMANDS)
    assert set(COMMANDS.values()) <= set(globals())


@pytest.mark.full  # test_configs.py runs this config in little
def test_make_quickstart_prints_its_table(tmp_path):
    """The last line of the target, as it stands in the Makefile; make itself would install."""
    said = subprocess.run(
        ["make", "-n", "--no-print-directory", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    program, *arguments = said.split()
    assert program == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments, f"--trainer.default_root_dir={tmp_path}"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = {name: (before, after) for name, before, after in rows_of(done.stdout)}
    for name, before, after in rows_of(block("before ┃")):
        for there, here in zip((before, after), printed[name], strict=True):
            # Another processor may round otherwise; the same one prints the same digits.
            assert float(there) == pytest.approx(float(here), abs=1.5)


def test_its_environment_has_what_it_says():
    """``activate`` is the file of the environment that both targets make."""
    would = subprocess.run(
        ["make", "-n", "--no-print-directory", "--always-make", "install"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(r"-m venv \.venv$", would, re.M)
    if not (ROOT / ".venv" / "bin" / "activate").exists():
        pytest.skip("the tests run in another environment than that of `make`")
    command = "source .venv/bin/activate && command -v python rlif"
    found = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [str(ROOT / ".venv" / "bin" / name) for name in ("python", "rlif")]


# Lightning's own advice, which a person may read and a test need not.
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.full  # test_python_use.py trains by the same calls
def test_its_python_trains_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = partial(rlif_lightning.RLIFTrainer, **QUIET | {"limit_train_batches": 1})
    names = {name: getattr(rlif_lightning, name) for name in rlif_lightning.__all__}
    names |= {"my_dataset": PROBLEMS, "partial": partial, "torch": torch, "RLIFTrainer": trainer}
    exec(block("my_dataset"), names)
    assert names["module"].num_rollouts == 1
    assert (tmp_path / "my_model" / "model.safetensors").is_file()


def test_its_table_is_the_measured_one():
    """The rows that ``make quickstart`` prints, against the result file of that run."""
    measured = read_results(FOLDER / "quickstart.csv")["vote_logprob_0"]
    rows = rows_of(block("before ┃"))
    assert [name for name, *_ in rows] == list(ROWS)
    for name, before, after in rows:
        for when, printed in (("before", before), ("after", after)):
            assert float(printed) == pytest.approx(
                float(measured[f"{ROWS[name]} {when}"]), abs=0.0501
            )


def test_its_reward_trains(tmp_path, monkeypatch):
    code = block("class Brevity")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 12
    (tmp_path / "my_file.py").write_text(code)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    rewards = re.search(r"`--model\.rewards '(.*?)'`", README)
    assert rewards is not None
    small = [
        "--compare=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_val_batches=0",
    ]
    small += ["--trainer.enable_model_summary=false", "--trainer.limit_train_batches=1"]
    small += [
        "--data.source.init_args.size=8",
        "--data.prompts_per_rollout=8",
        "--data.group_size=4",
    ]
    small += [f"--trainer.default_root_dir={tmp_path}", f"--model.rewards={rewards[1]}"]
    run = cli.main(["fit", "--config=configs/quickstart.yaml", *small])
    figures = run.trainer.callback_metrics
    assert float(figures["reward/brevity/mean"]) == pytest.approx(
        1 - float(figures["rollout/length"]) / 48, abs=1e-5
    )
    sys.modules.pop("my_file", None)
