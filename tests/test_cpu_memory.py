"""Memory that was freed goes back to the system, and token statistics leave no holes in the
heap.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlif_lightning.model import cpu_memory
from rlif_lightning.model.cpu_memory import Heap

MIB = 2**20
glibc = pytest.mark.skipif(Heap().trim is None, reason="another C library")
HEAD = """
import torch
from rlif_lightning.model.cpu_memory import resident_bytes
from rlif_lightning.model.head import HeadRule, head_stats
torch.manual_seed(0)
rule, tokens = HeadRule(1.0, torch.tensor([2])), torch.randint(0, 50_000, (512,))
raw = torch.randn(512, 50_000).requires_grad_()
before = resident_bytes()
stats = head_stats(raw * 1.0, tokens, None, rule)
print((resident_bytes() - before) / raw.nbytes)
"""


def own_bytes() -> int:
    """Resident memory but for that of files, which the system may drop at any time."""
    resident, of_files = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


@glibc
def test_holes_in_the_heap_are_given_back():
    heap = Heap()
    heap.release(torch.device("cpu"))
    tensors = [
        torch.ones(25_000) for _ in range(3000)
    ]  # 100 kB each: on the heap, no mapping of their own
    full = own_bytes()
    del tensors[::2]
    assert full - own_bytes() < 16 * MIB
    heap.release(torch.device("cpu"))
    assert full - own_bytes() > 100 * MIB
    assert len(tensors) == 1500


@glibc
def test_nothing_is_looked_for_on_another_device_or_without_growth():
    calls: list[int] = []
    heap = Heap()
    heap.trim = calls.append
    heap.release(torch.device("cuda"))
    assert calls == []
    heap.release(torch.device("cpu"))
    heap.release(torch.device("cpu"))
    assert calls == [0]


@glibc
def test_token_statistics_take_no_memory_besides_the_logits():
    done = subprocess.run([sys.executable, "-c", HEAD], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


def test_the_limit_of_a_group_above_this_process_counts(tmp_path, monkeypatch):
    step = tmp_path / "job_7" / "step_0"  # as a cluster makes them: the job has the limit
    step.mkdir(parents=True)
    job = {"memory.max": "1000", "memory.current": "600", "memory.stat": "file 300\nshmem 100\n"}
    for name, text in job.items():
        (step.parent / name).write_text(text)
        (step / name).write_text("max" if name == "memory.max" else text)
    (tmp_path / "own").write_text("1:name=systemd:/else\n0::/job_7/step_0\n")
    monkeypatch.setattr(cpu_memory, "GROUPS", tmp_path)
    monkeypatch.setattr(cpu_memory, "OWN_GROUP", tmp_path / "own")
    assert cpu_memory.available_bytes() == 1000 - 600 + (300 - 100)  # shared memory stays
    (step / "memory.max").write_text("700")
    assert cpu_memory.available_bytes() == 700 - 600 + (300 - 100)
    (step / "memory.max").write_text("400")
    assert cpu_memory.available_bytes() == 0
    (step.parent / "memory.max").unlink()
    (step / "memory.max").write_text("max")
    assert (cpu_memory.available_bytes() or 0) > 1000
