"""The settings that decide a run's results, as checkpoints hold them: plain values by YAML name."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlif_lightning.data.described import ARGUMENTS, CLASS, Described, arguments_of, describe
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.learning.optimizer import build_optimizer
from rlif_lightning.model.loading import resolve_model
from rlif_lightning.running.checkpoint_format import FORMAT, NEWEST, newer_format
from rlif_lightning.running.setting_changes import GROUPS, OPTIMIZER, PROBLEMS, SEED

KEY = "settings"  # of a checkpoint
# What the command line sets from another setting (the seed of both from seed_everything); named
# once where both agree.
LINKED = {
    "model.group_size": "data.group_size",
    "model.answer_column": "data.answer_column",
    "data.seed": "model.seed",
    "data.revision": "model.policy.revision",
    "data.trust_remote_code": "model.policy.trust_remote_code",
    "data.tokenizer": "model.policy.name",
}
# Of an optimiser: how a step is computed, not what it computes.
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
# What predictions and their scores depend on, and what only makes their batches.
PREDICTED = ("model.policy", "model.rewards", "model.sampling", "data.", SEED)
VALIDATION_BATCH = "data.validation_prompts_per_batch"
SIZES = ("data.prompts_per_rollout", VALIDATION_BATCH)
HOME = "rlif_lightning.module"  # of RLIFModule
TRAINER = ("max_steps", "world_size", "precision")


def describe_run(checkpoint: dict[str, Any], module: Any) -> None:
    """Put the format and the run's settings into a checkpoint; our trainer has put the latter."""
    checkpoint[FORMAT] = NEWEST
    checkpoint.setdefault(KEY, run_settings(module.trainer, module))


def readable(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint that this version can read.

    Raises:
        ValueError: it is of a newer version.
    """
    if (fault := newer_format(checkpoint)) is not None:
        raise ValueError(f"the checkpoint cannot be read: {fault}")
    return checkpoint


def run_settings(trainer: Any, module: Any) -> dict[str, Any]:
    """Return the settings of a run whose data is loaded, from the objects that it was built of."""
    found = model_settings(module)
    data = getattr(trainer, "datamodule", None)
    if data is not None:
        found |= _named(arguments_of(data), "data")
    if found.get(VALIDATION_BATCH, 0) is None:  # null means as in training
        found[VALIDATION_BATCH] = found["data.prompts_per_rollout"]
    for name, other in LINKED.items():
        same = (None, found.get(other), _resolved(found.get(other)))  # None: read from the other
        if other in found and name in found and found[name] in same:
            del found[name]
    if "model.seed" in found:
        found[SEED] = found.pop("model.seed")
    found |= {f"trainer.{name}": getattr(trainer, name) for name in TRAINER}
    for name in ("strategy", "accelerator"):
        found[f"trainer.{name}"] = type(getattr(trainer, name)).__name__
    own = [callback for callback in trainer.callbacks if isinstance(callback, Described)]
    found["trainer.callbacks"] = sorted(type(callback).__name__ for callback in own)
    for callback in own:
        found |= _named(arguments_of(callback), f"trainer.callbacks.{type(callback).__name__}")
    return found | problems_of(data)


def prediction_settings(trainer: Any, module: Any) -> dict[str, Any]:
    """Return the settings that predictions and their scores depend on."""
    found = run_settings(trainer, module).items()
    chosen = {name: value for name, value in found if name.startswith(PREDICTED)}
    path = getattr(trainer, "ckpt_of_run", None)
    return {name: chosen[name] for name in chosen if name not in SIZES} | {"ckpt_path": path}


def model_settings(module: Any) -> dict[str, Any]:
    """Return the settings ``model.*`` of a module."""
    arguments = arguments_of(module)
    if "engine" in arguments:
        arguments["engine"] = module.engine  # null means the native one
    if "evaluation" in arguments:
        checker = module.evaluator.checker  # likewise
        arguments["evaluation"] = replace(arguments["evaluation"], checker=checker)
    arguments.pop("optimizer", None)  # a subclass may have another argument, or none
    found = _named(arguments, "model")
    if type(module).configure_optimizers.__module__ != HOME:  # a subclass has its own
        found[f"{OPTIMIZER}.{CLASS}"] = type(module).configure_optimizers.__qualname__
        return found
    optimizer = build_optimizer(module.make_optimizer, [Parameter(torch.zeros(1, 1))])
    values = _numbers(optimizer.defaults)
    kind = type(optimizer)
    found[f"{OPTIMIZER}.{CLASS}"] = f"{kind.__module__}.{kind.__qualname__}"
    found |= _named(values, f"{OPTIMIZER}.{ARGUMENTS}")
    for number, group in enumerate(optimizer.param_groups):
        own = {k: v for k, v in _numbers(group).items() if k in values and v != values[k]}
        found |= _named(own, f"{GROUPS}.{number}")
    return found


def _numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what decides an optimiser's steps, a tensor of one number as that number."""
    return {
        name: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for name, value in settings.items()
        if name not in IMPLEMENTATION
    }


def _named(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        found |= describe(value, f"{name}.{key}")
    return found


def _resolved(name: Any) -> Any:
    return resolve_model(name) if isinstance(name, str) else name


def problems_of(data: Any) -> dict[str, Any]:
    """Return the number of loaded training problems and a checksum of their tokens, if known."""
    split = data.split("train") if isinstance(data, PromptData) else None
    if split is None or split.token_ids is None:
        return {}
    found = 0
    for ids in split.token_ids:
        found = zlib.crc32(ids.tobytes() + b"|", found)
    return {PROBLEMS: [len(split), found]}
