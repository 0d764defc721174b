"""Preflight as tables: figures, verdicts in words, and the thresholds that they rest on."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlif_lightning.evaluation.preflight import THRESHOLDS, Findings, HeadFindings
from rlif_lightning.running.plain_json import json_lines, json_text

WIDTH = 80  # columns where the output is no terminal
COLORS = {"good": "green", "caution": "yellow", "poor": "red"}


def print_findings(found: Findings) -> None:
    """Print the figures as tables, with the verdicts in words and the thresholds explained."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_groups_table(found))
    console.print(_heads_table(found.heads))
    for name, verdict, why in [
        ("groups", found.verdict, found.why),
        *((h.name, h.verdict, h.why) for h in found.heads),
    ]:
        print_verdict(console, name, verdict, why)
    console.print(Text("Thresholds, ours:", "bold"))
    for name, (value, meaning) in THRESHOLDS.items():
        text = Text(f"{name} = {value:g}: {meaning}", "dim")
        console.print(Padding(text, (0, 0, 0, 2)))


def print_verdict(console: Console, name: str, verdict: str, why: str) -> None:
    """Print a verdict and its reason, further lines below the first one's words."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=8, justify="right")
    grid.add_column(overflow="fold")
    grid.add_row(Text(verdict, COLORS[verdict]), f"{name}: {why}")
    console.print(grid)


def _groups_table(found: Findings) -> Table:
    title = (
        f"Preflight: {found.groups} training problems x {found.group_size} completions of the"
        " starting policy"
    )
    table = Table(title=title, title_justify="left", padding=(0, 0, 0, 1))
    shares = {
        "mixed answers": found.mixed,
        "unanimous": found.unanimous,
        "agreement": found.agreement,
        "has answer": found.parseable,
        "ended": found.ended,
        "right": found.accuracy,
        "majority right": found.majority_right,
    }
    shown = {name: f"{100 * share:.1f} %" for name, share in shares.items() if share is not None}
    shown["length"] = f"{found.mean_length:.1f}"
    for name in shown:
        table.add_column(name, justify="right")
    table.add_row(*shown.values())
    return table


def _heads_table(heads: list[HeadFindings]) -> Table:
    table = Table(title="Inside groups, each head's score", title_justify="left")
    table.add_column("head", overflow="fold")
    for heading in (
        "weight",
        "differs in",
        "r with agreement",
        "r with length",
        "AUC for right",
        "verdict",
    ):
        table.add_column(heading, justify="right")
    for head in heads:
        figures = (head.agreement_correlation, head.length_correlation)
        correlations = ["-" if value is None else f"{value:+.2f}" for value in figures]
        auc = "-" if head.auc is None else f"{head.auc:.2f}"
        verdict = Text(head.verdict, COLORS[head.verdict])
        table.add_row(
            head.name, f"{head.weight:g}", f"{100 * head.varied:.0f} %", *correlations, auc, verdict
        )
    return table


def write_findings(
    findings: Findings,
    records: list[dict[str, Any]],
    path: Path,
    memory: dict[str, int] | None = None,
) -> None:
    """Write the figures with their thresholds, and the completions beside them.

    Args:
        findings: of ``examine``.
        records: one for each completion.
        path: of the figures; the completions get the suffix ``.jsonl``.
        memory: bytes that one process needs; None = not counted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    thresholds = {name: value for name, (value, _) in THRESHOLDS.items()}
    content = {**asdict(findings), "thresholds": thresholds, "memory_bytes": memory}
    path.write_text(json_text(content, indent=1) + "\n")
    path.with_suffix(".jsonl").write_text(json_lines(records))


def print_episodes(records: list[dict[str, Any]]) -> None:
    """Print how long episodes are, what they are paid, and how they end; nothing without any."""
    episodes = [record["episode"] for record in records if "episode" in record]
    if not episodes:
        return
    turns = sum(len(each["turns"]) for each in episodes) / len(episodes)
    paid = [each["reward"] for each in episodes if each["reward"] is not None]
    reward = f"{sum(paid) / len(paid):.2f}" if paid else "none"
    stops = Counter(each["stop"] for each in episodes).most_common()
    shares = ", ".join(f"{stop} {100 * count / len(episodes):.0f} %" for stop, count in stops)
    print(f"episodes: {turns:.1f} turns and reward {reward} on average\n  ended by {shares}")


def print_judges(records: list[dict[str, Any]], per_rollout: int) -> None:
    """Print what each judge will cost in a rollout, by what the sample cost.

    Args:
        records: one for each completion.
        per_rollout: completions of a rollout.
    """
    heads = dict.fromkeys(name for record in records for name in record.get("extra", {}))
    for name in heads:
        cost = [record["extra"][name] for record in records]
        if any("judge_calls" not in each for each in cost):
            continue
        calls, tokens, money = (
            sum(each[f"judge_{figure}"] for each in cost) * per_rollout / len(cost)
            for figure in ("calls", "tokens", "cost")
        )
        print(
            f"judge of {name}: a rollout of {per_rollout} completions will make\n"
            f"  about {calls:.0f} calls of {tokens:.0f} tokens"
            + (f", for {money:.2g} by judge.prices" if money else "")
        )
