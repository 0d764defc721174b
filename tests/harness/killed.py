"""A callback by which a run is killed once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lightning.pytorch import Callback


class Killed(Callback):
    """Dies in the middle of rollout 3's update, while there is a file."""

    def __init__(self, while_there: str):
        self.while_there = Path(while_there)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if int(pl_module.num_rollouts) == 2 and self.while_there.exists():
            parameter = next(pl_module.policy.parameters())
            parameter.register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGKILL))
