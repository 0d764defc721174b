"""Train two rollouts with each overlay of ``configs/`` on the GPU, and compare with a CPU."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import tried
from whole_runs import largest_difference, run, weights

from rlif_lightning.running.metrics_csv import read_logged

TOGETHER = 10  # processes that share the GPU: each mostly waits for its own launches
SHORT = [
    "fit",
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.max_epochs=1",
]
RECIPES = {  # name: overlays and options
    "reference model, KL-Cov, guard, self-certainty": [
        "--config=configs/stable.yaml",
        "--trainer.callbacks+=CollapseGuard",
        "--trainer.callbacks.action=adjust",
        "--model.rewards.certainty.head=SelfCertainty",
    ],
    "exprl": ["--config=configs/related/exprl.yaml", "--config=configs/related/exprl_cpu.yaml"],
    "distil": ["--config=configs/related/distil.yaml", "--model.rewards.certainty.weight=0"],
    "pow3r": [
        "--config=configs/related/pow3r.yaml",
        "--trainer.max_epochs=2",
        "--data.source.init_args.size=16",
    ],
    "LoRA": ["--model.policy.lora.rank=8"],
    "Muon": ["--model.optimizer=MuonAdamW"],
}
MODEL = Path("runs/reuserl/model")  # by scripts/make_countdown_model.py; without it no environment
# Named above, or in need of files that a script makes.
APART = ("exprl", "exprl_cpu", "distil", "pow3r", "reuserl", "longtrace", "turing", "turing_cpu")


def recipes() -> dict[str, list[str]]:
    """Return the options of each short run by its name."""
    overlays = sorted([*Path("configs/objectives").glob("*"), *Path("configs/related").glob("*")])
    named = {path.stem: [f"--config={path}"] for path in overlays if path.stem not in APART}
    acting = {"reuserl": ["--config=configs/related/reuserl.yaml"]} if MODEL.exists() else {}
    return {**RECIPES, **acting, **named}


def file_name(name: str) -> str:
    """Return a recipe's name as that of a file."""
    return name.replace(" ", "_").replace(",", "")


def first_row(folder: Path) -> dict[str, float]:
    """Return what the first rollout logged, without times and memory."""
    rows = read_logged(next(folder.rglob("metrics.csv"))).rows
    row = next(row for row in rows if "rollout/length" in row)
    timed = ("time/", "per_second", "memory")
    return {k: float(v) for k, v in row.items() if not any(word in k for word in timed)}


def relative(left: float, right: float) -> float:
    """Return how far two figures are apart, relative to the larger one or to 0.01."""
    if math.isnan(left) and math.isnan(right):
        return 0.0
    return abs(left - right) / max(abs(left), abs(right), 0.01)


def one_fit(name: str, out: Path) -> dict[str, Any]:
    """Train one recipe on a CPU, and on the GPU in two precisions."""
    folder, done = out / file_name(name), {}
    runs = {"cpu": ("cpu", "32-true"), "cuda": ("cuda", "32-true"), "mixed": ("cuda", "bf16-mixed")}
    with (
        (folder.with_suffix(".log")).open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        for key, (device, precision) in runs.items():
            options = [f"--trainer.accelerator={device}", f"--trainer.precision={precision}"]
            done[key] = run([*SHORT, *recipes()[name], *options], folder / key)[0]
    rows = {key: first_row(folder / key) for key in runs}
    apart = {k: relative(v, rows["cuda"].get(k, math.nan)) for k, v in rows["cpu"].items()}
    worst = max(apart, key=lambda k: math.inf if math.isnan(apart[k]) else apart[k])
    return {
        "first rollout, float32, largest relative difference": f"{apart[worst]:.2g} ({worst})",
        "parameters after two rollouts, float32": largest_difference(
            weights(done["cpu"]), weights(done["cuda"])
        ),
        "parameters are finite in bf16-mixed": all(
            bool(value.isfinite().all()) for value in weights(done["mixed"]).values()
        ),
        "reward of the vote, CPU, float32, bf16-mixed": [
            round(rows[key].get("reward/vote/mean", math.nan), 4) for key in runs
        ],
    }


def tried_fit(name: str, out: Path) -> Any:
    """Return the figures of one recipe, or its error; write them as well."""
    torch.set_num_threads(1)  # or the processes' threads would wait for each other
    try:
        found = tried(partial(one_fit, name, out))
    except SystemExit as refused:  # the command line's own way to end
        found = {"error": f"exit code {refused.code}; see the run's .log"}
    (out / f"{file_name(name)}.json").write_text(json.dumps({name: found}) + "\n")
    return found


def fits(out: Path) -> dict[str, Any]:
    """Train every recipe, several at a time."""
    context, names = multiprocessing.get_context("spawn"), list(recipes())
    with ProcessPoolExecutor(TOGETHER, mp_context=context) as pool:
        return dict(zip(names, pool.map(partial(tried_fit, out=out), names), strict=True))


def graph_runs(out: Path) -> dict[str, Any]:
    """Compare the parameters of runs with CUDA graphs with those of the same runs without."""
    graphs = ["--model.engine=NativeEngine", "--model.engine.cuda_graphs=true"]
    exact = ["--trainer.accelerator=cuda", "--trainer.deterministic=true"]
    whole = {"quickstart": [], **{k: v for k, v in recipes().items() if k == "reuserl"}}

    def compare(name: str) -> float:
        eager, graphed = (
            weights(
                run([*SHORT, *whole[name], *exact, *options], out / name / str(len(options)))[0]
            )
            for options in ([], graphs)
        )
        return largest_difference(eager, graphed)

    return {name: tried(partial(compare, name)) for name in whole}
