"""The completions of a rollout as one record: whole groups, and a choice of them."""

from __future__ import annotations

import pytest
import torch

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.update import select_groups
from rlif_lightning.records import Completions, Prompts, Rollout, TokenStats


def three_groups_of_two() -> Completions:
    """Completion b has tokens 10 b and 10 b + 1; its mask covers ``b % 2 + 1`` of them."""
    ids = 10 * torch.arange(6).unsqueeze(1) + torch.arange(2)
    mask = torch.arange(2) < torch.arange(6).unsqueeze(1) % 2 + 1
    return Completions([torch.tensor([p]) for p in (7, 8, 9)], ids, mask, group_size=2)


def test_groups_are_chosen_whole_and_in_the_order_asked_for():
    chosen = three_groups_of_two().groups([2, 0])
    assert [ids.tolist() for ids in chosen.prompt_ids] == [[9], [7]]
    assert chosen.completion_ids.tolist() == [[40, 41], [50, 51], [0, 1], [10, 11]]
    assert chosen.mask.tolist() == [[True, False], [True, True]] * 2
    assert chosen.group_size == 2


def test_the_index_of_groups_says_which_completions_they_are():
    whole = three_groups_of_two()
    assert whole.index([2, 0]).tolist() == [4, 5, 0, 1]
    assert whole.index([]).tolist() == []
    assert whole.index([]).dtype == torch.int64
    assert len(whole.groups([]).completion_ids) == 0


@pytest.mark.parametrize("group_size", [0, 1, 3])
def test_completions_that_are_no_whole_groups_are_refused(group_size):
    whole = three_groups_of_two()
    with pytest.raises(ValueError, match=f"group_size={group_size}: 6 completions of 3 prompts"):
        Completions(whole.prompt_ids, whole.completion_ids, whole.mask, group_size)


def test_a_mini_batch_holds_the_same_completions_in_tokens_and_loss_inputs():
    whole, ended = three_groups_of_two(), torch.ones(6, dtype=torch.bool)
    values = torch.arange(12.0).view(6, 2)
    prompts = Prompts(whole.prompt_ids, ["?"] * 3, {}, torch.arange(3))
    stats = TokenStats(values, values, values)
    rollout = Rollout(prompts, whole.completion_ids, whole.mask, stats, [""] * 6, ended, 2)
    inputs = LossInputs(values, values, values, rollout.mask, torch.arange(6))
    found = select_groups(inputs, rollout.completions, [2, 0])
    assert found.index.tolist() == found.inputs.completion_numbers.tolist() == [4, 5, 0, 1]
    assert torch.equal(found.inputs.mask, found.completions.mask)
    assert torch.equal(found.completions.completion_ids, rollout.completion_ids[found.index])
