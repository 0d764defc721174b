"""Token statistics against float64 sums over probabilities, and the two directions of
self-certainty.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import restatement
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.model.token_stats import token_stats
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rewards import SelfCertainty


def random_logits(
    rows: int, vocabulary: int, scale: float = 3.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocabulary, generator=generator)
    return logits, torch.randint(vocabulary, (rows,), generator=generator)


def statistics_of(logits: torch.Tensor, tokens: torch.Tensor) -> list[list[float]]:
    """The restatement for each row: three lists (log-probs, entropies, self-certainties)."""
    rows = [
        restatement.token_statistics(z, v)
        for z, v in zip(logits.tolist(), tokens.tolist(), strict=True)
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def as_lists(stats: TokenStats) -> list[list[float]]:
    assert all(values.dtype == torch.float32 for values in vars(stats).values())
    return [stats.logprobs.tolist(), stats.entropy.tolist(), stats.self_certainty.tolist()]


def assert_near(
    actual: list[list[float]], expected: list[list[float]], tolerance: float = 2e-5
) -> None:
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


def test_three_statistics_by_hand():
    """Probabilities 1/2, 1/4, 1/4: log-prob of token 1, entropy 1.5 bits, KL(U || p) = (5/3) log 2
    - log 3.
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 7.0
    token = torch.tensor([1])
    expected = [[-2 * math.log(2)], [1.5 * math.log(2)], [5 / 3 * math.log(2) - math.log(3)]]
    assert_near(as_lists(token_stats(logits, token)), expected, 1e-6)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(2, 40),
    scale=st.floats(0, 20),
    shift=st.floats(-50, 50),
)
def test_statistics_match_restatement(seed, vocabulary, scale, shift):
    logits, tokens = random_logits(5, vocabulary, scale, seed)
    stats = token_stats(logits + shift, tokens)
    rounding = 1e-5 * (1 + abs(shift) + 3 * scale)  # float32: relative to the size of the logits
    assert_near(as_lists(stats), statistics_of(logits, tokens), rounding)


def test_uniform_distribution_has_no_certainty():
    stats = token_stats(torch.full((1, 1000), 3.25), torch.tensor([7]))
    assert_near(as_lists(stats), [[-math.log(1000)], [math.log(1000)], [0.0]], 1e-5)


def test_self_certainty_is_kl_from_uniform_not_to_uniform():
    """One very sure token: KL(U || p) grows with the gap of the logits; KL(p || U) stays below log
    V.
    """
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    stats = token_stats(logits, torch.tensor([0]))
    assert_near(as_lists(stats), [[0.0], [0.0], [30 * 3 / 4 - math.log(4)]])


def test_large_vocabulary_stays_accurate():
    logits, tokens = random_logits(4, 150_000)
    assert_near(as_lists(token_stats(logits, tokens)), statistics_of(logits, tokens), 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    logits, tokens = random_logits(6, 500)
    half = logits.to(dtype)
    assert_near(as_lists(token_stats(half, tokens)), statistics_of(half.double(), tokens))


def test_forbidden_tokens_are_as_if_absent():
    """Statistics with tokens forbidden are those of the shorter vocabulary; rows that may draw them
    have the whole.
    """
    logits, _ = random_logits(6, 30)
    ids, rows = torch.tensor([3, 11, 29]), torch.tensor([True, False, True, True, False, True])
    forbidden = torch.zeros(6, 30, dtype=torch.bool)
    forbidden[:, ids] = rows.unsqueeze(1)
    tokens = torch.tensor(
        [int((~row).nonzero()[-1]) for row in forbidden]
    )  # the last allowed token of each row
    expected = [
        restatement.token_statistics(row[~banned].tolist(), int((~banned).sum()) - 1)
        for row, banned in zip(logits, forbidden, strict=True)
    ]
    stats = as_lists(token_stats(logits, tokens, (ids, rows)))
    assert_near(stats, [list(column) for column in zip(*expected, strict=True)])
    poisoned = logits.masked_fill(forbidden, 1e4)
    assert as_lists(token_stats(poisoned, tokens, (ids, rows))) == stats


def test_forbidding_nothing_changes_nothing():
    logits, tokens = random_logits(6, 30)
    nothing = torch.tensor([1, 2]), torch.zeros(6, dtype=torch.bool)
    assert_near(
        as_lists(token_stats(logits, tokens, nothing)), as_lists(token_stats(logits, tokens)), 1e-6
    )


def rollout_of(logits: torch.Tensor, tokens: torch.Tensor, lengths: list[int]) -> Rollout:
    """One prompt, a completion per entry of ``lengths``; ``logits [B, T, V]``, ``tokens [B,
    T]``.
    """
    rows, columns = tokens.shape
    flat = token_stats(logits.flatten(0, 1), tokens.flatten())
    return Rollout(
        prompts=Prompts([torch.tensor([1])], ["?"], {}, torch.tensor([0])),
        completion_ids=tokens,
        mask=torch.arange(columns) < torch.tensor(lengths).unsqueeze(1),
        stats=flat.map(lambda values: values.view(rows, columns)),
        texts=[""] * rows,
        ended=torch.ones(rows, dtype=torch.bool),
        group_size=rows,
    )


@pytest.mark.parametrize("direction", ["uniform_to_model", "model_to_uniform"])
def test_self_certainty_head_both_ways(direction):
    """Mean over the completion's own tokens; the other direction is log V - entropy but for the
    constant log V.
    """
    logits, tokens = random_logits(3 * 5, 12)
    rollout = rollout_of(logits.view(3, 5, 12), tokens.view(3, 5), [5, 2, 1])
    _, entropy, certainty = (
        np.array(column).reshape(3, 5) for column in statistics_of(logits, tokens)
    )
    each = certainty if direction == "uniform_to_model" else -entropy
    expected = [each[b, :length].mean() for b, length in enumerate([5, 2, 1])]
    scores = SelfCertainty(direction)(rollout).scores
    np.testing.assert_allclose(scores.tolist(), expected, atol=2e-5)


def test_self_certainty_defaults_to_the_papers_direction():
    assert SelfCertainty().direction == "uniform_to_model"
    with pytest.raises(ValueError, match=r"direction='both'.*uniform_to_model, model_to_uniform"):
        SelfCertainty("both")
