"""The index of a folder of shards: a pickle, which is read without running anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

INDEX, REST = ".metadata", "meta.pt"
STATE = "state_dict."  # before the name of a weight
FORMAT = "torch.distributed.checkpoint."
KNOWN = {
    f"{FORMAT}metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    f"{FORMAT}filesystem": {"_StorageInfo"},
    "torch": {
        "Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
        "uint8", "bool",
    },
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "Path"},
}  # fmt: skip


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise pickle.UnpicklingError(
                f"its index names {module}.{name}, which does not belong there"
            )
        return super().find_class(module, name)


def check_folder(path: Path) -> None:
    """Refuse a folder that is no such checkpoint, is unfinished, or would execute code.

    Raises:
        ValueError: names the folder.
    """
    missing = [name for name in (INDEX, REST) if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"ckpt_path={str(path)!r} is a folder without {missing[0]}: not a finished sharded"
            " checkpoint"
        )
    try:
        read_index(path)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"ckpt_path={str(path)!r} cannot be read: {error}") from error


def read_index(path: Path) -> Metadata:
    """Read a folder's index, which lists tensors and the files of their parts; execute nothing.

    Raises:
        UnpicklingError: the index names a type that does not belong there.
    """
    with (path / INDEX).open("rb") as file:
        return _Index(file).load()


def tensors_in(index: Metadata) -> dict[str, Any]:
    """Return name -> entry of each tensor in an index."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = index.state_dict_metadata.items()
    return {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
