"""A trained reward model as a head: a sequence classifier of the Hugging Face hub, or a folder."""

from __future__ import annotations

import math
from typing import Any

import torch

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.tokenizer import special_texts, without_tokens
from rlif_lightning.judges.base import RunModels
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.classifier import HoldsClassifier, readable_tokens
from rlif_lightning.rewards.unread import tell_unread, unread


class RewardModel(HoldsClassifier, RewardHead):
    """Scores a completion by a classifier's one logit for prompt and completion.

    Prompt and completion are one text. Where the prompts are conversations, it is made by the
    classifier's own chat template, with the completion as the assistant's turn. A special token
    that a completion spells out is none. Each process has a whole copy, which is no part of
    checkpoints and is not trained. A text that is longer than the classifier can read has no score
    (NaN); a prompt that is, alone, is refused in setup.

    Args:
        name: hub name or folder of a sequence classifier with one label.
        dtype: float32 | bfloat16 | float16: of its weights and its passes, whatever
            trainer.precision is.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: an unknown dtype. When data is loaded: the model cannot be read, has several
            labels, or has no chat template for conversations.
    """

    def __init__(self, name: str, dtype: str = "float32", revision: str | None = None):
        RewardHead.__init__(self)
        HoldsClassifier.__init__(self, name, dtype, revision)

    def refuse_labels(self, config: Any) -> None:
        if config.num_labels != 1:
            raise ValueError(
                f"name={self.name!r} has {config.num_labels} labels; a reward model has one"
            )

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Load the classifier, and refuse conversations that it has no template for."""
        _, tokenizer = self._model()
        if problems.messages is not None:
            self._refuse_without_template(tokenizer)

    def check_contexts(self, problems: EncodedSplit, models: RunModels) -> None:
        """Refuse prompts that the classifier could not read even without a completion."""
        model, tokenizer = self._model()
        limit, prompts = readable_tokens(model), problems.token_ids
        if limit is None or prompts is None:
            return
        for row, ids in zip(problems.rows.tolist(), prompts, strict=True):
            if len(ids) < limit // 4:
                continue  # far from the limit by any tokenizer
            text = models.policy.tokenizer.decode(ids, skip_special_tokens=True)
            if (size := len(tokenizer(text)["input_ids"])) > limit:
                raise ValueError(
                    f"name={self.name!r}: row {row} of the train split has {size} tokens without"
                    f" a completion, and the reward model reads at most {limit}; lower"
                    " data.max_prompt_tokens, with data.overlong=filter"
                )

    def _refuse_without_template(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"name={self.name!r}: this reward model's tokenizer has no chat template, and the"
                " prompts are conversations; use another model, or data.format.chat=false"
            )

    def forward(self, rollout: Rollout) -> RewardOutput:
        device, rows = rollout.mask.device, self._token_ids(self._model()[1], rollout)
        limit = readable_tokens(self._model()[0]) or math.inf
        faults = [
            f"name={self.name!r}: prompt and completion have {len(row)} tokens, and the reward"
            f" model reads at most {limit}; lower sampling.max_new_tokens"
            if len(row) > limit
            else ""
            for row in rows
        ]
        tell_unread(self, faults)
        is_read = ~unread(faults, device)
        scores = torch.full(is_read.shape, torch.nan, device=device)
        read = [row for row, fault in zip(rows, faults, strict=True) if not fault]
        scores[is_read] = self.logits({"input_ids": read}, device)[:, 0]
        return RewardOutput(scores)

    def _token_ids(self, tokenizer: Any, rollout: Rollout) -> list[list[int]]:
        """Return the token ids of B texts."""
        chats = rollout.prompts.messages
        if chats is not None:
            self._refuse_without_template(tokenizer)
        texts, special = [], special_texts(tokenizer)
        for row, text in enumerate(rollout.texts):
            prompt, completion = row // rollout.group_size, without_tokens(text, special)
            if chats is None:
                texts.append(rollout.prompts.texts[prompt] + completion)
                continue
            turns = [*chats[prompt], {"role": "assistant", "content": completion}]
            texts.append(str(tokenizer.apply_chat_template(turns, tokenize=False)))
        # A template writes its special tokens itself.
        rows = tokenizer(texts, add_special_tokens=chats is None)["input_ids"]
        return rows
