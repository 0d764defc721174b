"""Muon for matrices and AdamW for every other parameter, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

WHOLE_MATRICES = "needs_whole_matrices"  # an attribute of optimisers
VOCABULARY = "is_vocabulary"  # an attribute of parameters with a row for each token


def mark_embeddings(model: Any) -> None:
    """Mark the parameters of a causal LM that have a row for each token or position."""
    modules = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    for module in [*modules, model.get_output_embeddings()]:
        for parameter in module.parameters() if module is not None else ():
            setattr(parameter, VOCABULARY, True)


def works_on_matrices(optimizer: Any) -> bool:
    """Return whether an optimiser's step needs every matrix whole."""
    return isinstance(optimizer, torch.optim.Muon) or getattr(optimizer, WHOLE_MATRICES, False)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for vectors, embeddings and the head.

    https://kellerjordan.github.io/posts/muon/. An update of Muon is scaled to the root mean square
    of AdamW's (https://arxiv.org/abs/2502.16982), so that one learning rate serves both. The first
    group of parameters is Muon's, the second AdamW's.

    Args:
        params: the parameters to train.
        lr: learning rate of both.
        weight_decay: of both, decoupled.
        momentum: of Muon.
        nesterov: whether Muon's momentum is Nesterov's.
        ns_steps: Newton-Schulz iterations.
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: a number out of range.
    """

    needs_whole_matrices = True

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        given = list(params)
        of_muon = [each.ndim == 2 and not getattr(each, VOCABULARY, False) for each in given]
        matrices = [each for each, is_muon in zip(given, of_muon, strict=True) if is_muon]
        others = [each for each, is_muon in zip(given, of_muon, strict=True) if not is_muon]
        muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        shared = {"lr": lr, "weight_decay": weight_decay}
        self._muon = torch.optim.Muon(
            [{"params": matrices}], **shared, **muon, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW([{"params": others}], **shared, betas=betas, eps=eps)
        groups = [*self._muon.param_groups, *self._adamw.param_groups]
        super().__init__(groups, {**shared, **muon, "betas": betas, "eps": eps})
        # Each group has the settings of its own optimiser alone.
        self.param_groups = groups
        self._share()

    def _share(self) -> None:
        """Let both optimisers work on this one's groups and state."""
        self._muon.param_groups, self._adamw.param_groups = ([group] for group in self.param_groups)
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both; a closure computes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss
