"""Run the command line on a GPU: the quickstart in two precisions, a resumed run, two GPUs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import tried

from rlif_lightning import cli
from rlif_lightning.model.loading import resolve_model
from rlif_lightning.running.checkpoint_search import find_checkpoints
from rlif_lightning.running.metrics_csv import read_logged

QUICKSTART = [
    "fit",
    "--config=configs/quickstart.yaml",
    "--trainer.accelerator=cuda",
    "--trainer.devices=1",
]
SHORT = [
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_val_batches=0",
    '--trainer.callbacks=[{"class_path": "RunCheckpoints", "init_args": {"every": 1, "keep":'
    " null}}]",
]


def run(arguments: list[str], root: Path) -> tuple[Any, float]:
    """Run one command line; return the finished CLI and its seconds."""
    started = time.perf_counter()
    done = cli.main([*arguments, f"--trainer.default_root_dir={root}"])
    torch.cuda.synchronize()
    return done, time.perf_counter() - started


def weights(done: Any) -> dict[str, torch.Tensor]:
    """Return the policy's parameters, on the CPU."""
    return {
        name: value.detach().cpu().clone() for name, value in done.model.policy.state_dict().items()
    }


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any parameter of two policies."""
    return max(float((left[name].float() - right[name].float()).abs().max()) for name in left)


def logged(root: Path, column: str) -> list[float]:
    """Return the values of one column of the run's metrics.csv."""
    rows = read_logged(root / "version_0" / "metrics.csv").rows
    return [float(row[column]) for row in rows if column in row]


def quickstart(out: Path) -> dict[str, Any]:
    """Run the quickstart in float32 and in bf16-mixed: accuracy, seconds, peak memory."""
    graphs = ["--model.engine=NativeEngine", "--model.engine.cuda_graphs=true"]
    return {
        "bf16-mixed": tried(partial(one_quickstart, out, "bf16-mixed")),
        "32-true, graphs": tried(partial(one_quickstart, out, "32-true", *graphs)),
        "32-true": tried(partial(one_quickstart, out, "32-true")),
    }


def one_quickstart(out: Path, precision: str, *options: str) -> dict[str, Any]:
    """Run the quickstart in one precision."""
    out = out / str(len(options))
    torch.cuda.reset_peak_memory_stats()
    arguments = [*QUICKSTART, *options, "--compare=false"]
    arguments.append("--trainer.enable_progress_bar=false")
    arguments.append("--trainer.check_val_every_n_epoch=1")
    _, seconds = run([*arguments, f"--trainer.precision={precision}"], out / precision)
    return {
        "validation accuracies": logged(out / precision, "val/accuracy"),
        "seconds": round(seconds, 1),
        "seconds of a rollout": _median(logged(out / precision, "time/rollout")),
        "seconds of an update": _median(logged(out / precision, "time/update")),
        "peak MiB": round(torch.cuda.max_memory_allocated() / 2**20, 1),
    }


def _median(values: list[float]) -> float:
    return round(float(torch.tensor(values).median()), 4)


def resume(out: Path, *options: str) -> dict[str, Any]:
    """Compare six rollouts with a repetition, and with a run resumed from the third."""
    short = [*QUICKSTART, *SHORT, "--data.source.init_args.size=96", *options]
    first, again = (weights(run(short, out / name)[0]) for name in ("whole", "again"))
    third = sorted(find_checkpoints(out / "whole"), key=lambda path: path.stat().st_mtime)[2]
    resumed = weights(run([*short, f"--ckpt_path={third}"], out / "resumed")[0])
    return {
        "a repeated run": largest_difference(first, again),
        "a resumed run": largest_difference(first, resumed),
    }


def deterministic(out: Path) -> dict[str, Any]:
    """Do the same with PyTorch's deterministic operations, and name those that it lacks."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warned = tried(partial(resume, out / "warn", "--trainer.deterministic=warn"))
    lacking = {str(each.message)[:160] for each in seen if "deterministic" in str(each.message)}
    whole = tried(partial(resume, out / "true", "--trainer.deterministic=true"))
    return {"warn": warned, "lacking": sorted(lacking), "true": whole}


def vllm(out: Path) -> dict[str, Any]:
    """Compare the native engine with vLLM on the embedded model, by ``compare_engines.py``.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    if importlib.util.find_spec("vllm") is None:
        return {"not run": "vllm is not installed"}
    model = resolve_model("rlif-arithmetic")
    command = [
        sys.executable,
        "scripts/compare_engines.py",
        f"--model={model}",
        f"--out={out / 'compare.json'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-600:])
    return json.loads((out / "compare.json").read_text())


def ranks(out: Path) -> dict[str, Any]:
    """Compare a short quickstart on two GPUs, by each strategy, with one GPU."""
    if torch.cuda.device_count() < 2:
        return {"not run": f"{torch.cuda.device_count()} GPU"}
    found: dict[str, Any] = {}
    for name in ("one", "ddp", "fsdp2", "tp"):
        command = [
            sys.executable,
            "-m",
            "rlif_lightning",
            *QUICKSTART,
            *SHORT,
            "--data.source.init_args.size=96",
        ]
        if name != "one":
            command += [f"--config=configs/strategy/{name}.yaml", "--trainer.devices=2"]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, f"--trainer.default_root_dir={out / name}"], capture_output=True, text=True
        )
        found[name] = {
            "exit code": done.returncode,
            "seconds": round(time.perf_counter() - started, 1),
        }
        if done.returncode:
            found[name]["error"] = done.stderr[-500:]
        else:
            found[name]["rewards"] = logged(out / name, "reward/vote/mean")
    return found
