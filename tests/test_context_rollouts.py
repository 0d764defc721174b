"""Episodes whose chat template drops thoughts: new contexts, and what they must not change."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import torch

from harness.decoding import load, rescored
from harness.episodes import CHAT, FORGETTING, merging_tokenizer, play, settings_of
from rlif_lightning.learning.scored_rollouts import ScoredRollout, assembled
from rlif_lightning.masked import extents
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Rollout, TokenStats
from rlif_lightning.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=40, temperature=2.0)
FAMILIES = ["llama", pytest.param("gemma3", marks=pytest.mark.full)]
TALK = {"max_turns": 5, "max_turn_tokens": 9, "arguments": {"turns": 5, "first": "3+"}}


def chatting(folder, template: str = FORGETTING, **settings) -> PolicyModel:
    policy = load(folder, eager_to_end=False, **settings)
    policy.tokenizer = copy.deepcopy(merging_tokenizer())
    policy.tokenizer.chat_template = template
    policy.eos_ids, policy.num_tokens = [2], len(policy.tokenizer)
    return policy


def forked(
    policy: PolicyModel, thoughts: str = "fork", rows=(0, 1, 3), max_rows=512, **given
) -> Rollout:
    made = settings_of(**{**TALK, "max_observation_tokens": 500, **given}, thoughts=thoughts)
    return play(policy, made, SAMPLING, rows=rows, max_rows=max_rows, chat=True)


def contexts_of(rollout: Rollout, row: int) -> list[tuple[list[int], list[int]]]:
    """The ids that each turn was drawn behind, prompt included, and those of the turn."""
    assert rollout.context_starts is not None
    assert rollout.turn_ids is not None
    before = rollout.prompts.token_ids[row // rollout.group_size].tolist()
    found: list[tuple[list[int], list[int]]] = []
    for column in range(int(extents(rollout.mask)[row])):
        turn, token = int(rollout.turn_ids[row, column]), int(rollout.completion_ids[row, column])
        if rollout.context_starts[row, column]:
            before = []
        if turn >= 0 and turn == len(found):
            found.append(([*before], []))
        if turn >= 0:
            found[turn][1].append(token)
        before.append(token)
    return found


def same(one: Rollout, other: Rollout) -> None:
    assert one.texts == other.texts
    assert one.episodes == other.episodes
    for name in ("completion_ids", "mask", "turn_ids", "ended"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for field in fields(TokenStats):
        assert torch.equal(getattr(one.stats, field.name), getattr(other.stats, field.name))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILIES)
def test_where_a_template_keeps_everything_fork_is_keep(tiny_models, architecture):
    policy = chatting(tiny_models[architecture], CHAT)
    keep, fork = (forked(policy, thoughts) for thoughts in ("keep", "fork"))
    assert max(len(episode.turns) for episode in keep.episodes or ()) > 2
    assert keep.context_starts is None
    assert fork.context_starts is not None
    assert not fork.context_starts.any()
    same(fork, keep)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_turn_is_drawn_behind_what_the_template_shows(tiny_models, architecture):
    """The prompt of a new context is the whole conversation, written and encoded at once."""
    policy = chatting(tiny_models[architecture])
    rollout = forked(policy)
    begun = going = 0
    for row, episode in enumerate(rollout.episodes or ()):
        messages = copy.deepcopy(rollout.prompts.messages[row // rollout.group_size])
        for number, (before, drawn) in enumerate(contexts_of(rollout, row)):
            text = policy.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            shown = policy.tokenizer.decode(before)
            if number and "=" in episode.turns[number - 1].action:
                begun += 1
                assert before == policy.tokenizer(text, add_special_tokens=False).input_ids
            elif number:
                going += 1
            # A context that goes on keeps the special tokens that a turn has drawn.
            assert shown.replace("<pad>", "").replace("<bos>", "") == text
            turn = episode.turns[number]
            assert turn.action == policy.tokenizer.decode(drawn, skip_special_tokens=True)
            messages += [
                {"role": "assistant", "content": turn.action},
                {"role": "user", "content": turn.observation},
            ]
    assert begun
    assert going
    assert int(rollout.context_starts.sum()) == begun
    assert rollout.context_starts.sum(1).max() > 1


@pytest.mark.parametrize("shares_prompts", [True, False])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_log_probs_at_sampling_are_those_of_an_update(
    tiny_models, monkeypatch, architecture, shares_prompts
):
    policy = chatting(tiny_models[architecture], dtype="float64")
    if not shares_prompts:  # with neither plans nor a cache
        monkeypatch.setattr(PolicyModel, "shares_prompts", False)
    rollout = forked(policy, max_observation_tokens=80)
    scored = rescored(policy, rollout, SAMPLING)
    assert rollout.context_starts.any()
    for field in fields(TokenStats):
        sampled = getattr(rollout.stats, field.name)
        assert not sampled[~rollout.mask].any()
        torch.testing.assert_close(
            sampled.float(), getattr(scored, field.name), rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
def test_completions_at_a_time_change_no_episode(tiny_models):
    policy = chatting(tiny_models["llama"])
    few, many = (forked(policy, max_rows=number, rows=(2, 0)) for number in (3, 512))
    assert few.completion_ids.tolist() == many.completion_ids.tolist()
    assert torch.equal(few.context_starts, many.context_starts)
    assert few.episodes == many.episodes


def test_prompts_of_new_contexts_are_in_the_budget(tiny_models):
    policy = chatting(tiny_models["llama"])
    rollout = forked(policy, max_observation_tokens=60)
    undrawn = extents(rollout.mask) - rollout.lengths
    assert 0 < undrawn.max() <= 60
    assert "max_observation_tokens" in [episode.stop for episode in rollout.episodes]


@pytest.mark.slow
def test_assembled_groups_keep_their_contexts(tiny_models):
    policy = chatting(tiny_models["llama"])
    made = settings_of(**TALK, max_observation_tokens=200, thoughts="fork")
    draws = [play(policy, made, SAMPLING, rows=rows, chat=True) for rows in ((0,), (3,))]
    parts = [ScoredRollout(each, {}, each.lengths.sum(), 0.0) for each in draws]
    whole, _ = assembled(parts, [(1, 0), (0, 0)])
    at_once = play(policy, made, SAMPLING, rows=(3, 0), chat=True)
    assert at_once.context_starts.any()
    for name in ("completion_ids", "turn_ids", "context_starts"):
        assert torch.equal(getattr(whole, name), getattr(at_once, name))
