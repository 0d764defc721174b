"""Settings that a checkpoint holds under former names are those of the present ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callbacks import EntropyMonitor, KLCovScheduler
from callbacks.kl_cov_scheduler import Schedule
from harness.python_runs import Run, at, data, module
from rlif_lightning import (
    CISPO,
    DPPO,
    GDPO,
    GMPO,
    GRPO,
    SAPO,
    BehaviourVote,
    ClipCov,
    ClusterVote,
    GoldAnswer,
    KLCov,
    LoRA,
    MeanLogprob,
    NegativeEntropy,
    ReinforcePlusPlus,
    Replay,
    Sandbox,
    VLLMEngine,
    VLLMServerEngine,
    WeightedReward,
)
from rlif_lightning.data.benchmark_source import BenchmarkData
from rlif_lightning.data.described import arguments_of, describe
from rlif_lightning.evaluation.evaluator import Evaluation
from rlif_lightning.running.former_settings import ARGUMENTS_OF, present_settings

SANDBOX = Sandbox("rlimits+", wall_seconds=4)
LOOP: dict[str, Any] = {"target": (0.1, 0.2), "bounds": (0.001, 10.0)}
VOTE = {"function_column": "entry_point", "inputs_column": "inputs", "header_column": "prompt"}
NAMED = {"function": "f", "inputs": "cases"}
ENDS = {"start": 0.4, "end": 0.1, "steps": 9, "points": None}
# What an object is -> its class's former arguments.
FORMER: list[tuple[Any, dict[str, Any]]] = [
    (CISPO(), {"lowest": 0.0, "highest": 5.0}),
    (CISPO(clip_low=0.2, clip_high=0.3), {"lowest": 0.8, "highest": 1.3}),
    (GMPO(clip_high=0.5), {"log_low": 0.4, "log_high": 0.5}),
    (DPPO(clip_low=0.1), {"low": 0.1, "high": 0.2}),
    (ClipCov(band=(0.5, 5.0)), {"low": 0.5, "high": 5.0, "seed": 0}),
    (BehaviourVote(sandbox=SANDBOX), {**VOTE, "seed": 0}),
    (
        BehaviourVote(columns=NAMED, sandbox=SANDBOX),
        {**VOTE, "function_column": "f", "inputs_column": "cases", "seed": 0},
    ),
    (BenchmarkData("gsm8k", {}, validation_split="train"), {"split": "train", "file": None}),
    (GDPO(), {"std_floor": 1e-6}),
    (GRPO(), {"std_floor": 1e-6}),
    (ReinforcePlusPlus(), {"std_floor": 1e-6}),
    (SAPO(temperatures=(1.0, 2.0)), {"positive_temperature": 1.0, "negative_temperature": 2.0}),
    (VLLMEngine(), {"scoring_tokens": 8192}),
    (NegativeEntropy(), {"entropy_floor": 10.0}),
    (
        VLLMServerEngine("http://localhost:8000", "weights"),
        {"timeout_per_token": 0.001, "scoring_tokens": 8192},
    ),
    (GoldAnswer("solution"), {}),
]
SCHEDULES = [
    (Schedule(0.4), {"kind": "constant", "end": None, "steps": None}),
    (Schedule(0.4, [(9, 0.1)]), {"kind": "linear", **ENDS}),
    (Schedule(0.4, [(9, 0.1)], "cosine"), {"kind": "cosine", **ENDS}),
    (
        Schedule(0.4, [(2, 0.1)]),
        {"kind": "piecewise", "start": None, "points": [[0, 0.4], [2, 0.1]]},
    ),
    (Schedule(0.4, **LOOP), {"kind": "entropy", "end": None, "steps": None}),
]


# The present arguments that came for them.
NEW = {
    ClipCov: {"band"}, BehaviourVote: {"columns"}, BenchmarkData: {"validation_split"},
    Schedule: {"points", "shape"}, NegativeEntropy: set(), VLLMServerEngine: set(),
    GoldAnswer: {"equivalence"}, GDPO: set(), GRPO: set(), ReinforcePlusPlus: set(),
    SAPO: {"temperatures"}, VLLMEngine: set(),
}  # fmt: skip
BOUNDS = {"clip_low", "clip_high"}


def under_former_names(
    present: dict[str, Any], place: str, former: dict[str, Any], new: set[str]
) -> dict[str, Any]:
    """Saved settings in which the arguments ``new`` of a place are the former ones."""
    kept = {k: v for k, v in present.items() if k.removeprefix(place).split(".")[0] not in new}
    return kept | {f"{place}{name}": value for name, value in former.items()}


@pytest.mark.parametrize(
    ("built", "former"), FORMER, ids=[type(built).__name__ for built, _ in FORMER]
)
def test_former_arguments_are_the_present_ones(built, former):
    present = describe(built, "at")
    new = NEW.get(type(built), BOUNDS)
    saved = under_former_names(present, "at.init_args.", former, new)
    assert saved.keys() != present.keys()
    assert present_settings(saved) == present
    assert present_settings(present) == present


@pytest.mark.parametrize(("schedule", "former"), SCHEDULES, ids=str)
def test_former_schedules_are_the_present_ones(schedule, former):
    place = "trainer.callbacks.KLCovScheduler.weight"
    present = describe(schedule, place)
    saved = under_former_names(present, f"{place}.", {"points": None, **former}, NEW[Schedule])
    assert present_settings(saved) == present


def test_the_former_limits_and_constants_of_records():
    limits = {"agreement": 0.9, "diversity": None, "entropy": 0.1}
    stop = "trainer.callbacks.LabelFreeStopping"
    saved = {f"{stop}.{name}": value for name, value in {**limits, "window": 5}.items()}
    assert present_settings(saved) == {
        f"{stop}.window": 5, f"{stop}.limits.agreement": 0.9, f"{stop}.limits.diversity": None,
    }  # fmt: skip
    shipped = {f"{stop}.agreement": 0.95, f"{stop}.diversity": 0.4, f"{stop}.entropy": 0.1}
    assert present_settings(shipped) == {f"{stop}.limits": None}
    for place, built, former in (
        ("model.evaluation", Evaluation(), {"resamples": 1000, "bootstrap_seed": 0}),
        ("model.evaluation", Evaluation(), {"confidence": 0.95}),
        ("model.evaluation", Evaluation(), {"bootstrap_seed": 0, "confidence": 0.95}),
        ("a.sandbox", SANDBOX, {"cpu_seconds": 4.0, "file_mb": 16}),
    ):
        present = describe(built, place)
        old = {f"{place}.{name}": value for name, value in former.items()}
        assert present_settings(present | old) == present
        changed = {name: value + 1 for name, value in old.items()}
        assert present_settings(present | changed) == present | changed  # to be listed


def test_the_former_arguments_of_the_entropy_monitor():
    place = "trainer.callbacks.EntropyMonitor"
    assert arguments_of(EntropyMonitor()) == {}
    former = {f"{place}.window": 20, f"{place}.floor": None, f"{place}.ceiling": None}
    assert present_settings(former) == {}
    assert present_settings(former | {f"{place}.floor": 0.1}) == {f"{place}.floor": 0.1}


def test_the_former_target_modules_of_lora():
    place = "model.policy.lora"
    for lora, former, options in (
        (LoRA(4), None, {"options": {}}),
        (LoRA(4), None, {}),  # from before there were options
        (LoRA(4, options={"use_dora": True}), None, {"options.use_dora": True}),
        (LoRA(4, options={"target_modules": ["q"]}), ["q"], {"options": {}}),
        (
            LoRA(4, options={"target_modules": ["q"], "use_dora": True}),
            ["q"],
            {"options.use_dora": True},
        ),
    ):
        saved = {"rank": 4, "alpha": 32, "target_modules": former, **options}
        found = present_settings({f"{place}.{name}": value for name, value in saved.items()})
        assert found == describe(lora, place)


def test_the_former_file_of_a_benchmark_and_minimum_of_a_sandbox():
    place = "data.source.init_args"
    here = {"data.source.class_path": "rlif_lightning.data.benchmark_source.BenchmarkData"}
    former = {f"{place}.name": "gsm8k", f"{place}.file": "copy.jsonl"}
    assert present_settings(here | former) == here | {f"{place}.name": "copy.jsonl"}
    for isolation, minimum, present in (
        ("auto", "landlock", "landlock+"),
        ("auto", "rlimits", "rlimits+"),
        ("seccomp", "rlimits", "seccomp"),
    ):
        saved = {"isolation": isolation, "minimum": minimum, "wall_seconds": 4.0}
        found = present_settings({f"a.sandbox.{name}": value for name, value in saved.items()})
        assert found == {"a.sandbox.isolation": present, "a.sandbox.wall_seconds": 4.0}


def test_every_class_with_former_arguments_is_known():
    tested = {type(built).__name__ for built, former in FORMER if former}
    others = {"Schedule", "LabelFreeStopping", "Evaluation", "Sandbox", "EntropyMonitor", "LoRA"}
    in_no_checkpoint = {"CompletionWriter", "SamplerGap"}
    assert tested | others | in_no_checkpoint == set(ARGUMENTS_OF)


def test_a_run_goes_on_from_former_names_without_a_word(tmp_path):
    def run(folder: str, **way: Any) -> Run:
        schedule = KLCovScheduler(weight=Schedule(0.4, [(9, 0.1)]))
        return Run(tmp_path / folder, 2, module(objective=KLCov()), data(), schedule, **way)

    checkpoint = at(run("first").folder / "checkpoints", 1)
    saved = torch.load(checkpoint, weights_only=True)
    place = "trainer.callbacks.KLCovScheduler.weight."
    former = {"kind": "linear", **ENDS}
    saved["settings"] = under_former_names(saved["settings"], place, former, NEW[Schedule])
    assert "trainer.callbacks.KLCovScheduler.weight.kind" in saved["settings"]
    torch.save(saved, checkpoint)
    assert run("again", ckpt_path=checkpoint).said() == []


@pytest.mark.slow
def test_settings_that_came_later_are_off_in_a_checkpoint_without_them(tmp_path):
    """No line where they are off now, and one where they are on."""
    heads = {"vote": WeightedReward(ClusterVote()), "certainty": WeightedReward(MeanLogprob())}

    def run(folder: str, **given: Any) -> Run:
        way = {"ckpt_path": given.pop("ckpt_path", None)}
        built = module(rewards=heads, objective=KLCov(), **given)
        return Run(tmp_path / folder, 2, built, data(), **way)

    checkpoint = at(run("first").folder / "checkpoints", 1)
    saved = torch.load(checkpoint, weights_only=True)
    late = ("format_weight", "equivalence", "leave_one_out", "allow_inactive", "replay")
    late += ("dynamic_sampling",)
    kept = {k: v for k, v in saved["settings"].items() if k.rpartition(".")[2] not in late}
    assert len(kept) == len(saved["settings"]) - 7  # the checker has an equivalence as well
    name = "model.evaluation.checker.init_args.equivalence"
    saved["settings"] = kept | {name: saved["settings"][name]}
    torch.save(saved, checkpoint)
    assert run("again", ckpt_path=checkpoint).said() == []
    text = run("on", replay=Replay(1), ckpt_path=checkpoint).said()[0]
    assert text.startswith("model.replay: null -> {groups: 1, max_age: 1}")
