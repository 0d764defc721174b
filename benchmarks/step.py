"""Measure one training step of rlif-lightning: a workload through the real trainer.

python benchmarks/step.py --lengths random
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import workload
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from workload import Meter

from rlif_lightning.data.prompts import LocalFiles, PromptData
from rlif_lightning.evaluation.evaluator import Evaluation
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.model.loading import Policy
from rlif_lightning.module import RLIFModule
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import RewardHead, SelfCertainty
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling


class OfIds(RewardHead):
    """A reward that is a plain function of a completion's token ids."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, rollout: Rollout) -> RewardOutput:
        rows = zip(rollout.completion_ids, rollout.mask, strict=True)
        return RewardOutput(torch.tensor([self.function(ids[keep].tolist()) for ids, keep in rows]))


class Vote(RewardHead):
    """A reward of 1 for the group's most frequent answer."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        rows = zip(rollout.completion_ids, rollout.mask, strict=True)
        ids = [row[keep].tolist() for row, keep in rows]
        return RewardOutput(torch.tensor(workload.vote_scores(ids, rollout.group_size)))


class PlannedLengths(NativeEngine):
    """An engine that ends each completion at its planned length, as on TRL's side."""

    def __init__(self, a: Any):
        super().__init__(*([a.max_rows] if a.max_rows else []), cuda_graphs=a.cuda_graphs)
        self.a, self.rollouts = a, 0

    def generate(self, prompts: Any, group_size: int, sampling: Sampling, step: int) -> Rollout:
        self.planned = torch.tensor(workload.planned(self.a, self.rollouts))
        self.rollouts += 1
        return super().generate(prompts, group_size, sampling, step)

    def ends(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        return positions + 1 >= self.planned[rows]


class Recorder(Callback):
    """A callback that passes each step to the meter."""

    def __init__(self, meter: Meter):
        self.meter = meter

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.meter.start()

    def on_train_batch_start(self, *_: Any) -> None:
        self.meter.begin_step()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        phases = {
            name: float(trainer.callback_metrics[f"time/{name}"])
            for name in ("rollout", "reward", "update")
        }
        self.meter.end_step(int(outputs["rollout"].lengths.sum()), phases)


def build(a: Any, folder: Path) -> tuple[RLIFModule, PromptData]:
    """Build module and data of the workload."""
    rows = [json.dumps({"question": prompt}) + "\n" for prompt in workload.make_prompts(a)]
    (folder / "prompts.jsonl").write_text("".join(rows))
    source = LocalFiles(train=str(folder / "prompts.jsonl"))
    data = PromptData(source, str(folder), a.group_size, a.prompts_per_rollout)
    heads = [OfIds(workload.distinct_share), OfIds(workload.even_share)]
    if a.rewards == "rlif":
        heads = [SelfCertainty(), Vote()]
    rows_at_once = a.micro_batch or a.group_size
    module = RLIFModule(
        Policy(str(folder), gradient_checkpointing=a.gradient_checkpointing),
        {f"r{i}": WeightedReward(head, 0.5) for i, head in enumerate(heads)},
        advantage=GDPO(),
        objective=Clipped(reference_kl=ReferenceKL(a.beta)),
        # End of sequence is forbidden throughout; lengths are planned.
        sampling=Sampling(1.0, a.max_new_tokens, a.max_new_tokens),
        engine=PlannedLengths(a),
        evaluation=Evaluation(),
        update=UpdatePlan(
            a.updates_per_rollout,
            micro_batch_tokens=a.prompt_len + rows_at_once * a.max_new_tokens,
        ),
        optimizer=partial(torch.optim.AdamW, lr=a.lr, weight_decay=0.0),
        seed=a.seed,
    )
    return module, data


def main() -> None:
    """Run the workload and print one line of JSON."""
    a = workload.parse_arguments(__doc__ or "")
    torch.set_num_threads(a.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    meter = Meter()
    with tempfile.TemporaryDirectory() as name:
        parameters = workload.save_model(a, Path(name))
        module, data = build(a, Path(name))
        trainer = Trainer(
            accelerator=a.accelerator,
            devices=1,
            precision="bf16-mixed" if a.bf16 else "32-true",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            callbacks=[Recorder(meter)],
        )
        trainer.fit(module, data)
    if a.accelerator == "cuda":
        meter.more["peak_device_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    meter.report(a, "rlif-lightning", {"torch": torch.__version__}, parameters)


if __name__ == "__main__":
    main()
