"""A published benchmark at one version, from the hub or a local copy, with its schema checked.

The YAML files in ``configs/benchmarks/`` name the data, its columns, the prompt and the way it is
measured. This file loads and checks the problems. It also adds columns that a prompt needs and that
the published data does not have as text (`ADAPTERS`).
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlif_lightning.data.sources import HubDataset, LocalFiles, Split

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = ("text", "integer", "list", "any")


class BenchmarkData(HubDataset):
    """Problems of a benchmark, to measure on; there is no training split.

    Args:
        name: hub name, such as "openai/gsm8k", or the path of a local copy: JSON, JSON lines,
            Parquet or CSV, by its suffix. A copy needs no revision, subset and hub_file.
        columns: every column that the benchmark needs -> text | integer | list | any; others are
            neither checked nor needed.
        revision: commit of the hub data set (a branch may change); null = main.
        subset: the data set's configuration, if it has several.
        validation_split: the split to measure on.
        hub_file: one JSON-lines file of the hub data set, for repositories that need a script to
            load otherwise.
        adapter: adds columns for the prompt: choices (MMLU-Pro's lettered `choices`), shown_tests
            (MBPP's assertions as text), answer_format (LiveCodeBench's function header or standard
            input); null = none.

    Raises:
        ValueError: an unknown column kind or adapter, or a hub file together with a subset.
    """

    def __init__(
        self,
        name: str,
        columns: dict[str, str],
        revision: str | None = None,
        subset: str | None = None,
        validation_split: str = "test",
        hub_file: str | None = None,
        adapter: str | None = None,
    ) -> None:
        if unknown := sorted(set(columns.values()) - set(KINDS)):
            raise ValueError(
                f"columns: kind {unknown[0]!r} is unknown; choose one of {list(KINDS)}"
            )
        if adapter is not None and adapter not in ADAPTERS:
            raise ValueError(f"adapter={adapter!r} is unknown; choose one of {sorted(ADAPTERS)}")
        if hub_file is not None and subset is not None:
            raise ValueError(
                f"hub_file={hub_file!r} with subset={subset!r}: a file has no subsets; give one of"
                " them"
            )
        super().__init__(
            name, subset, validation_split=validation_split, revision=revision or "main"
        )
        self.columns = columns
        self.hub_file, self.adapter = hub_file, adapter

    def load(self, split: Split) -> Dataset:
        """Open and check the problems, and add the adapter's columns.

        Raises:
            ValueError: the training split is asked for, the data cannot be reached, or columns are
                missing or of another kind; names them.
        """
        if split != "validation":
            raise ValueError(
                f"{self.name} is for measuring only: use validate or test, and train on another"
                " source"
            )
        dataset = self._open()
        self._check(dataset)
        return dataset if self.adapter is None else dataset.map(ADAPTERS[self.adapter])

    def _open(self) -> Dataset:
        if self._is_file:
            return LocalFiles(validation=self.name).load("validation")
        if self.hub_file is None:
            return super().load("validation")
        from datasets import load_dataset

        url = f"hf://datasets/{self.name}@{self.revision}/{self.hub_file}"
        try:
            return load_dataset("json", data_files=url, split="train")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"hub_file={self.hub_file!r} of {self.name!r} at {self.revision!r} cannot be"
                f" loaded: {error}; check the network, or give the path of a local copy as `name`"
            ) from error

    @property
    def _is_file(self) -> bool:
        return Path(self.name).suffix in LocalFiles.FORMATS

    def _check(self, dataset: Dataset) -> None:
        found = dataset.features
        where = self.name if self._is_file else f"{self.name} at {self.revision}"
        if missing := sorted(set(self.columns) - set(found)):
            raise ValueError(
                f"{where} is not in the schema of this benchmark: columns {missing} are missing;"
                f" it has {sorted(found)}"
            )
        for name, kind in self.columns.items():
            in_csv = kind == "integer" and self.name.endswith(".csv")  # all columns are texts
            if not _is_kind(found[name], "text" if in_csv else kind):
                raise ValueError(
                    f"{where} is not in the schema of this benchmark: {name!r} is {found[name]},"
                    f" not {kind}"
                )


def _is_kind(feature: Any, kind: str) -> bool:
    if kind == "any":
        return True
    if kind == "list":
        return not hasattr(feature, "dtype") or hasattr(feature, "feature")
    dtype = getattr(feature, "dtype", "")
    return "string" in dtype if kind == "text" else "int" in dtype


def _choices(row: dict[str, Any]) -> dict[str, str]:
    letters = zip(string.ascii_uppercase, row["options"], strict=False)
    return {"choices": "\n".join(f"{letter}. {option}" for letter, option in letters)}


def _shown_tests(row: dict[str, Any]) -> dict[str, str]:
    return {"shown_tests": "\n".join(row["test_list"])}


def _answer_format(row: dict[str, Any]) -> dict[str, str]:
    if row["starter_code"]:
        return {"answer_format": f"Complete this code:\n```python\n{row['starter_code']}\n```"}
    return {
        "answer_format": "Write a whole program that reads standard input and prints to standard"
        " output."
    }


ADAPTERS: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
    "choices": _choices,
    "shown_tests": _shown_tests,
    "answer_format": _answer_format,
}
