"""Which pictures a report has: a list of panels, made from what the runs logged."""

from __future__ import annotations

from callbacks.report.curves import Panel, Series, curve_of
from callbacks.report.fixed_panels import FIXED
from callbacks.report.read import Run, settings

OVERVIEW = ("accuracy", "agreement", "entropy", "length", "log_ratio", "grad_norm")
SECTIONS = ("Answers", "Rewards", "Completions", "Policy", "Optimisation")


def panels_of(runs: list[Run]) -> list[Panel]:
    """Return every panel that one of the runs has a curve for, by section."""
    found = [_accuracy(runs), *_rewards(runs), *FIXED]
    shown = [panel for panel in found if panel.drawn(runs) and not _flat_zero(panel, runs)]
    return sorted(shown, key=lambda panel: SECTIONS.index(panel.section))


def _flat_zero(panel: Panel, runs: list[Run]) -> bool:
    """Return whether a figure that is 0 when not in use is 0 throughout."""
    curves = [curve_of(run, series.column) for run in runs for series in panel.drawn(runs)]
    idle = all(curve is None or not (curve[1][curve[1] == curve[1]] != 0).any() for curve in curves)
    return panel.name in ("reference_kl", "picked", "certainty_share") and idle


def _accuracy(runs: list[Run]) -> Panel:
    logged = sorted({name for run in runs for name in run.evaluation.columns})
    series = [
        Series(
            "val/accuracy",
            "held-out, each sample",
            low="val_low/accuracy",
            high="val_high/accuracy",
        )
    ]
    series += [
        Series(name, f"held-out, majority of {name[8:]}")
        for name in logged
        if name.startswith("val/maj@")
    ]
    series += [Series("val/greedy_accuracy", "held-out, greedy")]
    series += [
        Series(f"reward/{head}/mean", f"training samples (head {head})")
        for head in _gold_heads(runs)
    ]
    caption = "Labels measure here. The weights of the heads say whether labels train as well."
    return Panel(
        "accuracy", "Answers", "Accuracy", "share right", caption, tuple(series), is_share=True
    )


def _gold_heads(runs: list[Run]) -> list[str]:
    ends = "head.class_path"
    named = {
        name.split(".")[2]
        for run in runs
        for name, value in settings(run).items()
        if name.startswith("model.rewards.")
        and name.endswith(ends)
        and value.split(".")[-1] == "GoldAnswer"
    }
    return sorted(named)


def _rewards(runs: list[Run]) -> list[Panel]:
    """Make a panel for each head, since their scales differ, and one for their shares of |A|."""
    names = sorted(
        {name for run in runs for name in run.training.columns if name.startswith("reward/")}
    )
    heads = sorted({name.split("/")[1] for name in names})
    caption = (
        "Mean over completions; the band is the mean spread inside a group, which is all that"
        " advantages see."
    )
    panels = [
        Panel(
            f"reward_{head}",
            "Rewards",
            f"Reward: {head}",
            "score",
            caption,
            (Series(f"reward/{head}/mean", "mean", spread=f"reward/{head}/group_std"),),
            from_zero=False,
        )
        for head in heads
    ]
    shares = tuple(Series(f"reward/{head}/share", head) for head in heads)
    caption = (
        "How much of the training signal each head makes up. One head near 1 means that the run"
        " trains on it alone."
    )
    share = Panel(
        "share",
        "Rewards",
        "Share of |advantage|",
        "share",
        caption,
        shares,
        kind="stack",
        is_share=True,
    )
    return [*panels, share]
