"""Which curves a report has: a list of panels, made from what the runs logged."""

from __future__ import annotations

from dataclasses import dataclass

from callbacks.report.read import Run, settings
from rlif_lightning.metric_names import VALIDATION


@dataclass(frozen=True)
class Series:
    """One curve of a logged figure, with its legend and its band.

    The band is ``y ± spread`` or ``low..high``.
    """

    column: str
    label: str
    spread: str | None = None
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        name: of its PNG.
        section: heading that it stands under.
        title: what is shown.
        unit: of the y axis.
        caption: how to read it.
        series: its curves.
        kind: lines | stack.
        share: the y axis is [0, 1].
        from_zero: the y axis starts at 0.
        log: a logarithmic y axis, where the curves span more than a power of ten.
    """

    name: str
    section: str
    title: str
    unit: str
    caption: str
    series: tuple[Series, ...]
    kind: str = "lines"
    share: bool = False
    from_zero: bool = True
    log: bool = False

    def drawn(self, runs: list[Run]) -> list[Series]:
        """Return the curves that some run has."""
        return [
            series
            for series in self.series
            if any(curve_of(run, series.column) is not None for run in runs)
        ]


def curve_of(run: Run, column: str):
    """Return x and y of a figure, or None; ``val/...`` comes from the evaluations."""
    return (run.evaluation if column.startswith(VALIDATION) else run.training).get(column)


FIXED = (
    Panel(
        "agreement",
        "Answers",
        "Agreement",
        "share",
        "Unanimous groups give the vote nothing to say: from there on certainty alone drives the"
        " policy. Where"
        " one answer rises over all prompts (CollapseGuard), they no longer matter to the policy.",
        (
            Series("vote/largest_cluster", "group's largest answer"),
            Series("vote/unanimous", "groups of one answer"),
            Series("vote/top_answer", "one answer, over all prompts"),
        ),
        share=True,
    ),
    Panel(
        "distinct_answers",
        "Answers",
        "Distinct answers in a batch",
        "answers",
        "Falls towards 1 when the policy gives one answer whatever the prompt.",
        (Series("vote/distinct_answers", "distinct answers"),),
    ),
    Panel(
        "entropy",
        "Policy",
        "Token entropy",
        "nats",
        "The band runs from the 10th to the 90th percentile of a rollout's tokens"
        " (EntropyMonitor). Near 0 the"
        " policy has nothing left to explore; a steep rise is the other way to collapse.",
        (
            Series("policy/entropy", "mean"),
            Series("entropy/p50", "median, band p10 to p90", low="entropy/p10", high="entropy/p90"),
        ),
    ),
    Panel(
        "length",
        "Completions",
        "Completion length",
        "tokens",
        "Certainty favours short completions, a vote may favour long ones: a drift is the first"
        " sign of either.",
        (Series("rollout/length", "mean length"),),
    ),
    Panel(
        "completeness",
        "Completions",
        "Completions that end and answer",
        "share",
        "The first two are near 1 in a healthy run. Repeated 4-grams (CollapseGuard) stay where"
        " they began.",
        (
            Series("rollout/ended", "ended by itself"),
            Series("rollout/parseable", "has an answer"),
            Series("rollout/repetition", "repeated 4-grams"),
        ),
        share=True,
    ),
    Panel(
        "vote_alignment",
        "Rewards",
        "Whether updates follow the vote",
        "correlation",
        "Inside groups, of a completion's advantage with the share of its group that gives its"
        " answer"
        " (CollapseGuard). Near 0 updates no longer favour what a group agrees on.",
        (Series("guard/vote_alignment", "advantage and vote"),),
    ),
    Panel(
        "certainty_share",
        "Rewards",
        "Share of |advantage| from certainty",
        "share",
        "Of all heads that reward the policy's own certainty (CollapseGuard). Near 1 it drives"
        " itself.",
        (Series("guard/certainty_share", "certainty heads"),),
        share=True,
    ),
    Panel(
        "alarms",
        "Policy",
        "Active alarms",
        "alarms",
        "Of CollapseGuard's detectors; the events name them.",
        (Series("guard/alarms", "alarms"),),
    ),
    Panel(
        "sampler_gap",
        "Policy",
        "How far the sampler is from the policy",
        "|log-prob difference|, nats",
        "Rounding alone, unless the sampler has other weights or computes otherwise. Below the"
        " noise floor KL-Cov"
        " takes a difference for rounding.",
        (
            Series("policy/sampler_gap", "mean, when sampled"),
            Series("policy/noise_floor", "noise floor"),
            Series("rollout/engine_gap", "mean, an engine's own log-probs"),
        ),
        log=True,
    ),
    Panel(
        "log_ratio",
        "Policy",
        "How far an update moves tokens",
        "|log ratio|, nats",
        "KL-Cov penalises this on the tokens that it picked; near 1e-3 a weight of 0.05 cannot be"
        " felt.",
        (
            Series("policy/log_ratio_picked", "picked tokens"),
            Series("policy/log_ratio", "all tokens"),
        ),
    ),
    Panel(
        "picked",
        "Policy",
        "Tokens that the objective singles out",
        "share of trained tokens",
        "Picked by KL-Cov or Clip-Cov; clipped by the surrogate.",
        (Series("policy/picked_fraction", "picked"), Series("policy/clip_fraction", "clipped")),
    ),
    Panel(
        "kl_cov_weight",
        "Policy",
        "KL-Cov's weight",
        "weight",
        "As set by KLCovScheduler.",
        (Series("kl_cov/weight", "weight"),),
    ),
    Panel(
        "grad_norm",
        "Optimisation",
        "Gradient norm before clipping",
        "norm",
        "A jump of a decade often comes before a collapse.",
        (Series("policy/grad_norm", "mean of its updates"),),
        from_zero=False,
        log=True,
    ),
    Panel(
        "learning_rate",
        "Optimisation",
        "Learning rate",
        "learning rate",
        "After each rollout.",
        (Series("policy/learning_rate", "learning rate"),),
    ),
    Panel(
        "reference_kl",
        "Policy",
        "KL to the reference model",
        "nats per token (k3)",
        "0 where the objective has no reference.",
        (Series("policy/reference_kl", "reference KL"),),
    ),
    Panel(
        "time",
        "Optimisation",
        "Time of a rollout's phases",
        "seconds",
        "Wall-clock time on the run's own machine, one above the other.",
        (
            Series("time/rollout", "sampling"),
            Series("time/reward", "rewards"),
            Series("time/update", "update"),
        ),
        kind="stack",
    ),
)
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
    caption = "Labels measure here; whether they train is told by the weights of the heads."
    return Panel(
        "accuracy", "Answers", "Accuracy", "share right", caption, tuple(series), share=True
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
        "Mean over completions; the band is the mean spread inside a group, which is all"
        " that"
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
        "How much of the training signal each head makes up. One head near 1 means that it"
        " alone"
        " is trained on."
    )
    share = Panel(
        "share",
        "Rewards",
        "Share of |advantage|",
        "share",
        caption,
        shares,
        kind="stack",
        share=True,
    )
    return [*panels, share]
