"""Which method holds a policy's entropy near a target, and what that costs.

    python -m benchmarks.entropy_control --tune     # every setting on the tuning seeds
    python -m benchmarks.entropy_control            # the chosen settings on the judging seeds

Gold answers reward the quickstart's problems, as in the papers of these methods; the advantage is
GRPO's. Each method has equally many settings. The one whose entropy is nearest to the target on
the tuning seeds goes on to the judging seeds. Entropy and reward are those of all groups that a
rollout draws first, so dynamic sampling has the same figures as the rest. Runs have one thread and
go one after the other in this process. A run that is finished is not made again. Results go to
``docs/results/entropy_tuning.csv`` and ``entropy_control.csv``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.dynamic_sampling import PROMPTS, sampled_tokens
from benchmarks.finished_runs import figures_of_run, logged_rollouts
from benchmarks.results import FOLDER, read_results, write_results

ROOT = Path(__file__).resolve().parent.parent
TARGET = 0.2  # nats; GRPO starts at about 0.29 and passes it within its first ten rollouts
ROLLOUTS, WATCHED = 40, 20  # the quickstart's; the entropy counts in the last 20
NUM_SETTINGS = 3
TUNING_SEEDS, JUDGING_SEEDS = (100, 101), (0, 1, 2, 3, 4, 5)
COMMON = [
    "--config=configs/quickstart.yaml",
    "--config=configs/gold.yaml",
    "--model.advantage=GRPO",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
]
CLIP = {"clip_high": 0.28, "dual_clip": 10.0}  # the paper of STARE; the same for every method


def objective(name: str, **settings: object) -> str:
    """Return the argument of an objective with the common clip bounds."""
    return "--model.objective=" + json.dumps({"class_path": name, "init_args": CLIP | settings})


def callback(name: str, **settings: object) -> str:
    """Return the argument that adds a callback."""
    added = {"class_path": name, "init_args": settings}
    return "--trainer.callbacks+=" + json.dumps(added)


def stare(positive: float, negative: float, fraction: float = 0.1) -> list[str]:
    """Return STARE behind its gate; the default fraction is its paper's."""
    given = {"positive_weight": positive, "negative_weight": negative, "fraction": fraction}
    return [objective("STARE", **given), callback("STAREController", target=TARGET)]


def loop(fraction: float, gain: float) -> list[str]:
    """Return KL-Cov with its weight in a closed loop on the entropy."""
    band = {"target": [TARGET - 0.01, TARGET + 0.01], "gain": gain}
    schedule = band | {"start": 0.05, "bounds": [0.001, 100.0]}
    return [objective("KLCov", fraction=fraction), callback("KLCovScheduler", weight=schedule)]


def dynamic(max_draws: int) -> list[str]:
    """Return GRPO with dynamic sampling; a place draws so many problems at most."""
    settings = json.dumps({"max_draws": max_draws})
    return [objective("Clipped"), f"--model.dynamic_sampling={settings}"]


def clip_cov(fraction: float, low: float = 1.0, high: float = 5.0) -> list[str]:
    """Return Clip-Cov; the default band is its paper's."""
    return [objective("ClipCov", fraction=fraction, band=[low, high])]


# NUM_SETTINGS each; the first is the paper's where there is one.
METHODS: dict[str, list[list[str]]] = {
    "grpo": [[objective("Clipped", clip_high=high)] for high in (0.28, 0.2, 0.8)],
    "stare": [stare(1.1, 1.0), stare(1.5, 0.5), stare(1.5, 0.5, 0.02)],
    "kl_cov": [
        [objective("KLCov", fraction=fraction, weight=weight)]
        for fraction, weight in ((0.02, 0.05), (0.1, 1.0), (0.1, 10.0))
    ],
    "clip_cov": [clip_cov(2e-4), clip_cov(0.02, 0.1), clip_cov(0.1, 0.1)],
    "kl_cov_loop": [loop(0.02, 0.1), loop(0.02, 1.0), loop(0.1, 1.0)],
    "entropy_bonus": [
        [objective("Clipped", entropy_bonus=weight)] for weight in (0.003, 0.01, 0.03)
    ],
    # 3 draws and 10 draws: the paper of STARE samples three batches at once, ten times at most.
    "dynamic_sampling": [dynamic(3), dynamic(1), dynamic(10)],
}


def run(name: str, setting: int, seed: int, folder: Path, evaluated: bool) -> dict[str, float]:
    """Make one run unless it is finished; return its figures."""
    arguments = [*COMMON, *METHODS[name][setting], f"--seed_everything={seed}"]
    arguments += ["--compare=false", f"--trainer.default_root_dir={folder}"]
    arguments += [
        "--trainer.check_val_every_n_epoch=1" if evaluated else "--trainer.limit_val_batches=0"
    ]

    def with_cost(version: Path, seconds: float) -> dict[str, float]:
        return measured(version) | {"CPU seconds": seconds}

    return figures_of_run(f"{name} {setting} seed {seed}", arguments, folder, with_cost)


def measured(version: Path) -> dict[str, float]:
    """Return a run's figures: of the last ``WATCHED`` rollouts, and of its last evaluation."""
    rows = logged_rollouts(version, "policy/entropy", ROLLOUTS)
    late = [_of_first(row, "dynamic/first_entropy", "policy/entropy") for row in rows[-WATCHED:]]
    rewards = [
        _of_first(row, "reward/gold/first_mean", "reward/gold/mean") for row in rows[-WATCHED:]
    ]
    extra = sum(float(row.get("dynamic/extra_groups") or 0) for row in rows)
    found = {
        "distance": statistics.fmean(abs(entropy - TARGET) for entropy in late),
        "entropy": statistics.fmean(late),
        "entropy trained on": statistics.fmean(float(r["policy/entropy"]) for r in rows[-WATCHED:]),
        "reward": statistics.fmean(rewards),
        "thousand tokens": sum(map(sampled_tokens, rows)) / 1000,
        "groups": ROLLOUTS * PROMPTS + extra,
    }
    evaluation = version / "evaluation.json"
    if evaluation.is_file():
        last = json.loads(evaluation.read_text())[-1]["figures"]
        found |= {name: last[name]["value"] for name in ("accuracy", "pass@8", "greedy_accuracy")}
    return found


def _of_first(row: dict[str, str], first: str, name: str) -> float:
    """Return a figure of the first draws; without dynamic sampling these are all of a rollout."""
    return float(row.get(first) or row[name])


def shown(values: Sequence[float], digits: int = 4) -> str:
    """Return a mean with the standard deviation in brackets."""
    return f"{statistics.fmean(values):.{digits}f} ({statistics.stdev(values):.{digits}f})"


def tune(out: Path) -> dict[str, dict[str, str]]:
    """Return a row for each setting: the mean figures over the tuning seeds."""
    rows = {}
    for setting in range(NUM_SETTINGS):
        for name, settings in METHODS.items():
            folders = [out / f"tuning_{name}_{setting}_{seed}" for seed in TUNING_SEEDS]
            found = [
                run(name, setting, seed, folder, evaluated=False)
                for seed, folder in zip(TUNING_SEEDS, folders, strict=True)
            ]
            means = {key: statistics.fmean(each[key] for each in found) for key in found[0]}
            figures = {key: f"{value:.4f}" for key, value in means.items()}
            arguments = " ".join(each.removeprefix("--") for each in settings[setting])
            rows[f"{name}_{setting}"] = figures | {"arguments": arguments}
    return rows


def chosen(rows: dict[str, dict[str, str]]) -> dict[str, int]:
    """Return each method's setting with the smallest distance; of equal ones the first."""
    return {
        name: min(range(len(settings)), key=lambda i: float(rows[f"{name}_{i}"]["distance"]))
        for name, settings in METHODS.items()
    }


def judge(out: Path, settings: dict[str, int]) -> dict[str, dict[str, str]]:
    """Return a row for each method: mean and standard deviation over the judging seeds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in JUDGING_SEEDS:
        for name, setting in settings.items():
            folder = out / f"judging_{name}_{setting}_{seed}"
            found[name].append(run(name, setting, seed, folder, evaluated=True))
    rows = {}
    for name, figures in found.items():
        distances = [each["distance"] for each in figures]
        pairs = zip(distances, [each["distance"] for each in found["grpo"]], strict=True)
        nearer = sum(own < grpo for own, grpo in pairs)
        rows[name] = {"setting": str(settings[name])}
        rows[name] |= {key: shown([each[key] for each in figures]) for key in figures[0]}
        rows[name] |= {"seeds nearer than grpo": str(nearer)}
        rows[name] |= {"distances": " ".join(f"{value:.4f}" for value in distances)}
    return rows


def main() -> None:
    """Make the runs that are missing and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="the tuning runs")
    parser.add_argument("--out", type=Path, default=Path("runs/entropy_control"))
    parser.add_argument("--results", type=Path, default=FOLDER, help="(default: docs/results)")
    given = parser.parse_args()
    os.chdir(ROOT)
    command = "python -m benchmarks.entropy_control" + (" --tune" if given.tune else "")
    shared = f"CPU, one thread; {ROLLOUTS} rollouts, figures of the last {WATCHED}; target {TARGET}"
    tuning = given.results / "entropy_tuning.csv"
    if given.tune:
        seeds = ", ".join(map(str, TUNING_SEEDS))
        notes = {"command": command, "conditions": f"{shared}; means over seeds {seeds}"}
        write_results(tuning, notes, tune(given.out.resolve()), key="setting")
        return
    rows = judge(given.out.resolve(), chosen(read_results(tuning)))
    notes = {"command": command, "conditions": f"{shared}; mean (sd) over seeds 0 to 5"}
    write_results(given.results / "entropy_control.csv", notes, rows, key="method")


if __name__ == "__main__":
    main()
