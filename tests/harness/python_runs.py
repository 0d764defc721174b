"""Small runs that are built in Python, without the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlif_lightning import PromptData, RLIFModule
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.model.loading import Policy
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.rewards.controls import Length, Random
from rlif_lightning.rewards.internal import MeanLogprob
from rlif_lightning.running.events import read_events
from rlif_lightning.running.run_checkpoints import RunCheckpoints
from rlif_lightning.sampling import Sampling
from rlif_lightning.trainer import RLIFTrainer

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "limit_val_batches": 0, "use_distributed_sampler": False,
    "log_every_n_steps": 1,
}  # fmt: skip
ROWS = ArithmeticProblems(size=16, validation_size=8).load("train").to_list()
NAME = str(Path("rlif_lightning/assets/base_model").absolute())


def data_of(source: Any = ROWS, **settings: Any) -> PromptData:
    settings = {"answer_column": "answer", "group_size": 4, "prompts_per_rollout": 4} | settings
    return PromptData(source, **settings)


def rewards(*names: str) -> dict[str, WeightedReward]:
    heads = {"certainty": MeanLogprob, "length": Length, "coin": Random}
    return {name: WeightedReward(heads[name](), weight=0.5) for name in names}


def adamw(lr: float = 1e-3, weight_decay: float = 0.0, **more: Any) -> Any:
    return partial(torch.optim.AdamW, lr=lr, weight_decay=weight_decay, **more)


def update(**settings: Any) -> UpdatePlan:
    return UpdatePlan(updates_per_rollout=2, **settings)


def module(**settings: Any) -> RLIFModule:
    given: dict[str, Any] = {
        "policy": Policy(NAME), "rewards": rewards("certainty", "length"),
        "sampling": Sampling(max_new_tokens=4), "update": update(), "optimizer": adamw(),
    }  # fmt: skip
    return RLIFModule(**(given | settings))


def sums(size: int = 16, seed: int = 0) -> ArithmeticProblems:
    return ArithmeticProblems(size=size, validation_size=4, seed=seed)


def data(**settings: Any) -> PromptData:
    given: dict[str, Any] = {
        "source": sums(), "tokenizer": NAME, "group_size": 2, "prompts_per_rollout": 2,
    }  # fmt: skip
    return PromptData(**(given | settings))


def trainer(folder: Path, rollouts: int, *callbacks: Any, **settings: Any) -> RLIFTrainer:
    folder.mkdir(parents=True, exist_ok=True)
    saving = RunCheckpoints(every=1, keep=None)
    given = QUIET | {"default_root_dir": folder, "max_steps": 2 * rollouts} | settings
    return RLIFTrainer(callbacks=[*callbacks, saving], **given)


class Run:
    """A run of two optimiser steps a rollout, in ``folder``."""

    def __init__(self, folder: Path, rollouts: int, model: RLIFModule, problems: PromptData,
                 *callbacks: Any, **way: Any):  # fmt: skip
        settings = way.pop("trainer", {})
        self.module, self.trainer = model, trainer(folder, rollouts, *callbacks, **settings)
        self.trainer.fit(model, datamodule=problems, weights_only=True, **way)
        self.folder = folder

    @property
    def group(self) -> dict[str, Any]:
        return self.trainer.optimizers[0].param_groups[0]

    def said(self, kind: str = "settings") -> list[str]:
        return [event["message"] for event in read_events(self.folder) if event["kind"] == kind]

    def state(self) -> dict[str, torch.Tensor]:
        state = {name: value.clone() for name, value in self.module.state_dict().items()}
        for key, entry in self.trainer.optimizers[0].state_dict()["state"].items():
            state |= {f"{key}.{name}": value.clone() for name, value in entry.items()}
        return state


def at(folder: Path, rollout: int) -> Path:
    return folder / f"rollout={rollout:06d}.ckpt"
