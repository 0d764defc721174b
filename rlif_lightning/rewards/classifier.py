"""Sequence classifiers of the Hugging Face hub, or of a folder: loading them, and their passes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlif_lightning.data.tokenizer import load_tokenizer, resolve_model
from rlif_lightning.model.loading import refuse_other_weights

DTYPES = ("float32", "bfloat16", "float16")
MAX_TOKENS = 2**14  # of one pass, padding included


class HoldsClassifier:
    """A part that asks a sequence classifier; each process has a whole copy, which is not trained.

    Args:
        name, dtype, revision: as for :class:`RewardModel`.

    Raises:
        ValueError: an unknown dtype.
    """

    def __init__(self, name: str, dtype: str = "float32", revision: str | None = None):
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        self.name, self.dtype, self.revision = name, dtype, revision
        # In a list it is no submodule: checkpoints and strategies must not include it.
        self._loaded: list[tuple[Any, Any]] = []
        self._padding: int | None = None

    def refuse_labels(self, config: Any) -> None:
        """Refuse a classifier with other labels than are needed.

        Raises:
            ValueError: names them.
        """

    def logits(self, rows: Mapping[str, Sequence[Sequence[int]]], device: torch.device) -> Tensor:
        """Return the logits of texts, ``[N, labels]`` float32 on the device.

        Args:
            rows: what the tokenizer returned, without padding: ``input_ids``, and perhaps
                ``token_type_ids``.
            device: that computes.
        """
        model = self._model()[0].to(device)
        ids, takes = rows["input_ids"], inspect.signature(model.forward).parameters
        found = torch.empty(len(ids), model.config.num_labels, device=device)
        # Lightning's autocast would change the passes.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for chosen in batches([len(row) for row in ids], self._padding is not None):
                given, mask = padded([ids[b] for b in chosen], self._padding or 0, device)
                kinds = {}
                if "token_type_ids" in rows and "token_type_ids" in takes:
                    of_rows = [rows["token_type_ids"][b] for b in chosen]
                    kinds = {"token_type_ids": padded(of_rows, 0, device)[0]}
                out = model(input_ids=given, attention_mask=mask, **kinds)
                found[chosen] = out.logits.float()
        return found

    def _model(self) -> tuple[Any, Any]:
        """Return classifier and tokenizer, loaded at the first call.

        Raises:
            ValueError: they cannot be loaded, or the labels are refused.
        """
        if not self._loaded:
            tokenizer = load_tokenizer(self.name, self.revision, trust_remote_code=False)
            self._loaded.append((self._load(), tokenizer))
        return self._loaded[0]

    def _load(self) -> Any:
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                resolve_model(self.name),
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
        self.refuse_labels(model.config)
        config = model.config.get_text_config()
        self._padding = config.pad_token_id
        if self._padding is None:
            # It reads the last token then, and refuses several rows, which have one length here.
            config.pad_token_id = -1
        return model.eval().requires_grad_(False)


def readable_tokens(model: Any) -> int | None:
    """Return how many tokens a classifier can read; None = no table bounds it.

    RoBERTa and its relatives count positions from behind their padding token, so that the first
    places of the table are never used.
    """
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    behind = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return places if places is None or behind is None else places - behind - 1


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
