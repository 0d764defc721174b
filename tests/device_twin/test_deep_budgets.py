"""What 28 layers may ask of a GPU, beside Hugging Face's own loop; ``test_budgets.py`` has few."""

from __future__ import annotations

import pytest

from device_twin.workload import Workload, check, deep_model

DECODE_BUDGETS = {  # (precision, rows end): (launches, waits, uploads) of a step
    ("32-true", "together"): (1332, 1, 0),
    ("32-true", "one by one"): (1319, 1, 1),
    ("bf16-mixed", "together"): (1446, 1, 0),
    ("bf16-mixed", "one by one"): (1433, 1, 1),
}
MICRO_BATCH_BUDGETS = {"32-true": (4583, 0, 2), "bf16-mixed": (5981, 0, 2)}
GENERATE = {"32-true": 1225, "bf16-mixed": 1338}  # launches of Hugging Face's step


@pytest.fixture(scope="module")
def workload(precision, tmp_path_factory) -> Workload:
    return Workload(deep_model(tmp_path_factory.mktemp("deep")), precision)


@pytest.mark.parametrize("ends", ["together", "one by one"])
def test_a_decode_step_stays_inside_its_budget(workload, precision, ends):
    check(workload.decode_step(even=ends == "together"), DECODE_BUDGETS[precision, ends])


def test_a_micro_batch_stays_inside_its_budget(workload, precision):
    check(workload.micro_batch(), MICRO_BATCH_BUDGETS[precision])


def test_hugging_face_asks_for_what_docs_say(workload, precision):
    """The figure beside ours; a new version of transformers may change it."""
    counts = workload.generate_step()
    found = round(counts.launches), counts.waits, counts.uploads
    assert found == (GENERATE[precision], 1, 0)
