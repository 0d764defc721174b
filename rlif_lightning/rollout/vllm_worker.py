"""What runs inside vLLM: a worker extension that loads the policy's weights. Imports nothing of vLLM or of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


class PolicyWorker:
    """Mixed into vLLM's worker, which has ``reload_weights``, ``model_runner`` and ``model_config``."""

    reload_weights: Any
    model_runner: Any

    def load_policy(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights.

        Args:
            weights: by their Hugging Face names, tied ones once.
        """
        model = self.model_runner.get_model()
        dtype = self.model_runner.model_config.dtype
        self.reload_weights(weights_iterator=((name, weight.to(dtype)) for name, weight in weights))
        # On a CPU a layer multiplies with a packed copy of its weight. vLLM packs anew what it loads, but a head that
        # is tied to the embedding is not loaded: it would go on with the copy of the weights that it started with.
        for module in _sharing(model):
            module.quant_method.process_weights_after_loading(module)


def _sharing(model: Any) -> list[Any]:
    """Modules whose weight is another module's as well."""
    owners: dict[int, list[Any]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.numel() and hasattr(module, "quant_method"):
            owners.setdefault(weight.data_ptr(), []).append(module)
    return [module for modules in owners.values() if len(modules) > 1 for module in modules]
