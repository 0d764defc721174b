"""Observations inside completions: read by every forward pass, and counted nowhere."""

from __future__ import annotations

import pytest
import torch

from callbacks.symptoms import repeated_ngrams
from harness.decoding import load
from rlif_lightning.masked import extents
from rlif_lightning.model.packing import Tree, own_rows, pack
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.records import Completions
from rlif_lightning.sampling import Sampling

# Two turns with an observation of two tokens, one turn, and nothing drawn.
MASK = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0]]).bool()
IDS = torch.tensor([[20, 21, 90, 91, 22, 99], [30, 31, 32, 99, 99, 99]])


def test_what_is_present_ends_with_the_last_drawn_token():
    assert extents(MASK).tolist() == [5, 3]
    assert extents(MASK & False).tolist() == [0, 0]


def test_a_packed_line_reads_observations_and_predicts_none():
    (packed,) = pack(Completions([torch.tensor([10, 11, 12])], IDS, MASK, 2), 100)
    assert packed.trees == (Tree(0, 3, (4, 2)),)
    assert packed.input_ids.tolist() == [10, 11, 12, 20, 21, 90, 91, 30, 31]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4]
    assert packed.tokens.tolist() == [20, 21, 22, 30, 31, 32]
    assert packed.source.tolist() == [2, 3, 6, 2, 7, 8]  # 91 predicts 22
    assert packed.positions.tolist() == [0, 1, 4, 0, 1, 2]
    ids, source = own_rows(packed)
    assert ids.tolist() == [[10, 11, 12, 20, 21, 90, 91], [10, 11, 12, 30, 31, 0, 0]]
    assert source.tolist() == [2, 3, 6, 9, 10, 11]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_log_probs_are_those_of_the_concatenated_ids(tiny_models, architecture):
    """Gemma's window of 6 is shorter than prompt, turn and observation together."""
    policy = load(tiny_models[architecture])
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(12, 40, (n,), generator=generator) for n in (3, 5)]
    ids = torch.randint(12, 40, (4, 9), generator=generator)
    mask = torch.tensor(
        [
            [1, 1, 0, 0, 1, 1, 0, 1, 1],
            [0, 0, 1, 1, 0, 0, 0, 0, 1],
            [1, 1, 1, 0, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 1, 0, 0],
        ]
    ).bool()
    completions = Completions(prompts, ids, mask, 2)
    for budget in (1000, 12):
        found = measure_tokens(policy, completions, Sampling(), budget)
        assert not found.logprobs[~mask].any()
        for row in range(4):
            line = torch.cat([prompts[row // 2], ids[row]])[None]
            logits = policy.model.eval()(input_ids=line).logits[0].float().log_softmax(-1)
            for t in mask[row].nonzero()[:, 0].tolist():
                expected = logits[len(prompts[row // 2]) + t - 1, ids[row, t]]
                torch.testing.assert_close(found.logprobs[row, t], expected, rtol=1e-4, atol=1e-4)


def test_no_n_gram_runs_through_an_observation():
    ids = torch.tensor([[5, 6, 7, 5, 6, 5, 6]])
    whole = torch.ones_like(ids).bool()
    assert repeated_ngrams(ids, whole, 2).tolist() == [2, 6]  # 56 67 75 56 65 56
    apart = torch.tensor([[1, 1, 0, 1, 1, 1, 0]]).bool()
    assert repeated_ngrams(ids, apart, 2).tolist() == [1, 3]  # 56, 56 and 65
