"""Make the tables of docs/metrics.md from rlif_lightning/metric_names/.

python scripts/metrics_page.py            # prints them
python scripts/metrics_page.py --write    # writes them into docs/metrics.md
python scripts/metrics_page.py --check    # exit code 1 if the page has others
"""

from __future__ import annotations

from pathlib import Path

from page_tables import command_line, replaced

from rlif_lightning.metric_names import LOGGED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- written by scripts/metrics_page.py -->", "<!-- end of the tables -->"
SECTIONS = {
    "reward": "Rewards, a set for each head",
    "dynamic": "Dynamic sampling",
    "vote": "Votes",
    "answer": "Tokens of the final answer",
    "code": "Code",
    "judge": "Judges",
    "turing": "Replies beside a human's",
    "supervised": "A stage on texts",
    "rubric": "Rubrics",
    "criterion": "Criteria of a rubric",
    "entity": "Entity rubrics",
    "checker": "Checkers: claims against evidence, and CheckerMonitor",
    "rollout": "Completions of a rollout",
    "episode": "Episodes",
    "environment": "What an environment measures",
    "reuse": "ReuseRL",
    "policy": "Policy",
    "replay": "Replayed groups",
    "teacher": "A teacher with feedback",
    "update": "Work of the updates",
    "time": "Time",
    "<stage>": "Evaluation",
    "guard": "CollapseGuard",
    "entropy": "EntropyMonitor",
    "kl_cov": "KLCovScheduler",
    "stare": "STAREController",
    "overclaim": "OverclaimMonitor",
    "stopping": "LabelFreeStopping",
}


def tables() -> str:
    """Return the tables as Markdown, a section for each first part of the names."""
    parts, bar = [], r"\|"
    for prefix, title in SECTIONS.items():
        parts += [
            f"## {title}",
            "| figure | unit | what it is | over | computed in |\n| --- | --- | --- | --- | --- |",
        ]
        for name, figure in LOGGED.items():
            if name.startswith(f"{prefix}/"):
                owner = f"[{Path(figure.owner).name}](../{figure.owner})"
                cells = (f"`{name}`", figure.unit, figure.meaning, figure.over, owner)
                parts.append(f"| {' | '.join(cell.replace('|', bar) for cell in cells)} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def written(page: str) -> str:
    """Return the page with today's tables."""
    return replaced(page, (BEGIN, END), tables())


def main() -> None:
    """Run the command line."""
    stale = "docs/metrics.md has other tables; run scripts/metrics_page.py --write"
    command_line(__doc__, PAGE, (BEGIN, END), tables(), stale)


if __name__ == "__main__":
    main()
