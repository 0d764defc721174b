"""Statistics of the head's logits: values by the restatement, gradients by autograd of plain
formulas, and no copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import restatement
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlif_lightning.model.head as logits_module
from rlif_lightning.model.head import HeadRule, head_stats

ROWS, VOCABULARY = 7, 13
NUM_TOKENS = 12  # where there is an id that is no token
NAMES = ("logprobs", "entropy", "self_certainty")
END_IDS = [2, 5, 11]


@dataclass
class Case:
    """Raw logits ``[M, V]``, tokens ``[M]`` that could be sampled, and how they were."""

    raw: Tensor
    tokens: Tensor
    may_end: Tensor | None
    rule: HeadRule


def case(
    temperature: float,
    ends: bool,
    seed: int = 0,
    dtype=torch.float64,
    num_tokens: int | None = None,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    raw = (3 * torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)).to(dtype)
    tokens = torch.randint(num_tokens or VOCABULARY, (ROWS,), generator=generator)
    may_end = torch.arange(ROWS) % 2 == 0 if ends else None
    if may_end is not None:
        tokens = torch.where(~may_end & torch.isin(tokens, torch.tensor(END_IDS)), 3, tokens)
    return Case(raw, tokens, may_end, HeadRule(temperature, torch.tensor(END_IDS), num_tokens))


def head_output(raw: Tensor) -> Tensor:
    """What a head would give: no leaf, storage of its own."""
    return raw.detach().clone().requires_grad_() * 1


def found(case: Case) -> list[Tensor]:
    stats = head_stats(case.raw, case.tokens, case.may_end, case.rule)
    return [getattr(stats, name) for name in NAMES]


def plain(case: Case, row: int, raw: Tensor) -> list[Tensor]:
    """One row by the textbook formulas, over the tokens that could be sampled."""
    z = raw / case.rule.temperature
    hidden = END_IDS if case.may_end is not None and not case.may_end[row] else []
    possible = [v for v in range(case.rule.num_tokens or VOCABULARY) if v not in hidden]
    logp = z[possible].log_softmax(0)
    uniform = 1 / len(possible)
    token = possible.index(int(case.tokens[row]))
    certainty = sum(uniform * (torch.tensor(uniform).log() - one) for one in logp)
    return [logp[token], -(logp.exp() * logp).sum(), certainty]


def plain_gradient(case: Case, weights: list[Tensor | None]) -> Tensor:
    leaf = case.raw.double().detach().clone().requires_grad_()
    total = leaf.sum() * 0
    for row in range(ROWS):
        for weight, value in zip(weights, plain(case, row, leaf[row]), strict=True):
            total = total if weight is None else total + weight[row].double() * value
    return torch.autograd.grad(total, leaf)[0]


def our_gradient(case: Case, weights: list[Tensor | None]) -> Tensor:
    leaf = case.raw.detach().clone().requires_grad_()
    stats = found(Case(leaf * 1, case.tokens, case.may_end, case.rule))
    used = [
        (value * weight).sum()
        for value, weight in zip(stats, weights, strict=True)
        if weight is not None
    ]
    return torch.autograd.grad(torch.stack(used).sum(), leaf)[0]


def weights_for(which: set[int], seed: int = 1) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(ROWS, generator=generator, dtype=torch.float64) for _ in NAMES]
    return [weight if i in which else None for i, weight in enumerate(drawn)]


@settings(deadline=None, max_examples=40)
@given(
    temperature=st.sampled_from([1.0, 0.4, 1.7]),
    ends=st.booleans(),
    num_tokens=st.sampled_from([None, NUM_TOKENS, VOCABULARY, VOCABULARY + 4]),
    seed=st.integers(0, 999),
)
def test_values_are_those_of_the_restatement(temperature, ends, num_tokens, seed):
    num_tokens = None if num_tokens is None else min(num_tokens, VOCABULARY)
    one = case(temperature, ends, seed, num_tokens=num_tokens)
    stats = found(one)
    for row in range(ROWS):
        hidden = END_IDS if ends and not one.may_end[row] else []
        possible = [v for v in range(num_tokens or VOCABULARY) if v not in hidden]
        values = [float(one.raw[row, v]) / temperature for v in possible]
        expected = restatement.token_statistics(values, possible.index(int(one.tokens[row])))
        torch.testing.assert_close(
            [float(s[row]) for s in stats], list(expected), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    "which", [{0}, {1}, {2}, {0, 1}, {0, 1, 2}], ids=lambda s: "+".join(NAMES[i] for i in s)
)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("num_tokens", [None, NUM_TOKENS])
def test_gradients_are_those_of_the_plain_formulas(which, temperature, ends, num_tokens):
    one, weights = case(temperature, ends, num_tokens=num_tokens), weights_for(which)
    gradient = our_gradient(one, weights)
    torch.testing.assert_close(gradient, plain_gradient(one, weights), rtol=1e-9, atol=1e-9)
    assert not gradient[:, num_tokens or VOCABULARY :].any()
    if ends:
        assert not gradient[1::2][:, END_IDS].any()


def test_what_is_no_token_has_probability_0_and_does_not_count_by_hand():
    """Odds 1 : 2 : 5 of three tokens, and 100 of an id that is none: p = 1/8, 1/4, 5/8, as if it
    were not there.
    """
    raw = torch.tensor([[1.0, 2.0, 5.0, 100.0]], dtype=torch.float64).log()
    rule = HeadRule(1.0, torch.tensor([0]), 3)
    stats = head_stats(raw, torch.tensor([1]), None, rule)
    p = (1 / 8, 1 / 4, 5 / 8)
    assert float(stats.logprobs) == pytest.approx(math.log(1 / 4))
    assert float(stats.entropy) == pytest.approx(-sum(each * math.log(each) for each in p))
    assert float(stats.self_certainty) == pytest.approx(-sum(map(math.log, p)) / 3 - math.log(3))
    unable = head_stats(
        raw, torch.tensor([1]), torch.tensor([False]), rule
    )  # id 0 ends, and may not yet
    assert float(unable.logprobs) == pytest.approx(math.log(2 / 7))
    assert float(unable.self_certainty) == pytest.approx(
        -(math.log(2 / 7) + math.log(5 / 7)) / 2 - math.log(2)
    )


@pytest.mark.parametrize("elements", [1, VOCABULARY, 3 * VOCABULARY - 1, 3 * VOCABULARY, 1000])
def test_pieces_of_any_size_change_nothing(monkeypatch, elements):
    one, weights = case(1.7, True), weights_for({0, 1, 2})
    expected = [*found(one), our_gradient(one, weights)]
    monkeypatch.setitem(logits_module.PIECE, "cpu", elements)
    sizes = [part.stop - part.start for part in logits_module.pieces(torch.empty(ROWS, VOCABULARY))]
    assert sizes[0] == max(1, elements // VOCABULARY)
    for value, other in zip([*found(one), our_gradient(one, weights)], expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)


def test_pieces_cover_every_row_once(monkeypatch):
    monkeypatch.setitem(logits_module.PIECE, "cpu", 30)
    for rows in (0, 1, 2, 3, 4, 9):
        covered = [
            row for part in logits_module.pieces(torch.empty(rows, 10)) for row in range(rows)[part]
        ]
        assert covered == list(range(rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_get_a_gradient_of_their_own_kind(dtype):
    """Statistics in float32, computed from the rounded logits; only the gradient is rounded once
    more.
    """
    one = case(1.7, True, dtype=dtype)
    weights = [w if w is None else w.float() for w in weights_for({0, 1, 2})]
    assert {value.dtype for value in found(one)} == {torch.float32}
    gradient = our_gradient(one, weights)
    assert gradient.dtype == dtype
    exact = our_gradient(Case(one.raw.float(), one.tokens, one.may_end, one.rule), weights)
    torch.testing.assert_close(gradient.float(), exact, rtol=2**-8, atol=1e-6)


def test_the_gradient_takes_the_place_of_the_logits():
    one = case(1.0, False)
    raw = head_output(one.raw)
    received: list[Tensor] = []
    raw.register_hook(received.append)
    stats = head_stats(raw, one.tokens, None, one.rule)
    assert torch.equal(raw.detach(), one.raw)  # whole until the backward pass
    stats.logprobs.sum().backward()
    (gradient,) = received
    assert gradient.data_ptr() == raw.data_ptr()
    assert gradient.shape == raw.shape


def test_a_second_backward_pass_is_refused():
    one = case(1.0, False)
    stats = head_stats(head_output(one.raw), one.tokens, None, one.rule)
    stats.logprobs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="ran twice"):
        stats.entropy.sum().backward()
