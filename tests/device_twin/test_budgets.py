"""What a decode step and a micro-batch may ask of a GPU.

A budget is lowered when it is beaten, and never raised.

The table holds launches, host waits and uploads at most. `python tests/count_launches.py --sites`
says where they come from. "together" are steps in which no row ends, "one by one" those in which
rows leave. ``test_deep_budgets.py`` has as many layers as a model of 1.5 billion parameters.
"""

from __future__ import annotations

import pytest

from device_twin.workload import Workload, check

DECODE_BUDGETS = {  # (precision, rows end): (launches, waits, uploads) of a step
    ("32-true", "together"): (162, 1, 0),
    ("32-true", "one by one"): (149, 1, 1),
    ("bf16-mixed", "together"): (172, 1, 0),
    ("bf16-mixed", "one by one"): (159, 1, 1),
}
MICRO_BATCH_BUDGETS = {"32-true": (508, 0, 2), "bf16-mixed": (588, 0, 2)}


@pytest.fixture(scope="module")
def workload(precision) -> Workload:
    return Workload("rlif-arithmetic", precision)


@pytest.mark.parametrize("ends", ["together", "one by one"])
def test_a_decode_step_stays_inside_its_budget(workload, precision, ends):
    check(workload.decode_step(even=ends == "together"), DECODE_BUDGETS[precision, ends])


def test_a_micro_batch_stays_inside_its_budget(workload, precision):
    check(workload.micro_batch(), MICRO_BATCH_BUDGETS[precision])
