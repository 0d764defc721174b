"""The number of settings: over everything that YAML can build, each name once for the class that
declares it.
"""

from __future__ import annotations

from benchmarks.results import FOLDER, read_results
from harness.files import ROOT
from harness.settings import buildable, settings

# 200, PromptData.environment (the one door to environments) and NativeEngine.cuda_graphs.
MOST = 197
# A related system is chosen as a whole, with its page in docs/related/: nobody else meets its
# settings, which have a bound of their own. A class that several systems share is not among them.
SYSTEMS = {
    "stare": {"STARE", "STAREController"},
    "distil": {"DistIL", "Teacher"},
    "exprl": {"RubricJudgeHead", "StepRubricJudgeHead", "StepDelta"},
    "reuserl": {"ReuseRL"},
    "longtrace": {"EntityRubric"},
    "turing": {"PairwiseJudgeHead", "SimilarityJudgeHead", "TargetLogprob", "Supervised"},
    "pow3r": {"Rubric", "WeightedCriterion", "OverclaimMonitor"},
    "checker": {
        *("CheckerReward", "CheckerMonitor", "GradedAnswer", "ShortAnswerPenalty"),
        *("ClaimPattern", "JudgeClaims", "JudgeScorer", "NLIClassifier", "AsksJudge"),
        *("EvidenceColumn", "EvidenceRule"),
    },
}
MOST_OF_A_SYSTEM = 12
# What several systems share beside the core: the page, the bound and the classes.
SHARED = {
    "mixing and order of problems": (
        "docs/all-of-rlif-lightning.md",
        5,
        {"MixedProblems", "EasyFirst"},
    ),
    "parts of the study": (
        "docs/study-parts.md",
        8,
        {"AnswerTokens", "VoteBand", "OfflineVote", "TrainingProblems", "LearningRateFactors"},
    ),
    # What a policy acts in: the limits of an episode, and how its environments are run.
    "environments": (
        "docs/environments.md",
        14,
        {"EnvironmentSettings", "EnvironmentReward", "CountdownProblems"},
    ),
    "criteria": (
        "docs/related/pow3r.md",
        5,
        {"Matches", "Contains", "Within", "NumberWithin", "Scored", "HoldsHead"},
    ),
    "curricula": ("docs/all-of-rlif-lightning.md", 4, {"Curriculum", "LearnableFirst"}),
    "streams": ("docs/all-of-rlif-lightning.md", 3, {"Streamed", "GivenStream"}),
    # Rewards and losses of other label-free methods, each with its paper's values in an overlay.
    "label-free methods": (
        "docs/label-free.md",
        11,
        {"SCRL", "FlipWeight", "TrainFirst", "Reduces", "EntropyMinimisation"},
    ),
    "the hub": ("callbacks/README.md", 2, {"HubExporter"}),
    "judges": (
        "docs/judges.md",
        16,
        {"Judge", "ModelJudge", "RuleJudge", "PolicyJudge", "EndpointJudge"},
    ),
    # Any objective with a teacher may read it, and no run without one.
    "the sandbox's trace": ("docs/code-rewards.md", 1, {"SandboxTrace"}),
    "replies": (
        "docs/judges.md",
        12,
        {"JudgeHead", "ReplyParser", "ScoreParser", "VerdictParser"},
    ),
}


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


def test_the_page_says_what_is_counted():
    said = {name: row["after"] for name, row in read_results(FOLDER / "house.csv").items()}
    everything = sum(len(settings(cls)) for cls in buildable())
    assert int(said["settings of the core"]) == MOST, "write it into docs/results/house.csv"
    most = int(said["settings, with related systems and shared parts"])
    assert everything <= most, f"{everything}: write it into docs/results/house.csv"


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
