"""Build ``backend.cpp``, load it, and let ``torch.cuda`` answer for one device."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # it makes a table of torch.cuda's functions, which must hold the real ones
from torch.nn.attention import _utils, bias
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes

from device_twin.counting import note_wait

SOURCE = Path(__file__).with_name("backend.cpp")
KERNELS = ("math", "flash", "efficient")  # the order of backend.cpp's Kernel
MEMORY = 80 * 2**30  # bytes that the device claims to have
_clone = torch.UntypedStorage.clone
_loaded: list[ctypes.CDLL] = []


def missing() -> str | None:
    """Why there can be no twin here; None if there can."""
    if torch.backends.cuda.is_built():
        return "this PyTorch was built for CUDA; the device twin needs its CPU build"
    try:
        subprocess.run(["g++", "--version"], capture_output=True, check=True)
    except FileNotFoundError:
        return (
            "the device twin is built by g++, which is not installed (Debian, Ubuntu: apt-get"
            " install g++)"
        )
    return None


def install() -> None:
    """Make this process answer to ``cuda``, once and for good.

    Raises:
        RuntimeError: what is missing.
    """
    if _loaded:
        return
    reason = missing()
    if reason:
        raise RuntimeError(reason)
    library = ctypes.CDLL(str(built()))
    library.device_twin_start()
    library.device_twin_attention_calls.restype = ctypes.c_int64
    _loaded.append(library)
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # asks for a real driver
    for name, answer in _answers().items():
        setattr(torch.cuda, name, answer)
    torch._C._cuda_clearCublasWorkspaces = lambda: None  # type: ignore[attr-defined]
    torch.serialization.register_package(5, lambda storage: None, _loaded_storage)
    torch.UntypedStorage.clone = _cloned  # type: ignore[method-assign]
    torch.backends.cuda.can_use_flash_attention = _takes_flash
    bias.CausalBias.__new__ = staticmethod(_causal_bias)  # type: ignore[method-assign]
    bias.CausalBias._dispatch = staticmethod(_attend_causally)  # type: ignore[method-assign]


def built() -> Path:
    """The library of ``backend.cpp``, from the temporary folder if it was built before."""
    root = Path(torch.__file__).parent
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"device-twin-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    library = folder / f"{key}.so"
    if not library.exists():
        unfinished = folder / f"{key}.{os.getpid()}"
        headers = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
        linked = [f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib"]
        command = [
            "g++",
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            str(SOURCE),
            "-o",
            str(unfinished),
        ]
        done = subprocess.run([*command, *headers, *linked], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"g++ could not build {SOURCE} against torch {torch.__version__}:\n{done.stderr}"
            )
        unfinished.rename(library)
    return library


def attention_calls() -> dict[str, int]:
    """How often each of CUDA's attention kernels would have been taken so far in this process."""
    return {
        name: _loaded[0].device_twin_attention_calls(number) for number, name in enumerate(KERNELS)
    }


class Event:
    """``torch.cuda.Event``: always done, but a host that asks for it waits."""

    def __init__(self, *settings: Any, **named: Any):
        pass

    def record(self, stream: Any = None) -> None:
        """Nothing to remember: there is one stream and all of it is done."""

    def wait(self, stream: Any = None) -> None:
        """A stream waits, not the host."""

    def query(self) -> bool:
        """Done."""
        return True

    def synchronize(self) -> None:
        """Count a host wait."""
        note_wait("Event.synchronize")

    def elapsed_time(self, other: Event) -> float:
        """No time is measured."""
        return 0.0


def _answers() -> dict[str, Any]:
    """What ``torch.cuda`` says: one H100-like device, the current one, that holds nothing and has
    no random state.
    """

    def nothing(*args: Any, **named: Any) -> None:
        return None

    def constant(value: Any) -> Any:
        return lambda *args, **named: value

    limits = {"total_memory": MEMORY, "multi_processor_count": 132}
    properties = SimpleNamespace(name="device twin", major=9, minor=0, gcnArchName="", **limits)
    ignored = (
        "_lazy_init init set_device empty_cache ipc_collect manual_seed manual_seed_all"
        " reset_peak_memory_stats"
    )
    ignored += " set_rng_state set_rng_state_all"
    answers = {name: nothing for name in ignored.split()}
    answers |= {
        name: constant(True) for name in ("is_available", "is_initialized", "is_bf16_supported")
    }
    answers |= {
        name: constant(0)
        for name in ("current_device", "_exchange_device", "_maybe_exchange_device")
    }
    answers |= {
        name: constant(0)
        for name in ("memory_allocated", "max_memory_allocated", "memory_reserved")
    }
    no_state = torch.zeros(16, dtype=torch.uint8)
    return answers | {
        "device_count": constant(1),
        "get_device_name": constant(properties.name),
        "get_device_capability": constant((properties.major, properties.minor)),
        "get_device_properties": constant(properties),
        "mem_get_info": constant((MEMORY, MEMORY)),
        "memory_stats": lambda *args: {},
        "get_rng_state": lambda *args: no_state.clone(),
        "get_rng_state_all": lambda: [no_state.clone()],
        "synchronize": lambda *args: note_wait("torch.cuda.synchronize"),
        "current_stream": constant(
            SimpleNamespace(synchronize=lambda: note_wait("Stream.synchronize"))
        ),
        "Event": Event,
    }


def _loaded_storage(storage: Any, location: str) -> Any:
    """For ``torch.load``: a storage that was saved on the device, or that ``map_location`` sends
    there.
    """
    return _copied(storage) if str(location).startswith("cuda") else None


def _cloned(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return _copied(storage) if storage.device.type == "cuda" else _clone(storage)


def _copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy on the device; a CPU build makes storages of other devices by way of tensors only."""
    source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return (
        torch.empty(len(storage), dtype=torch.uint8, device="cuda").copy_(source).untyped_storage()
    )


def _takes_flash(given: Any, debug: bool = False) -> bool:
    """As ``choose`` in backend.cpp."""
    half, size = given.query.element_size() == 2, given.query.shape[-1]
    fits = size <= 256 and size == given.value.shape[-1]
    return given.query.is_cuda and half and given.attn_mask is None and fits


def _causal_bias(kind: type, *shape: Any) -> Any:
    with _disable_current_modes():  # PyTorch's own constructor fails while something watches
        return torch.Tensor._make_subclass(kind, torch.empty(0))


def _attend_causally(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Of ``causal_lower_right``; the real function calls kernels that exist for CUDA only."""
    if attn_mask.seq_len_q == attn_mask.seq_len_kv:
        options = {"is_causal": True, "scale": scale, "enable_gqa": enable_gqa}
        return scaled_dot_product_attention(query, key, value, None, dropout_p, **options)
    _utils._validate_sdpa_input(query, key, value, None, dropout_p, is_causal, scale)
    return torch.ops.device_twin.lower_right(query, key, value, scale)
