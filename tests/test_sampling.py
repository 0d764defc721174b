"""Drawing tokens: the uniforms' counters, the draw's distribution, truncation, and refused
settings.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import restatement
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.model.token_stats import softmax_parts
from rlif_lightning.sampling import (
    PURPOSES,
    SUM_BLOCK,
    Sampling,
    counter_uniforms,
    purpose_seeds,
    sample_weights,
    truncate_logits,
)

JUST_BELOW_ONE = 1 - 2**-53
IMPOSSIBLE = -math.inf


def sample_tokens(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw as the engine does."""
    return sample_weights(softmax_parts(logits).weights, uniforms)


def test_uniforms_depend_on_their_counters_alone():
    """A row's numbers do not change with the batch around it, its order or the number of tokens."""
    whole = counter_uniforms(7, 3, [10, 10, 11, 900_000], [0, 1, 0, 5], 20)
    assert whole.shape == (4, 20)
    assert whole.dtype == torch.float64
    for row, (i, g) in enumerate(zip([10, 10, 11, 900_000], [0, 1, 0, 5], strict=True)):
        assert torch.equal(counter_uniforms(7, 3, [i], [g], 20)[0], whole[row])
        for length in (1, 2, 3, 4, 5, 19):
            assert torch.equal(counter_uniforms(7, 3, [i], [g], length)[0], whole[row, :length])
    assert torch.equal(counter_uniforms(7, 3, [900_000, 10], [5, 1], 20), whole[[3, 1]])


def test_each_counter_matters_and_streams_do_not_overlap():
    base = (7, 3, 10, 2)
    others = [
        (8, 3, 10, 2),
        (7, 4, 10, 2),
        (7, 3, 11, 2),
        (7, 3, 10, 3),
        (3, 7, 10, 2),
        (7, 3, 2, 10),
    ]
    streams = [
        counter_uniforms(seed, step, [i], [g], 2000).flatten()
        for seed, step, i, g in [base, *others]
    ]
    assert torch.cat(streams).unique().numel() == 2000 * len(streams)


def test_two_purposes_share_no_number():
    """At equal seed, step, row and completion: no common number, and no correlation over 10^5 draws
    (4 sigma).
    """
    rows = [i for i in range(100) for _ in range(10)]
    counters = (0, 0, rows, list(range(10)) * 100, 100)
    streams = [counter_uniforms(*counters, purpose=purpose).flatten() for purpose in PURPOSES]
    assert torch.equal(
        counter_uniforms(*counters).flatten(), streams[list(PURPOSES).index("sampling")]
    )
    assert torch.cat(streams).unique().numel() == 100_000 * len(PURPOSES)
    correlations = torch.corrcoef(torch.stack(streams)).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 4 / math.sqrt(100_000)


def test_the_sampler_s_stream_is_what_it_always_was():
    """Published runs rest on it: Philox with key (seed, step) and counter (0, 0,
    completion, row).
    """
    expected = np.random.Generator(np.random.Philox(key=[7, 3], counter=[0, 0, 2, 10])).random(5)
    assert counter_uniforms(7, 3, [10], [2], 5)[0].tolist() == expected.tolist()


def test_generators_of_two_purposes_differ_though_their_counters_are_equal():
    """Shuffles, requests, preflight's problems, and the wordless order of training prompts ``[seed,
    epoch]``.
    """
    seeds = [purpose_seeds(purpose, 0, 3, 0) for purpose in PURPOSES] + [
        np.random.SeedSequence([0, 3])
    ]
    streams = torch.from_numpy(
        np.stack([np.random.default_rng(each).random(100_000) for each in seeds])
    )
    assert streams.unique().numel() == streams.numel()
    correlations = torch.corrcoef(streams).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 4 / math.sqrt(100_000)


def test_uniforms_look_uniform():
    """Chi-square of 20 bins over many streams, and no correlation of neighbouring streams or tokens
    (5 sigma).
    """
    index = [i for i in range(100) for _ in range(10)]
    numbers = counter_uniforms(0, 0, index, list(range(10)) * 100, 100)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    counts = (numbers * 20).long().flatten().bincount(minlength=20)
    chi_square = float(((counts - 5000) ** 2 / 5000).sum())
    assert abs(chi_square - 19) < 5 * math.sqrt(38)
    centred = numbers - 0.5
    for product in (
        centred[1:] * centred[:-1],
        centred[10:] * centred[:-10],
        centred[:, 1:] * centred[:, :-1],
    ):
        assert abs(float(product.mean())) < 5 / 12 / math.sqrt(product.numel())
    assert abs(float(numbers[:, 0].mean()) - 0.5) < 5 / math.sqrt(12 * 1000)


def test_draw_inverts_the_cumulative_distribution():
    """Probabilities 1/4, 1/2, 1/4: the bounds .25 and .75 belong to the token above them."""
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(7, 3) - 4.0
    uniforms = torch.tensor(
        [0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999, JUST_BELOW_ONE], dtype=torch.float64
    )
    assert sample_tokens(logits, uniforms).tolist() == [0, 0, 1, 1, 2, 2, 2]
    exact = torch.zeros(4, 4)
    assert sample_tokens(exact, torch.tensor([0.0, 0.25, 0.5, 0.75])).tolist() == [0, 1, 2, 3]


def test_draw_follows_softmax():
    """Chi-square of 20,000 draws from one distribution (5 sigma)."""
    logits = 1.5 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    uniforms = counter_uniforms(1, 0, [0], [0], 20_000)[0]
    counts = sample_tokens(logits.expand(20_000, 12), uniforms).bincount(minlength=12)
    expected = 20_000 * logits.double().softmax(0)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert expected.min() > 5
    assert abs(chi_square - 11) < 5 * math.sqrt(22)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), vocabulary=st.integers(1, 50), scale=st.floats(0, 60))
def test_impossible_tokens_are_never_drawn(seed, vocabulary, scale):
    """Neither at u = 0 with impossible tokens in front nor at u close to 1 with impossible tokens
    behind.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(8, vocabulary, generator=generator)
    banned = torch.rand(8, vocabulary, generator=generator) < 0.6
    banned[torch.arange(8), torch.randint(vocabulary, (8,), generator=generator)] = False
    logits = logits.masked_fill(banned, IMPOSSIBLE)
    some = torch.rand(8, dtype=torch.float64, generator=generator)
    rounded_up = torch.full((8,), JUST_BELOW_ONE, dtype=torch.float64).float()  # 1.0
    for uniforms in (
        torch.zeros(8),
        torch.full((8,), JUST_BELOW_ONE, dtype=torch.float64),
        rounded_up,
        some,
    ):
        tokens = sample_tokens(logits, uniforms)
        assert tokens.dtype == torch.int64
        assert (logits.gather(1, tokens.unsqueeze(1)) > IMPOSSIBLE).all()


def test_only_possible_token_is_drawn_wherever_it_stands():
    for place in (0, 3, 6):
        logits = torch.full((1, 7), IMPOSSIBLE)
        logits[0, place] = -5.0
        for u in (0.0, 0.5, JUST_BELOW_ONE):
            assert sample_tokens(logits, torch.tensor([u], dtype=torch.float64)).tolist() == [place]


def exact_draw(weights: list[float], uniform: float) -> tuple[int, float]:
    """First token whose cumulative probability exceeds the uniform, and the distance to the nearest
    boundary.
    """
    total, reached, token, nearest = math.fsum(weights), [], None, math.inf
    for v in range(len(weights)):
        reached.append(reached[-1] + weights[v] if reached else weights[v])
        nearest = min(nearest, abs(reached[-1] / total - uniform))
        if token is None and reached[-1] / total > uniform:
            token = v
    return (len(weights) - 1 if token is None else token), nearest


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([255, 256, 257, 512, 513, 600, 777, 1000, 1024]),
    scale=st.sampled_from([0.0, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_blocks_of_large_vocabularies_invert_the_same_distribution(seed, vocabulary, scale, dtype):
    """Exact sums may disagree only where the uniform is within 1e-6 of a boundary: blocks are
    summed in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = (scale * torch.randn(12, vocabulary, generator=generator)).exp().to(dtype)
    banned = torch.rand(12, vocabulary, generator=generator) < 0.3
    banned[:, 7] = False
    banned[:4, SUM_BLOCK:] = True  # whole blocks behind, and in front, are impossible
    banned[4:8, : min(SUM_BLOCK, vocabulary - 1)] = True
    banned[4:8, -1] = False
    weights = weights.masked_fill(banned, 0.0)
    some = torch.rand(12, dtype=torch.float64, generator=generator)
    for uniforms in (
        some,
        torch.zeros(12, dtype=torch.float64),
        torch.full((12,), JUST_BELOW_ONE, dtype=torch.float64),
    ):
        tokens = sample_weights(weights, uniforms)
        assert (weights.gather(1, tokens.unsqueeze(1)) > 0).all()
        for row, u, token in zip(weights.tolist(), uniforms.tolist(), tokens.tolist(), strict=True):
            expected, nearest = exact_draw(row, u)
            assert token == expected or nearest < 1e-6


def test_every_block_follows_its_weight():
    """Equal weights: a uniform in the middle of token v's share draws v, over blocks and in the
    part block.
    """
    for vocabulary in (SUM_BLOCK, 600, 777, 1000):
        uniforms = (torch.arange(vocabulary, dtype=torch.float64) + 0.5) / vocabulary
        assert torch.equal(
            sample_weights(torch.ones(vocabulary, vocabulary), uniforms), torch.arange(vocabulary)
        )


def test_rounding_between_blocks_draws_nothing_impossible():
    """What lies before the chosen block rounds to more than the target; the block begins with an
    impossible token.
    """
    unit = 2.0**-44  # spacing of doubles at 256
    weights = torch.zeros(1, 3 * SUM_BLOCK, dtype=torch.float64)
    weights[0, 0], weights[0, SUM_BLOCK - 1] = 256.0, unit
    weights[0, SUM_BLOCK + 9] = unit / 2
    weights[0, 2 * SUM_BLOCK] = (
        256.0 - 2 * unit
    )  # the whole is 512, so that the target below is exact
    target = torch.tensor([(256.0 + unit) / 512.0], dtype=torch.float64)
    assert sample_weights(weights, target).tolist() == [SUM_BLOCK + 9]


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(1, 20),
    top_k=st.integers(0, 25),
    top_p=st.floats(0.01, 1.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_truncation_matches_restatement(seed, vocabulary, top_k, top_p, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(4, vocabulary, generator=generator, dtype=dtype)
    truncated = truncate_logits(logits, top_k, top_p)
    for row, before in zip(truncated, logits, strict=True):
        kept = {v for v, z in enumerate(row.tolist()) if z > IMPOSSIBLE}
        assert kept == restatement.nucleus(before.tolist(), top_k, top_p)
        assert torch.equal(row[list(kept)], before[list(kept)])


def test_truncation_by_hand():
    """Probabilities .5, .3, .15, .05."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    kept = {
        p: (truncate_logits(logits, top_p=p) > IMPOSSIBLE).tolist()[0]
        for p in (0.01, 0.49, 0.6, 0.81, 1.0)
    }
    assert kept[0.01] == kept[0.49] == [False, True, False, False]
    assert kept[0.6] == [False, True, False, True]
    assert kept[0.81] == [True, True, False, True]
    assert kept[1.0] == [True] * 4
    assert (truncate_logits(logits, top_k=1) > IMPOSSIBLE).tolist() == [[False, True, False, False]]
    assert torch.equal(truncate_logits(logits), logits)


def test_truncation_keeps_ties_and_its_input():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert (truncate_logits(logits, top_k=1) > IMPOSSIBLE).tolist() == [[False, True, True, False]]
    assert logits.tolist() == [[1.0, 2.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9, max_new_tokens=8"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"stop": "END"}, "stop='END'.*list"),
        ({"stop": ["a", ""]}, "stop="),
        (
            {"train_stop": True},
            r"train_stop=true needs stop strings and min_new_tokens=0 \(got stop=\[\]",
        ),
        ({"train_stop": True, "stop": ["a"], "min_new_tokens": 2}, "min_new_tokens=2"),
    ],
)
def test_errors(setting, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_k": 5}, "top_k=5"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"temperature": 0.0}, "temperature=0 is greedy"),
    ],
)
def test_settings_refused_in_training(setting, message):
    Sampling().check_trainable()
    with pytest.raises(ValueError, match=message):
        Sampling(**setting).check_trainable()


def test_uniforms_need_one_completion_number_per_row():
    with pytest.raises(ValueError, match="shorter"):
        counter_uniforms(0, 0, [1, 2], [0], 4)
