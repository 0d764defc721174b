"""The examples are run for real: by class path through the command line, and as a script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlif_lightning import cli

ROOT = Path(__file__).parents[1]
SMALL = [
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
    "--data.source.init_args.size=64",
    "--data.prompts_per_rollout=8",
    "--data.group_size=4",
]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    """As `python -m rlif_lightning` from the repository's root finds the folder `examples`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_my_reward_trains(tmp_path):
    # The docstring's command line, from its own text.
    command = (ROOT / "examples" / "my_reward.py").read_text()
    rewards = re.search(r"--model\.rewards '(.*?)'", command)[1]
    folder = f"--trainer.default_root_dir={tmp_path}"
    run = cli.main(
        ["fit", *SMALL, folder, "--trainer.limit_train_batches=1", f"--model.rewards={rewards}"]
    )
    metrics = run.trainer.callback_metrics
    assert run.trainer.global_step == 4
    assert 0 < float(metrics["reward/steps/mean"]) <= 1
    assert 0 < float(metrics["reward/steps/share"]) < 1
    assert 0 < float(metrics["steps/shown"]) <= 1


def test_my_reward_scores_equations():
    from examples.my_reward import TrueSteps

    head = TrueSteps(wrong=-1.0)
    assert head.score("2+3=5;5+7=12####12") == 1.0
    assert head.score("2+3=5;5+7=13####13") == 0.0
    assert torch.tensor(head.score("####12")).isnan()
    with pytest.raises(ValueError, match="wrong=1"):
        TrueSteps(wrong=1.0)


def callback(folder: Path, limit: float):
    # Groups of two agree often enough from the start.
    arguments = [
        f"--trainer.default_root_dir={folder}",
        "--trainer.limit_train_batches=2",
        "--data.group_size=2",
    ]
    arguments += [
        "--trainer.callbacks+=examples.my_callback.UnanimityStop",
        f"--trainer.callbacks.limit={limit}",
    ]
    return cli.main(["fit", *SMALL, *arguments, "--trainer.callbacks.patience=1"])


def test_my_callback_stops_a_run(tmp_path):
    from examples.my_callback import UnanimityStop

    stopped = callback(tmp_path / "stopped", limit=1e-9)
    through = callback(tmp_path / "through", limit=1.0)
    assert int(through.model.num_rollouts) == 2
    assert int(stopped.model.num_rollouts) == 1
    found = [item for item in stopped.trainer.callbacks if isinstance(item, UnanimityStop)]
    assert found[0].state_dict() == {"seen": 1}
    with pytest.raises(ValueError, match="limit=0"):
        UnanimityStop(limit=0)


def grpo_in_one_file(steps: int) -> list[tuple[str, str, str]]:
    """Step, mean reward and accuracy of each line that the script prints."""
    command = [sys.executable, "examples/grpo_in_one_file.py", "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=True
    )
    lines = re.findall(r"step +(\d+) +mean reward ([\d.]+) +accuracy ([\d.]+)", done.stdout)
    assert [int(step) for step, _, _ in lines] == list(range(steps))
    return lines


@pytest.mark.slow
def test_grpo_in_one_file_runs():
    (_, first, _), (_, second, _) = grpo_in_one_file(2)
    assert 0 < float(first) != float(second) < 1


@pytest.mark.full  # two steps: above
def test_grpo_in_one_file_improves():
    lines = grpo_in_one_file(12)
    rewards, accuracies = ([float(line[k]) for line in lines] for k in (1, 2))
    # The first three steps against the last three, each over 384 completions: measured 0.57 and
    # 0.84.
    assert sum(accuracies[-3:]) / 3 > sum(accuracies[:3]) / 3 + 0.1
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
