"""The number of settings: over everything that YAML can build, each name once for the class that
declares it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

import settings_page

import rlif_lightning
from harness.files import ROOT
from rlif_lightning.running.run_settings import LINKED as LINKS

MOST = 208
# A related system is chosen as a whole, with its page in docs/related/: nobody else meets its
# settings, which have a bound of their own. A class that several systems share is not among them.
SYSTEMS = {
    "stare": {"STARE", "STAREController"},
    "distil": {"DistIL", "Teacher"},
    "exprl": {"RubricJudgeHead", "StepRubricJudgeHead", "StepDelta"},
    "pow3r": {"Rubric", "WeightedCriterion", "OverclaimMonitor"},
}
MOST_OF_A_SYSTEM = 12
# What several systems share beside the core: the page, the bound and the classes.
SHARED = {
    "parts of the study": (
        "docs/study-parts.md",
        8,
        {"AnswerTokens", "VoteBand", "OfflineVote", "TrainingProblems", "LearningRateFactors"},
    ),
    "criteria": (
        "docs/related/pow3r.md",
        5,
        {"Matches", "Contains", "Within", "NumberWithin", "Scored"},
    ),
    "judges": (
        "docs/judges.md",
        16,
        {"Judge", "ModelJudge", "RuleJudge", "PolicyJudge", "EndpointJudge"},
    ),
    "replies": (
        "docs/judges.md",
        12,
        {"JudgeHead", "ReplyParser", "ScoreParser", "VerdictParser"},
    ),
}
ROOTS = [cls for roots in settings_page.ROOTS.values() for cls in roots]
# The command line takes these from other settings: nobody can set them.
LINKED = {name.partition(".")[2] for name in LINKS}
HAS_LINKS = (rlif_lightning.RLIFModule, rlif_lightning.PromptData)
SOURCES = {("PromptData", "group_size"), ("PromptData", "answer_column")}


def parameters(cls: type) -> dict[str, object]:
    """Each parameter of a class's own constructor with its type, however it is written."""
    if "__init__" not in cls.__dict__:
        return {}
    found = inspect.signature(cls.__init__).parameters
    hints = typing.get_type_hints(cls.__init__, settings_page.names_of(cls)) if is_ours(cls) else {}
    return {
        name: hints.get(name, it.annotation)
        for name, it in found.items()
        if name != "self" and it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)
    }


def settings(cls: type) -> list[str]:
    """The settings that a class declares: not those that it has from a base, be it with another
    default.
    """
    inherited = [item for base in cls.__mro__[1:] for item in parameters(base).items()]
    linked = LINKED if cls in HAS_LINKS else set()
    return [
        name
        for name, kind in parameters(cls).items()
        if (name, kind) not in inherited and (name not in linked or (cls.__name__, name) in SOURCES)
    ]


def is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] in settings_page.OURS


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        if is_ours(child):
            yield child
            yield from subclasses(child)


def buildable() -> set[type]:
    """Every class that YAML can build, and the project's bases of those."""
    settings_page.classes()  # imports every public name, so that each class knows its subclasses
    found: set[type] = set()
    waiting = list(ROOTS)
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found.add(cls)
        waiting += [base for base in cls.__mro__ if is_ours(base)]
        for part in settings_page.own_parts(cls):
            waiting += [part, *subclasses(part)]
    return found


def test_settings_stay_few():
    table = {cls.__name__: settings(cls) for cls in buildable()}
    listed = "\n".join(f"{len(names)} {name}: {names}" for name, names in sorted(table.items()))
    parts = {name for classes in SYSTEMS.values() for name in classes}
    parts |= {name for _, _, classes in SHARED.values() for name in classes}
    total = sum(len(names) for name, names in table.items() if name not in parts)
    assert total <= MOST, f"{total} settings\n{listed}"
    for system, classes in SYSTEMS.items():
        assert (ROOT / "docs" / "related" / f"{system}.md").exists()
        assert sum(len(table[name]) for name in classes) <= MOST_OF_A_SYSTEM, listed
    for page, most, classes in SHARED.values():
        assert (ROOT / page).exists()
        assert sum(len(table[name]) for name in classes) <= most, listed


def test_the_count_knows_bases_links_and_nested_settings():
    table = {cls.__name__: settings(cls) for cls in buildable()}
    assert {"VLLMServerEngine", "Schedule", "LoRA", "Gate", "Sandbox", "AnswerChecker"} <= {*table}
    # The rest is of every vote, or of all that find an answer.
    assert table["ClusterVote"] == ["format_weight"]
    assert table["CISPO"] == []  # bounds with other defaults
    # Lightning's own settings.
    assert not {"timeout", "save_distributed_checkpoint"} & {*table["ShardedStrategy"]}
    assert "seed" not in table["RLIFModule"]
    assert "group_size" in table["PromptData"]
    assert "group_size" not in table["RLIFModule"]
