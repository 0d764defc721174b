"""What a decode step and a micro-batch may ask of a GPU.

A budget is lowered when it is beaten, and never raised.

The table holds launches, host waits and uploads at most. `python tests/count_launches.py --sites`
says where they come from. "together" are steps in which no row ends, "one by one" those in which
rows leave.
"""

from __future__ import annotations

import pytest

from device_twin.workload import Workload, deep_model

DECODE_BUDGETS = {  # (model, precision, rows end): (launches, waits, uploads) of a step
    ("embedded", "32-true", "together"): (162, 1, 0),
    ("embedded", "32-true", "one by one"): (149, 1, 1),
    ("embedded", "bf16-mixed", "together"): (172, 1, 0),
    ("embedded", "bf16-mixed", "one by one"): (159, 1, 1),
    ("28 layers", "32-true", "together"): (1332, 1, 0),
    ("28 layers", "32-true", "one by one"): (1319, 1, 1),
    ("28 layers", "bf16-mixed", "together"): (1446, 1, 0),
    ("28 layers", "bf16-mixed", "one by one"): (1433, 1, 1),
}
MICRO_BATCH_BUDGETS = {  # (model, precision): (launches, waits, uploads) of a micro-batch
    ("embedded", "32-true"): (508, 0, 2),
    ("embedded", "bf16-mixed"): (588, 0, 2),
    ("28 layers", "32-true"): (4583, 0, 2),
    ("28 layers", "bf16-mixed"): (5981, 0, 2),
}
GENERATE = {
    ("28 layers", "32-true"): 1225,
    ("28 layers", "bf16-mixed"): 1338,
}  # launches of Hugging Face's step


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, str]:
    return {"embedded": "rlif-arithmetic", "28 layers": deep_model(tmp_path_factory.mktemp("deep"))}


@pytest.fixture(scope="module")
def workloads(names):
    """Each policy once, whatever is counted of it."""
    made = {}

    def of(model: str, precision: str) -> Workload:
        key = model, precision
        return made[key] if key in made else made.setdefault(key, Workload(names[model], precision))

    return of


def check(counts, budget):
    report = "\n".join(
        [
            f"{counts.launches} launches, {counts.waits} waits, {counts.uploads} uploads",
            *counts.lines(),
        ]
    )
    print(report)
    spent = counts.launches, counts.waits, counts.uploads
    assert all(cost <= limit for cost, limit in zip(spent, budget, strict=True)), (
        f"over {budget}:\n{report}"
    )


@pytest.mark.parametrize(("model", "precision", "ends"), DECODE_BUDGETS)
def test_a_decode_step_stays_inside_its_budget(workloads, model, precision, ends):
    budget = DECODE_BUDGETS[model, precision, ends]
    check(workloads(model, precision).decode_step(even=ends == "together"), budget)


@pytest.mark.parametrize(("model", "precision"), MICRO_BATCH_BUDGETS)
def test_a_micro_batch_stays_inside_its_budget(workloads, model, precision):
    check(workloads(model, precision).micro_batch(), MICRO_BATCH_BUDGETS[model, precision])


@pytest.mark.parametrize(("model", "precision"), GENERATE)
def test_hugging_face_asks_for_what_docs_say(workloads, model, precision):
    """The figure beside ours; a new version of transformers may change it."""
    counts = workloads(model, precision).generate_step()
    assert (round(counts.launches), counts.waits, counts.uploads) == (
        GENERATE[model, precision],
        1,
        0,
    )
