"""The table of figures against what a run logs, what code and docs read, and the page that is
written from it.
"""

from __future__ import annotations

import ast
import csv
import functools
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import metrics_page
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlif_lightning
from benchmarks import study_rows
from callbacks import __all__ as CALLBACKS
from callbacks import sampler_gap
from callbacks.guard_detectors import DETECTORS
from callbacks.label_free_stopping import SIGNALS
from callbacks.report import read_run
from callbacks.report.curves import Panel
from callbacks.report.fixed_panels import FIXED
from callbacks.report.panels import panels_of
from callbacks.report.read import PLACE, Run
from callbacks.report.tables import FIGURES
from harness.cases import check_each, from_root
from harness.decoding import sampler
from harness.episodes import forking
from harness.files import known_to_git
from harness.judge_server import judge_server
from harness.runs import BASE, fit, run_with
from rlif_lightning import cli
from rlif_lightning.judges.base import Request
from rlif_lightning.judges.pairwise import MERITS, PENALTIES, SIDES
from rlif_lightning.metric_names import LOGGED, VALIDATION, entry_of
from rlif_lightning.rewards import RewardHead

ROOT = Path(__file__).resolve().parent.parent

STAGES = [stage + end for stage in ("val", "test") for end in ("", "_low", "_high")]
PREFIXES = {entry.split("/")[0] for entry in LOGGED} - {"<stage>"} | set(STAGES)
# A name, or a template of names: {} and <> and * stand for anything, {a,b} for each of its parts.
NAME = re.compile(rf"(?:{'|'.join(sorted(PREFIXES))})/(?:[\w@*]|\{{[\w,]*\}}|<\w+>|/)*")
SETTINGS = {"sandbox": {"isolation": "rlimits+", "workers": 1}}
JUDGE = {"class_path": "RuleJudge", "init_args": {"rule": "test_metric_names.middling"}}
CRITERIA = {"criteria": {
    name: {"criterion": {"class_path": "Matches", "init_args": {"pattern": name}}}
    for name in ("a", "b")
}}  # fmt: skip
# Two criteria whose heads log figures of the same names.
VOTES = {
    name: {"criterion": {"class_path": "Scored", "init_args": {"head": "ClusterVote"}}}
    for name in ("first", "second")
}
CHECKER = {
    "head": "GradedAnswer",
    "scorer": {"class_path": "JudgeScorer", "init_args": {"judge": JUDGE}},
    "evidence": {"class_path": "EvidenceColumn", "init_args": {"column": "test_list"}},
}
HEADS = {
    "vote": "ClusterVote",  # first: CollapseGuard takes the first vote's answers
    "behaviour": {"class_path": "BehaviourVote", "init_args": SETTINGS},
    "tests": {"class_path": "CodeTests", "init_args": SETTINGS},
    "format": {"class_path": "Format", "init_args": {"pattern": "="}},
    "trace": {
        "class_path": "EntityRubric",
        "init_args": {"head": "GoldAnswer", "column": "test_list"},
    },
    "judge": {
        "class_path": "JudgeHead",
        "init_args": {"judge": JUDGE, "template": "{completion}"},
    },
    "rubric_judge": {
        "class_path": "RubricJudgeHead",
        "init_args": {"judge": JUDGE},
    },
    "steps": {
        "class_path": "StepRubricJudgeHead",
        "init_args": {"judge": JUDGE},
    },
    "checker": {"class_path": "CheckerReward", "init_args": CHECKER},
    "pairwise": {
        "class_path": "PairwiseJudgeHead",
        "init_args": {
            "judge": {"class_path": "RuleJudge", "init_args": {"rule": "test_metric_names.even"}},
            "column": "answer",
            "reasons": False,
        },
    },
    "similar": {
        "class_path": "SimilarityJudgeHead",
        "init_args": {"judge": JUDGE, "column": "answer"},
    },
    "target": {"class_path": "TargetLogprob", "init_args": {"column": "answer"}},
    "overlong": {"class_path": "OverlongPenalty", "init_args": {"limit": 6, "buffer": 3}},
    "rubric": {"class_path": "Rubric", "init_args": {"weighting": "category", **CRITERIA}},
    **{
        name.lower(): name
        for name in (
            "DropTruncated",
            "GoldAnswer",
            "GradedAnswer",
            "Length",
            "MeanLogprob",
            "NegativeEntropy",
            "Random",
            "SCRL",
            "SelfCertainty",
            "ShortAnswerPenalty",
            "VoteBand",
        )
    },
}


def middling(request: Request) -> str:
    return "Score: 3"


FLIPPING = {
    "class_path": "FlipWeight",
    "init_args": {"head": {"class_path": "ClusterVote"}},
}
ACTING_HEADS = {"game": "EnvironmentReward", "reuse": "ReuseRL"}


def paid(url: str) -> dict[str, Any]:
    """A head that asks a judge with prices."""
    judge = {"url": url, "model": "a", "prices": [2.0, 5.0]}
    given = {"judge": {"class_path": "EndpointJudge", "init_args": judge}}
    return {"class_path": "JudgeHead", "init_args": {**given, "template": "{completion}"}}


def even(request: Request) -> str:
    values = dict.fromkeys((*MERITS, *PENALTIES), 0.5)
    return json.dumps(dict.fromkeys(SIDES, values))


MONITORED = {"proxy": "format", "gold": "goldanswer"}
LOOP = {name: {"start": 0.1, "points": [[2, 0.05]]} for name in ("weight", "fraction")}
NEEDED = {
    "KLCovScheduler": LOOP,
    "LearningRateFactors": {"factors": [[1, 0.5]]},
    "OverclaimMonitor": MONITORED,
    "CheckerMonitor": {"search": "="},
}
# They log nothing: one needs the hub (test_model_card.py), one a teacher (test_sandbox_trace.py).
SILENT = {"HubExporter", "SandboxTrace"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """The folder of a run, and a test of its policy, with all that logs: each head, callback,
    detector and engine.
    """
    folder = tmp_path_factory.mktemp("everything")
    objective = {"class_path": "KLCov", "init_args": {"reference_kl": {"weight": 0.01}}}
    rewards = {name: {"head": head, "weight": 1.0} for name, head in HEADS.items()}
    given = [
        "--data.source=harness.programs.ProgrammingProblems",
        *sampler(noise=0.01, max_ratio=2.0),
        f"--model.objective={json.dumps(objective)}",
        "--model.answer_tokens.factor=0.5",
        f"--model.rewards={json.dumps(rewards)}",
        '--model.dynamic_sampling={"heads": ["vote"], "max_draws": 2}',
        "--model.replay.groups=2",
    ]
    callbacks = [
        {"class_path": name, "init_args": NEEDED.get(name, {})}
        for name in CALLBACKS
        if name not in {"STAREController", *SILENT}
    ]
    next(each for each in callbacks if each["class_path"] == "HFExporter")["init_args"] = {
        "monitor": "val/accuracy"
    }
    added = [
        f"--trainer.callbacks+={json.dumps(each)}"
        for each in callbacks
        if each["class_path"] != "SamplerGap"
    ]
    fit(folder, "--compare=true", *given, "--trainer.check_val_every_n_epoch=1", *added)
    steered = ["--model.objective=STARE", "--trainer.limit_val_batches=0"]
    run_with(folder / "stare", "STAREController", *steered, rollouts=1)
    template = "--model.objective.teacher.template={feedback} {prompt}"
    taught = ["--model.objective=DistIL", template, "--model.rewards={gold: {head: GoldAnswer}}"]
    fit(folder / "distil", *taught, "--trainer.limit_val_batches=0")
    texts = ["--model.objective=Supervised", "--model.rewards={}", "--data.group_size=1"]
    fit(folder / "supervised", *texts, "--trainer.limit_val_batches=0")
    head = {"class_path": "Rubric", "init_args": {"criteria": CRITERIA["criteria"] | VOTES}}
    twice = ["--trainer.max_epochs=2", "--data.prompts_per_rollout=16"]
    with judge_server() as server:
        heads = {"rubric": {"head": head}, "paid": {"head": paid(server.url)}}
        heads["flipping"] = {"head": FLIPPING}
        pow3r = f"--model.rewards={json.dumps(heads)}"
        fit(folder / "pow3r", pow3r, *twice, "--trainer.limit_val_batches=0")
    heads = json.dumps({name: {"head": head} for name, head in ACTING_HEADS.items()})
    acting = [*forking(folder / "forgetful"), f"--model.rewards={heads}"]
    fit(folder / "acting", *acting, "--trainer.check_val_every_n_epoch=1")
    cli.main(
        [
            "test",
            *[each for each in BASE if "compare" not in each],
            *given,
            f"--trainer.default_root_dir={folder}",
        ]
    )
    return folder


def columns(folder: Path) -> set[str]:
    """Names with a value in the tables that runs wrote."""
    found = set()
    for path in folder.rglob("metrics.csv"):
        with path.open() as file:
            found |= {name for row in csv.DictReader(file) for name, cell in row.items() if cell}
    return found - set(PLACE)


def test_the_run_has_every_head_and_callback():
    """So that a new one, which may log, is in it."""
    public = [getattr(rlif_lightning, name) for name in rlif_lightning.__all__]
    heads = {
        kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, RewardHead)
    }
    used = {head if isinstance(head, str) else head["class_path"] for head in HEADS.values()}
    used |= {*ACTING_HEADS.values()}
    # They log nothing of their own: a function logs what its writer names.
    silent = {"OfflineVote", "RewardFunction", "RewardModel", "TrainFirst"}
    used.add(FLIPPING["class_path"])
    assert used == heads - {"RewardHead"} - silent


@pytest.mark.full  # every name in code and docs: below
def test_everything_that_is_logged_is_in_the_table(everything):
    assert not {name for name in columns(everything) if entry_of(name) is None}


@pytest.mark.full  # every name in code and docs: below
def test_everything_in_the_table_is_logged(everything):
    logged = columns(everything)
    assert set(LOGGED) == {entry_of(name) for name in logged}
    assert {name.split("/")[0] for name in logged if entry_of(name) == "<stage>/accuracy"} == set(
        STAGES
    )


@pytest.mark.full  # test_completion_writer.py reads TensorBoard's
def test_tensorboard_has_the_same_figures(everything):
    found = set()
    for path in everything.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(path)).Reload()
        found |= set(events.Tags()["scalars"])
    assert found - {"epoch", "hp_metric"} == columns(everything)


def series_of(panel: Panel) -> Iterator[str]:
    for series in panel.series:
        yield from (
            name
            for name in (series.column, series.spread, series.low, series.high)
            if name is not None
        )


def runs_of(everything: Path) -> list[Run]:
    """The runs that logged something."""
    return [read_run(path.parent) for path in sorted(everything.rglob("metrics.csv"))]


@pytest.mark.full  # every name in code and docs: below
def test_what_is_read_is_in_the_table(everything):
    panels = panels_of(runs_of(everything))
    read = {name for panel in [*panels, *FIXED] for name in series_of(panel)}
    read |= {name for name, _, _ in FIGURES} | {detector.metric for detector in DETECTORS.values()}
    read |= {name for names in SIGNALS.values() for name in names.values()}
    read |= {
        sampler_gap.OWN,
        sampler_gap.ENGINE,
        *(f"val/{name}" for name in study_rows.FIGURES.values()),
    }
    assert not {name for name in read if entry_of(name) is None}


@pytest.mark.full  # test_run_report.py draws
def test_the_report_draws_every_curve_that_it_has(everything):
    """Of runs that log everything, no panel and no curve of one stays away."""
    runs = runs_of(everything)
    panels = {panel.name: panel for panel in panels_of(runs)}
    assert not {panel.name for panel in FIXED} - set(panels)
    assert not [
        series.label
        for panel in panels.values()
        for series in panel.series
        if series not in panel.drawn(runs)
    ]


# What a report has no curve of. A new figure is drawn, or named here.
NOT_DRAWN = {
    *(
        "reward/<head>/std",
        "reward/<head>/gradient_norm",
        "reward/<head>/<figure>",
        "reward/<head>/first_mean",
        "vote/undecided",
        "vote/flip_weight",
        "code/solved",
        "time/judge",
        "criterion/<criterion>",
        "criterion/<criterion>/<figure>",
        "entity/recall",
        "entity/recall_wrong",
        "policy/entropy_picked",
        "answer/located",
        "answer/tokens",
    ),
    *(f"judge/{name}" for name in ("questions", "calls", "cost", "failed", "unparsed")),
    "judge/steps",
    *("judge/prompt_tokens", "judge/completion_tokens"),
    *(f"turing/{name}" for name in ("rating", "copied", "well_formed")),
    "supervised/loss",
    *(f"dynamic/{name}" for name in ("extra_groups", "empty_places", "discarded_tokens")),
    *(f"replay/{name}" for name in ("groups", "age", "ratio", "clip_fraction")),
    *("rollout/engine_gap_max", "rollout/engine_weight", "rollout/engine_bounded"),
    "rollout/tokens_per_second",
    *(f"rubric/{name}" for name in ("static", "strict", "saturated", "unreachable", "unjudged")),
    *("rubric/factor_mean", "rubric/factor_std"),
    *("update/tokens", "update/padding", "update/micro_batch_tokens", "update/tokens_per_second"),
    *("entropy/slope", "kl_cov/fraction", "stopping/stopped"),
    *(f"teacher/{name}" for name in ("coverage", "divergence", "tail")),
    *("episode/observed", "episode/contexts", "environment/<own>"),
    *(f"reuse/{name}" for name in ("phrases", "saved", "segments", "actions", "only_penalty")),
    *(f"checker/{name}" for name in ("support", "neutral", "contradiction", "unjudged", "claims")),
    *(f"checker/{name}" for name in ("phi", "answer_length", "no_search", "foreign", "alarms")),
    *("overclaim/share", "overclaim/proxy_slope", "overclaim/gold_slope"),
    *(
        f"<stage>/{name}"
        for name in (
            "turns",
            "reward",
            "pass@<k>",
            "agreement",
            "diversity",
            "parseable",
            "ended",
            "length",
            "entropy",
        )
    ),
}


@pytest.mark.full  # test_run_report.py draws
def test_the_report_leaves_out_what_it_is_known_to(everything):
    panels = panels_of(runs_of(everything))
    drawn = {entry_of(name) for panel in panels for name in series_of(panel)}
    assert set(LOGGED) - drawn == NOT_DRAWN


def test_curves_of_one_picture_have_one_unit():
    for panel in FIXED:
        units = {LOGGED[entry_of(name)].unit for name in series_of(panel)}
        assert len(units) == 1, panel.name
        assert panel.is_share == (units == {"share"}) or panel.name == "picked"


@pytest.mark.parametrize(
    "name",
    [
        "policy/log_ratio",
        "reward/my_head2/mean",
        "criterion/human/turing/rating",
        "val_low/maj@16",
        "test/pass@1",
    ],
)
def test_names_that_belong_to_the_table(name):
    assert entry_of(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "repetition/share",
        "policy/log_ratio2",
        "reward/2/mean",
        "reward/a/b/mean",
        "val/pass@0",
        "train/length",
    ],
)
def test_names_that_do_not(name):
    assert entry_of(name) is None


def spelled(template: str) -> Iterator[str]:
    """What a template with ``{a,b}`` spells; other placeholders become ``*``."""
    parts = re.split(r"(\{[^}]*\}|<\w+>)", template)
    choices = [
        part.strip("{}").split(",") if "," in part else ["*"] if part[:1] in ("{", "<") else [part]
        for part in parts
    ]
    yield from map("".join, product(*choices))


def fits(template: str) -> bool:
    """Whether some name of the table fits a name, a template, or the start of names (``val/``,
    ``val/maj@``).
    """
    if entry_of(template) is not None:
        return True
    written = {entry.replace("<stage>", stage) for entry in LOGGED for stage in STAGES}
    pattern = re.escape(template).replace(r"\*", "[^/]+") + (".*" if template[-1:] in "/@" else "")
    return any(re.fullmatch(pattern, name) for name in written)


@functools.cache
def literals(path: Path) -> frozenset[str]:
    """Strings and f-strings of a file that are names or templates of names."""
    text = path.read_text()
    if not NAME.search(text):  # a name begins with its prefix, whatever follows
        return frozenset()
    found, nodes = set(), list(ast.walk(ast.parse(text)))
    pieces = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if id(node) in pieces:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        else:
            text = (
                node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            )
        found |= {text} if NAME.fullmatch(text) else set()
    return frozenset(found)


def quoted(path: Path) -> set[str]:
    """What stands in backquotes in a page, a docstring or a comment and is a name or a template of
    names.
    """
    return {text for text in re.findall(r"`([^`\n]+)`", path.read_text()) if NAME.fullmatch(text)}


def sources(ending: str) -> list[Path]:
    found = known_to_git(ending)
    return [path for path in found if not from_root(path).startswith(("tests/", "CHANGELOG"))]


CODE, PAGES = sources(".py"), sources(".md")


def test_every_name_in_code_and_docs_is_in_the_table():
    def check(path):
        templates = quoted(path) | (literals(path) if path.suffix == ".py" else set())
        unknown = {
            template for template in templates for name in spelled(template) if not fits(name)
        }
        assert not unknown, (
            f"{unknown}: not in metric_names/ (the path of a file is written with its ending)"
        )

    check_each(check, [*CODE, *PAGES], from_root)


def test_the_search_for_names_finds_them():
    """So that the test above can fail: it sees most of the table's own names, in code and
    on pages.
    """
    found = {name for path in CODE if path.parent.name != "metric_names" for name in literals(path)}
    assert len(found) > 50
    assert {"policy/entropy", "reward/{}/mean", "time/{}", "vote/", "val/maj@"} <= found
    assert "policy/{log_ratio_picked,entropy_picked,grad_norm}" in quoted(
        ROOT / "docs" / "method.md"
    )
    assert not [
        name
        for name in ("policy/entropie", "repetition/share", "time/*/x", "vot/", "val/maj")
        if fits(name)
    ]


def test_the_owner_writes_the_name():
    def check(entry):
        path = ROOT / LOGGED[entry].owner
        if entry.startswith("<stage>/"):
            assert f'"{entry[8:].replace("<k>", "{")}' in path.read_text()
        else:
            patterns = [re.escape(each).replace(r"\{\}", "[^/]+") for each in literals(path)]
            assert any(re.fullmatch(pattern, entry) for pattern in patterns)

    check_each(check, LOGGED)


def test_validation_names_its_stages():
    assert [f"{stage}/" for stage in STAGES[:3]] == [*VALIDATION]


def test_the_page_is_written_from_the_table():
    page = metrics_page.PAGE.read_text()
    assert page == metrics_page.written(page), "run scripts/metrics_page.py --write"


def test_a_row_has_five_cells():
    rows = [line for line in metrics_page.tables().splitlines() if line.startswith("| `")]
    assert len(rows) == len(LOGGED)
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {
        7
    }  # five, and what is outside both ends


def test_a_changed_table_is_seen():
    page = metrics_page.PAGE.read_text()
    assert metrics_page.written(page.replace("| nats |", "| bits |")) != page.replace(
        "| nats |", "| bits |"
    )
