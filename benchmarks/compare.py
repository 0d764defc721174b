"""Compare CPU seconds and peak memory with TRL's, workload by workload.

    python -m benchmarks.compare --trl-python TRL_ENVIRONMENT/bin/python --out OUT.json
    python -m benchmarks.compare ... --results docs/results/speed.csv   # what docs/speed.md shows

Each side runs several times in its own environment and process, with one thread, the two in turn;
medians are compared. The results are a table and JSON. The floor is the time of the matrix products
that a step cannot avoid, as a fraction of TRL's CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.results import write_results

HERE = Path(__file__).parent
RANDOM = ["--lengths", "random"]
WORKLOADS: dict[str, list[str]] = {
    "fixed (128 + 128, V 16k)": [],
    "random lengths": RANDOM,
    "512-token prompts, short answers": [
        *RANDOM, "--prompt-len=512", "--max-new-tokens=32", "--min-new-tokens=8",
    ],
    "long tail to 384": [*RANDOM, "--max-new-tokens=384"],
    "152k vocabulary": ["--vocab=152000"],
    "12 layers, hidden 384": ["--layers=12", "--hidden=384"],
    "random, both internal rewards": [*RANDOM, "--rewards=rlif"],
    "random, reference KL, 2 updates": [*RANDOM, "--beta=0.04", "--updates-per-rollout=2"],
    "SmolLM2-135M shape, 8 x 8, 64 + 64, bf16": [
        "--hidden=576", "--layers=30", "--vocab=49152", "--intermediate=1536", "--heads=9",
        "--kv-heads=3", "--tie-embeddings", "--prompts-per-rollout=8", "--prompt-len=64",
        "--max-new-tokens=64", "--bf16", "--steps=2",
    ],
}  # fmt: skip


def run(python: str, script: str, flags: list[str]) -> dict[str, Any]:
    """Run one side once; return its JSON.

    Raises:
        RuntimeError: the script failed; its last words.
    """
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    command = [python, str(HERE / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, a: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Run both sides and the floor of one workload, in turn."""
    flags = [f"--steps={a.steps}", *WORKLOADS[name]]
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "floor": []}
    for _ in range(a.repeats):
        sides["ours"].append(run(sys.executable, "step.py", flags))
        sides["trl"].append(run(a.trl_python, "trl_step.py", flags))
        sides["floor"].append(run(sys.executable, "floor.py", flags))
        progress()
    return {"flags": flags, **sides}


def median(runs: list[dict[str, Any]], key: str) -> float:
    """Return the median over the repeats."""
    return statistics.median(each[key] for each in runs)


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Return the table's values of one workload."""
    ours, trl = result["ours"], result["trl"]
    seconds = median(trl, "cpu_seconds_per_step")
    above = [
        statistics.median(r["peak_rss_mib"] - r["rss_before_training_mib"] for r in side)
        for side in (ours, trl)
    ]
    return {
        "ours_cpu_seconds": median(ours, "cpu_seconds_per_step"),
        "trl_cpu_seconds": seconds,
        "cpu_share": median(ours, "cpu_seconds_per_step") / seconds,
        "floor_share": median(result["floor"], "cpu_seconds_per_step") / seconds,
        "ours_peak_mib": median(ours, "peak_rss_mib"),
        "trl_peak_mib": median(trl, "peak_rss_mib"),
        "peak_share": median(ours, "peak_rss_mib") / median(trl, "peak_rss_mib"),
        "peak_above_start_share": above[0] / above[1],
    }


def row_of(result: dict[str, Any]) -> dict[str, str]:
    """Return one line of the table: heading -> figure as it is printed."""
    s = shares(result)
    return {
        "ours, CPU s": f"{s['ours_cpu_seconds']:.2f}",
        "TRL, CPU s": f"{s['trl_cpu_seconds']:.2f}",
        "CPU share": f"{s['cpu_share']:.2f}",
        "floor": f"{s['floor_share']:.2f}",
        "ours, MiB": f"{s['ours_peak_mib']:.0f}",
        "TRL, MiB": f"{s['trl_peak_mib']:.0f}",
        "peak share": f"{s['peak_share']:.2f}",
        "above start": f"{s['peak_above_start_share']:.2f}",
    }


def table_of(rows: dict[str, dict[str, str]]) -> Table:
    """The ratio table."""
    table = Table("workload", title="One training step, ours / TRL", title_justify="left")
    for heading in next(iter(rows.values())):
        table.add_column(heading, justify="right")
    for name, cells in rows.items():
        table.add_row(name, *cells.values())
    return table


def main() -> None:
    """Measure and print; results are written after each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trl-python", required=True, help="python of an environment with trl 1.16"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of a run, the first is not counted (default 3)"
    )
    parser.add_argument(
        "--only", nargs="*", default=list(WORKLOADS), help="names of workloads (default all)"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--results", type=Path, help="result file of the docs")
    a = parser.parse_args()
    if unknown := set(a.only) - set(WORKLOADS):
        parser.error(f"--only {sorted(unknown)}: known workloads are {list(WORKLOADS)}")
    results: dict[str, dict[str, Any]] = {}
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("workloads x repeats", total=len(a.only) * a.repeats)
        for name in a.only:
            results[name] = measure(name, a, lambda: bar.advance(task))
            if a.out:
                summary = {each: shares(result) for each, result in results.items()}
                a.out.write_text(json.dumps({"summary": summary, "runs": results}, indent=1) + "\n")
    rows = {name: row_of(result) for name, result in results.items()}
    if a.results:
        write_results(a.results, {"command": shlex.join(sys.argv)}, rows, key="workload")
    Console(width=140).print(table_of(rows))


if __name__ == "__main__":
    main()
