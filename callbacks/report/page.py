"""The report as one HTML page, with embedded pictures and without scripts.

Every text is escaped: completions are untrusted.
"""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from callbacks.report.curves import Panel
from callbacks.report.panels import SECTIONS
from callbacks.report.read import Run, settings
from callbacks.report.tables import cell, compared, examples, glance, table

MAX_ROWS = 200  # events shown
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1360px;
margin:0 auto;padding:1.5rem}
h1{font-size:1.6rem;margin:0 0 .2rem}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem;border-bottom:2px solid #ddd}
h3{font-size:1rem;margin:1.2rem 0 .4rem}p.sub{color:#444;margin:.1rem 0}
.note{background:#fff4e0;border-left:4px solid #d55e00;padding:.5rem .8rem;margin:.6rem 0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(360px,100%),1fr));gap:1rem}
figure{margin:0;border:1px solid #e2e2e2;border-radius:6px;padding:.5rem}
figure img{width:100%;height:auto;display:block}
figcaption{color:#444;font-size:.85rem;padding:.2rem .4rem}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;margin:.4rem 0;font-size:.92rem}
th,td{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code,pre,td.text{font-family:ui-monospace,monospace;font-size:.86rem;overflow-wrap:anywhere;
white-space:pre-wrap}
td.text{max-width:620px}pre{background:#f6f6f6;padding:.8rem;border-radius:6px}
.yes{color:#00684b;font-weight:600}.no{color:#a63c00;font-weight:600}
summary{cursor:pointer;font-weight:600;margin:.5rem 0}
"""


def page(
    title: str, runs: list[Run], panels: list[Panel], images: dict[str, bytes], made_with: str
) -> str:
    """Return the whole page; ``images`` are PNGs by a panel's name."""
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="sub">{_named(run, runs)}{ended(run)}</p>' for run in runs),
        *(f'<p class="sub">{_summary(run)}</p>' for run in runs),
        *(
            f'<p class="note">{_named(run, runs)}{escape(note)}</p>'
            for run in runs
            for note in run.notes
        ),
        "<h2>At a glance</h2>",
        glance(runs[0]) if len(runs) == 1 else compared(runs),
        *(_section(name, panels, images) for name in SECTIONS),
        _events(runs),
        *(_examples(run, runs) for run in runs),
        _differences(runs),
        *(_config(run) for run in runs),
        _versions(runs, made_with),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _named(run: Run, runs: list[Run]) -> str:
    return f"<b>{escape(run.label)}</b>: " if len(runs) > 1 else ""


def ended(run: Run) -> str:
    """Say why and when the run ended, and what it was: its seed, policy, rewards and optimiser."""
    if run.end is None:
        return f"Running, killed, or its machine was lost: no end was written. {_setup(run)}"
    values = run.end.get("values")
    named = values if isinstance(values, dict) else {}
    reason, code = (cell(named.get(name, "unknown")) for name in ("reason", "exit_code"))
    planned = f" of {named['planned']:.0f} planned" if _is_count(named.get("planned")) else ""
    when = f"after rollout {cell(run.end.get('rollout', '?'))}{planned}"
    why = f"<b>Ended: {reason}</b> {when} (exit code {code}): {cell(run.end.get('message', ''))}"
    return f"{why}. {_setup(run)}"


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _setup(run: Run) -> str:
    """Say in one line what was trained how, as far as config.yaml says it."""
    found = settings(run)
    heads = [
        f"{found.get(name.replace('.head.class_path', '.weight'), '1')} x {name.split('.')[2]}"
        for name in found
        if name.startswith("model.rewards.") and name.endswith(".head.class_path")
    ]
    parts = {
        "seed": found.get("seed_everything"),
        "policy": found.get("model.policy.name"),
        "rewards": " + ".join(heads),
        "objective": found.get("model.objective.class_path", "").rpartition(".")[2],
        "learning rate": found.get("model.optimizer.init_args.lr"),
    }
    shown = [f"{name} {cell(value)}" for name, value in parts.items() if value]
    return f"{', '.join(shown)}." if shown else ""


def _summary(run: Run) -> str:
    rollouts = int(run.training.x.max()) if len(run.training.x) else 0
    parts = [
        f"{rollouts} rollouts",
        f"{len(run.evaluation.x)} evaluations",
        f"{len(run.events)} marked events",
    ]
    seconds = [
        run.training.columns.get(f"time/{phase}") for phase in ("rollout", "reward", "update")
    ]
    known = [float(np.nansum(values)) for values in seconds if values is not None]
    if known:
        parts.append(f"{_duration(sum(known))} in training steps")
    return f"<b>{escape(run.label)}</b>: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {seconds % 60:.0f} s"
    )


def _section(name: str, panels: list[Panel], images: dict[str, bytes]) -> str:
    shown = [panel for panel in panels if panel.section == name]
    if not shown:
        return ""
    figures = []
    for panel in shown:
        data = base64.b64encode(images[panel.name]).decode()
        alt = escape(f"{panel.title}, {panel.unit}, by rollout", quote=True)
        caption = f"<figcaption>{escape(panel.caption)}</figcaption>"
        figures.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">{caption}</figure>'
        )
    return f'<h2>{escape(name)}</h2><div class="grid">{"".join(figures)}</div>'


def _events(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        for number, event in enumerate(run.events, 1):
            cells = (event.get(name, "") for name in ("rollout", "source", "kind", "message"))
            rows.append(
                (str(number), *([escape(run.label)] if len(runs) > 1 else []), *map(cell, cells))
            )
    if not rows:
        return ""
    more = (
        f"<p>{len(rows) - MAX_ROWS} more are in events.jsonl.</p>" if len(rows) > MAX_ROWS else ""
    )
    headings = ("", *(["run"] if len(runs) > 1 else []), "rollout", "source", "kind", "message")
    note = (
        "<p>Triangles above the pictures carry these numbers; schedule changes are triangles on"
        " the axis.</p>"
    )
    return f"<h2>Marked events</h2>{note}{table(headings, rows[:MAX_ROWS], [0])}{more}"


def _examples(run: Run, runs: list[Run]) -> str:
    shown = examples(run)
    return f"<h2>Example completions</h2>{_named(run, runs)}{shown}" if shown else ""


def _differences(runs: list[Run]) -> str:
    """Tabulate the settings in which several runs differ."""
    if len(runs) < 2:
        return ""
    flat = [settings(run) for run in runs]
    names = sorted({name for values in flat for name in values})
    rows = [(name, [values.get(name, "") for values in flat]) for name in names]
    different = [
        (f"<code>{escape(name)}</code>", *map(cell, cells))
        for name, cells in rows
        if len(set(cells)) > 1
    ]
    headings = ("setting", *(escape(run.label) for run in runs))
    return (
        "<h2>Settings that differ</h2>"
        f"{table(headings, different) if different else '<p>None.</p>'}"
    )


def _config(run: Run) -> str:
    text = escape(run.config) if run.config else "No config.yaml in the run's folder."
    return (
        f"<details><summary>config.yaml of {escape(run.label)}</summary><pre>{text}</pre></details>"
    )


def _versions(runs: list[Run], made_with: str) -> str:
    names = sorted({name for run in runs for name in run.versions})
    rows = [
        (escape(name), *(cell(run.versions.get(name, "not recorded")) for run in runs))
        for name in names
    ]
    headings = ("", *(escape(run.label) for run in runs))
    made = f"<p>This page was made by {escape(made_with)}.</p>"
    recorded = (
        table(headings, rows)
        if rows
        else "<p>Not recorded: RunReport was not among the run's callbacks.</p>"
    )
    return f"<h2>Versions</h2>{recorded}{made}"
