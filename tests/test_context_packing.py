"""Contexts of one episode: read apart, packed together, counted as one completion."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.decoding import load
from harness.models import EACH_ARCHITECTURE
from rlif_lightning.learning.advantages import DrGRPO
from rlif_lightning.learning.losses import aggregation_weights, plain_surrogate
from rlif_lightning.masked import masked_sum
from rlif_lightning.model.packing import Tree, own_rows, pack
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.records import Completions
from rlif_lightning.sampling import Sampling

# A group of two episodes, with one and with three contexts. Prompts of later ones begin at 3 and 7.
MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1, 1, 0, 1]]).bool()
STARTS = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1, 0]]).bool()
IDS = torch.tensor([[20, 21, 22, 99, 99, 99, 99, 99, 99], [30, 31, 90, 91, 92, 32, 33, 93, 34]])
PROMPT = torch.tensor([10, 11])
EPISODES = Completions([PROMPT], IDS, MASK, 2, STARTS)


def test_each_context_is_a_tree_of_the_same_line():
    (packed,) = pack(EPISODES, 100)
    assert packed.rows.tolist() == [0, 1]
    assert packed.trees == (Tree(0, 2, (2, 1)), Tree(5, 3, (1,)), Tree(9, 1, (0,)))
    assert packed.input_ids.tolist() == [10, 11, 20, 21, 30, 90, 91, 92, 32, 93]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1, 2, 3, 0]
    assert packed.tokens.tolist() == [20, 21, 22, 30, 31, 32, 33, 34]
    assert packed.source.tolist() == [1, 2, 3, 1, 4, 7, 8, 9]
    assert packed.slots.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert packed.positions.tolist() == [0, 1, 2, 0, 1, 5, 6, 8]  # columns of the episode
    ids, source = own_rows(packed)
    assert ids.tolist() == [[10, 11, 20, 21], [10, 11, 30, 0], [90, 91, 92, 32], [93, 0, 0, 0]]
    assert source.tolist() == [1, 2, 3, 5, 6, 10, 11, 12]


def test_an_episode_is_never_cut_between_its_contexts():
    first, second = pack(EPISODES, 6)
    assert [first.rows.tolist(), second.rows.tolist()] == [[1], [0]]
    assert len(first.trees) == 3
    assert second.trees == (Tree(0, 2, (2,)),)


def test_a_context_without_predicted_tokens_is_not_read():
    only_last = replace(EPISODES, mask=MASK & (torch.arange(9) == 8))
    (packed,) = pack(only_last, 100)
    assert packed.rows.tolist() == [1]
    assert packed.trees == (Tree(0, 2, (0,)), Tree(2, 1, (0,)))
    assert (packed.source.tolist(), packed.positions.tolist()) == ([2], [8])
    own = own_rows(packed)
    assert own[0].tolist() == [[10, 11], [93, 0]]
    assert own[1].tolist() == [2]


def test_without_later_contexts_the_line_is_that_of_one():
    alone = replace(EPISODES, context_starts=None)
    none = replace(EPISODES, context_starts=STARTS & False)
    for (one,), (other,) in [(pack(alone, 100), pack(none, 100))]:
        assert one.trees == other.trees
        for name in ("input_ids", "position_ids", "source", "tokens", "slots", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def read_apart(policy, mask: Tensor, starts: Tensor, ids: Tensor, prompt: Tensor) -> Tensor:
    """Log-probs by a plain forward of every context alone."""
    found = torch.zeros(mask.shape)
    for row in range(len(mask)):
        begins = [0, *starts[row].nonzero()[:, 0].tolist(), mask.shape[1]]
        for begin, end in itertools.pairwise(begins):
            before = prompt if begin == 0 else prompt[:0]
            line = torch.cat([before, ids[row, begin:end]])
            logits = policy.model.eval()(input_ids=line[None]).logits[0].float().log_softmax(-1)
            for column in range(begin, end):
                if mask[row, column]:
                    place = len(before) + column - begin
                    found[row, column] = logits[place - 1, line[place]]
    return found


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_log_probs_are_those_of_each_context_alone(tiny_models, architecture):
    policy = load(tiny_models[architecture])
    ids = IDS % 30 + 5
    completions = Completions([PROMPT], ids, MASK, 2, STARTS)
    for budget in (1000, 6):
        found = measure_tokens(policy, completions, Sampling(), budget).logprobs
        expected = read_apart(policy, MASK, STARTS, ids, PROMPT)
        assert not found[~MASK].any()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Weights of a token of the episode with 3 tokens and of that with 5, and the loss, by hand:
# -0.5 * 3 * the first + 0.5 * 5 * the second.
BY_HAND = {
    "token_mean": (1 / 8, 1 / 8, 0.125),
    "sequence_mean": (1 / 6, 1 / 10, 0.0),  # 1 / (2 * 3), 1 / (2 * 5)
    "constant": (1 / 20, 1 / 20, 0.05),  # 1 / (2 * 10)
}


@pytest.mark.parametrize("aggregation", BY_HAND)
def test_two_episodes_of_one_and_three_contexts_by_hand(aggregation):
    """Rewards 1 and 0: the mean is over two episodes, not over four contexts."""
    one, three, expected_loss = BY_HAND[aggregation]
    rewards, lengths = torch.tensor([[[1.0, 0.0]]]), MASK.sum(-1).view(1, 2)
    advantages = DrGRPO()(rewards, torch.ones(1), lengths)
    assert advantages.tolist() == [[0.5, -0.5]]
    weights = aggregation_weights(MASK, aggregation, max_length=10)
    expected = MASK * torch.tensor([[one], [three]])
    torch.testing.assert_close(weights, expected)
    logprobs = torch.zeros(MASK.shape)
    losses = plain_surrogate(logprobs, logprobs, advantages.view(2, 1).expand(MASK.shape))
    assert float(masked_sum(losses * weights, MASK)) == pytest.approx(expected_loss, abs=1e-7)
