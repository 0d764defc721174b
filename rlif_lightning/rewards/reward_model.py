"""A trained reward model as a head: a sequence classifier of the Hugging Face hub, or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.tokenizer import load_tokenizer
from rlif_lightning.model.loading import refuse_other_weights
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead

DTYPES = ("float32", "bfloat16", "float16")
MAX_TOKENS = 2**14  # of one pass, padding included


class RewardModel(RewardHead):
    """Scores a completion by a classifier's one logit for prompt and completion.

    Prompt and completion are one text. Where the prompts are conversations, it is made by the
    classifier's own chat template, with the completion as the assistant's turn. Each process has a
    whole copy, which is no part of checkpoints and is not trained.

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
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        self.name, self.dtype, self.revision = name, dtype, revision
        # In a list it is no submodule: checkpoints and strategies must not include it.
        self._loaded: list[tuple[Any, Any]] = []
        self._padding: int | None = None

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Load the classifier, and refuse conversations that it has no template for."""
        _, tokenizer = self._model()
        if problems.messages is not None:
            self._refuse_without_template(tokenizer)

    def _refuse_without_template(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"name={self.name!r}: this reward model's tokenizer has no chat template, and the"
                " prompts are conversations; use another model, or data.format.chat=false"
            )

    def forward(self, rollout: Rollout) -> RewardOutput:
        model, tokenizer = self._model()
        device = rollout.mask.device
        model.to(device)
        rows = self._token_ids(tokenizer, rollout)
        scores = torch.empty(len(rows), device=device)
        # Lightning's autocast would change the passes.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for chosen in batches([len(row) for row in rows], self._padding is not None):
                ids, mask = padded([rows[b] for b in chosen], self._padding or 0, device)
                scores[chosen] = model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        return RewardOutput(scores)

    def _token_ids(self, tokenizer: Any, rollout: Rollout) -> list[list[int]]:
        """Return the token ids of B texts.

        Raises:
            ValueError: one is longer than the classifier can read.
        """
        chats = rollout.prompts.messages
        if chats is not None:
            self._refuse_without_template(tokenizer)
        texts = []
        for row, completion in enumerate(rollout.texts):
            prompt = row // rollout.group_size
            if chats is None:
                texts.append(rollout.prompts.texts[prompt] + completion)
                continue
            turns = [*chats[prompt], {"role": "assistant", "content": completion}]
            texts.append(str(tokenizer.apply_chat_template(turns, tokenize=False)))
        # A template writes its special tokens itself.
        rows = tokenizer(texts, add_special_tokens=chats is None)["input_ids"]
        limit = getattr(self._model()[0].config, "max_position_embeddings", None)
        if limit is not None and (longest := max(map(len, rows))) > limit:
            raise ValueError(
                f"name={self.name!r}: prompt and completion have {longest} tokens, and the reward"
                f" model reads at most {limit}; lower sampling.max_new_tokens"
            )
        return rows

    def _model(self) -> tuple[Any, Any]:
        """Return classifier and tokenizer, loaded at the first call.

        Raises:
            ValueError: they cannot be loaded, or it has not one label.
        """
        if not self._loaded:
            tokenizer = load_tokenizer(self.name, self.revision, trust_remote_code=False)
            self._loaded.append((self._load(), tokenizer))
        return self._loaded[0]

    def _load(self) -> Any:
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                self.name,
                dtype=getattr(torch, self.dtype),
                revision=self.revision or "main",
                use_safetensors=True,  # pickled weights could run code
                ignore_mismatched_sizes=True,  # they are refused below, with their names
                output_loading_info=True,
            )
        except Exception as error:  # a broken file makes the library raise anything
            raise ValueError(
                f"name={self.name!r} cannot be loaded as a sequence classifier:"
                f" {' '.join(str(error).split()) or type(error).__name__:.300}"
            ) from error
        model, found = loaded
        refuse_other_weights(f"name={self.name!r}", found)
        if model.config.num_labels != 1:
            raise ValueError(
                f"name={self.name!r} has {model.config.num_labels} labels; a reward model has one"
            )
        config = model.config.get_text_config()
        self._padding = config.pad_token_id
        if self._padding is None:
            # It reads the last token then, and refuses several rows, which have one length here.
            config.pad_token_id = -1
        return model.eval().requires_grad_(False)


def batches(lengths: Sequence[int], pads: bool, limit: int = MAX_TOKENS) -> Iterator[list[int]]:
    """Yield the numbers of rows that one pass reads, of similar lengths.

    Args:
        lengths: tokens of each row.
        pads: whether rows may be padded; otherwise a pass has rows of one length.
        limit: most tokens of a pass, padding included; a longer row is alone.

    Example:
        >>> list(batches([3, 9, 3, 4], True, 8)), list(batches([3, 9, 3, 4], False, 8))
        ([[0, 2], [3], [1]], [[0, 2], [3], [1]])
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        is_longer = bool(batch) and lengths[row] != lengths[batch[0]]
        if batch and (lengths[row] * (len(batch) + 1) > limit or (is_longer and not pads)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(
    rows: Sequence[Sequence[int]], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ``[b, L]`` token ids, padded on the right, and their mask."""
    longest = max(map(len, rows))
    ids = [[*row, *[padding] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
