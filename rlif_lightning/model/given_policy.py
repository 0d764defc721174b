"""What a person may pass as the policy in Python; a model in memory is written to a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlif_lightning.data.tokenizer import load_tokenizer
from rlif_lightning.model.loading import Policy

__all__ = ["as_policy", "folder_of"]


def as_policy(given: Any) -> Policy:
    """Return the settings of a policy that a person named in Python.

    Args:
        given: settings, the name or folder of a model, a model in memory, or (model, tokenizer).

    Raises:
        TypeError: anything else.
        ValueError: as of :func:`folder_of`.
    """
    if isinstance(given, (str, os.PathLike)):
        return Policy(os.fspath(given))
    if isinstance(given, Policy):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return Policy(str(folder_of(*given)))
    if isinstance(given, nn.Module):
        return Policy(str(folder_of(given)))
    raise TypeError(
        f"policy={type(given).__name__} is not supported: pass a hub name, a folder,"
        " Policy(name=...), a model of transformers, or (model, tokenizer)"
    )


def folder_of(model: Any, tokenizer: Any = None) -> Path:
    """Write a model in memory, with its tokenizer, to a folder that is named by their contents.

    The reference model, other processes and resumed runs read the policy's weights from files. The
    folder is in ``rlif_lightning/`` of Hugging Face's folder (``HF_HOME``). The same weights have
    the same folder, which is written once.

    Args:
        model: a causal LM of transformers, as it is now.
        tokenizer: of transformers; None = that of the name that the model was loaded by.

    Raises:
        TypeError: another kind of model or tokenizer.
        ValueError: adapters, quantised weights, weights without values, or no tokenizer is found.
    """
    _check(model)
    tokenizer = _tokenizer_of(model) if tokenizer is None else tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"policy=(model, tokenizer): {type(tokenizer).__name__} is no tokenizer of transformers"
        )
    home = Path(constants.HF_HOME) / "rlif_lightning"
    home.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(dir=home, prefix=".writing-"))
    try:
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        folder = home / f"{type(model).__name__}-{_checksum(written)}"
        if not folder.exists():
            _rename(written, folder)
            rank_zero_info(f"The policy that was passed as a model is in {folder}.")
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return folder


def _check(model: Any) -> None:
    from transformers import PreTrainedModel  # a slow import, which the command line can do without

    kind = type(model).__name__
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"policy={kind} has adapters: pass model.merge_and_unload(), or the model without them"
            " and Policy(folder_of(model), lora=LoRA.of(peft_config)) for new ones"
        )
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise TypeError(f"policy={kind} is no causal language model of transformers; pass one")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"policy={kind} has quantised weights: pass the name of the model that they were made"
            " of, and policy.lora.options.load_in_4bit for QLoRA"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"policy={kind} has parameters on the meta device; load its weights first")


def _tokenizer_of(model: Any) -> Any:
    name = model.name_or_path
    try:
        return load_tokenizer(name, None, False)
    except ValueError as error:
        raise ValueError(
            f"policy={type(model).__name__}: no tokenizer is found by the name that the model was"
            f" loaded by, {name!r}; pass policy=(model, tokenizer)"
        ) from error


def _checksum(folder: Path) -> str:
    """Return 16 digits that change with any file of a folder, or its name."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _rename(written: Path, folder: Path) -> None:
    """Put a written folder in its place; another process may have been first with the same."""
    try:
        written.rename(folder)
    except OSError:
        if not folder.exists():
            raise
