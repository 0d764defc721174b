"""Limits of a model's context, from its position tables and rotary angles.

They are checked before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

TABLES = ("wpe", "position", "pos_")  # parts of the names of position tables


@dataclass(frozen=True)
class ContextLimits:
    """The limits of one model.

    Attributes:
        rows: rows of its embedding table; token ids beyond have no embedding.
        positions: rows of its position table; None = it has none.
        selected: tokens that a layer selects to attend to; a shorter context leaves none out.
            None = all.
        original: length up to which its rotary angles are the same for every context; None = every
            length.
        rope_type: the rule that changes the angles beyond that length.
    """

    rows: int
    positions: int | None
    selected: int | None
    original: int | None
    rope_type: str = ""

    @classmethod
    def of(cls, causal_lm: Any) -> ContextLimits:
        """Read the limits from a Hugging Face causal LM."""
        config = causal_lm.config.get_text_config(decoder=True)
        rotary = any("inv_freq" in name for name, _ in causal_lm.named_buffers())
        positions = getattr(config, "max_seq_len", None)  # MPT: the longest bias that it makes
        if not rotary and _has_table(causal_lm):
            positions = getattr(config, "max_position_embeddings", positions)
        selected = getattr(config, "index_topk", None) or getattr(config, "keep_window_size", None)
        return cls(
            causal_lm.get_input_embeddings().weight.shape[0],
            positions,
            selected,
            *_original_length(config),
        )

    def check(
        self, name: str, prompt_lengths: Sequence[int], longest: Sequence[int], asked: str = ""
    ) -> None:
        """Refuse contexts beyond the position table, or whose angles depend on their length.

        Args:
            name: of the model.
            prompt_lengths: tokens of each prompt.
            longest: tokens of each prompt with the longest completion that it may get.
            asked: the setting of the completion's length, for the message.

        Raises:
            ValueError: names the model, the limit, and what to change.
        """
        if not longest:
            return
        context = f"a prompt of {{}} tokens{asked} makes a context of {{}} tokens"
        total, prompt = max(zip(longest, prompt_lengths, strict=True))
        if self.positions is not None and total - 1 > self.positions:  # the last token is no input
            raise ValueError(
                f"model.policy.name={name!r} has {self.positions} positions"
                f" (max_position_embeddings), and {context.format(prompt, total)}; lower"
                " data.max_prompt_tokens or sampling.max_new_tokens"
            )
        if self.selected is not None and total > self.selected:
            raise ValueError(
                f"model.policy.name={name!r} selects {self.selected} tokens to attend to, and"
                f" {context.format(prompt, total)}; which tokens it leaves out depends on rounding,"
                " so log-probs in training would differ from its own; lower data.max_prompt_tokens"
                " or sampling.max_new_tokens"
            )
        if self.original is None or total <= self.original:
            return
        if self.rope_type == "longrope" and min(prompt_lengths) > self.original:
            return  # all contexts have the angles of long ones, from their first token on
        raise ValueError(
            f"model.policy.name={name!r} changes the angles of all its positions beyond"
            f" original_max_position_embeddings={self.original} (rope_type {self.rope_type!r}), and"
            f" {context.format(prompt, total)}: its first tokens would be drawn with other angles"
            " than they are trained with; lower data.max_prompt_tokens or sampling.max_new_tokens"
            " so that contexts stay within that length"
        )

    @property
    def has_bound(self) -> bool:
        """Return whether there is a length from which on :meth:`check` refuses a context."""
        return any(each is not None for each in (self.positions, self.selected, self.original))

    def fault(self, name: str, prompt_length: int, total: int, asked: str) -> str:
        """Return what :meth:`check` says of one context of so many tokens; nothing if it fits."""
        try:
            self.check(name, [prompt_length], [total], asked)
        except ValueError as error:
            return str(error)
        return ""

    def check_ids(self, name: str, prompt_ids: Sequence[Tensor]) -> None:
        """Refuse token ids without an embedding, such as those added to a tokenizer alone."""
        highest = max((int(ids.max()) for ids in prompt_ids if len(ids)), default=0)
        if highest >= self.rows:
            raise ValueError(
                f"a prompt has the token id {highest}, and model.policy.name={name!r} has"
                f" embeddings for {self.rows} tokens only: its tokenizer has more tokens; use the"
                " model's own tokenizer, or resize the model's embeddings and save it"
            )


def _has_table(model: nn.Module) -> bool:
    tensors = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    for module in model.modules():
        tensors += [name for name, value in vars(module).items() if isinstance(value, Tensor)]
    return any(part in name for name in tensors for part in TABLES)


def _original_length(config: Any) -> tuple[int | None, str]:
    """Return the length up to which rotary angles are fixed, and the rule beyond it."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [each for each in rope.values() if isinstance(each, dict)]
    longest = getattr(config, "max_position_embeddings", None)
    found = []
    for rule in [rope] if "rope_type" in rope else by_layer_type:
        kind = rule.get("rope_type", "")
        if kind == "longrope":
            found.append((rule.get("original_max_position_embeddings") or longest, kind))
        elif "dynamic" in kind:
            found.append((longest, kind))
    return min(found, default=(None, ""))
