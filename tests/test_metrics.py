"""Evaluation metrics: pass@k against its closed form and by counting subsets, means over batches, and entropy."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlif_lightning.metrics import AnswerDiversity, MajorityAtK, Mean, PassAtK, TokenEntropy, pass_at_k


@given(st.integers(1, 40), st.data())
def test_pass_at_k_is_the_closed_form(num_samples, data):
    k = data.draw(st.integers(1, num_samples))
    correct = data.draw(st.lists(st.integers(0, num_samples), min_size=1, max_size=5))
    expected = [1 - math.comb(num_samples - c, k) / math.comb(num_samples, k) for c in correct]
    assert pass_at_k(torch.tensor(correct), num_samples, k).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("verdicts", [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(verdicts, k):
    subsets = list(combinations(verdicts, k))
    share = sum(map(any, subsets)) / len(subsets)
    assert float(pass_at_k(torch.tensor(sum(verdicts)), 5, k)) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=rf"k={k} must lie in \[1, 4\]"):
        pass_at_k(torch.tensor([1]), 4, k)


def test_pass_at_k_is_a_mean_over_problems_of_all_batches():
    metric = PassAtK(2)
    metric.update(torch.tensor([[True, False, False], [False, False, False]]))
    metric.update(torch.tensor([[True, True, True]]))
    assert float(metric.compute()) == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_majority_at_k():
    metric = MajorityAtK()
    metric.update(torch.tensor([True, False, True]))
    metric.update(torch.tensor([False]))
    assert float(metric.compute()) == 0.5


def test_answer_diversity_counts_distinct_answers():
    metric = AnswerDiversity()
    metric.update([[0, 1, 0, None], [None, None, None, None]])
    metric.update([[0, 1, 2, 3]])
    assert float(metric.compute()) == pytest.approx((2 / 4 + 0 + 1) / 3)


def test_token_entropy_weighs_tokens_not_completions():
    metric = TokenEntropy()
    entropy = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, math.inf]])
    metric.update(entropy, torch.tensor([[True, True, True], [True, False, False]]))
    assert float(metric.compute()) == 3.0
    metric.update(torch.tensor([[8.0]]), torch.tensor([[True]]))
    assert float(metric.compute()) == 4.0


def test_a_metric_starts_anew_and_knows_nothing_before():
    metric = Mean()
    metric.update(torch.tensor([1.0, 2.0]))
    metric.update(torch.tensor([[6.0]]))
    assert float(metric.compute()) == 3.0
    metric.reset()
    metric.update(torch.tensor([5.0]))
    assert float(metric.compute()) == 5.0
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert math.isnan(float(metric.compute()))


@pytest.mark.parametrize("metric", [PassAtK(1), MajorityAtK(), AnswerDiversity(), TokenEntropy(), Mean()])
def test_every_state_is_summed_over_ranks(metric):
    assert {reduction.__name__ for reduction in metric._reductions.values()} == {"dim_zero_sum"}
