"""Small runs of the command line, and what they leave."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

from rlif_lightning import cli
from rlif_lightning.running.events import read_events

BASE = [
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.source.init_args.size=16",
    "--data.source.init_args.validation_size=8",
    "--data.prompts_per_rollout=8",
    "--data.validation_prompts_per_batch=8",
    "--data.group_size=4",
]


def fit(folder: Path, *arguments: str) -> cli.RLIFCLI:
    """Train for two rollouts (eight optimiser steps) in ``folder``."""
    return cli.main(["fit", *BASE, f"--trainer.default_root_dir={folder}", *arguments])


def parameters(run: cli.RLIFCLI) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.policy.state_dict().items()}


def assert_same(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 0.0
) -> None:
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def metrics(folder: Path) -> list[dict[str, str]]:
    """What the first life of a run logged, but for times."""
    with min(folder.rglob("metrics.csv")).open() as file:
        return [
            {k: v for k, v in row.items() if "time/" not in k and "per_second" not in k}
            for row in csv.DictReader(file)
        ]


TIMES = ("time/", "per_second")


def rows(folder: Path) -> dict[tuple[int, bool], dict[str, str]]:
    """What was logged, by step and kind (rollout or validation); later files and rows count."""
    found = {}
    versions = sorted(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    for version in versions:
        if (version / "metrics.csv").exists():
            with (version / "metrics.csv").open() as file:
                for row in csv.DictReader(file):
                    kept = {
                        k: v for k, v in row.items() if v and not any(part in k for part in TIMES)
                    }
                    found[int(row["step"]), "val/entropy" in kept] = kept
    return found


def differences(left: dict[Any, dict[str, str]], right: dict[Any, dict[str, str]]) -> list[Any]:
    """Places and figures in which two logs differ."""
    found: list[Any] = sorted(left.keys() ^ right.keys())
    for place in left.keys() & right.keys():
        a, b = left[place], right[place]
        found += [
            (place, name, a.get(name), b.get(name))
            for name in a.keys() | b.keys()
            if a.get(name) != b.get(name)
        ]
    return found


def saving(**settings: Any) -> str:
    return "--trainer.callbacks+=" + json.dumps(
        {"class_path": "RunCheckpoints", "init_args": settings}
    )


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/*"))


ONE = ["--trainer.limit_train_batches=1"]  # one rollout
# Eight completions of a few tokens a rollout; few of them come to their answer.
FEW = [
    "--data.source.init_args.size=8",
    "--data.prompts_per_rollout=4",
    "--data.group_size=2",
    "--model.sampling.max_new_tokens=8",
]
# Half the time, for what asks only that a policy is trained.
TINY = [*FEW, "--trainer.limit_val_batches=0"]
LONG = ["--trainer.limit_train_batches=2", "--trainer.max_epochs=2"]  # four rollouts
FOUR = [*FEW, *LONG]


def adding(name: str, **settings: Any) -> str:
    return "--trainer.callbacks+=" + json.dumps({"class_path": name, "init_args": settings})


def marked(folder: Path) -> list[dict]:
    """What callbacks wrote down: every event but the run's end."""
    return [event for event in read_events(folder) if event["kind"] != "end"]


def run_with(
    folder: Path, name: str, *arguments: str, rollouts: int = 2, **settings
) -> cli.RLIFCLI:
    callback = json.dumps({"class_path": name, "init_args": settings})
    # An epoch has two rollouts here.
    length = [
        f"--trainer.max_epochs={-(-rollouts // 2)}",
        f"--trainer.limit_train_batches={min(rollouts, 2)}",
    ]
    return fit(folder, *length, f"--trainer.callbacks+={callback}", *arguments)


def whole_and_resumed(
    folder: Path, name: str, *arguments: str, **settings
) -> tuple[cli.RLIFCLI, cli.RLIFCLI]:
    """Four rollouts in ``whole``; two in ``first``, and two more from its end in ``second``."""
    whole = run_with(folder / "whole", name, *arguments, rollouts=4, **settings)
    first = run_with(folder / "first", name, *arguments, rollouts=2, **settings)
    path = folder / "middle.ckpt"
    first.trainer.save_checkpoint(path)
    given = [*arguments, f"--ckpt_path={path}"]
    return whole, run_with(folder / "second", name, *given, rollouts=4, **settings)


def column(folder: Path, name: str) -> list[float]:
    return [float(row[name]) for row in metrics(folder) if row.get(name)]


def callback_of(run: cli.RLIFCLI, kind: type):
    return next(callback for callback in run.trainer.callbacks if isinstance(callback, kind))


# Always true once the baseline of one rollout is there, so that an alarm comes when the test wants
# it.
ALWAYS = {
    "metric": "rollout/length",
    "side": "below",
    "bound": 1000.0,
    "factor": 1e6,
    "window": 1,
    "meaning": "Always.",
}


def assert_resumes(whole: Path, again: Path, *arguments: str) -> None:
    """Train in ``whole``, and in ``again`` from the end of its first rollout: weights and logs are
    the same.
    """
    run, found = fit(whole, *arguments), rows(whole)
    saved = next(iter(sorted(whole.rglob("rollout=000001.ckpt"))))
    resumed = fit(again, *arguments, f"--ckpt_path={saved}")
    assert_same(parameters(run), parameters(resumed))
    later = rows(again)
    assert later
    assert not differences({place: found[place] for place in later}, later)
