"""A fork of a checkpoint of another model is refused; group sizes that no rollout can have too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from harness.python_runs import NAME, Run, at, data, module
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.running.fork import take_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of a model with two layers."""
    return at(Run(tmp_path_factory.mktemp("first"), 1, module(), data()).folder / "checkpoints", 1)


OTHERS: dict[str, tuple[dict[str, int], str]] = {
    "shallower": ({"num_hidden_layers": 1}, r"the configured model has no model\.layers\.1\."),
    "deeper": ({"num_hidden_layers": 3}, r"there is no model\.layers\.2\."),
    "narrower": ({"intermediate_size": 192}, r".* has the shape \[384, 128\]; .* \[192, 128\]"),
}


# The marks: one kind of misfit is enough with adapters.
@pytest.mark.parametrize(
    ("name", "lora"),
    [
        *((name, None) for name in OTHERS),
        ("shallower", LoRA(4, 8)),
        *(pytest.param(n, LoRA(4, 8), marks=pytest.mark.full) for n in ("deeper", "narrower")),
    ],
)
def test_a_fork_of_another_model_is_refused(checkpoint, tmp_path, name, lora):
    changed, message = OTHERS[name]
    if lora is not None:
        pytest.importorskip("peft")
    config = AutoConfig.from_pretrained(NAME)
    config.update(changed)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(NAME).save_pretrained(tmp_path)
    other = module(policy=Policy(str(tmp_path), lora=lora))
    other.configure_model()
    with pytest.raises(ValueError, match=f"fork_from=.*: {message}.*; configure the same model"):
        take_weights(checkpoint, other)


@pytest.mark.parametrize("size", [0, -1])
def test_a_group_size_below_one_is_refused_in_setup(size):
    model: Any = module(group_size=size)
    with pytest.raises(ValueError, match=f"group_size={size} of RLIFModule must be at least 1"):
        model.read_settings_of(None)
