"""Train the small embedded model on sums, from its own votes and certainty, in Python.

    python examples/quickstart.py

No label trains: the answers only measure. It takes about a minute of one core. ``RLIFTrainer``
may be replaced by ``lightning.Trainer``, which saves by Lightning's own callback.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from datasets import Dataset

from rlif_lightning import (
    ClusterVote,
    MeanLogprob,
    PromptData,
    RLIFModule,
    RLIFTrainer,
    Sampling,
)

terms = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
sums = Dataset.from_list([{"question": f"{a}+{b}+{c}=", "answer": a + b + c} for a, b, c in terms])
splits = sums.train_test_split(test_size=100, seed=0)  # "train" and "test"


def main(rollouts: int = 20, folder: str = "runs/python") -> RLIFModule:
    """Train, and return the module."""
    data = PromptData(splits, answer_column="answer", group_size=8, prompts_per_rollout=16)
    module = RLIFModule(
        policy="rlif-arithmetic",
        rewards={"vote": ClusterVote(), "certainty": MeanLogprob()},
        sampling=Sampling(max_new_tokens=48),
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
    )
    trainer = RLIFTrainer(max_epochs=1, limit_train_batches=rollouts, default_root_dir=folder)
    before, *_ = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    after = float(trainer.callback_metrics["val/accuracy"])
    print(f"accuracy: {before['val/accuracy']:.3f} before, {after:.3f} after")
    print(module.generate(["7+8+9="], group_size=2))
    module.save_pretrained(f"{folder}/model")
    return module


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20)
