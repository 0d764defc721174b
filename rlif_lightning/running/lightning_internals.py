"""Lightning's private names that this library uses, each with why no public one will do.

A new version of Lightning may rename them. They were read in the version ``READ_IN``;
``tests/test_internals.py`` says which of them another version lacks, and finds those that are used
without standing here.

A method that is overridden, and an attribute of Lightning's that a subclass of ours sets or reads
as its own, can only stand in that subclass; ``OVERRIDDEN`` names them all. Whatever else is private
is reached through the functions below.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.loops.fit_loop import _FitLoop as FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop as TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import (
    _SignalConnector as SignalConnector,
)
from torch.optim import Optimizer

# FitLoop: a run that is over when it begins must not make a step; no hook can say so before the
# loop begins. TrainingEpochLoop: the only place where a step, its logging and its validation are
# over has no hook. SignalConnector: Lightning's own handlers run a collective inside of the handler
# and end with exit code 0.
__all__ = [
    "OVERRIDDEN",
    "READ_IN",
    "FitLoop",
    "SignalConnector",
    "TrainingEpochLoop",
    "averages_buffers",
    "configured_optimizer",
    "epoch_is_over",
    "signals_of",
]

READ_IN = "2.6.6"

# Module and class of Lightning's -> private name -> why.
OVERRIDDEN: dict[str, dict[str, str]] = {
    "lightning.pytorch.trainer.trainer.Trainer": {
        "_run": "callbacks do not learn which checkpoint a run resumes from",
        "_signal_connector": "the trainer makes its own and has no argument for another",
        "_teardown": "no hook of a module is called at every end: an exception's is skipped",
    },
    "lightning.pytorch.core.module.LightningModule": {
        "_trainer": "`trainer` raises where there is none, and a module is also built without one",
    },
    "lightning.pytorch.trainer.connectors.signal_connector._SignalConnector": {
        "_original_handlers": "what `teardown` puts back",
        "_register_signal": "leaves handlers alone outside of the main thread",
    },
    "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop": {
        "_skip_next_val": "a run that goes on after a validation passes the end of a step without a"
        " step",
    },
    "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy": {
        "_save_distributed_checkpoint": "the public argument has no public attribute",
        "_data_parallel_size": "may be set to all processes only once their number is known",
        "_tensor_parallel_size": "as above",
        "_get_process_group_backend": "norms of gradients on the CPU need gloo beside nccl",
    },
    "lightning.pytorch.cli.LightningCLI": {
        "_get": "reads a setting before anything is built, with or without a subcommand",
        "_prepare_subcommand_kwargs": "adds arguments of our own to a subcommand",
        "_parse_ckpt_path": "Lightning opens a checkpoint here to look for settings, before its"
        " path is resolved",
        "_subcommand_parsers": "a subcommand's parser parses alone: the whole one parses twice",
        "_run_subcommand": "the only place around the whole run, for its exit code",
    },
    "lightning.pytorch.loggers.csv_logs.CSVLogger": {
        "_experiment": "the writer, which is replaced by one of ours"
    },
    "lightning.fabric.loggers.csv_logs._ExperimentWriter": {
        "_rewrite_with_new_header": "empties the file first, so that a kill in between loses every"
        " row",
    },
}


def signals_of(trainer: Trainer) -> Any:
    """Return what handles the signals to a trainer's process."""
    return trainer._signal_connector


def epoch_is_over(trainer: Trainer) -> bool:
    """Return whether the step that has just been made was its epoch's last."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def averages_buffers(callback: WeightAveraging) -> bool:
    """Return whether a callback averages buffers, of which a policy's run has counters."""
    return callback._use_buffers


def configured_optimizer(module: LightningModule) -> Optimizer:
    """Return a new optimiser by ``configure_optimizers``, whichever form that returns it in."""
    (optimizer,), _ = _init_optimizers_and_lr_schedulers(module)
    return optimizer
