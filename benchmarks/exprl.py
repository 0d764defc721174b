"""ExpRL's outcome and process form beside gold answers, with a rule as the judge.

    python -m benchmarks.exprl

The quickstart's problems and model. The judge is a rule that checks each sum of a completion, and
its final answer against the hidden reference. Gold answers are the line to compare with. Runs have
one thread and go one after the other in this process. A run that is finished is not made again.
Results go to ``docs/results/exprl.csv``.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.finished_runs import figures_of_run, logged_rollouts
from benchmarks.results import FOLDER, write_results
from rlif_lightning.judges.base import Request

ROOT = Path(__file__).resolve().parent.parent
SEEDS, ROLLOUTS, WATCHED = (0, 1, 2, 3), 40, 20
COMMON = [
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
]
RULE = {"class_path": "RuleJudge", "init_args": {"rule": "benchmarks.exprl.check_sums"}}
SUM = re.compile(r"(\d+)\+(\d+)=(\d+)")
FIGURES = ("accuracy", "greedy_accuracy", "pass@8")


def check_sums(request: Request) -> str:
    """Score 1 to 5 by the share of right sums, the final answer counted as one of them."""
    text = request.values["completion"]
    right = [int(a) + int(b) == int(c) for a, b, c in SUM.findall(text)]
    _, marked, answer = text.partition("####")
    if marked:
        right.append(answer.strip() == request.values["reference"].strip())
    share = sum(right) / len(right) if right else 0.0
    return f"{sum(right)} of {len(right)} are right.\nScore: {1 + round(4 * share)}"


def arm(head: str, advantage: str, clip_high: float, **settings: Any) -> list[str]:
    """Return the arguments of one arm."""
    if head != "GoldAnswer":
        settings["judge"] = RULE
    made = {"expert": {"head": {"class_path": head, "init_args": settings}, "weight": 1.0}}
    clip = {"clip_low": 0.2, "clip_high": clip_high, "reference_kl": {"weight": 0.001}}
    objective = {"class_path": "Clipped", "init_args": clip}
    return [
        f"--model.rewards={json.dumps(made)}",
        f"--model.advantage={advantage}",
        f"--model.objective={json.dumps(objective)}",
    ]


def delta(single: str) -> str:
    """Return StepDelta with what a completion of one step gets."""
    given = {"class_path": "StepDelta", "init_args": {"single_segment": single}}
    return json.dumps(given)


STEPS = "StepRubricJudgeHead"
ARMS = {
    "gold": arm("GoldAnswer", "GRPO", 0.28),
    "outcome": arm("RubricJudgeHead", "GRPO", 0.28),
    "process, segment": arm(STEPS, delta("raw"), 0.26, delimiter=";"),
    "process, segment, zero": arm(STEPS, delta("zero"), 0.26, delimiter=";"),
    "process, prefix": arm(STEPS, delta("raw"), 0.26, delimiter=";", scope="prefix"),
}


def run(name: str, seed: int, folder: Path) -> dict[str, float]:
    """Make one run unless it is finished; return its figures."""
    arguments = [*COMMON, *ARMS[name], f"--seed_everything={seed}"]
    arguments += [f"--trainer.default_root_dir={folder}"]
    return figures_of_run(f"{name} seed {seed}", arguments, folder, lambda it, _: measured(it))


def measured(version: Path) -> dict[str, float]:
    """Return a run's figures: of the last rollouts, and of its last evaluation."""
    rows = logged_rollouts(version, "policy/entropy", ROLLOUTS)
    last = json.loads((version / "evaluation.json").read_text())[-1]["figures"]

    def late(name: str) -> float:
        return statistics.fmean(float(row.get(name) or "nan") for row in rows[-WATCHED:])

    return {
        **{name: last[name]["value"] for name in FIGURES},
        "reward": late("reward/expert/mean"),
        "steps": late("judge/steps"),
        "length": late("rollout/length"),
        "entropy": late("policy/entropy"),
    }


def shown(values: list[float]) -> str:
    """Return a mean with the standard deviation in brackets; nan where there is no value."""
    if any(map(math.isnan, values)):
        return "nan"
    return f"{statistics.fmean(values):.4f} ({statistics.stdev(values):.4f})"


def main() -> None:
    """Command line."""
    os.chdir(ROOT)  # where configs are named from
    rows: dict[str, dict[str, str]] = {}
    for name in ARMS:
        place = name.replace(", ", "_")
        each = [run(name, seed, ROOT / "runs" / "exprl" / f"{place}_{seed}") for seed in SEEDS]
        rows[name] = {figure: shown([figures[figure] for figures in each]) for figure in each[0]}
        rows[name] |= {f"accuracy of seed {s}": f"{e['accuracy']:.4f}" for s, e in enumerate(each)}
    notes = {
        "command": "python -m benchmarks.exprl",
        "seeds": f"{SEEDS}; in brackets the deviation",
    }
    write_results(FOLDER / "exprl.csv", notes, rows, key="arm")


if __name__ == "__main__":
    main()
