"""DistIL: its gradient on enumerated trees, the bandit of its theory, and its limiting cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rlif_lightning.learning.distil import DistIL
from rlif_lightning.learning.divergences import divergence, mean_of_others, strict_future
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.model.head import HeadRule, head_stats_at
from rlif_lightning.model.token_stats import TeacherLogprobs

RULE = HeadRule(1.0, torch.tensor([0]))
GOLDEN = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
TAUGHT = torch.tensor([[0.8, 0.2], [0.9, 0.1], [0.3, 0.7]], dtype=torch.float64).log()


class Tree:
    """Every completion of T tokens out of V, as a policy with one row of logits for each prefix."""

    def __init__(self, logits: Tensor, teacher: Tensor, length: int, count: int):
        self.logits, vocabulary = logits, logits.shape[1]
        prefixes = [
            p for t in range(length) for p in itertools.product(range(vocabulary), repeat=t)
        ]
        place = {prefix: number for number, prefix in enumerate(prefixes)}
        self.tokens = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))
        self.nodes = torch.tensor(
            [[place[tuple(y[:t])] for t in range(length)] for y in self.tokens.tolist()]
        )
        self.teacher, self.ids = teacher, teacher.topk(count).indices  # [nodes, V], [nodes, K]

    def probabilities(self) -> Tensor:
        logprobs = self.logits.log_softmax(-1)[self.nodes]  # [B, T, V]
        return logprobs.gather(-1, self.tokens.unsqueeze(-1)).sum((1, 2)).exp()

    def inputs(self, rows: Tensor) -> LossInputs:
        """The loss inputs of some completions, through the head."""
        nodes, tokens = self.nodes[rows], self.tokens[rows]
        raw, ids = self.logits[nodes.flatten()] * 1, self.ids[nodes.flatten()]
        stats, candidates = head_stats_at(raw, tokens.flatten(), ids, None, RULE)
        rest = self.teacher.scatter(1, self.ids, -torch.inf).logsumexp(-1)
        known = TeacherLogprobs(
            self.ids[nodes], self.teacher.gather(1, self.ids)[nodes], rest[nodes]
        )
        logprobs = stats.logprobs.view(tokens.shape)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        old = logprobs.detach()
        return LossInputs(
            logprobs, old, torch.zeros_like(old), mask, torch.arange(len(rows)),
            teacher=known, candidates=candidates.view(*tokens.shape, -1),
        )  # fmt: skip

    def estimate(self, objective: DistIL, group_size: int) -> Tensor:
        """The expected gradient over groups of independent completions."""
        probability = self.probabilities().detach()
        count = len(self.tokens)
        rows = torch.tensor(list(itertools.product(range(count), repeat=group_size))).flatten()
        weights = probability[rows].view(-1, group_size).prod(1) / group_size
        batch = self.inputs(rows)
        if objective.needs_candidates:
            baseline = objective.future_baseline(batch, group_size)
            batch = LossInputs(**{**vars(batch), "future_baseline": baseline})
        loss = objective.token_loss(batch, batch.mask).sum(1).view(-1, group_size).sum(1)
        return torch.autograd.grad((loss * weights).sum(), self.logits)[0]

    def exact(self, kind: str) -> Tensor:
        """The gradient of the expected sum of divergences, by autograd of the enumeration."""
        logp = self.logits.log_softmax(-1)
        q, p = self.teacher.exp(), logp.exp()
        middle = ((p + q) / 2).log()
        cost = {
            "forward_ce": -(q * logp),
            "reverse_kl": p * (logp - self.teacher),
            "jsd": (q * (self.teacher - middle) + p * (logp - middle)) / 2,
        }[kind].sum(-1)
        total = (self.probabilities() * cost[self.nodes].sum(1)).sum()
        return torch.autograd.grad(total, self.logits)[0]


def golden(count: int = 2) -> Tree:
    return Tree(GOLDEN.clone().requires_grad_(), TAUGHT, 2, count)


def test_the_golden_tree_by_hand():
    """Root (-.35, .35) = local (-.30, .30) + future (-.05, .05)."""
    tree = golden()
    whole = tree.estimate(DistIL(), 2)
    assert whole[0].tolist() == pytest.approx([-0.35, 0.35], abs=1e-8)
    assert whole[1].tolist() == pytest.approx([-0.084471, 0.084471], abs=1e-6)
    assert whole[2].tolist() == pytest.approx([-0.015529, 0.015529], abs=1e-6)
    local = golden().estimate(DistIL(credit="local"), 1)
    assert local[0].tolist() == pytest.approx([-0.30, 0.30], abs=1e-8)
    assert torch.allclose(local[1:], whole[1:], atol=1e-12)
    cost = golden().inputs(torch.tensor([0, 3]))
    assert DistIL().teacher_divergence(cost).tolist() == [
        pytest.approx([0.693147, 0.413262], abs=1e-6),
        pytest.approx([0.693147, 0.613262], abs=1e-6),
    ]


def test_divergences_to_go_without_the_teachers_entropy_would_flip_the_sign():
    """The cost-to-go is the cross-entropy; with KL(teacher || policy) the future part of the root
    would be (.021445, -.021445).
    """
    entropy = -(TAUGHT.exp() * TAUGHT).sum(-1)
    logp = GOLDEN.log_softmax(-1)
    ce = -(TAUGHT.exp() * logp).sum(-1)
    p = logp[0].exp()
    for cost, expected in ((ce, -0.05), (ce - entropy, 0.021445)):
        value = (p * cost[1:]).sum()
        assert float(p[0] * (cost[1] - value)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["forward_ce", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("baseline", "size"), [("none", 1), ("group", 1), ("group", 2)])
def test_the_gradient_is_exact_on_enumerated_trees(kind, baseline, size):
    """Two tokens of three; 9 completions, and 81 groups of two."""
    generator = torch.Generator().manual_seed(3)
    logits, teacher = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    objective = DistIL(divergence=kind, baseline=baseline)
    for count in (3, 2):  # a tail of one token is that token
        tree = Tree(logits.clone().requires_grad_(), teacher.log_softmax(-1), 2, count)
        exact = tree.exact(kind)
        assert float((tree.estimate(objective, size) - exact).abs().max()) < 1e-8
        local = tree.estimate(DistIL(divergence=kind, credit="local"), 1)
        assert float((local - exact).abs().max()) > 1e-3


def test_three_tokens_deep():
    generator = torch.Generator().manual_seed(5)
    logits, teacher = torch.randn(2, 13, 3, generator=generator, dtype=torch.float64)
    tree = Tree(logits.requires_grad_(), teacher.log_softmax(-1), 3, 3)
    estimate = tree.estimate(DistIL(baseline="none"), 1)
    assert float((estimate - tree.exact("forward_ce")).abs().max()) < 1e-8


def test_a_baseline_with_the_completion_itself_would_shrink_the_future():
    """The mean of all of a group of two halves the root's future term to (-.025, .025)."""
    tree = golden()
    probability = tree.probabilities().detach()
    rows = torch.tensor(list(itertools.product(range(4), repeat=2))).flatten()
    batch = tree.inputs(rows)
    future = DistIL().future(batch).view(-1, 2, 2)
    own = future.mean(1, keepdim=True).expand_as(future).reshape(-1, 2)
    batch = LossInputs(**{**vars(batch), "future_baseline": own})
    loss = DistIL().token_loss(batch, batch.mask).sum(1).view(-1, 2).sum(1)
    weights = probability[rows].view(-1, 2).prod(1) / 2
    [gradient] = torch.autograd.grad((loss * weights).sum(), tree.logits)
    assert gradient[0].tolist() == pytest.approx([-0.325, 0.325], abs=1e-8)


def test_future_and_siblings_by_hand():
    """CE (.5, 1, .25) and (.25, .5, 1.5): futures (1.25, .25, 0), (2, 1.5, 0), less the other's."""
    cost, mask = torch.tensor([[0.5, 1, 0.25], [0.25, 0.5, 1.5]]), torch.ones(2, 3) > 0
    future = strict_future(cost)
    assert future.tolist() == [[1.25, 0.25, 0], [2, 1.5, 0]]
    credit = future - mean_of_others(future, mask, 2)
    assert (-credit).tolist() == [[0.75, 1.25, 0], [-0.75, -1.25, 0]]
    assert not mean_of_others(future, mask, 1).any()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert mean_of_others(future, mask, 2).tolist() == [[2, 0, 0], [1.25, 0.25, 0]]


def test_scaled_credit_is_the_mean_of_what_is_left():
    batch = golden().inputs(torch.arange(4))
    cost = DistIL().teacher_divergence(batch).detach()
    scaled = DistIL(scale="remaining").future(batch)
    torch.testing.assert_close(scaled[:, 0], cost[:, 1])
    longer = torch.tensor([[1.0, 2.0, 4.0]])
    assert (strict_future(longer) / torch.tensor([[2, 1, 1]])).tolist() == [[3, 4, 0]]


def test_the_bandit_of_the_theory():
    """J = .60 and the teacher's .70. A natural-gradient step on the forward cross-entropy gains
    .10, one on the reverse KL loses .181; plain steps in the logits lose .036 and .120.
    """
    p, q, r = (torch.tensor(x).double() for x in ([0.1, 0.4, 0.5], [0.6, 0.3, 0.1], [1, 0, 1]))
    fisher = torch.diag(p) - torch.outer(p, p)
    slope = p * (r - p @ r)  # dJ / dlogits
    empty = torch.tensor([-math.inf]).double()
    steps = {"forward_ce": (0.10, -0.036), "reverse_kl": (-0.1811, -0.1199)}
    for kind, (natural, plain) in steps.items():
        raw = p.log().unsqueeze(0).requires_grad_()
        ids, token = torch.arange(3).unsqueeze(0), torch.tensor([0])
        _, student = head_stats_at(raw * 1, token, ids, None, RULE)
        loss = divergence(student, torch.cat([q.log(), empty]).unsqueeze(0), kind)
        gradient = torch.autograd.grad(loss.sum(), raw)[0][0]
        assert float(-slope @ torch.linalg.pinv(fisher) @ gradient) == pytest.approx(
            natural, abs=1e-4
        )
        assert float(-slope @ gradient) == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("kind", ["forward_ce", "reverse_kl", "jsd"])
@pytest.mark.parametrize("count", [2, 5])
def test_a_teacher_that_is_the_student_gives_no_local_gradient(kind, count):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    ids = raw.detach().topk(count).indices
    _, student = head_stats_at(raw * 1, torch.zeros(4).long(), ids, None, RULE)
    loss = divergence(student, student.detach(), kind)
    assert loss.isfinite().all()
    assert float(torch.autograd.grad(loss.sum(), raw)[0].abs().max()) < 1e-12
    if kind != "forward_ce":
        assert float(loss.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["forward_ce", "reverse_kl", "jsd"])
def test_all_candidates_leave_an_empty_tail_and_the_full_divergence(kind):
    generator = torch.Generator().manual_seed(1)
    raw, teacher = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    ids = teacher.topk(5).indices
    _, student = head_stats_at(raw.clone(), torch.zeros(4).long(), ids, None, RULE)
    assert (student[:, -1] == -torch.inf).all()
    logq, logp = teacher.log_softmax(-1), raw.log_softmax(-1)
    known = torch.cat([logq.gather(1, ids), torch.full((4, 1), -math.inf)], 1)
    middle = ((logp.exp() + logq.exp()) / 2).log()
    expected = {
        "forward_ce": -(logq.exp() * logp).sum(-1),
        "reverse_kl": (logp.exp() * (logp - logq)).sum(-1),
        "jsd": (logq.exp() * (logq - middle) + logp.exp() * (logp - middle)).sum(-1) / 2,
    }
    torch.testing.assert_close(divergence(student, known, kind), expected[kind])


def test_the_ratio_is_clamped_and_constant():
    tree = golden()
    batch = tree.inputs(torch.arange(4))
    shift = torch.tensor([[0.0, 0.5], [5.0, -0.5], [0.0, 0.0], [0.0, 0.0]])
    moved = LossInputs(**{**vars(batch), "old_logprobs": batch.old_logprobs - shift})
    loss, plain = (DistIL(credit="local").policy_loss(each, each.mask) for each in (moved, batch))
    expected = shift.exp().clamp(max=2.0)
    torch.testing.assert_close(loss / plain, expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "kl"}, "divergence='kl' is unknown; use one of forward_ce"),
        ({"credit": "token"}, "credit='token' is unknown"),
        ({"baseline": "batch"}, "baseline='batch' is unknown"),
        ({"scale": "std"}, "scale='std' is unknown"),
        ({"max_ratio": 0.5}, r"max_ratio=0\.5 must be a number that is >= 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistIL(**settings)
