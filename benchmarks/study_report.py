"""The collapse study's tables, and its numbers on the pages that mark them, from result files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.laws import fit_entropy_law, fit_sharpening
from benchmarks.majorities import OUTCOMES
from benchmarks.results import FOLDER, Rows, markdown_table, write_results
from benchmarks.study_arms import ARMS, CLAIMS, CURVE, FAMILY, JUDGING, SMOLLM2
from benchmarks.study_figures import end, first_loss, has_fallen, interval, peak
from benchmarks.study_indicators import indicators_table
from benchmarks.study_predictions import verdicts
from benchmarks.study_rows import Run, read_or_empty, read_runs

COMMAND = "python -m benchmarks.collapse_study --report"
PAGES = (FOLDER.parent / "collapse-study.md", FOLDER.parent.parent / "README.md")
TABLE = re.compile(r"(<!-- results: (\S+) -->\n+)((?:\|.*\n)+)")
NUMBER = re.compile(r"(<!-- result: ([^.]+)\.([^.]+)\.(.+?) -->).*?(<!-- /result -->)", re.S)


def with_interval(values: Sequence[float], digits: int = 1) -> str:
    """Return a mean with its interval over seeds, as text; of one value, the value."""
    low, high = interval(values)
    text = f"{mean(values):.{digits}f}"
    return text if math.isinf(low) else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def is_whole(run: Run, rollouts: int) -> bool:
    """Whether a run has so many rollouts, or was ended by its guard."""
    return run.rollouts[-1] >= rollouts or run.facts["ended by"] == "guard"


def arm_line(runs: Sequence[Run], rollouts: int) -> dict[str, str]:
    """Return what became of an arm's seeds in the first rollouts; accuracies in per cent."""
    places = [max(i for i, at in enumerate(run.rollouts) if at <= rollouts) for run in runs]
    pairs = list(zip(runs, places, strict=True))
    losses = sorted(loss for run in runs if (loss := first_loss(run, rollouts)) is not None)
    alarms = sorted(int(run.facts["first alarm"]) for run in runs if run.facts["first alarm"])

    def last(name: str, scale: float) -> float:
        return mean(scale * run.curves[name][place] for run, place in pairs)

    return {
        "seeds": str(len(runs)),
        "summed rate": f"{mean(run.rates[place] for run, place in pairs):.0f}",
        "peak": with_interval([100 * peak(run, rollouts) for run in runs]),
        "end": with_interval([100 * end(run, rollouts) for run in runs]),
        "fell": f"{sum(has_fallen(run, rollouts) for run in runs)} of {len(runs)}",
        "first loss": ", ".join(map(str, losses)) or "-",
        "ended by guard": str(sum(run.facts["ended by"] == "guard" for run in runs)),
        "first alarm": ", ".join(map(str, alarms)) or "-",
        "agreement": f"{last('agreement', 100):.0f}",
        "entropy": f"{last('entropy', 1):.3f}",
        "length": f"{last('length', 1):.1f}",
    }


def arms_table(runs: Sequence[Run], rollouts: int) -> Rows:
    """Return a line for each arm that has whole runs, but for the points of the curve."""
    whole = [run for run in runs if is_whole(run, rollouts)]
    found = {arm: [run for run in whole if run.arm == arm] for arm in ARMS if arm not in CURVE}
    return {arm: arm_line(own, rollouts) for arm, own in found.items() if own}


def lengths(runs: Sequence[Run]) -> str:
    """Return how many rollouts some runs have: one number, or from fewest to most."""
    found = sorted({int(run.rollouts[-1]) for run in runs})
    return " to ".join(map(str, dict.fromkeys((found[0], found[-1]))))


def problems_table(runs: Sequence[Run]) -> Rows:
    """Return how many of the 128 held-out problems end in each way; means over seeds."""
    found = {arm: [run for run in runs if run.arm == arm] for arm in CLAIMS}
    return {
        arm: {
            "rollouts": lengths(own),
            **{name: f"{mean(float(run.facts[name]) for run in own):.1f}" for name in OUTCOMES},
        }
        for arm, own in found.items()
        if own
    }


def has_lines(run: Run) -> bool:
    """Whether a run has two agreements between 0 and 1, and two entropies, to draw a line by."""
    between = [share for share in run.curves["agreement"] if 0 < share < 1]
    return len(between) > 1 and len(set(run.curves["entropy"])) > 1


def laws_table(runs: Sequence[Run]) -> Rows:
    """Return the fits of two published laws (``benchmarks/laws.py``) to the claim's arms; means."""
    lines: Rows = {}
    for arm in CLAIMS:
        own = [run for run in runs if run.arm == arm and has_lines(run)]
        if own:
            growth = [fit_sharpening(run.rates, run.curves["agreement"]) for run in own]
            paid = [fit_entropy_law(run.curves["entropy"], run.accuracy) for run in own]
            lines[arm] = {
                "rollouts": lengths(own),
                "1/b": f"{mean(fit.slope for fit in growth):.3f}",
                "R2 of agreement": f"{mean(fit.r_squared for fit in growth):.2f}",
                "a": f"{mean(a for a, _, _ in paid):.2f}",
                "b": f"{mean(b for _, b, _ in paid):.2f}",
                "R2 of accuracy": f"{mean(fit.r_squared for _, _, fit in paid):.2f}",
            }
    return lines


def curve_table(runs: Sequence[Run]) -> Rows:
    """Return start and end of each point of the second family's curve; accuracies in per cent."""
    lines: Rows = {}
    for arm in CURVE:
        own = [run for run in runs if run.arm == arm and is_whole(run, 300)]
        if own:
            majority = mean(run.curves["majority"][0] for run in own)
            lines[arm] = {
                "seeds": str(len(own)),
                "start": f"{100 * mean(run.accuracy[0] for run in own):.1f}",
                "majority at the start": f"{100 * majority:.1f}",
                "end": with_interval([100 * end(run, 300) for run in own]),
                "fell": f"{sum(has_fallen(run, 300) for run in own)} of {len(own)}",
            }
    return lines


def words_table(results: Path) -> Rows:
    """Return how good the second family's checkpoints are, in per cent."""

    def cells(row: Mapping[str, str]) -> dict[str, str]:
        percent = {name: f"{100 * float(row[name]):.1f}" for name in row if name != "round"}
        span = f"{percent['low']} to {percent['high']}"
        sampled = f"{percent['sampled']} ({span})"
        return {"round": row["round"], "sampled": sampled, "majority@8": percent["majority@8"]}

    rows = read_or_empty(results / "study" / "words.csv")
    return {name.replace("/", " "): cells(row) for name, row in rows.items()}


def tables(runs: Sequence[Run]) -> dict[str, tuple[str, Rows]]:
    """Return each table by the name of its file, with the heading of its first column."""
    judging = [run for run in runs if run.seed in JUDGING]
    longer = {run.arm for run in judging if run.rollouts[-1] > 300}
    long = [run for run in judging if run.arm in longer]  # their guard may have ended some before
    sums = [run for run in judging if run.arm not in (*FAMILY, *SMOLLM2)]
    family = [run for run in judging if run.arm in FAMILY]
    large = [run for run in judging if run.arm in SMOLLM2]
    made = {
        "study_verdicts": ("no.", verdicts(judging)),
        "study": ("arm", arms_table(sums, 300)),
        "study_long": ("arm", arms_table(long, 1200)),
        "study_family": ("arm", arms_table(family, 300)),
        "study_smollm2": ("arm", arms_table(large, 270)),
        "study_problems": ("arm", problems_table(judging)),
        "study_laws": ("arm", laws_table(judging)),
        "study_indicators": ("warning", indicators_table(judging)),
        "study_curve": ("arm", curve_table(judging)),
    }
    return {name: table for name, table in made.items() if table[1]}


def refreshed(text: str, made: Mapping[str, Rows]) -> str:
    """Return a page with its marked tables and numbers replaced, those of other files left.

    A table keeps its headings, so it may show a part of its file's columns. Of a number with an
    interval a mark in the text shows the mean.
    """

    def table(match: re.Match[str]) -> str:
        mark, name, old = match.groups()
        if name not in made:
            return match[0]
        head = [cell.strip() for cell in old.splitlines()[0].split("|")[1:-1]]
        rows = [
            [f"`{row}`", *(cells[column] for column in head[1:])]
            for row, cells in made[name].items()
        ]
        return f"{mark}{markdown_table(head, rows)}\n"

    def number(match: re.Match[str]) -> str:
        begin, name, row, column, close = match.groups()
        cells = made.get(name, {}).get(row)
        return match[0] if cells is None else f"{begin}{cells[column].split(' (')[0]}{close}"

    return NUMBER.sub(number, TABLE.sub(table, text))


def write_report(results: Path = FOLDER, pages: Sequence[Path] | None = None) -> None:
    """Write the tables of what has run, and put their numbers into the pages.

    Args:
        results: folder of the result files.
        pages: Markdown pages whose marks are refreshed; None = the repository's, if ``results`` is
            its folder, else none.
    """
    made = tables(read_runs(results))
    if words := words_table(results):
        made["study_words"] = ("checkpoint", words)
    for name, (key, rows) in made.items():
        write_results(results / f"{name}.csv", {"command": COMMAND}, rows, key=key)
    for page in (PAGES if results.resolve() == FOLDER else ()) if pages is None else pages:
        page.write_text(
            refreshed(page.read_text(), {name: rows for name, (_, rows) in made.items()})
        )
    counts = [row["verdict"] for row in made["study_verdicts"][1].values()]
    words = ("held", "failed", "undecided", "not run yet")
    print("predictions: " + ", ".join(f"{counts.count(word)} {word}" for word in words))
