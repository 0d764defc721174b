"""The head's weight under autocast: cast once for all chunks of a micro-batch, with the numbers of
a cast in each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rlif_lightning.model.policy as policy_module
from harness.architectures import save_tiny, tiny_config
from harness.scoring import HOT, completions_of, gradients
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import TokenStats

KINDS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "lora": {},
    "frozen": {},
    "bias": {},
}


class Casts(TorchDispatchMode):
    """Counts how often a matrix of some shape is made bfloat16."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape, self.number = shape, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if (
            "_to_copy" in str(function)
            and result.dtype == torch.bfloat16
            and result.shape == self.shape
        ):
            self.number += 1
        return result


def scored(policy: PolicyModel) -> TokenStats:
    """``[b, T]`` statistics of one micro-batch under autocast."""
    (packed,) = pack(completions_of(policy.vocab_size), 1000)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return policy(packed, HOT)


def loaded(kind: str, folder: Path) -> PolicyModel:
    name = save_tiny(tiny_config("phi" if kind == "bias" else "llama", **KINDS[kind]), folder)
    return PolicyModel(
        Policy(name, lora=LoRA(rank=2, alpha=4) if kind == "lora" else None),
        frozen=kind == "frozen",
    )


# peft reads a name that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [True, False])
def test_once_for_all_chunks_and_their_recomputation(kind, graph, tmp_path, monkeypatch):
    policy = loaded(kind, tmp_path)
    monkeypatch.setattr(policy_module, "KEPT_LOGITS", {"cpu": 0})
    monkeypatch.setattr(policy_module, "MAX_LOGITS", {"cpu": 5 * policy.vocab_size})
    shape = policy.causal_lm.get_output_embeddings().weight.shape
    found: dict[bool, tuple[TokenStats, dict[str, Tensor]]] = {}
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(policy_module, "cast_head", lambda *_: None)
        with torch.set_grad_enabled(graph), Casts(shape) as casts:
            stats = scored(policy)
            of_weights = gradients(policy, stats) if graph and kind != "frozen" else {}
        found[shared] = stats.map(Tensor.detach), of_weights
        assert casts.number == 1 if shared else casts.number > 4
    for name, values in vars(found[True][0]).items():
        assert torch.equal(values, getattr(found[False][0], name)), name
    assert found[True][1].keys() == found[False][1].keys()
    for name, values in found[True][1].items():
        assert torch.equal(values, found[False][1][name]), name
