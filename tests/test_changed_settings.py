"""Changed settings on resume: each is listed, and applied or refused with a way out."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks import CollapseGuard
from harness.python_runs import (
    NAME,
    QUIET,
    Run,
    adamw,
    at,
    data,
    module,
    rewards,
    sums,
    trainer,
    update,
)
from rlif_lightning import RLIFModule
from rlif_lightning.data.described import Described, describe
from rlif_lightning.data.loaders import continued_place
from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.learning.optimizer import LearningRateSchedule
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.running.events import read_events
from rlif_lightning.running.fork import take_weights
from rlif_lightning.running.run_checkpoints import RunCheckpoints
from rlif_lightning.running.setting_changes import changes
from rlif_lightning.sampling import Sampling
from rlif_lightning.trainer import RLIFTrainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run of three rollouts."""
    return Run(tmp_path_factory.mktemp("first"), 3, module(), data())


@pytest.fixture(scope="module")
def first(whole) -> Path:
    """The checkpoints of a run after one, two and three rollouts."""
    return whole.folder / "checkpoints"


@pytest.mark.slow
def test_an_unchanged_run_says_nothing_and_is_the_uninterrupted_one(whole, first, tmp_path, capsys):
    capsys.readouterr()
    again = Run(tmp_path / "again", 3, module(), data(), ckpt_path=at(first, 2))
    assert again.said() == []
    assert "resumed:" not in capsys.readouterr().out
    left, right = whole.state(), again.state()
    assert left.keys() == right.keys()
    assert not [name for name, value in left.items() if not torch.equal(value, right[name])]


def test_a_new_learning_rate_and_weight_decay_are_taken_and_said(first, tmp_path, capsys):
    model = module(optimizer=adamw(3e-4, 0.1, betas=(0.8, 0.99)))
    run = Run(tmp_path, 3, model, data(), ckpt_path=at(first, 2))
    assert (run.group["lr"], run.group["initial_lr"]) == (3e-4, 3e-4)
    assert (run.group["weight_decay"], tuple(run.group["betas"])) == (0.1, (0.8, 0.99))
    assert run.trainer.lr_scheduler_configs[0].scheduler.base_lrs == [3e-4]
    assert run.trainer.callback_metrics["policy/learning_rate"] == pytest.approx(3e-4)
    said = run.said()
    assert [text.split(" (")[0] for text in said] == [
        "model.optimizer.init_args.lr: 0.001 -> 0.0003",
        "model.optimizer.init_args.betas: [0.9, 0.999] -> [0.8, 0.99]",
        "model.optimizer.init_args.weight_decay: 0.0 -> 0.1",
    ]
    printed = capsys.readouterr().out
    assert all(f"resumed: {text}" in printed for text in said)
    plain = Run(tmp_path / "plain", 3, module(), data(), ckpt_path=at(first, 2))
    left, right = plain.state(), run.state()
    assert any(not torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:CollapseGuard, rollout")
def test_what_a_guard_had_multiplied_the_learning_rate_by_stays(tmp_path):
    """0.001 was halved; a new 0.004 goes on as 0.002, and a new schedule's factor comes on top."""
    long = {
        "metric": "rollout/length",
        "side": "above",
        "bound": -1.0,
        "window": 1,
        "release": 0,
    }

    def guard() -> CollapseGuard:
        return CollapseGuard(action="adjust", baseline=1, detectors={"long": long})

    before = Run(tmp_path / "a", 3, module(), data(), guard())
    assert before.group["initial_lr"] == 5e-4
    source = at(before.folder / "checkpoints", 2)
    model = module(optimizer=adamw(4e-3), schedule=LearningRateSchedule("constant_with_warmup", 12))
    again = Run(tmp_path / "b", 3, model, data(), guard(), ckpt_path=source)
    assert again.group["initial_lr"] == pytest.approx(2e-3)
    assert again.group["lr"] == pytest.approx(2e-3 * 6 / 12)  # six steps were made
    assert again.trainer.callback_metrics["policy/learning_rate"] == pytest.approx(2e-3 * 6 / 12)


@pytest.mark.filterwarnings("ignore:CollapseGuard, rollout")
def test_a_rollback_to_a_snapshot_from_before_the_change_keeps_the_new_numbers(tmp_path):
    def guard(bound: float) -> CollapseGuard:
        long = {"metric": "rollout/length", "side": "above", "bound": bound, "window": 1}
        settings = {"action": "rollback", "baseline": 1, "snapshot_every": 1}
        return CollapseGuard(detectors={"long": {**long, "release": 0}}, **settings)

    before = Run(tmp_path / "a", 2, module(), data(), guard(1e6))
    source = at(before.folder / "checkpoints", 2)
    model = module(optimizer=adamw(weight_decay=0.1))
    again = Run(tmp_path / "b", 3, model, data(), guard(-1.0), ckpt_path=source)
    assert len(again.said("rollback")) == 1
    assert again.group["weight_decay"] == 0.1
    assert again.group["initial_lr"] == 5e-4
    said = [text.split(" (")[0] for text in again.said()]
    assert "trainer.max_steps: 4 -> 6" in said
    assert any(text.startswith("trainer.callbacks.CollapseGuard.detectors") for text in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "problems", "line"),
    [
        ({}, {"group_size": 3}, "data.group_size: 2 -> 3"),
        ({"objective": KLCov(fraction=0.5)}, {}, "model.objective.init_args.fraction: "),
        # One of the data and one of the module are enough.
        pytest.param(
            {"sampling": Sampling(max_new_tokens=5)},
            {},
            "model.sampling.max_new_tokens: 4 -> 5",
            marks=pytest.mark.full,
        ),
        pytest.param(
            {"update": update(micro_batch_tokens=64)},
            {},
            "model.update.micro_batch_tokens: 8192 -> 64",
            marks=pytest.mark.full,
        ),
        pytest.param(
            {},
            {"validation_prompts": 2},
            "data.validation_prompts: null -> 2",
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_can_be_applied_is_applied_and_said(first, tmp_path, model, problems, line):
    run = Run(tmp_path, 3, module(**model), data(**problems), ckpt_path=at(first, 2))
    assert [text for text in run.said() if text.startswith(line)]
    assert len(run.said()) == 1
    assert int(run.module.num_rollouts) == 3
    assert run.module.group_size == problems.get("group_size", 2)


@pytest.mark.slow
def test_reward_weights_are_taken(first, tmp_path):
    heads = rewards("certainty", "length")
    heads["length"] = replace(heads["length"], weight=0.1)
    run = Run(tmp_path, 3, module(rewards=heads), data(), ckpt_path=at(first, 2))
    assert run.said() == [
        "model.rewards.length.weight: 0.5 -> 0.1 (taken from the next rollout on; what heads"
        " remember is kept)"
    ]


@pytest.mark.full  # test_changed_classes.py moves the place in the data
def test_the_order_of_prompts_goes_on_with_rollouts_of_another_size(first, tmp_path):
    """After 3 rollouts of 2 problems, rollouts of 4 go on at the third batch: 2 are skipped."""
    seen: list[int] = []

    class Watching(RLIFModule):
        def training_step(self, prompts, batch_idx):
            seen.extend(prompts.index.tolist())
            return super().training_step(prompts, batch_idx)

    def epoch(size: int, **way: Any) -> Run:
        seen.clear()
        model = Watching(**module()._arguments)
        limits = {"max_steps": -1, "max_epochs": 1}
        return Run(tmp_path / str(len(way)), 0, model, data(prompts_per_rollout=size),
                   trainer=limits, **way)  # fmt: skip

    epoch(2)
    whole = list(seen)
    run = epoch(4, ckpt_path=at(first, 3))
    assert seen == whole[8:]
    assert int(run.module.num_rollouts) == 5
    assert run.trainer.current_epoch == 1
    assert (
        "data.prompts_per_rollout: 2 -> 4 (the same order goes on with batch 3 of epoch 1;"
        " 2 problems of its epoch are skipped)" in run.said()
    )


def test_long_values_are_shown_from_where_they_differ():
    old, new = "x" * 100 + "a" + "y" * 100, "x" * 100 + "b"
    shown = f"n: ...{'x' * 20}a{'y' * 56}... -> ...{'x' * 20}b"
    assert [str(change) for change in changes({"n": old}, {"n": new})] == [shown]


def test_continued_place_by_hand():
    assert continued_place(3, 16, 2, 4) == (2, 2)  # 6 were seen, the next whole batch begins at 8
    assert continued_place(11, 16, 2, 4) == (6, 2)  # the same in the second epoch
    assert continued_place(4, 16, 2, 4) == (2, 0)
    assert continued_place(8, 16, 2, 4) == (4, 0)  # an epoch's end
    assert continued_place(7, 16, 2, 8) == (1, -6)  # no whole batch is left: the last one again
    assert continued_place(1, 16, 8, 2) == (4, 0)
    assert continued_place(1, 10, 4, 3) == (2, 2)


@pytest.mark.parametrize(
    ("model", "problems", "message"),
    [
        ({}, {"source": sums(17)}, r"init_args.size: 16 -> 17\)"),
        ({}, {"source": sums(seed=1)}, r"seed: 0 -> 1\)"),
        ({"rewards": rewards("certainty")}, {}, r"rewards: .*length\] -> \[certainty\]\)"),
        ({"rewards": rewards("certainty", "length", "coin")}, {}, r"rewards: .* -> .*, coin\]\)"),
        (
            {"policy": Policy(NAME, lora=LoRA(4, 8))},
            {},
            r"policy.lora: null -> {rank: 4, alpha: 8,",
        ),
        ({"seed": 1}, {"seed": 1}, r"seed_everything: 0 -> 1\)"),
        ({"optimizer": partial(torch.optim.SGD, lr=1e-3)}, {}, r"class_path: .*AdamW -> .*SGD\)"),
        ({"optimizer": adamw(amsgrad=True)}, {}, r"init_args.amsgrad: false -> true\)"),
    ],
    ids=[
        "size",
        "other problems",
        "dropped reward",
        "added reward",
        "added LoRA",
        "seed",
        "SGD",
        "switch",
    ],
)
def test_what_cannot_go_on_is_refused_with_the_way_out(first, tmp_path, model, problems, message):
    if "policy" in model:
        pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message) as error:
        Run(tmp_path, 3, module(**model), data(**problems), ckpt_path=at(first, 2))
    text = str(error.value)
    assert "\n" not in text
    assert f"fork_from={at(first, 2)} instead of ckpt_path" in text


def test_other_problems_behind_the_same_settings_are_refused(first, tmp_path, monkeypatch):
    load = ArithmeticProblems.load

    def changed(self, split):
        return load(self, split).map(lambda row: {"question": f"1+{row['question']}"})

    monkeypatch.setattr(ArithmeticProblems, "load", changed)
    other = data(source=ArithmeticProblems(size=16, validation_size=4))
    with pytest.raises(ValueError, match=r"data\.problems: 16 training problems with the checksum"):
        Run(tmp_path, 3, module(), other, ckpt_path=at(first, 2))


def test_a_new_text_around_the_same_problems_is_taken(first, tmp_path):
    run = Run(
        tmp_path, 3, module(), data(format=PromptFormat("0+{prompt}")), ckpt_path=at(first, 2)
    )
    assert [text.split(" (")[0] for text in run.said()] == [
        "data.format.template: {prompt} -> 0+{prompt}"
    ]


def test_a_checkpoint_without_settings_is_said_and_gone_on_with(first, tmp_path):
    content = torch.load(at(first, 2), weights_only=True)
    del content["settings"]
    old = tmp_path / "old" / "checkpoints" / "rollout=000002.ckpt"
    old.parent.mkdir(parents=True)
    torch.save(content, old)
    run = Run(tmp_path, 3, module(optimizer=adamw(1.0)), data(), ckpt_path=old)
    assert run.said() == [f"{old} was saved without settings: they cannot be compared"]
    assert run.group["lr"] == 1e-3


class Kind(Described):
    def __init__(self, number: float = 1.0, *, other: object = None, **more: Any):
        self.unused = number


def test_objects_are_described_by_what_they_were_built_with(tmp_path):
    """Numbers of numpy, paths and tuples become plain values, which a checkpoint can be
    read with.
    """
    value = Kind(np.float64(2.5), other=Kind(), size=np.int64(3), place=tmp_path, pair=(1, None))
    described = describe(value, "x")
    here = f"{__name__}.Kind"
    assert described == {
        "x.class_path": here, "x.init_args.number": 2.5, "x.init_args.other.class_path": here,
        "x.init_args.other.init_args.number": 1.0, "x.init_args.other.init_args.other": None,
        "x.init_args.size": 3, "x.init_args.place": str(tmp_path), "x.init_args.pair": [1, None],
    }  # fmt: skip
    assert type(described["x.init_args.number"]) is float
    assert describe(copy.deepcopy(value), "x") == described
    assert describe({"a": LoRA(4, 8), "b": 1}, "y") == {
        "y": ["a", "b"], "y.a.rank": 4, "y.a.alpha": 8, "y.a.options": {}, "y.b": 1,
    }  # fmt: skip
    assert describe({"a": {"b": (1, 2)}, "c": {}}, "z") == {"z.a.b": [1, 2], "z.c": {}}
    torch.save(described, tmp_path / "plain.pt")
    assert torch.load(tmp_path / "plain.pt", weights_only=True) == described


def test_differences_are_said_once():
    old = {
        "a.class_path": "X",
        "a.init_args.x": 1,
        "b": None,
        "c": ["v", "w"],
        "c.w.x": 1,
        "d": 2,
        "e": [float("nan")],
        "f": 1,
    }
    new = {
        "a.class_path": "Y",
        "a.init_args.y": 1,
        "b.n": 4,
        "b.m": "z",
        "c": ["v"],
        "d": 3.0,
        "e": [float("nan")],
        "f": 1.0,
    }
    assert [str(change) for change in changes(old, new)] == [
        "a.class_path: X -> Y", "b: null -> {n: 4, m: z}", "c: [v, w] -> [v]", "d: 2 -> 3.0"
    ]  # fmt: skip


def test_a_fork_has_the_weights_and_nothing_else(first, tmp_path, capsys):
    source = at(first, 3)
    saved = torch.load(source, weights_only=True)["state_dict"]
    model = module(rewards=rewards("length"), optimizer=adamw(1e-2), seed=5)
    begun: dict[str, torch.Tensor] = {}

    class Begin(RunCheckpoints):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if not begun:
                begun.update({k: v.clone() for k, v in pl_module.state_dict().items()})
                assert not trainer.optimizers[0].state_dict()["state"]

    trainer = RLIFTrainer(
        callbacks=[Begin(every=1)], default_root_dir=tmp_path, max_steps=2, **QUIET
    )
    trainer.fit(model, datamodule=data(seed=5), fork_from=source)
    names = [name for name in begun if name.startswith("policy.")]
    assert names
    assert all(torch.equal(begun[name], saved[name]) for name in names)
    assert int(begun["num_rollouts"]) == 0
    assert int(model.num_rollouts) == 1
    assert trainer.global_step == 2
    events = [event for event in read_events(tmp_path) if event["kind"] == "fork"]
    text = f"policy weights of {source}; everything else begins anew"
    assert [event["message"] for event in events] == [text]
    assert f"fork: {text}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(None, LoRA(4, 8), marks=pytest.mark.full),
        pytest.param(LoRA(4, 8), None, marks=pytest.mark.full),
        pytest.param(LoRA(4, 8), LoRA(4, 8), marks=pytest.mark.full),
        pytest.param(LoRA(4, 8), LoRA(4, 16), marks=pytest.mark.full),
        (LoRA(4, 8), LoRA(2, 8)),  # merged, and begun anew
    ],
)
def test_a_fork_computes_the_same_with_other_adapters(tmp_path, first, old, new):
    pytest.importorskip("peft")
    source = at(first, 3)
    if old is not None:
        before = Run(tmp_path / "lora", 2, module(policy=Policy(NAME, lora=old)), data())
        source = at(before.folder / "checkpoints", 2)

    def logits(each: RLIFModule) -> torch.Tensor:
        assert each.policy is not None
        each.policy.model.eval()
        with torch.no_grad():
            return each.policy.model(torch.arange(3, 12)[None]).logits

    policies = [Policy(NAME, dtype="float64", lora=lora) for lora in (old, new)]
    expected, forked = (module(policy=policy) for policy in policies)
    expected.configure_model(), forked.configure_model()
    expected.load_state_dict(torch.load(source, weights_only=True)["state_dict"])
    start = logits(forked)
    take_weights(source, forked)
    torch.testing.assert_close(logits(forked), logits(expected), rtol=0, atol=1e-5)
    assert float((start - logits(forked)).abs().max()) > 1e-3


def test_a_fork_of_another_model_and_a_fork_that_goes_on_are_refused(first, tmp_path):
    tr = trainer(tmp_path, 1)
    with pytest.raises(ValueError, match="a run that goes on has weights already"):
        tr.fit(module(), datamodule=data(), fork_from=at(first, 1), ckpt_path=at(first, 2))
    with pytest.raises(ValueError, match="there is no such file"):
        tr.fit(module(), datamodule=data(), fork_from=tmp_path / "no.ckpt")
