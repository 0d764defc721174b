"""What runs inside vLLM: a worker extension that loads the policy's weights.

Imports nothing of vLLM or of ours.

In process it is passed to ``vllm.LLM``; a server takes it on its command line:
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

# What decides the shapes of a model's weights, by the names of Hugging Face configurations.
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

# vLLM's logger that warns of layers which got no weights, by the name of their class.
RELOADING = "vllm.model_executor.model_loader.reload.layerwise"
NO_WEIGHTS = "%s: Failed to load weights"


def shape_of(config: Any) -> dict[str, Any]:
    """The entries of ``SHAPE`` that a configuration has."""
    found = {name: getattr(config, name, None) for name in SHAPE}
    return {name: value for name, value in found.items() if value is not None}


class PolicyWorker:
    """Mixed into vLLM's worker, which has ``reload_weights``, ``model_runner`` and ``model_config``.

    Attributes:
        policy_id: of the file whose weights it has; empty = others.
        sums: of the weights that were given last, and of the model's parameters after that.
    """

    reload_weights: Any
    model_runner: Any
    policy_id = ""
    sums: tuple[list[float], list[float]] | None = None

    def policy_facts(self) -> dict[str, Any]:
        """What a client needs to know of the server, as plain values."""
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
            RuntimeError: other weights were given than the last time, and no parameter of the model
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
        deque(source, maxlen=0)  # what was not read counts as given all the same
        self._check_changed(given, count, model)
        # On a CPU a layer multiplies with a packed copy of its weight. vLLM packs anew what it
        # loads, but a head that is tied to the embedding is not loaded: it would go on with the
        # copy of the weights that it started with.
        for module in _sharing(model):
            module.quant_method.process_weights_after_loading(module)

    def _check_changed(self, given: list[float], count: int, model: Any) -> None:
        """Compare with the last time.

        Only changes are compared: vLLM fuses weights, and transforms some of them.
        """
        parameters = list(model.parameters())
        if sum(each.numel() for each in parameters) < count:
            return  # divided between workers, or kept in a packed copy alone: not all of the weights can be seen
        before, self.sums = self.sums, (given, [_sum(each) for each in parameters])
        if before is not None and before[0] != given and before[1] == self.sums[1]:
            raise RuntimeError(
                "the model kept its weights: other ones were given, and no parameter has changed"
            )

    def load_policy_file(self, path: str, policy_id: str) -> None:
        """Replace the weights by those of a safetensors file (which cannot run code).

        Args:
            path: as seen from the server.
            policy_id: that the file must have.

        Raises:
            ValueError: no such file here, or another one.
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
    """The sum of a weight's elements in float64."""
    return float(weight.detach().sum(dtype=torch.float64))


@contextmanager
def _without_empty_warnings(model: Any) -> Iterator[None]:
    """Inside, vLLM does not warn of layers without weights if they have none: rotary angles, a tied head.

    A warning names a class; it is dropped where no layer of that class has a weight that is not
    another layer's first.
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
    """Modules whose weight is another module's as well."""
    owners: dict[int, list[Any]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.numel() and hasattr(module, "quant_method"):
            owners.setdefault(weight.data_ptr(), []).append(module)
    return [module for modules in owners.values() if len(modules) > 1 for module in modules]
