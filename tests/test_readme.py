"""What the README says is run: its commands, its reward, its table; and it stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import FOLDER, read_results
from rlif_lightning import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
ROWS = {"accuracy": "accuracy", "maj@8": "maj@8", "greedy accuracy": "greedy_accuracy"}


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
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for target in targets
    }
    assert "rlif_lightning fit --config configs/quickstart.yaml" in would["quickstart"]
    assert all(tool in would["test"] for tool in ("ruff check", "pyright", "pytest"))


def test_its_table_is_the_measured_one():
    """The rows that ``make quickstart`` prints, against the result file of that run."""
    measured = read_results(FOLDER / "quickstart.csv")["vote_logprob_0"]
    rows = re.findall(r"│ ([^│]+?) +│ +([\d.]+) % │ +([\d.]+) % │", block("before ┃"))
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
