"""Token weights that correct for completions of another distribution: each kind, by hand and
restated.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlif_lightning.rollout.importance_weights import CORRECTIONS, Correction
from rlif_lightning.rollout.vllm_engine import VLLMEngine, VLLMServerEngine

LN2 = math.log(2.0)
# Ratios 4, 1/2, 1/2 (product 1), and 4, 2 (product 8) with a third position that is padding.
DIFFERENCES = torch.tensor([[2 * LN2, -LN2, -LN2], [2 * LN2, LN2, 5.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
BY_HAND = {  # with max_ratio 3
    "token_truncate": ([[3.0, 0.5, 0.5], [3.0, 2.0]], [[1, 0, 0], [1, 0]]),
    "token_mask": ([[0.0, 0.5, 0.5], [0.0, 2.0]], [[1, 0, 0], [1, 0]]),
    "sequence_truncate": ([[1.0, 1.0, 1.0], [3.0, 3.0]], [[0, 0, 0], [1, 1]]),
    "sequence_mask": ([[1.0, 1.0, 1.0], [0.0, 0.0]], [[0, 0, 0], [1, 1]]),
    "token_icepop": ([[0.0, 0.5, 0.5], [0.0, 2.0]], [[1, 0, 0], [1, 0]]),
}


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_weights_by_hand(kind):
    theirs = torch.full_like(DIFFERENCES, -9.0)
    weights, is_bounded = Correction(3.0, kind).weights(theirs + DIFFERENCES, theirs, MASK)
    expected, bounded = BY_HAND[kind]
    for row, count in enumerate(MASK.sum(-1).tolist()):
        assert weights[row, :count].tolist() == pytest.approx(expected[row], rel=1e-6)
        assert is_bounded[row, :count].tolist() == [bool(each) for each in bounded[row]]


def test_icepop_keeps_the_ratio_between_its_bounds():
    """LongTraceRL: ``where(0.5 <= r <= 2, r, 0)``, the trainer's probability over the sampler's."""
    theirs = torch.tensor([[0.4, 0.2, 0.1, 0.2, 0.1]], dtype=torch.float64)
    ours = torch.tensor([[0.1, 0.11, 0.1, 0.39, 0.4]], dtype=torch.float64)
    mask = torch.ones(1, 5, dtype=torch.bool)
    found, is_bounded = Correction(2.0, "token_icepop").weights(ours.log(), theirs.log(), mask)
    assert found[0].tolist() == pytest.approx([0.0, 0.55, 1.0, 1.95, 0.0])
    assert is_bounded[0].tolist() == [True, False, False, False, True]


def restated(kind: str, mine: list[float], theirs: list[float], bound: float) -> list[float]:
    """TRL 1.16's modes (``vllm_importance_sampling_mode``, without a lower bound), by numbers."""
    level, _, action = kind.partition("_")
    ratios = []
    for position in range(len(mine)):
        if level == "token":
            log_ratio = mine[position] - theirs[position]
        else:
            log_ratio = math.fsum(mine) - math.fsum(theirs)
        ratios.append(math.exp(min(max(log_ratio, -20.0), 20.0)))
    if action == "truncate":
        return [min(ratio, bound) for ratio in ratios]
    if action == "icepop":
        return [ratio if 1 / bound <= ratio <= bound else 0.0 for ratio in ratios]
    return [ratio if ratio <= bound else 0.0 for ratio in ratios]


LOGPROBS = st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=6)


@given(LOGPROBS, st.floats(1, 10), st.sampled_from(CORRECTIONS))
def test_weights_match_a_restatement(pairs, bound, kind):
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    given_ = torch.tensor([[*mine, 0.0], [*mine, 3.0]], dtype=torch.float64)  # padding is ignored
    sampled = torch.tensor([[*theirs, 0.0], [*theirs, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * len(mine) + [False]] * 2)
    weights, is_bounded = Correction(bound, kind).weights(given_, sampled, mask)
    expected = restated(kind, mine, theirs, bound)
    cut = restated(kind, mine, theirs, 1e99)
    lowest = 1 / bound if kind == "token_icepop" else 0.0
    for row in range(2):
        found = weights[row, : len(mine)].tolist()
        edges = (bound, lowest)
        near = [min(abs(ratio - edge) for edge in edges) < 1e-9 * bound for ratio in cut]
        assert [x for x, skip in zip(found, near, strict=True) if not skip] == pytest.approx(
            [x for x, skip in zip(expected, near, strict=True) if not skip], rel=1e-9
        )
        assert all(
            skip or flag == (not lowest <= ratio <= bound)
            for flag, ratio, skip in zip(is_bounded[row].tolist(), cut, near, strict=False)
        )


def test_equal_log_probs_have_weights_of_one():
    logprobs = torch.randn(3, 4)
    for kind in CORRECTIONS:
        weights, is_bounded = Correction(1.0, kind).weights(
            logprobs, logprobs, torch.ones(3, 4, dtype=torch.bool)
        )
        assert torch.equal(weights, torch.ones(3, 4))
        assert not is_bounded.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"correction": "both"}, r"correction='both' is unknown; use one of token_truncate, "),
        (
            {"correction": "token_mask", "max_ratio": None},
            "correction=token_mask has no effect with max_ratio=null; set max_ratio",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMEngine(**settings)
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine("http://localhost:1", "w", **settings)
