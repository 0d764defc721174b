"""A fork: a new run that takes the policy's weights, and nothing else, from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rlif_lightning.model.adapters import as_named, merged
from rlif_lightning.model.four_bits import CHECKSUM, refuse_another_base
from rlif_lightning.model.lora import lora_scale
from rlif_lightning.parallel.fsdp import load_whole
from rlif_lightning.running.checkpoint_faults import (
    WEIGHTS,
    expected_of,
    read_rest,
    why_unusable,
)
from rlif_lightning.running.events import record_event
from rlif_lightning.running.run_settings import KEY

MODEL = f"{WEIGHTS}model."
LORA = "model.policy.lora"


def checked_fork(
    fork_from: str | Path | None, ckpt_path: Any = None, known: Path | None = None
) -> Path | None:
    """Return the checkpoint that a policy's first weights are to be read from.

    Args:
        fork_from: what was asked for.
        ckpt_path: what the run goes on from.
        known: a checkpoint that was looked through before.

    Raises:
        ValueError: it cannot be used, or the run goes on from a checkpoint and has weights already.
    """
    source = None if fork_from is None else Path(fork_from).expanduser()
    if source is not None and ckpt_path is not None:
        raise ValueError(
            f"fork_from={source}, ckpt_path={ckpt_path}: a run that goes on has weights already;"
            " take one of them out, or use --ckpt_path=auto, which goes on with the fork once it"
            " has a checkpoint"
        )
    if source not in (None, known) and (fault := why_unusable(source)):
        raise ValueError(
            f"fork_from={source}: {fault}; give the path of a checkpoint, a file or a folder of"
            " shards"
        )
    return source


class Fork(Callback):
    """Puts the weights in ``RLIFTrainer.fork_from`` into the policy before its first use."""

    def __init__(self) -> None:
        self.taken: Path | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Read the weights (a collective if the policy is divided)."""
        if trainer.fork_from not in (None, self.taken):
            take_weights(trainer.fork_from, pl_module)
        self.taken = trainer.fork_from

    on_validation_start = on_fit_start

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Print what was taken, and write the event ``fork``."""
        if trainer.fork_from is None or trainer.fast_dev_run:
            return
        text = f"policy weights of {trainer.fork_from}; everything else begins anew"
        if trainer.is_global_zero:
            print(f"fork: {text}", flush=True)
        values = {"fork_from": str(trainer.fork_from)}
        record_event(trainer, pl_module, "run", "fork", text, values)


def take_weights(source: Path, module: Any) -> None:
    """Put a checkpoint's policy weights into a module's policy (a collective if it is divided).

    Where the policy's adapters are not of the checkpoint's kind, or one of the two has none, the
    checkpoint's adapters are merged into its weights, and the policy's own begin anew. On base
    weights in 4 bits only adapters of the same settings and the same base are taken.

    Raises:
        ValueError: the checkpoint is of another model; names the first tensor that does not fit.
    """
    policy = module.policy
    lora = policy.settings.lora
    own_scale = None if lora is None else lora.scale
    scale = _saved_scale(source, own_scale)
    wanted = {
        name.removeprefix(MODEL): shape
        for name, shape in expected_of(module).shapes.items()
        if name.startswith(MODEL)
    }
    weights = _policy_weights(source)
    is_same = {name: tuple(each.shape) for name, each in weights.items()} == wanted
    try:
        if policy.settings.in_4bit:
            _check_adapters(source, policy, is_same and scale == own_scale)
        elif not is_same or scale != own_scale:
            is_transposed = any(isinstance(each, Conv1D) for each in policy.modules())
            weights = as_named(merged(weights, scale or 1.0, is_transposed), wanted)
        _check_shapes(weights, wanted)
    except ValueError as error:
        raise ValueError(f"fork_from={source}: {error}; configure the same model") from None
    load_whole(policy, weights)


def _check_adapters(source: Path, policy: Any, is_same: bool) -> None:
    """Refuse what a base in 4 bits cannot take: its own weights are those of its files."""
    if not is_same:
        raise ValueError("a policy in 4 bits takes adapters of its own settings, and nothing else")
    refuse_another_base(policy, read_rest(source)["state_dict"].get(WEIGHTS + CHECKSUM))


def _saved_scale(source: Path, own: float | None) -> float | None:
    """Return alpha / rank of the checkpoint's adapters; ``own`` where it has no settings."""
    settings = read_rest(source).get(KEY)
    if settings is None:
        return own
    alpha, rank = (settings.get(f"{LORA}.{name}") for name in ("alpha", "rank"))
    is_rank_stabilised = bool(settings.get(f"{LORA}.options.use_rslora"))
    return None if alpha is None else lora_scale(rank, alpha, is_rank_stabilised)


def _policy_weights(source: Path) -> dict[str, Tensor]:
    """Return the policy's whole weights by their names in its model, mapped if possible."""
    from rlif_lightning.parallel.sharded_checkpoint import read_whole

    weights = read_whole(source, MODEL) if source.is_dir() else read_rest(source)["state_dict"]
    return {
        name.removeprefix(MODEL): value for name, value in weights.items() if name.startswith(MODEL)
    }


def _check_shapes(weights: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> None:
    for name, value in weights.items():
        if tuple(value.shape) != wanted[name]:
            raise ValueError(
                f"{name} has the shape {list(value.shape)}; the configured model needs"
                f" {list(wanted[name])}"
            )
