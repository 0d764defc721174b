"""Log-probs of a teacher's candidates and of all other tokens: values, gradients, and packing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import rlif_lightning.model.policy as policy_module
from harness.scoring import HOT, PLAIN, completions_of
from rlif_lightning.model.head import (
    CandidateReader,
    HeadRule,
    TopReader,
    head_stats_at,
    head_top,
)
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel

ROWS, VOCABULARY, COUNT = 6, 9, 3
ENDS = torch.tensor([2, 5])


def case(seed: int = 0, num_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Raw logits, sampled tokens, and candidates in no order."""
    generator = torch.Generator().manual_seed(seed)
    raw = 3 * torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    known = num_tokens or VOCABULARY
    ids = torch.stack([torch.randperm(known, generator=generator)[:COUNT] for _ in range(ROWS)])
    return raw, torch.full((ROWS,), 3), ids


def plain(raw: Tensor, ids: Tensor, may_end: Tensor | None, rule: HeadRule) -> Tensor:
    """``[M, K + 1]`` one number at a time, over the tokens that could be sampled."""
    rows = []
    for row in range(len(raw)):
        hidden = [] if may_end is None or may_end[row] else ENDS.tolist()
        possible = [v for v in range(rule.num_tokens or VOCABULARY) if v not in hidden]
        total = (raw[row, possible] / rule.temperature).logsumexp(0)
        chosen = [
            raw[row, v] / rule.temperature - total if v in possible else raw.new_tensor(-math.inf)
            for v in ids[row].tolist()
        ]
        rest = [v for v in possible if v not in ids[row].tolist()]
        tail = (raw[row, rest] / rule.temperature).logsumexp(0) - total
        rows.append(torch.stack([*chosen, tail]))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("num_tokens", [None, 8])
def test_values_and_gradients_are_those_of_the_plain_formulas(temperature, ends, num_tokens):
    raw, tokens, ids = case(num_tokens=num_tokens)
    rule = HeadRule(temperature, ENDS, num_tokens)
    may_end = torch.arange(ROWS) % 2 == 0 if ends else None
    leaf, other = raw.clone().requires_grad_(), raw.clone().requires_grad_()
    stats, found = head_stats_at(leaf * 1, tokens, ids, may_end, rule)
    expected = plain(other, ids, may_end, rule)
    possible = expected.isfinite()
    assert (found[~possible] < -1e4).all()
    torch.testing.assert_close(found[possible], expected[possible], rtol=1e-10, atol=1e-10)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    weights = weights.where(possible, 0.0)
    token = other[:, : num_tokens or VOCABULARY] / temperature
    if may_end is not None:
        token = token.index_fill(1, ENDS, -torch.inf).where(~may_end.unsqueeze(1), token)
    both = (found * weights).sum() + 2 * stats.logprobs.sum()
    expected_sum = (expected.where(possible, 0.0) * weights).sum()
    expected_sum = expected_sum + 2 * token.log_softmax(-1)[:, 3].sum()
    gradient = torch.autograd.grad(both, leaf)[0]
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected_sum, other)[0], rtol=1e-9, atol=1e-9
    )
    assert gradient.any()


def test_a_tail_by_hand_and_an_empty_one():
    """Odds 1 : 2 : 5: candidates 2 and 0 leave 2/8 for the tail; all three leave nothing."""
    raw = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()
    rule, token = HeadRule(1.0, ENDS), torch.tensor([0])
    for ids, expected in (
        ([[2, 0]], [5 / 8, 1 / 8, 2 / 8]),
        ([[1, 0, 2]], [2 / 8, 1 / 8, 5 / 8, 0]),
    ):
        leaf = raw.clone().requires_grad_()
        _, found = head_stats_at(leaf * 1, token, torch.tensor(ids), None, rule)
        assert found.exp()[0].tolist() == pytest.approx(expected, abs=1e-12)
        found.clamp(min=-1e4).sum().backward()
        assert leaf.grad.isfinite().all()


def test_a_tail_of_almost_nothing_keeps_its_digits():
    """1 - sum(p) would be 0 in float32; the tail is e^-30."""
    raw = torch.tensor([[30.0, 0.0]])
    _, found = head_stats_at(raw, torch.tensor([0]), torch.tensor([[0]]), None, HeadRule(1.0, ENDS))
    assert float(found[0, 1]) == pytest.approx(-30.0)


def test_the_top_is_the_likeliest_tokens_that_may_be_sampled():
    raw, _, _ = case()
    rule, may_end = HeadRule(1.3, ENDS, 8), torch.arange(ROWS) % 2 == 0
    ids, found = head_top(raw, COUNT, may_end, rule)
    for row in range(ROWS):
        possible = [v for v in range(8) if may_end[row] or v not in ENDS.tolist()]
        best = sorted(possible, key=lambda v, row=row: -float(raw[row, v]))[:COUNT]
        assert sorted(ids[row].tolist()) == sorted(best)
    torch.testing.assert_close(found, plain(raw, ids, may_end, rule))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(ROWS, dtype=torch.float64))


@pytest.mark.parametrize("sampling", [PLAIN, HOT], ids=["plain", "hot"])
def test_packed_passes_read_the_same_in_any_cut(tiny_models, monkeypatch, sampling):
    """In one pass and in one for each completion; stored logits, and recomputed ones in chunks."""
    policy = PolicyModel(Policy(str(tiny_models["llama"]))).double()
    policy.eos_ids = list(range(2, 20))
    completions = completions_of(policy.vocab_size)
    found = []
    for budget, kept in ((10_000, 2**28), (1, 2**28), (10_000, 0)):
        monkeypatch.setattr(policy_module, "KEPT_LOGITS", {"cpu": kept})
        monkeypatch.setattr(policy_module, "MAX_LOGITS", {"cpu": 7 * policy.vocab_size})
        policy.zero_grad()
        rule = policy.rule(sampling, torch.device("cpu"))
        ids = torch.zeros(*completions.mask.shape, 4, dtype=torch.int64)
        values = torch.zeros(*completions.mask.shape, 5, dtype=torch.float64)
        for packed in pack(completions, budget):
            with torch.no_grad():
                ids[packed.rows] = policy(packed, sampling, TopReader(4, rule)).ids.sort(-1).values
            _, each = policy(packed, sampling, CandidateReader(ids))
            (each * completions.mask[packed.rows].unsqueeze(-1) * torch.arange(5)).sum().backward()
            values[packed.rows] = each.detach()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        found.append((ids, values, gradient))
    for ids, values, gradient in found[1:]:
        assert torch.equal(ids, found[0][0])
        torch.testing.assert_close(values, found[0][1], rtol=1e-5, atol=1e-6)
        size = float(found[0][2].abs().max())  # norms are computed in float32
        torch.testing.assert_close(gradient, found[0][2], rtol=1e-5, atol=1e-6 * size)
    assert not found[0][1][~completions.mask].any()
