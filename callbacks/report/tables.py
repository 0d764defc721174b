"""Tables of the report as HTML: main figures, and groups of completions.

Every text is escaped: completions are untrusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from callbacks.report.curves import curve_of
from callbacks.report.read import Run

MAX_TEXT = 600  # characters shown of a prompt or completion
EXAMPLE_ROLLOUTS = 5
FIGURES = (
    ("val/accuracy", "held-out accuracy", "%"),
    ("val/greedy_accuracy", "held-out accuracy, greedy", "%"),
    ("vote/largest_cluster", "agreement in training groups", "%"),
    ("vote/unanimous", "unanimous groups", "%"),
    ("policy/entropy", "token entropy, nats", ""),
    ("rollout/length", "completion length, tokens", ""),
    ("rollout/ended", "ended by itself", "%"),
    ("rollout/parseable", "has an answer", "%"),
    ("policy/grad_norm", "gradient norm", ""),
)


def table(
    headings: Iterable[str], rows: Iterable[Iterable[str]], numeric: Iterable[int] = ()
) -> str:
    """Return a table of cells that are HTML already; ``numeric`` columns align to the right."""
    right = set(numeric)

    def cells(tag: str, values: Iterable[str]) -> str:
        made = (
            f'<{tag} class="n">{v}</{tag}>' if k in right else f"<{tag}>{v}</{tag}>"
            for k, v in enumerate(values)
        )
        return f"<tr>{''.join(made)}</tr>"

    made = f"{cells('th', headings)}{''.join(cells('td', row) for row in rows)}"
    return f'<div class="scroll"><table>{made}</table></div>'  # a narrow screen scrolls in it


def glance(run: Run) -> str:
    """Tabulate the first, last, lowest and highest value of the main figures."""
    rows = []
    for column, label, unit in FIGURES:
        if (curve := curve_of(run, column)) is not None:
            x, y = (values[np.isfinite(curve[1])] for values in curve)
            low, high = int(y.argmin()), int(y.argmax())
            extremes = (f"{_shown(y[k], unit)} <small>({x[k]:.0f})</small>" for k in (low, high))
            rows.append((label, _shown(y[0], unit), _shown(y[-1], unit), *extremes))
    if not rows:
        return "<p>No figures were logged.</p>"
    return table(("", "first", "last", "lowest (rollout)", "highest (rollout)"), rows, range(1, 5))


def compared(runs: list[Run]) -> str:
    """Tabulate the main figures of several runs: first, last and, in brackets, the highest."""
    rows = []
    for column, label, unit in FIGURES:
        cells = []
        for run in runs:
            curve = curve_of(run, column)
            y = [] if curve is None else curve[1][np.isfinite(curve[1])]
            shown = [_shown(value, unit) for value in (y[0], y[-1], max(y))] if len(y) else None
            cells.append(f"{shown[0]} → {shown[1]} <small>({shown[2]})</small>" if shown else "-")
        rows.append((label, *cells))
    headings = ("first → last (highest)", *(escape(run.label) for run in runs))
    return table(headings, rows, range(1, len(runs) + 1))


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g}"


def cell(value: Any) -> str:
    """Escape a value, and truncate a long one."""
    text = str(value)
    return escape(
        text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text)} characters)"
    )


def examples(run: Run) -> str:
    """Show one group of a few rollouts, from the first to the last; nothing without completions."""
    rollouts = sorted({record["rollout"] for record in run.completions})
    if not rollouts:
        return ""
    places = (
        np.linspace(0, len(rollouts) - 1, min(EXAMPLE_ROLLOUTS, len(rollouts))).round().astype(int)
    )
    parts = []
    for rollout in (rollouts[place] for place in places):
        records = [record for record in run.completions if record["rollout"] == rollout]
        first = records[0].get("index")
        group = [record for record in records if record.get("index") == first]
        prompt = cell(group[0].get("prompt", ""))
        parts.append(f"<h3>Rollout {cell(rollout)}: <code>{prompt}</code></h3>{_group(group)}")
    return "".join(parts)


def _group(group: list[dict[str, Any]]) -> str:
    """Tabulate a group, one line per distinct completion, the best advantage first."""
    ordered = sorted(group, key=lambda record: -_finite(record.get("advantage")))
    copies = Counter(str(record.get("completion")) for record in group)
    distinct = {str(record.get("completion")): record for record in reversed(ordered)}
    heads = [name for name in _scores(group[0])]
    rows = []
    for text, record in reversed(distinct.items()):
        verdict = {True: '<span class="yes">yes</span>', False: '<span class="no">no</span>'}
        scores = [_score(_scores(record).get(head)) for head in heads]
        length = f"{cell(record.get('length', ''))}{'' if record.get('ended', True) else ' cut'}"
        answer = (
            "<i>none</i>"
            if record.get("answer") is None
            else f"<code>{cell(record['answer'])}</code>"
        )
        right = verdict.get(bool(record["correct"]), "") if "correct" in record else ""
        advantage = f"{_finite(record.get('advantage')):+.2f}"
        rows.append(
            (
                str(copies[text]),
                f"<code>{cell(text)}</code>",
                answer,
                right,
                *scores,
                advantage,
                length,
            )
        )
    headings = (
        "times",
        "completion",
        "answer",
        "right",
        *map(escape, heads),
        "advantage",
        "tokens",
    )
    return table(headings, rows, [0, *range(4, 6 + len(heads))])


def _scores(record: dict[str, Any]) -> dict[str, Any]:
    scores = record.get("scores")
    return scores if isinstance(scores, dict) else {}


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else 0.0


def _score(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
