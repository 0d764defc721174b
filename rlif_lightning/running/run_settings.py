"""The settings that decide a run's results, as checkpoints hold them: plain values by YAML name."""

from __future__ import annotations

import zlib
from typing import Any

from rlif_lightning.data.described import Described, arguments_of, describe
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.model.loading import resolve_model
from rlif_lightning.running.setting_changes import PROBLEMS, SEED

KEY = "settings"  # of a checkpoint
# What the command line sets from another setting; named once where both agree.
LINKED = {
    "model.group_size": "data.group_size",
    "model.answer_column": "data.answer_column",
    "data.seed": "model.seed",
    "data.revision": "model.policy.revision",
    "data.trust_remote_code": "model.policy.trust_remote_code",
    "data.tokenizer": "model.policy.name",
}
RENAMED = {
    "model.learning_rate": "model.optimizer.init_args.lr",
    "model.weight_decay": "model.optimizer.init_args.weight_decay",
    "model.betas": "model.optimizer.init_args.betas",
    "model.lr_schedule": "model.schedule.name",
    "model.warmup_steps": "model.schedule.warmup_steps",
    "model.schedule_steps": "model.schedule.steps",
    "model.updates_per_rollout": "model.update.updates_per_rollout",
    "model.epochs_per_rollout": "model.update.epochs_per_rollout",
    "model.old_logprobs": "model.update.old_logprobs",
    "model.micro_batch_tokens": "model.update.micro_batch_tokens",
    "model.max_grad_norm": "model.update.max_grad_norm",
    "model.seed": SEED,
}
PREDICTED = ("model.policy", "model.rewards", "model.sampling", "data.", SEED)
SIZES = ("data.prompts_per_rollout", "data.validation_prompts_per_batch")  # of batches alone
TRAINER = ("max_steps", "world_size", "precision")


def run_settings(trainer: Any, module: Any) -> dict[str, Any]:
    """Return the settings of a run whose data is loaded, from the objects that it was built of."""
    found = model_settings(module)
    data = getattr(trainer, "datamodule", None)
    if data is not None:
        found |= _named(arguments_of(data), "data")
    for name, other in LINKED.items():
        if other in found and found.get(name, ...) in (found[other], _resolved(found[other])):
            del found[name]
    found = {RENAMED.get(name, name): value for name, value in found.items()}
    found |= {f"trainer.{name}": getattr(trainer, name) for name in TRAINER}
    for name in ("strategy", "accelerator"):
        found[f"trainer.{name}"] = type(getattr(trainer, name)).__name__
    own = [callback for callback in trainer.callbacks if isinstance(callback, Described)]
    found["trainer.callbacks"] = sorted(type(callback).__name__ for callback in own)
    for callback in own:
        found |= _named(arguments_of(callback), f"trainer.callbacks.{type(callback).__name__}")
    return found | problems_of(data)


def prediction_settings(trainer: Any, module: Any) -> dict[str, Any]:
    """Return the settings that predicted completions and their scores depend on."""
    found = run_settings(trainer, module).items()
    chosen = {name: value for name, value in found if name.startswith(PREDICTED)}
    path = getattr(trainer, "ckpt_of_run", None)
    return {name: chosen[name] for name in chosen if name not in SIZES} | {"ckpt_path": path}


def model_settings(module: Any) -> dict[str, Any]:
    """Return the settings ``model.*`` of a module."""
    return _named(arguments_of(module), "model")


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
