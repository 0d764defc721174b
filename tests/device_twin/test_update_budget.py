"""What an update asks of a GPU besides launches: its waits do not grow with its micro-batches,
which upload twice each.

Uneven prompts and completions, sliding windows and a head in chunks are in here;
``test_budgets.py`` counts launches.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

import rlif_lightning.model.policy as policy_module
from device_twin.counting import Watch, watched
from device_twin.workload import DEVICE, SHORT, Workload
from rlif_lightning.records import Prompts

TEXTS = ("12+345+678=", "4+6=", "100+200+300+400=", "7+8+9=")
# Of a whole update, however many micro-batches it has. It waits for the token budget, the lengths
# of the rows, and KL-Cov's marks (how many there are, the largest values, ties); it uploads the
# mini-batch's rows, and here its budget.
WAITS, UPLOADS = 10, 2


def uneven(name: str, precision: str) -> Workload:
    work = Workload(name, precision)
    ids = [torch.tensor(work.policy.tokenizer(text)["input_ids"]) for text in TEXTS]
    work.prompts = Prompts(ids, list(TEXTS), {}, torch.arange(len(TEXTS))).to(DEVICE)
    return work


def counted(work: Workload, rollout, budget: int) -> tuple[int, Watch]:
    """Micro-batches of one update, and what was seen of it."""
    with watched() as watch:
        number = work.gradient(rollout, budget)
    return number, watch


# One of each kind, and the one with everything, which takes the longest.
ENOUGH = [("llama", "32-true", False), ("gemma3", "bf16-mixed", True)]


@pytest.mark.parametrize(
    ("architecture", "precision", "chunks"),
    [
        pytest.param(*case, marks=() if case in ENOUGH else pytest.mark.full)
        for case in product(("gemma3", "llama"), ("32-true", "bf16-mixed"), (False, True))
    ],
)
def test_micro_batches_add_no_wait_and_two_uploads_each(
    tiny_models, architecture, precision, chunks, monkeypatch
):
    work = uneven(str(tiny_models[architecture]), precision)
    if chunks:
        for name, rows in (("KEPT_LOGITS", 0), ("MAX_LOGITS", 7)):
            monkeypatch.setattr(policy_module, name, {"cuda": rows * work.policy.vocab_size})
    rollout = work.rollout(SHORT)
    work.gradient(rollout, 60)  # what is made once is there
    for budget in (10_000, 120, 60, 1):
        number, watch = counted(work, rollout, budget)
        _, waits, uploads = watch.totals()
        assert waits <= WAITS, watch.waits
        assert uploads <= UPLOADS + 2 * number, (number, watch.uploads)
    assert number > 4
