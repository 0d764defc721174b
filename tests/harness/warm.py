"""What the server of ``forked.py`` does before anything forks from it: it imports what a run
imports, and parses once what most runs parse. It computes nothing.
"""

from __future__ import annotations

import contextlib
import gc
import io

import pytest  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import benchmarks.ranks  # noqa: F401
from harness.runs import BASE
from rlif_lightning import cli

with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    cli.main(["fit", *BASE, "--print_config"])  # this parser keeps what it found out of each class
gc.collect()
gc.freeze()  # a collection in what forks would copy every page
