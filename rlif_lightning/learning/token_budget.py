"""The token budget of a micro-batch, which is halved when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from rlif_lightning.model.out_of_memory import give_back, is_out_of_memory
from rlif_lightning.processes.ranks import num_processes
from rlif_lightning.setting_types import check_arguments

T = TypeVar("T")


class TokenBudget(nn.Module):
    """Tokens of one forward and backward pass: a setting, halved each time that memory runs out.

    Results depend on it by rounding alone. The present value is in checkpoints, so a resumed run
    rounds as the stopped one did. A changed setting takes the place of the saved value.

    Args:
        tokens: the setting ``micro_batch_tokens``; it counts prompts and padding too.

    Raises:
        ValueError: it is less than 1.
    """

    state: Tensor

    def __init__(self, tokens: int):
        check_arguments(TokenBudget, locals())
        super().__init__()
        if tokens < 1:
            raise ValueError(f"micro_batch_tokens={tokens} must be at least 1")
        self.configured = tokens
        self.register_buffer("state", torch.tensor([tokens, tokens]))

    @property
    def tokens(self) -> int:
        """The present budget."""
        configured, tokens = self.state.tolist()
        return tokens if configured == self.configured else self.configured

    def run(self, work: Callable[[int], T], undo: Callable[[], None] = lambda: None) -> T:
        """Return ``work(tokens)``; call it again with half the tokens each time memory runs out.

        Args:
            work: leaves no effect that ``undo`` does not revert.
            undo: called before each new attempt.

        Raises:
            RuntimeError: memory ran out with several processes (another one may wait in a
                collective that this one would never join), or with a budget of 1; names the
                setting.
        """
        while True:
            try:
                return work(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._check(error)
            # Outside of the handler no traceback holds the failed attempt's tensors.
            give_back()
            undo()
            half = self.tokens // 2
            self.state.copy_(torch.tensor([self.configured, half]))
            warnings.warn(
                f"out of memory in a micro-batch: it is repeated with {half} tokens, and later ones"
                f" have as many; set model.update.micro_batch_tokens={half} to begin so",
                stacklevel=2,
            )

    def _check(self, error: BaseException) -> None:
        if self.tokens == 1:
            raise RuntimeError(
                "out of memory with a single completion in a micro-batch; see"
                " model.policy.gradient_checkpointing and model.policy.lora"
            ) from error
        if num_processes() > 1:
            raise RuntimeError(
                f"out of memory in a micro-batch of {self.tokens} tokens on one of several"
                " processes, which cannot repeat it alone; resume (--ckpt_path=last) with a lower"
                " model.update.micro_batch_tokens"
            ) from error
