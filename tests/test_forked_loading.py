"""A model that a forked process loads, as the processes of a notebook do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rlif_lightning.model import loading

SCRIPT = """
import os, threading, torch
torch.set_num_threads(64)  # the larger the pool, the longer its renewal, and the race for it
torch.randn(70000).sum()
from rlif_lightning.model import loading
torch.set_num_threads(1)

def read_in_threads(*_, **__):
    wait, errors = threading.Barrier(4), []
    def work():
        wait.wait()
        try:
            torch.randn(70000).sum()
        except RuntimeError as error:
            errors.append(error)
    threads = [threading.Thread(target=work) for _ in range(4)]
    [each.start() for each in threads]
    [each.join() for each in threads]
    os._exit(len(errors))

loading.AutoModelForCausalLM.from_pretrained = read_in_threads
for _ in range(10):
    child = os.fork()
    if child == 0:
        loading.load_pretrained(loading.Policy("rlif-arithmetic"))
    assert os.waitpid(child, 0)[1] == 0
"""


def test_the_thread_pool_is_renewed_before_the_weights_are_read(monkeypatch):
    calls = []

    def reading(*_, **__):
        calls.append("read")
        raise ValueError("enough")

    monkeypatch.setattr(torch, "set_num_threads", lambda number: calls.append(number))
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", reading)
    with pytest.raises(ValueError, match="enough"):
        loading.read_base(loading.Policy("rlif-arithmetic"))
    assert calls == [torch.get_num_threads(), "read"]


@pytest.mark.full  # the test above has the call that this needs
def test_threads_of_a_forked_process_do_not_race_for_the_thread_pool():
    """PyTorch's "Invalid thread pool": without the renewal most children fail."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
