"""How much later the command line answers than the libraries that it cannot do without."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from harness.files import ROOT

THEIRS = ["-c", "import lightning.pytorch, transformers"]
OURS = ["-m", "rlif_lightning", "fit", "--help"]
MOST = 1.35  # CPU time of ours in that of theirs; docs/speed.md has what was measured
# Libraries that only a run needs. The parser is built too: it reads the imports of modules.
HEAVY = (
    "datasets", "pandas", "peft", "pyarrow", "accelerate", "bitsandbytes",
    "torch.distributed.checkpoint", "transformers.modeling_utils",
)  # fmt: skip
LOADED = f"""
import contextlib, io, sys
from rlif_lightning import cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    cli.main(["fit", "--help"])
print([name for name in {HEAVY} if name in sys.modules])
from rlif_lightning import _MODULES
imported = {{name.removeprefix("rlif_lightning.") for name in sys.modules}}
print([name for name, module in _MODULES.items() if module not in imported])
"""


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.full  # most of what it could cost is imports: below
def test_help_costs_little_more_than_the_libraries_below():
    """Both are measured in turn, because a busy machine slows both; the best of three counts."""
    theirs, ours = [], []
    for _ in range(3):
        theirs.append(cpu_seconds(THEIRS))
        ours.append(cpu_seconds(OURS))
        if min(ours) <= MOST * min(theirs):
            return
    pytest.fail(f"--help took {min(ours):.1f} s of CPU time, the libraries {min(theirs):.1f} s")


@pytest.mark.slow
def test_help_imports_every_public_class_and_nothing_that_only_a_run_needs():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["[]", "[]"]
