"""Shared fixtures: offline, one thread, and tiny models of every supported architecture made on the spot."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

pytest.register_assert_rewrite("harness")  # before the first import from it

from harness.models import ARCHITECTURES, make_model  # noqa: E402
from rlif_lightning.model.loading import resolve_model  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Architecture -> folder of a random tiny model with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    folders = {}
    for architecture in ARCHITECTURES:
        torch.manual_seed(0)
        model = make_model(architecture, len(tokenizer))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # so that logits are far from uniform
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folders[architecture])
        tokenizer.save_pretrained(folders[architecture])
    return folders
