"""Open a user's own files; errors name the file, row and column at fault.

Read `open_files` first. JSON and Parquet have types. In CSV every value is a text, as it was
written.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlif_lightning.records import value_at

if TYPE_CHECKING:
    from datasets import Dataset, Features

_NOTHING = ("corresponds to no data", "No columns to parse")  # what the readers say of empty files
_LONGEST_FIELD = 2**31 - 1  # characters in CSV; the standard library's limit is 131 072


def open_files(form: str, paths: Sequence[Path]) -> Dataset:
    """Return the rows of files of one format, in the order given.

    Args:
        form: json | csv | parquet.
        paths: the files.

    Raises:
        ValueError: a file is not in that format, a row has other columns, or a column mixes texts
            and other values.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    settings: dict[str, Any] = {}
    if form == "csv":
        # If types were guessed, 084 would become a number and the answer "None" a missing value.
        settings = {"features": _csv_columns(paths), "keep_default_na": False}
    try:
        with _quiet():
            dataset = load_dataset(
                form, data_files=[str(path) for path in paths], split="train", **settings
            )
    except (DatasetsError, OSError, ValueError) as error:
        named = next(filter(None, map(_json_fault, paths)), None) if form == "json" else None
        reason = " ".join(str(error.__cause__ or error).split())
        if any(said in reason for said in _NOTHING):
            reason = "it has no rows; give a file with one problem per row"
        raise ValueError(
            named or f"{', '.join(map(str, paths))}: cannot be read as {form}: {reason:.300}"
        ) from error
    if form == "json":
        for path in paths:
            _check_encoding(path)
        for column in _any_kind(dataset.features):
            _refuse_mixture(column, paths)
        return _with_texts_for_dates(dataset, paths)
    return dataset


def _with_texts_for_dates(dataset: Dataset, paths: Sequence[Path]) -> Dataset:
    """Return JSON rows with their texts where the reader took these for dates.

    A template would show "2024-01-02" as "2024-01-02 00:00:00".
    """
    dated = [name for name, kind in dataset.features.items() if "Value('timestamp" in str(kind)]
    for name in dated:
        values = [row.get(name) for path in paths for _, row in _json_rows(path)]
        dataset = dataset.remove_columns(name).add_column(name, values)  # pyright: ignore[reportArgumentType]
    return dataset


def at_home(path: str | Path) -> str:
    """Return a path as a text, with the home folder for a ``~`` at its beginning."""
    return os.path.expanduser(str(path))


def as_texts(paths: Any) -> str | list[str] | None:
    """Return one path or several as texts (:func:`at_home`); in Python they may be objects."""
    if paths is None:
        return None
    if isinstance(paths, (str, Path)):
        return at_home(paths)
    return [at_home(path) for path in paths]


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` wrote the folder: a data set, or several splits."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_saved(folder: Path, split: str) -> Dataset:
    """Open a split, or a slice of one, of what ``save_to_disk`` wrote.

    Args:
        folder: a data set, whose only split is "train", or one with several splits.
        split: such as "train" or "train[90%:]".

    Raises:
        ValueError: there is no such split.
    """
    from datasets import Dataset, ReadInstruction, concatenate_datasets, load_from_disk

    loaded: Any = load_from_disk(str(folder))
    splits = {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)
    sizes = {str(name): len(dataset) for name, dataset in splits.items()}
    wanted = ReadInstruction.from_spec(split).to_absolute(sizes)
    parts = [splits[each.splitname].select(range(each.from_, each.to)) for each in wanted]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Print neither the reader's progress nor its traceback, which says less than our message."""
    from datasets.utils import are_progress_bars_disabled as were_disabled
    from datasets.utils import disable_progress_bars, enable_progress_bars, logging

    before, hidden = logging.get_verbosity(), were_disabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if not hidden:
            enable_progress_bars()


def _csv_columns(paths: Sequence[Path]) -> Features:
    """Return the columns of CSV files, after checking every row.

    The reader would shift the values of a row that has a field too many.
    """
    from datasets import Features, Value

    csv.field_size_limit(_LONGEST_FIELD)
    headers = [_csv_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if sorted(header) != sorted(headers[0]):
            raise ValueError(
                f"{path}: the columns are {header!s:.300}, but {headers[0]!s:.300} in {paths[0]}"
            )
    return Features({name: Value("string") for name in headers[0]})


def _csv_header(path: Path) -> list[str]:
    header: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in (reader := csv.reader(file)):
                if not header:
                    header = row
                    if len(set(header)) < len(header) or "" in header:
                        raise ValueError(
                            f"{path}: the header {header!s:.300} needs one name for each column,"
                            " and each name once"
                        )
                elif row and len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but {len(header)}"
                        f" columns in the header {header!s:.300}; put a field that holds commas"
                        " between double quotes"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: cannot be read as CSV in UTF-8: {error!s:.300}; save the file as UTF-8"
        ) from error
    return header


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place in the file, from JSON lines or from one JSON list.

    Raises:
        ValueError: a line is no JSON; names it.
    """
    if path.suffix == ".json":
        try:
            whole = json.loads(path.read_text(encoding="utf-8-sig"))
            rows = whole if isinstance(whole, list) else [whole]
            yield from ((f"row {row}", value) for row, value in enumerate(rows))
            return
        except ValueError as error:
            first = path.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if first == b"[":  # with another first character the file may be JSON lines
                raise ValueError(f"{path}: no JSON in UTF-8: {error!s:.200}") from error
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if text := line.decode("utf-8-sig").strip():
                    yield f"line {number}", json.loads(text)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error!s:.100}); save the file as UTF-8"
                ) from error
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: no JSON ({error!s:.100}): {line[:80]!r}; correct the"
                    " line, or take it out"
                ) from error


def _json_fault(path: Path) -> str | None:
    """Return the fault of the first bad row of a JSON file; None if every row is an object."""
    try:
        for place, row in _json_rows(path):
            if not isinstance(row, dict):
                return f"{path}, {place}: {row!r:.100} is no object {{column: value}}"
    except ValueError as error:
        return str(error)
    return None


def _check_encoding(path: Path) -> None:
    """Refuse a file that is not UTF-8: the JSON reader accepts it, but its rows cannot be read."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error!s:.100}); save the file as UTF-8"
                ) from error


def _any_kind(features: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the columns, as dotted paths, in which the reader found values of several kinds."""
    for name, feature in features.items():
        if isinstance(feature, Mapping):
            yield from _any_kind(feature, f"{prefix}{name}.")
        elif type(feature).__name__ == "Json":
            yield f"{prefix}{name}"


def _refuse_mixture(column: str, paths: Sequence[Path]) -> None:
    """Refuse a column that has texts and other values.

    The reader would turn its text "084" into 84, and its text "null" into None.
    """
    first: dict[bool, str] = {}
    for path in paths:
        for place, row in _json_rows(path):
            value = value_at(row, column) if column.split(".")[0] in row else None
            if value is not None:
                first.setdefault(isinstance(value, str), f"{value!r:.100} in {path}, {place}")
            if len(first) == 2:
                raise ValueError(
                    f"column {column!r} mixes texts and other values: {first[True]};"
                    f" {first[False]}; write all of them as texts, or none"
                )
