"""The strategies that a run may use, and our own: FSDP2 and tensor parallelism."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.fsdp import Sharding, sharded_modules, sharded_policy
from rlif_lightning.parallel.tensor_parallel import split_policy
from rlif_lightning.rollout.self_check import check_architecture, check_weights
from rlif_lightning.running.checkpoint_files import finish_folder, unfinished_name, write_together


class DividedStrategy(ModelParallelStrategy):
    """A strategy under which each process has a part of the policy, and of checkpoints.

    Args:
        process_group_backend: null = nccl on GPUs, gloo on CPUs.
        timeout: of a collective; a process that waits longer ends with an error.

    Attributes:
        division: how memory is counted (`Layout.strategy`); None = it is not.
    """

    division: str | None = None

    def model_to_device(self) -> None:
        """Move everything but the policy and its teacher, which are on their device already."""
        assert self.lightning_module is not None
        for name, module in self.lightning_module.named_children():
            if name not in ("policy", "teacher"):
                module.to(self.root_device)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Save; a folder of shards is written under a temporary name and renamed.

        Raises:
            RuntimeError: on every process, if one could not write its part; names the path.
        """
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        unfinished = unfinished_name(path)
        if self.is_global_zero:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.barrier()
        save = super().save_checkpoint
        try:
            write_together(path, lambda: save(checkpoint, unfinished, storage_options))
            write_together(
                path, lambda: finish_folder(unfinished, path) if self.is_global_zero else None
            )
        except RuntimeError:
            if self.is_global_zero:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a folder of shards or a whole file, of any number of processes."""
        from rlif_lightning.parallel.sharded_checkpoint import load_folder, load_part_of_file

        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        assert self.lightning_module is not None
        load = load_folder if path.is_dir() else load_part_of_file
        return load(path, self.model, self.optimizers, self.lightning_module.strict_loading)


class ShardedStrategy(DividedStrategy):
    """FSDP2: parameters, gradients and optimiser state are divided between all processes.

    Lightning's ``ModelParallelStrategy`` with all processes in its data-parallel dimension.

    Args:
        cpu_offload: keep them in the CPU's memory; each layer visits the GPU when it is used.
        keep_sharded: for models that no process can hold whole: weights stay divided during
            rollouts too. Every token then waits for the slowest process.
        reshard_gradients: reduce after every micro-batch, so that a process holds its part of the
            gradients and never the whole between micro-batches: 4 bytes a parameter less in
            float32, and one sum over all processes for every micro-batch instead of one an update.
            null = as keep_sharded.
        save_distributed_checkpoint: checkpoints are folders into which each process writes its
            part, instead of one file that the first process gathers.
        process_group_backend, timeout: as for :class:`DividedStrategy`.
    """

    def __init__(
        self,
        cpu_offload: bool = False,
        keep_sharded: bool = False,
        reshard_gradients: bool | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(minutes=30),
    ):
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.cpu_offload, self.keep_sharded = cpu_offload, keep_sharded
        self.reshard_gradients = keep_sharded if reshard_gradients is None else reshard_gradients
        kind = "reshard" if self.reshard_gradients else "fsdp2"
        self.division = None if cpu_offload else "keep" if keep_sharded else kind

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def _get_process_group_backend(self) -> str:
        backend = super()._get_process_group_backend()
        # The norm of gradients that wait in the CPU's memory is summed up there.
        return "cpu:gloo,cuda:nccl" if self.cpu_offload and backend == "nccl" else backend

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let whole gradients add up in each process, unreduced, unless they stay divided."""
        assert self.model is not None
        modules = [] if self.reshard_gradients else sharded_modules(self.model)
        for module in modules:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                module.set_requires_gradient_sync(True, recurse=False)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the state as checkpoints hold it; of one file, as one process numbers it."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        from rlif_lightning.parallel.sharded_checkpoint import whole_optimizer_state

        assert self.model is not None
        return whole_optimizer_state(self.model, getattr(optimizer, "_optimizer", optimizer))

    def sharding(self) -> Sharding:
        """Return how the policy is divided, once the process group is there."""
        low = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        mesh = self.device_mesh["data_parallel"]
        return Sharding(mesh, self.root_device, self.cpu_offload, self.keep_sharded, low)


class TensorParallelStrategy(DividedStrategy):
    """Each decoder layer is divided between all processes, which work on the same prompts together.

    Checkpoints are folders into which each process writes its part.

    Args:
        process_group_backend, timeout: as for :class:`DividedStrategy`.
    """

    def __init__(
        self,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(minutes=30),
    ):
        super().__init__(
            data_parallel_size=1, process_group_backend=process_group_backend, timeout=timeout
        )

    def setup_environment(self) -> None:
        self._tensor_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        from rlif_lightning.parallel.sharded_checkpoint import model_state

        assert self.model is not None
        return model_state(self.model)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        from rlif_lightning.parallel.sharded_checkpoint import optimizer_state

        assert self.model is not None
        return optimizer_state(self.model, getattr(optimizer, "_optimizer", optimizer))


def check_readable(checkpoint: Path | None, strategy: Strategy) -> None:
    """Refuse a folder of shards under a strategy that reads files.

    Raises:
        ValueError: names the checkpoint and the overlay.
    """
    if checkpoint is not None and checkpoint.is_dir() and not isinstance(strategy, DividedStrategy):
        raise ValueError(
            f"ckpt_path={checkpoint} is a folder of shards, which"
            f" trainer.strategy={type(strategy).__name__} cannot"
            " read; add --config configs/strategy/fsdp2.yaml (with --trainer.devices=1 for one"
            " process)"
        )


def build_policy(policy: Policy, strategy: Strategy | None, frozen: bool = False) -> PolicyModel:
    """Return the policy or, ``frozen``, its reference model, divided if the strategy says so.

    The policy is compared with the Hugging Face model itself (``rollout/self_check.py``), the
    reference is not again.

    Raises:
        ValueError: this library does not compute the model's own log-probs, or it cannot be loaded
            so.
    """
    if not frozen and not check_architecture(policy) and isinstance(strategy, DividedStrategy):
        warnings.warn(
            f"model.policy.name={policy.name!r}: no small copy of this model can be built, and one"
            " that is divided"
            " between processes is not compared with itself on its weights: start it once with"
            " trainer.devices=1",
            stacklevel=2,
        )
    is_dora = policy.lora is not None and policy.lora.options.get("use_dora")
    if is_dora and isinstance(strategy, DividedStrategy):
        raise ValueError(
            "model.policy.lora.options.use_dora needs the norms of whole weights, which"
            " trainer.strategy divides; take it out, or use --config configs/strategy/ddp.yaml"
        )
    if policy.in_4bit and isinstance(strategy, DividedStrategy):
        raise ValueError(
            "model.policy.lora.options.load_in_4bit=true: weights in 4 bits cannot be divided as"
            f" {type(strategy).__name__} divides them; use --config configs/strategy/ddp.yaml"
        )
    if isinstance(strategy, ShardedStrategy):
        return sharded_policy(policy, strategy.sharding(), frozen)
    if isinstance(strategy, TensorParallelStrategy):
        model: Any = split_policy(policy, strategy.root_device, frozen)
    else:
        model = PolicyModel(policy, frozen)
    if not frozen and not isinstance(strategy, DividedStrategy):
        device = (
            None if strategy is None else strategy.root_device
        )  # where Lightning moves it right after this
        check_weights(model if device is None else model.to(device), policy)
    if (
        frozen and strategy is not None
    ):  # not a part of the LightningModule, which Lightning converts and moves
        model = strategy.precision_plugin.convert_module(model).to(strategy.root_device)
    return model


def check_strategy(strategy: Strategy | str) -> None:
    """Refuse strategies under which the numbers would be wrong.

    Raises:
        ValueError: names the strategy and the overlays.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    known = isinstance(
        strategy, (SingleDeviceStrategy, DDPStrategy, ShardedStrategy, TensorParallelStrategy)
    )
    if isinstance(strategy, str):
        known = strategy == "auto" or strategy.startswith("ddp")
    if not known:
        hint = "FSDP1 is not supported, FSDP2 is: " if "fsdp" in name.lower() else ""
        hint = (
            "data and tensor parallelism are not combined, take one; "
            if "ModelParallel" in name
            else hint
        )
        others = "fsdp2_offload.yaml, ddp.yaml, tp.yaml"
        raise ValueError(
            f"trainer.strategy={name}: {hint}use --config configs/strategy/fsdp2.yaml (or {others})"
        )
