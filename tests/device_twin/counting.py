"""What a GPU would be asked for: launches, host waits and uploads, by call site.

A launch is an operation on device tensors that is neither a view nor an allocation. A wait is an
operation after which the host knows something of the device, so that it stood still until the
device was done. An upload is a copy to it.

``watched(record=True)`` also keeps each launch with its shapes, its numbers and the addresses of
what lay in memory before. Two steps between which ``first_difference`` finds none could be one CUDA
graph, captured and replayed.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TORCH, TESTS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
HERE = tuple(str(Path(__file__).parents[2] / folder) for folder in ("rlif_lightning", "callbacks"))
# Operations that start no kernel, besides views.
ALLOCATIONS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
}
FREE = ALLOCATIONS | {
    "_unsafe_view",
    "is_same_size",
    "record_stream",
    "is_pinned",
    "_local_scalar_dense",
}
# Operations whose result's size, or whose result itself, the host needs before it goes on.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount"}
WAITS |= {"_unique2", "unique_dim", "unique_consecutive"}
_watching: list[Watch] = []


@dataclass(frozen=True)
class Launch:
    """One operation as a CUDA graph would keep it.

    Attributes:
        name: of the operation.
        shapes: of each tensor that it reads or writes in place: shape, strides, dtype.
        addresses: of those tensors that lie in memory from before the watch; None for the others.
        numbers: its other arguments.
        site: where it was called; not compared.
    """

    name: str
    shapes: tuple[Any, ...]
    addresses: tuple[int | None, ...]
    numbers: tuple[str, ...]
    site: str

    def kept(self) -> tuple[Any, ...]:
        """What must be the same in a replay."""
        return self.name, self.shapes, self.addresses, self.numbers


class Watch(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        launches: by (operation, call site).
        waits: by (what, call site).
        uploads: by call site.
        recorded: every launch in order, if ``record``.
    """

    def __init__(self, record: bool = False):
        super().__init__()
        self.launches: Counter[tuple[str, str]] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.uploads: Counter[str] = Counter()
        self.record, self.recorded = record, list[Launch]()
        self._own: set[int] = set()  # addresses of storages that were made inside
        self._kept: list[Tensor] = []  # so that no address is given out twice

    def totals(self) -> tuple[int, int, int]:
        """Launches, waits and uploads."""
        return self.launches.total(), self.waits.total(), self.uploads.total()

    def __enter__(self) -> Watch:
        _watching.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _watching.remove(self)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given, made = _tensors(args) + _tensors(list(kwargs.values())), _tensors(result)
        if any(tensor.is_cuda for tensor in (*given, *made)):
            self._note(function, args, kwargs, given, made)
        return result

    def _note(
        self, function: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]
    ) -> None:
        name, site = function._schema.name.split("::")[1], _site()
        uploads, wait, launch = _cost(function, name, args, kwargs, made)
        if uploads:
            self.uploads[site] += uploads
        if wait:
            self.waits[wait, site] += 1
        if launch:
            self.launches[name, site] += 1
        if self.record:
            self._remember(given, made)
            if launch:
                self.recorded.append(self._launch(name, args, kwargs, given, site))

    def _remember(self, given: list[Tensor], made: list[Tensor]) -> None:
        before = {tensor.untyped_storage().data_ptr() for tensor in given}
        for tensor in made:
            address = tensor.untyped_storage().data_ptr()
            if address not in before:
                self._own.add(address)
                self._kept.append(tensor)

    def _launch(self, name: str, args: Any, kwargs: Any, given: list[Tensor], site: str) -> Launch:
        inside = [tensor.untyped_storage().data_ptr() in self._own for tensor in given]
        addresses = tuple(
            None if own else tensor.data_ptr() for own, tensor in zip(inside, given, strict=True)
        )
        shapes = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in given)
        numbers = tuple(
            repr(leaf) for leaf in tree_leaves((args, kwargs)) if not isinstance(leaf, Tensor)
        )
        return Launch(name, shapes, addresses, numbers, site)


@contextmanager
def watched(record: bool = False) -> Iterator[Watch]:
    """``with watched() as watch: ...``, then ``watch.totals()``, ``watch.waits`` and so on."""
    with Watch(record) as watch:
        yield watch


def note_wait(what: str) -> None:
    """Count a host wait that is no operation of a tensor."""
    for watch in _watching:
        watch.waits[what, _site()] += 1


def first_difference(left: Watch, right: Watch) -> str | None:
    """The first launch in which two recorded steps differ, so that one could not be replayed as the
    other.
    """
    for number, (one, other) in enumerate(zip(left.recorded, right.recorded, strict=False)):
        if one.kept() != other.kept():
            return f"launch {number}: {one} is not {other}"
    if len(left.recorded) != len(right.recorded):
        return f"{len(left.recorded)} launches are not {len(right.recorded)}"
    return None


def _cost(
    function: Any, name: str, args: Any, kwargs: Any, made: list[Tensor]
) -> tuple[int, str | None, bool]:
    """Uploads, why the host waits (None if it does not), and whether a kernel is started."""
    copied = _copy(name, args, made)
    if copied == "upload":
        return 1, None, False
    if copied == "download":
        waits = not (_non_blocking(name, args, kwargs) and made[0].is_pinned())
        return 0, "to the host" if waits else None, False
    launch = name not in FREE and not function.is_view
    return _indices_from_host(name, args), _wait(name, args, kwargs), launch


def _copy(name: str, args: Any, made: list[Tensor]) -> str | None:
    """``upload``, ``download``, or None for whatever stays on the device."""
    if (
        name == "lift_fresh"
    ):  # all that is seen of torch.tensor(..., device="cuda") and of indexing by a list
        return "upload" if made[0].is_cuda else None
    if name not in ("_to_copy", "copy_"):
        return None
    source = args[1] if name == "copy_" else args[0]
    if source.is_cuda == made[0].is_cuda:
        return None
    return "download" if source.is_cuda else "upload"


def _non_blocking(name: str, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))


def _indices(name: str, args: Any) -> list[Tensor]:
    indexes = name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
    return [index for index in args[1] if index is not None] if indexes else []


def _indices_from_host(name: str, args: Any) -> int:
    return (
        sum(not index.is_cuda for index in _indices(name, args))
        if args and getattr(args[0], "is_cuda", False)
        else 0
    )


def _wait(name: str, args: Any, kwargs: Any) -> str | None:
    """Why the host waits in an operation; None if it does not."""
    if name in WAITS:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) == 1:
        return "repeat_interleave of counts"
    masks = any(index.dtype in (torch.bool, torch.uint8) for index in _indices(name, args))
    # One number written under one mask is masked_fill.
    filled = (
        name != "index" and len(args[1]) == 1 and args[2].dim() == 0 and not args[2].is_cuda
        if masks
        else False
    )
    return f"{name} by a mask" if masks and not filled else None


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments or results; PyTorch's own way through them takes longer than the
    operation.
    """
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


@functools.cache
def _place(file: str) -> str:
    """Whose a file is: ``here`` (the product), ``torch`` (the twin and its users count as that) or
    ``library``.
    """
    if file.startswith(HERE):
        return "here"
    return "torch" if file.startswith((TORCH, TESTS, "<")) else "library"


def _site() -> str:
    """The innermost line of the product, and behind it the library's line that it led to."""
    frame, inner = sys._getframe(1), None
    while frame is not None:
        place = _place(frame.f_code.co_filename)
        if place != "torch":
            line = (
                f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                if place == "here" or not inner
                else ""
            )
            inner = inner or line
            if place == "here":
                return line if line == inner else f"{line} > {inner}"
        frame = frame.f_back
    return inner or "backward"
