"""Loading of a model that is divided between processes: each process reads its own part only.

``empty_model`` makes the Hugging Face model on the meta device, which holds shapes and no numbers.
Once the model is divided (``fsdp.py``, ``tensor_parallel.py``), ``fill`` reads this process's
slices from the safetensors files, one parameter after the other.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rlif_lightning.model.loading import (
    Policy,
    own_attention,
    prepare_model,
    reading,
    resolve_model,
)
from rlif_lightning.model.transformers_internals import cached_or_none, mark_as_loaded
from rlif_lightning.parallel.tensor_parallel_layers import split_dim

if TYPE_CHECKING:
    from rlif_lightning.model.policy import PolicyModel


def empty_model(policy: Policy) -> Any:
    """Make the policy's model on the meta device: parameters have shapes only, buffers values.

    Raises:
        ValueError: no such folder or hub model.
    """
    source = {"revision": policy.revision or "main", "trust_remote_code": policy.trust_remote_code}
    with reading(policy):
        config = AutoConfig.from_pretrained(resolve_model(policy.name), **source)
    dtype = (
        (config.dtype or torch.float32) if policy.dtype == "auto" else getattr(torch, policy.dtype)
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=own_attention(policy),
            trust_remote_code=policy.trust_remote_code,
        )
    with suppress(OSError):  # without such a file the one made from the model's config stays
        model.generation_config = GenerationConfig.from_pretrained(
            resolve_model(policy.name), **source
        )
    for parameter in model.parameters():
        mark_as_loaded(parameter)  # the next line then computes buffers only
    _compute_buffers(model)
    return prepare_model(model, policy)


def _compute_buffers(model: Any) -> None:
    """Compute buffers that no file holds (rotary frequencies), as Hugging Face's loading does."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                module.register_buffer(
                    name, torch.empty_like(buffer, device="cpu"), persistent=False
                )
    model.initialize_weights()


def fill(model: PolicyModel, policy: Policy, device: torch.device) -> None:
    """Read what is still on the meta device: this process's part of parameters, whole buffers.

    Args:
        model: divided; its parameters are DTensors, split along their first dimension, or those of
            ``tensor_parallel_layers.py``.
        policy: names the model's files.
        device: of the parameters.

    Raises:
        ValueError: the files are no safetensors, or do not have a parameter or a buffer.
    """
    files = _weight_files(policy)
    _fill_buffers(model.causal_lm, files, policy)
    for names, owners in _parameters(model.causal_lm).values():
        parameter: Any = getattr(*owners[0])
        if not parameter.is_meta:
            continue
        path, stored = _find(names, files, model.causal_lm.base_model_prefix, policy)
        with safe_open(path, framework="pt") as file:
            dim = split_dim(*owners[0])
            value = _own_part(parameter, dim, file.get_slice(stored), stored).to(
                device, parameter.dtype
            )
        if isinstance(parameter, DTensor):
            spec = {"shape": parameter.shape, "stride": parameter.stride()}
            value = DTensor.from_local(
                value, parameter.device_mesh, parameter.placements, run_check=False, **spec
            )
        loaded = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for module, name in owners:
            setattr(module, name, loaded)


def _fill_buffers(causal_lm: Any, files: dict[str, str], policy: Policy) -> None:
    """Read the buffers that files hold, such as the scale of each of Gemma 4's layers."""
    for prefix, module in causal_lm.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                names = [f"{prefix}.{name}".removeprefix(".")]
                path, stored = _find(names, files, causal_lm.base_model_prefix, policy)
                with safe_open(path, framework="pt") as file:
                    value = _own_part(buffer, None, file.get_slice(stored), stored)
                setattr(module, name, value.to(buffer.dtype))


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move all buffers to a device; they are whole on every process."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _parameters(model: nn.Module) -> dict[int, tuple[list[str], list[tuple[nn.Module, str]]]]:
    """Return every parameter once, tied ones too: its names in files and the owning modules."""
    found: dict[int, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            names, owners = found.setdefault(id(parameter), ([], []))
            # peft wraps an adapted layer and calls it base_layer; files know no wrapper.
            names.append(f"{prefix}.{name}".replace(".base_layer.", "."))
            owners.append((module, name))
    return found


def _weight_files(policy: Policy) -> dict[str, str]:
    """Return tensor name -> the safetensors file that holds it."""

    def cached(name: str) -> str | None:
        return cached_or_none(resolve_model(policy.name), name, policy.revision or "main")

    index = cached(SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        names = json.loads(Path(index).read_text())["weight_map"]
        paths = {name: cached(name) for name in set(names.values())}
        return {name: str(paths[file]) for name, file in names.items()}
    path = cached(SAFE_WEIGHTS_NAME)
    if path is None:
        raise ValueError(
            f"policy.name={policy.name!r} has neither {SAFE_WEIGHTS_NAME} nor"
            f" {SAFE_WEIGHTS_INDEX_NAME}; a sharded run reads safetensors only: load the model once"
            " and save it with save_pretrained"
        )
    with safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), path)


def _find(names: list[str], files: dict[str, str], prefix: str, policy: Policy) -> tuple[str, str]:
    """Return file and stored name of a parameter; a base model's files leave its prefix out."""
    for name in names:
        for stored in (name, name.removeprefix(f"{prefix}.")):
            if stored in files:
                return files[stored], stored
    raise ValueError(
        f"policy.name={policy.name!r}: its files have no tensor {names[0]!r} (they have"
        f" {', '.join(sorted(files)[:3])}, ...); a sharded run needs the names of the model's code:"
        " load the model once with AutoModelForCausalLM, write it and its tokenizer by"
        " save_pretrained(FOLDER, save_original_format=False), and give that folder"
    )


def _own_part(parameter: Any, dim: int | None, stored: Any, name: str) -> Tensor:
    """Return this process's part of a stored tensor.

    It is a DTensor's shard, an equal part along ``dim``, or all of it.
    """
    shape = list(parameter.shape)
    if dim is not None:
        shape[dim] *= dist.get_world_size()
    if shape != stored.get_shape():
        raise ValueError(
            f"{name} has the shape {stored.get_shape()} in its file; the model needs {shape}"
        )
    if dim is not None:
        size, process = parameter.shape[dim], dist.get_rank()
        part = slice(process * size, (process + 1) * size)
        return stored[(*[slice(None)] * dim, part)].contiguous()
    return stored[own_rows(parameter) if isinstance(parameter, DTensor) else ...]


def own_rows(sharded: DTensor) -> slice:
    """Return which rows of a tensor that is sharded along its first dimension are here."""
    (placement,), mesh = sharded.placements, sharded.device_mesh
    assert isinstance(placement, Shard)
    assert placement.dim == 0
    num_rows = -(-sharded.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * num_rows, sharded.shape[0])
    return slice(first, min(first + num_rows, sharded.shape[0]))
