"""Optimisers by class path: each resumes to the same bits, whatever it keeps beside the weights."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.nn import Parameter

from callbacks.steering import Snapshots
from harness.python_runs import data_of, module
from harness.runs import BASE, LONG, assert_same, parameters
from rlif_lightning import MuonAdamW, RLIFTrainer, cli
from rlif_lightning.learning.divided_steps import differs_by_parts
from rlif_lightning.learning.muon import mark_embeddings
from rlif_lightning.learning.optimizer import LearningRateSchedule, check_optimizer
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import Length, WeightedReward

SCHEDULE_FREE = "stand_in_schedule_free.ScheduleFreeSGD"
STAND_IN = '''
import torch


class ScheduleFreeSGD(torch.optim.Optimizer):
    """Schedule-free SGD by https://arxiv.org/abs/2405.15682, equations 3 to 5, in the form that
    holds y or x in the parameters."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def _move(self, group, weight):
        for p in group["params"]:
            if "z" in self.state[p]:
                p.data.lerp_(self.state[p]["z"], weight)

    def train(self):
        for group in self.param_groups:
            if not group["train_mode"]:
                self._move(group, 1 - group["beta"])
            group["train_mode"] = True

    def eval(self):
        for group in self.param_groups:
            if group["train_mode"]:
                self._move(group, 1 - 1 / group["beta"])
            group["train_mode"] = False

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "not in train mode"
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("z", p.clone())
                x = p.lerp(state["z"], 1 - 1 / group["beta"])
                state["z"].sub_(p.grad, alpha=group["lr"])
                x.lerp_(state["z"], 1 / group["k"])
                p.copy_(x.lerp(state["z"], 1 - group["beta"]))
'''
CASES = {
    "SGD": ("torch.optim.SGD", {"lr": 0.05, "momentum": 0.9}),
    "Adafactor": ("torch.optim.Adafactor", {"lr": 1e-3}),
    "Muon": ("rlif_lightning.MuonAdamW", {"lr": 1e-3}),
    "schedule-free": (SCHEDULE_FREE, {"lr": 0.5}),
    "AdamWScheduleFree": ("schedulefree.AdamWScheduleFree", {"lr": 1e-3}),
    "bitsandbytes": ("bitsandbytes.optim.AdamW8bit", {"lr": 1e-3}),
}
FAST = [
    "--trainer.limit_val_batches=0",
    "--model.sampling.max_new_tokens=16",
    "--model.update.updates_per_rollout=2",
]


ELEMENTWISE = [
    "SGD",
    "AdamW",
    "NAdam",
    "RAdam",
    "Adamax",
    "Adagrad",
    "Adadelta",
    "RMSprop",
    "Rprop",
]


class NoStep(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("CUDA only")


def cannot_step(parameters):
    return NoStep(parameters)


@pytest.fixture(autouse=True)
def _stand_in(tmp_path, monkeypatch):
    (tmp_path / "stand_in_schedule_free.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))


def chosen(name: str) -> list[str]:
    path, settings = CASES[name]
    if path.partition(".")[0] in ("schedulefree", "bitsandbytes"):
        pytest.importorskip(path.partition(".")[0])
    return [
        f"--model.optimizer={path}",
        *(f"--model.optimizer.{key}={value}" for key, value in settings.items()),
    ]


def run(folder: Path, *arguments: str) -> cli.RLIFCLI:
    return cli.main(["fit", *BASE, f"--trainer.default_root_dir={folder}", *FAST, *arguments])


@pytest.mark.full  # the formulas are tested below; this is whole runs
@pytest.mark.parametrize("name", CASES)
def test_each_optimizer_resumes_to_the_same_bits(tmp_path, name):
    given = [*chosen(name), "--model.schedule={name: linear, steps: 12}"]
    whole = run(tmp_path / "whole", *LONG, *given)
    first = run(tmp_path / "first", *given)
    path = tmp_path / "middle.ckpt"
    first.trainer.save_checkpoint(path)
    before = parameters(first)
    second = run(tmp_path / "second", *LONG, *given, f"--ckpt_path={path}")
    assert_same(parameters(whole), parameters(second))
    assert any(not torch.equal(value, before[key]) for key, value in parameters(second).items())


def test_a_schedule_free_run_shows_the_weights_that_are_used(tmp_path):
    """And draws with those that are trained: the sampler's log-probs are the update's."""
    found = run(tmp_path / "run", *chosen("schedule-free"))
    optimizer = found.trainer.optimizers[0]
    assert optimizer.param_groups[0]["train_mode"] is False
    assert optimizer.param_groups[0]["k"] == 4
    assert float(found.trainer.callback_metrics["policy/sampler_gap"]) < 1e-5
    used = parameters(found)
    path = tmp_path / "end.ckpt"
    found.trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert_same(used, {k.removeprefix("policy."): v for k, v in saved.items()})
    optimizer.train()
    assert any(not torch.equal(value, used[key]) for key, value in parameters(found).items())


class BreaksLater(Length):
    """Raises in the second rollout."""

    rollouts = 0

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.rollouts += 1
        if self.rollouts == 2:
            raise RuntimeError("out of order")
        return super().forward(rollout)


def test_after_an_exception_it_holds_the_weights_that_are_used(tmp_path):
    """As a notebook goes on with them."""
    scope: dict[str, Any] = {}
    exec(STAND_IN, scope)
    rewards = {"length": WeightedReward(BreaksLater())}
    broken = module(rewards=rewards, optimizer=partial(scope["ScheduleFreeSGD"], lr=0.5))
    trainer = RLIFTrainer(default_root_dir=tmp_path, **{**QUIET, "max_steps": 6})
    with pytest.raises(RuntimeError, match="out of order"):
        trainer.fit(broken, data_of())
    [group] = trainer.optimizers[0].param_groups
    assert (group["k"], group["train_mode"]) == (2, False)


@pytest.mark.slow
def test_a_rollback_takes_the_counters_in_groups_from_the_snapshot(tmp_path):
    """The mean of the iterates would go on with the weight of one that has been dropped."""
    found = run(tmp_path / "run", *chosen("schedule-free"))
    trainer, module, snapshots = found.trainer, found.model, Snapshots()
    snapshots.take(trainer, module)
    group = trainer.optimizers[0].param_groups[0]
    group |= {"k": 40, "lr": 0.25, "beta": 0.8}
    snapshots.restore(trainer, module)
    group = trainer.optimizers[0].param_groups[0]
    assert (group["k"], group["lr"], group["beta"], group["initial_lr"]) == (4, 0.25, 0.8, 0.5)


def test_schedule_free_weights_are_the_mean_of_the_iterates():
    """x_k is the plain mean of z_1..z_k, and gradients are taken at y; worked by hand."""
    scope: dict[str, Any] = {}
    exec(STAND_IN, scope)
    parameter = Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = scope["ScheduleFreeSGD"]([parameter], lr=0.5, beta=0.5)
    seen = []
    for _ in range(2):
        optimizer.train()
        seen.append(parameter.item())
        parameter.grad = parameter.detach().clone()  # of y^2 / 2
        optimizer.step()
        optimizer.eval()
    # z1 = 1 - 0.5 * 1 = 0.5 = x1 = y2; z2 = 0.5 - 0.5 * 0.5 = 0.25; x2 = (0.5 + 0.25) / 2.
    assert seen == [1.0, 0.5]
    assert parameter.item() == pytest.approx(0.375)


def matrices() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 5, bias=False))
    model.get_output_embeddings = lambda: model[2]  # type: ignore[assignment]
    mark_embeddings(model)
    return model


def test_muon_has_the_matrices_and_adamw_the_rest():
    """Each half is torch's own optimiser, step by step."""
    model, other = matrices(), matrices()
    optimizer = MuonAdamW(model.parameters(), lr=0.1, weight_decay=0.01)
    assert [[tuple(p.shape) for p in g["params"]] for g in optimizer.param_groups] == [
        [(3, 4)],
        [(5, 4), (3,), (5, 3)],
    ]
    apart = [
        torch.optim.Muon(
            [other[1].weight], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [other[0].weight, other[1].bias, other[2].weight], lr=0.1, weight_decay=0.01
        ),
    ]
    for step in range(3):
        for each in (model, other):
            for parameter in each.parameters():
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
        if step == 2:  # state and groups go through a checkpoint
            fresh = MuonAdamW(model.parameters(), lr=0.7)
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        optimizer.step()
        for each in apart:
            each.step()
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_muon_needs_whole_matrices_of_its_own():
    plain = LearningRateSchedule()
    with pytest.raises(ValueError, match="MuonAdamW orthogonalises whole matrices, and trainer"):
        check_optimizer(MuonAdamW, plain, -1, is_divided=True)
    check_optimizer(torch.optim.AdamW, plain, -1, is_divided=True)
    from rlif_lightning.learning.optimizer import build_optimizer

    with pytest.raises(ValueError, match=r"use rlif_lightning\.MuonAdamW, which has AdamW for"):
        build_optimizer(torch.optim.Muon, [Parameter(torch.ones(2))])


@pytest.mark.parametrize(
    ("make", "differs"),
    [
        (torch.optim.Adafactor, True),
        (partial(torch.optim.Adafactor, lr=1e-6), True),
        (torch.optim.Muon, True),
        (MuonAdamW, True),
        *((getattr(torch.optim, name), False) for name in ELEMENTWISE),
        (partial(torch.optim.AdamW, lr=1e-6), False),
        (cannot_step, False),
    ],
)
def test_what_reads_whole_matrices_steps_their_halves_otherwise(make, differs):
    """Found by trying, whatever the class: each process would step its part by other figures."""
    assert differs_by_parts(make) is differs


def test_an_optimizer_without_a_learning_rate_or_refusing_its_arguments_is_a_setting():
    adafactor = pytest.importorskip("transformers").Adafactor
    with pytest.raises(ValueError, match=r"model\.optimizer\.lr=None must be positive"):
        check_optimizer(adafactor, LearningRateSchedule(), 1)

    def without_momentum(parameters):
        raise NotImplementedError("LARS without momentum is not supported!")

    with pytest.raises(ValueError, match=r"model\.optimizer: LARS without momentum"):
        check_optimizer(without_momentum, LearningRateSchedule(), 1)


QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "max_steps": 2,
}


def configured(returns: Any, folder: Path, kind: type = RLIFTrainer) -> Any:
    """The trainer of a run whose module has a ``configure_optimizers`` of its own."""
    from harness.python_runs import ROWS
    from rlif_lightning import ClusterVote, RLIFModule, Sampling, UpdatePlan

    class Own(RLIFModule):
        def configure_optimizers(self):
            return returns(torch.optim.SGD(self.policy.parameters(), lr=0.1))

    module = Own(
        "rlif-arithmetic",
        {"vote": ClusterVote()},
        sampling=Sampling(max_new_tokens=16),
        update=UpdatePlan(updates_per_rollout=2),
    )
    trainer = kind(default_root_dir=folder, **QUIET)
    trainer.fit(module, data_of(ROWS))
    return trainer


def halved(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize(
    ("returns", "rate"),
    [
        pytest.param(lambda optimizer: optimizer, 0.1, marks=pytest.mark.full),
        (lambda optimizer: ([optimizer], [halved(optimizer)]), 0.025),
        # test_changed_classes.py takes a new rate in this form.
        pytest.param(
            lambda optimizer: {"optimizer": optimizer, "lr_scheduler": halved(optimizer)},
            0.025,
            marks=pytest.mark.full,
        ),
    ],
)
def test_configure_optimizers_may_be_overridden(tmp_path, returns, rate):
    for kind in (RLIFTrainer, lightning.Trainer):
        trainer = configured(returns, tmp_path / kind.__name__, kind)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
        path = tmp_path / f"{kind.__name__}.ckpt"
        trainer.save_checkpoint(path)
        saved = torch.load(path, weights_only=True)["settings"]
        assert saved["model.optimizer.class_path"].endswith("Own.configure_optimizers")


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda optimizer: [optimizer, optimizer], "returned 2 optimisers; an update"),
        (lambda o: ([o], [halved(o), halved(o)]), "returned 2 schedules; return one"),
        (
            lambda o: {
                "optimizer": o,
                "lr_scheduler": {
                    "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o),
                    "monitor": "policy/entropy",
                },
            },
            "returned ReduceLROnPlateau, which needs a figure",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The lr scheduler dict contains the key")  # Lightning's own
def test_what_an_update_cannot_step_is_refused(tmp_path, returns, message):
    with pytest.raises(ValueError, match=message):
        configured(returns, tmp_path)


@pytest.mark.slow
def test_learning_rates_without_a_schedule_can_be_scaled(tmp_path):
    from callbacks.steering import scale_setting

    trainer = configured(lambda optimizer: optimizer, tmp_path)
    scale_setting(trainer, trainer.lightning_module, "learning_rate", 0.5)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)
    assert math.isfinite(float(trainer.callback_metrics["policy/grad_norm"]))
