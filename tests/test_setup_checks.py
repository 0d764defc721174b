"""Mistakes that need no model output to be found are told before anything is sampled, whatever the
command.
"""

from __future__ import annotations

import json
import logging
import sys
from types import ModuleType

import pytest
import torch
from transformers import AutoTokenizer

from harness.command_line import base, build, refused
from harness.runs import BASE
from rlif_lightning import cli
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.learning.advantages import GDPO, GRPO, RLOO, DrGRPO
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.running.setup_checks import tell_what_is_not_held_out
from rlif_lightning.sampling import Sampling


class NeverAsked(NativeEngine):
    """Fails the test if a completion is asked for."""

    def generate(self, prompts: Prompts, group_size: int, sampling: Sampling, step: int) -> Rollout:
        raise AssertionError("something was sampled before the mistake was told")


ENGINE = "--model.engine=test_setup_checks.NeverAsked"


def early(capsys, folder, *arguments: str, command: str = "fit", compare: bool = True) -> str:
    """What is printed, with the evaluation before training that ``fit`` makes by default."""
    comparing = ["--compare=true" if compare else "--compare=false"] if command == "fit" else []
    kept = base("--compare") if command == "fit" else base("--compare", "limit_train")
    return refused(
        capsys,
        command,
        *kept,
        *comparing,
        f"--trainer.default_root_dir={folder}",
        ENGINE,
        *arguments,
    )


def rewards(**heads: dict) -> str:
    return f"--model.rewards={json.dumps(heads)}"


HASH = {"kind": "hash"}
GOLD = {"head": {"class_path": "GoldAnswer", "init_args": {"gold_extractor": HASH}}}
ELSEWHERE = {"head": {"class_path": "GoldAnswer", "init_args": {"column": "solution"}}}
EXPORTER = ["--trainer.callbacks+=HFExporter", "--trainer.callbacks.merge_lora=true"]
SCHEDULER = [
    "--trainer.callbacks+=KLCovScheduler",
    "--trainer.callbacks.weight={start: 0.1}",
]
GUARD = ["--trainer.callbacks+=CollapseGuard", "--trainer.callbacks.action=adjust"]
MISTAKES = {
    "cosine": (
        [
            "--model.schedule={name: cosine, warmup_steps: 50}",
            "--trainer.max_steps=8",
        ],
        "needs its length",
    ),
    "evaluation's gold": (
        [
            "--model.evaluation.checker=AnswerChecker",
            '--model.evaluation.checker.gold_extractor={"kind": "hash"}',
        ],
        "finds no answer in 16 of 16 gold answers of data",
    ),
    "reward's gold": (
        [rewards(gold=GOLD)],
        "finds no answer in 16 of 16 gold answers of GoldAnswer",
    ),
    "reward's column": ([rewards(gold=ELSEWHERE)], "column 'solution' is not in the train split"),
    "tests": ([rewards(tests={"head": "CodeTests"})], "no tests"),
    "inputs": ([rewards(vote={"head": "BehaviourVote"})], "has no inputs to compare behaviour on"),
    "subsets": (
        ["--model.evaluation.subset_column=level"],
        "subset_column='level' is not in the validation split",
    ),
    "updates": (["--model.update.updates_per_rollout=1"], "makes KL-Cov do nothing"),
    "truncation": (["--model.sampling.top_k=5"], "truncated sampling biases"),
    "batch": (["--data.prompts_per_rollout=24"], "the train split has only 16 prompts"),
    "group of one": (
        ["--data.group_size=1"],
        "group_size=1 leaves model.advantage=GDPO nothing to compare",
    ),
    "no scores": (
        [rewards(cut={"head": "DropTruncated"})],
        "rewards=['cut']: no reward with a weight other than 0 gives scores (cut is DropTruncated,",
    ),
    "no scores that count": (
        [rewards(cut={"head": "DropTruncated"}, watched={"head": "SelfCertainty", "weight": 0.0})],
        "rewards=['cut', 'watched']: no reward with a weight other than 0 gives scores",
    ),
    "votes": (
        ["--model.rewards.vote.head.min_parseable=5"],
        "min_parseable=5 is more than data.group_size=4",
    ),
    "line": (
        ["--data.group_size=2", "--model.rewards.certainty.length=neutral"],
        "keeps nothing of a group of 2",
    ),
    "floor": (
        ["--model.advantage=GRPO", rewards(vote={"head": "ClusterVote", "spread_floor": 0.5})],
        "rewards.vote.spread_floor=0.5 has no effect: vote is the only reward",
    ),
    "export": (EXPORTER, "merge_lora=true, but model.policy.lora is null"),
    "schedule": (
        [*SCHEDULER, "--model.objective=Clipped"],
        "KLCovScheduler needs model.objective=KLCov",
    ),
    "clipping": (["--trainer.gradient_clip_val=1.0"], "set model.update.max_grad_norm instead"),
    "accumulation": (
        ["--trainer.accumulate_grad_batches=2"],
        "accumulate_grad_batches=2 is not used",
    ),
    "length": (
        ["--model.schedule.steps=20"],
        "schedule.steps=20 has no effect with name=constant",
    ),
    "interval": (
        ["--trainer.val_check_interval=3"],
        "val_check_interval=3 is more than the 2 rollouts of an epoch",
    ),
    "overlong": (
        ["--data.overlong=filter"],
        "overlong=filter leaves nothing out without max_prompt_tokens",
    ),
    "scale": (
        [*GUARD, "--trainer.callbacks.scale={objective.nothing: 0.5}"],
        "scale names 'objective.nothing'",
    ),
}


# Another test of the fast tier has the same refusal, by fit or by hand.
ALSO_ELSEWHERE = {
    "reward's column",
    "cosine",
    "subsets",
    "updates",
    "truncation",
    "batch",
    "export",
    "schedule",
}


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(name, marks=pytest.mark.full if name in ALSO_ELSEWHERE else ())
        for name in MISTAKES
    ],
)
def test_fit_tells_a_mistake_before_its_first_evaluation(capsys, tmp_path, mistake):
    arguments, message = MISTAKES[mistake]
    assert message in early(capsys, tmp_path, *arguments)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (["RunCheckpoints", "monitor=val/accuracy"], "monitor='val/accuracy' is of evaluations"),
        (["LabelFreeStopping", "signals=validation"], "signals=validation looks at validations"),
        (["HFExporter", "monitor=val/accuracy"], "is read after evaluations"),
    ],
)
def test_a_callback_that_waits_for_evaluations_needs_some(capsys, tmp_path, callback, message):
    kind, setting = callback
    arguments = [
        f"--trainer.callbacks+={kind}",
        f"--trainer.callbacks.{setting}",
        "--trainer.limit_val_batches=0",
    ]
    assert message in early(capsys, tmp_path, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["evaluation's gold", "subsets"])
def test_fit_without_a_comparison_tells_a_mistake_of_later_evaluations(capsys, tmp_path, mistake):
    arguments, message = MISTAKES[mistake]
    assert message in early(capsys, tmp_path, *arguments, compare=False)


@pytest.mark.parametrize(
    "mistake", [pytest.param("evaluation's gold", marks=pytest.mark.full), "reward's gold"]
)
def test_preflight_tells_what_it_could_not_judge(capsys, tmp_path, mistake):
    arguments, message = MISTAKES[mistake]
    assert message in early(capsys, tmp_path, *arguments, command="preflight")


@pytest.mark.slow
def test_a_mistake_in_training_s_settings_does_not_keep_validate_from_measuring(tmp_path):
    kept = [
        *base("--compare", "limit_train"),
        f"--trainer.default_root_dir={tmp_path}",
        "--data.group_size=1",
    ]
    run = cli.main(
        ["validate", *kept, "--model.schedule.name=cosine", "--trainer.limit_val_batches=1"]
    )
    assert "val/accuracy" in run.trainer.callback_metrics


@pytest.mark.parametrize(
    "advantage", [GDPO(), GDPO("sample"), GDPO("token"), GRPO(), DrGRPO(), RLOO()]
)
def test_a_group_of_one_has_no_advantage_and_is_refused_by_name(advantage):
    alone, lengths = torch.tensor([[[1.0], [2.0], [5.0]]]), torch.ones(3, 1)
    assert not advantage(alone, torch.ones(1), lengths).any()
    with pytest.raises(
        ValueError, match=rf"group_size=1 leaves model.advantage={type(advantage).__name__}"
    ):
        advantage.check(1)
    advantage.check(2)


def test_vllm_s_sampling_is_checked_in_setup(capsys, tmp_path, monkeypatch):
    """Also where evaluation alone samples in a way that vLLM does not have."""
    monkeypatch.setitem(
        sys.modules, "vllm", ModuleType("vllm")
    )  # nothing of it is used before the check
    sampling = "--model.evaluation.sampling={max_new_tokens: 8, min_new_tokens: 3, stop: ['#']}"
    kept = [
        *base("--compare"),
        "--compare=false",
        f"--trainer.default_root_dir={tmp_path}",
        "--model.engine=VLLMEngine",
    ]
    assert "vLLM does not look for stop strings" in refused(capsys, "fit", *kept, sampling)


def test_data_s_tokenizer_is_of_the_policy_s_revision(monkeypatch):
    run = build([*BASE, "--model.policy.revision=next"])
    assert run.datamodule.revision == "next"
    asked, original = [], AutoTokenizer.from_pretrained

    def from_pretrained(*arguments, revision, **others):
        asked.append(revision)
        return original(*arguments, **others)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    run.datamodule._split_encoder()
    assert asked == ["next"]


@pytest.mark.parametrize(("validation", "said"), [(["1+1+1=", "9+9+9="], "1 of 2"), (["9+9="], "")])
def test_validation_problems_that_are_trained_on_are_told(caplog, validation, said):
    """The tables call them held out."""
    logging.getLogger("lightning.pytorch").propagate = True
    given = {"train": ["1+1+1=", "2+1+1="], "validation": validation}
    splits = {name: [{"question": text} for text in texts] for name, texts in given.items()}
    data = PromptData(splits, "rlif-arithmetic", prompts_per_rollout=1)
    data.setup("fit")
    train, measured = (data.split(name) for name in ("train", "validation"))
    assert train is not None
    with caplog.at_level(logging.INFO):
        tell_what_is_not_held_out(train, measured)
    assert ("validation problems are training problems too" in caplog.text) is bool(said)
    assert said in caplog.text
