"""A worker extension that runs inside vLLM and loads the policy's weights.

It imports nothing of vLLM or of this library. ``vllm.LLM`` takes it as an argument; a server takes
it on its command line:
``--worker-extension-cls rlif_lightning.rollout.vllm_worker.PolicyWorker``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

# Entries of a Hugging Face configuration that decide the shapes of a model's weights.
SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)

# vLLM's logger of reloading, which warns of layers without weights by the names of their classes.
RELOADING = "vllm.model_executor.model_loader.reload.layerwise"
NO_WEIGHTS = "%s: Failed to load weights"


def shape_of(config: Any) -> dict[str, Any]:
    """Return the entries of ``SHAPE`` that a configuration has."""
    found = {name: getattr(config, name, None) for name in SHAPE}
    return {name: value for name, value in found.items() if value is not None}


class PolicyWorker:
    """A mixin of vLLM's worker, which has ``reload_weights`` and ``model_runner``.

    Attributes:
        policy_id: of the file whose weights the model has; empty = it has other weights.
        sums: of the weights that were given last, and of the model's parameters afterwards.
    """

    reload_weights: Any
    model_runner: Any
    policy_id = ""
    sums: tuple[list[float], list[float]] | None = None

    def policy_facts(self) -> dict[str, Any]:
        """Return what a client checks about the server, as plain values."""
        config = self.model_runner.model_config
        return {
            "policy_id": self.policy_id,
            "shape": shape_of(config.hf_text_config),
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_model_len": config.max_model_len,
            "logprobs_mode": str(config.logprobs_mode),
        }

    def load_policy(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights.

        Args:
            weights: by their Hugging Face names, tied ones once.

        Raises:
            RuntimeError: the given weights differ from the last ones, and no parameter of the model
                has changed.
        """
        model = self.model_runner.get_model()
        dtype = self.model_runner.model_config.dtype
        given, count = [], 0

        def counted() -> Iterator[tuple[str, Tensor]]:
            nonlocal count
            for name, weight in weights:
                cast = weight.to(dtype)
                given.append(_sum(cast))
                count += cast.numel()
                yield name, cast

        source = counted()
        with _without_empty_warnings(model):
            self.reload_weights(weights_iterator=source)
        deque(source, maxlen=0)  # weights that vLLM has not read count as given, too
        self._check_changed(given, count, model)
        # On a CPU a layer multiplies with a packed copy of its weight. vLLM packs the weights that
        # it loads, but a head that is tied to the embedding is not loaded. It would keep the packed
        # copy of its first weights.
        for module in _sharing(model):
            module.quant_method.process_weights_after_loading(module)

    def _check_changed(self, given: list[float], count: int, model: Any) -> None:
        """Raise if the given weights have changed since the last time, and no parameter has.

        Only changes are compared, since vLLM fuses weights and transforms some of them.
        """
        parameters = list(model.parameters())
        if sum(each.numel() for each in parameters) < count:
            return  # not all weights are visible: sharded between workers, or in packed copies
        before, self.sums = self.sums, (given, [_sum(each) for each in parameters])
        if before is not None and before[0] != given and before[1] == self.sums[1]:
            raise RuntimeError(
                "the model kept its weights: other ones were given, and no parameter has changed"
            )

    def load_policy_file(self, path: str, policy_id: str) -> None:
        """Replace the weights by those of a safetensors file (which cannot run code).

        Args:
            path: of the file on the server's machine.
            policy_id: that the file must have.

        Raises:
            ValueError: there is no such file, or it has another id.
        """
        if not Path(path).is_file():
            raise ValueError("no such file on the server's side")
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("policy_id")
            if found != policy_id:
                raise ValueError(f"the file has policy_id {found} instead of {policy_id}")
            self.policy_id = ""
            self.load_policy((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - not a dict
        self.policy_id = policy_id


def _sum(weight: Tensor) -> float:
    """Return the sum of a weight's elements in float64."""
    return float(weight.detach().sum(dtype=torch.float64))


@contextmanager
def _without_empty_warnings(model: Any) -> Iterator[None]:
    """Drop vLLM's warnings of layers without weights that own none: rotary angles, a tied head.

    A warning names a class. It is dropped if every weight of the layers of that class belongs to
    another layer first.
    """
    owned: set[int] = set()
    classes: dict[str, bool] = {}
    for module in model.modules():
        places = {
            id(p) if p.numel() == 0 else p.data_ptr() for p in module.parameters(recurse=False)
        }
        name = type(module).__name__
        classes[name] = classes.get(name, False) or bool(places - owned)
        owned |= places

    def matters(record: logging.LogRecord) -> bool:
        named = record.args[0] if isinstance(record.args, tuple) and record.args else None
        return record.msg != NO_WEIGHTS or classes.get(str(named), True)

    logger = logging.getLogger(RELOADING)
    logger.addFilter(matters)
    try:
        yield
    finally:
        logger.removeFilter(matters)


def _sharing(model: Any) -> list[Any]:
    """Return the modules whose weight is shared with another module."""
    owners: dict[int, list[Any]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.numel() and hasattr(module, "quant_method"):
            owners.setdefault(weight.data_ptr(), []).append(module)
    return [module for modules in owners.values() if len(modules) > 1 for module in modules]
