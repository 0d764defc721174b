"""What the processes of tests/test_distributed.py run: command lines one after the other, and what
came of each.

``python -m harness.launched OUT FORKS {"name": [arguments of rlif, ...], ...}``; rank 0 writes the
whole
parameters to ``OUT/name.pt``, every rank its figures to ``OUT/name.RANK.json``. With FORKS > 0 it
is its own launcher.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.ranks import forked
from rlif_lightning import cli
from rlif_lightning.parallel.fsdp import whole_state_dict


def run(out: Path, name: str, arguments: list[str]) -> None:
    """One command line."""
    done = cli.main(arguments)
    module, rank = done.model, done.trainer.global_rank
    weights = whole_state_dict(module.policy)
    if rank == 0:
        torch.save({key: value.clone() for key, value in weights.items()}, out / f"{name}.pt")
    figures = {
        "world_size": done.trainer.world_size,
        "held": sum(getattr(p, "_local_tensor", p).numel() for p in module.policy.parameters()),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rollouts": int(module.num_rollouts),
    }
    (out / f"{name}.{rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("error", "FSDP")
    if int(sys.argv[2]) == 0 or forked(int(sys.argv[2])):
        for each, given in json.loads(sys.argv[3]).items():
            run(Path(sys.argv[1]), each, given)
