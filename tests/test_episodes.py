"""Episodes in the native engine: one turn is today's rollout, ids are concatenated, and statistics
are those of the whole rows.
"""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import torch

from harness.decoding import GROUP, load, rescored
from harness.episodes import CHAT, merging_tokenizer, play, problems, settings_of
from harness.forked import on_two_ranks
from harness.models import EACH_ARCHITECTURE
from rlif_lightning.learning.scored_rollouts import ScoredRollout, assembled
from rlif_lightning.masked import extents
from rlif_lightning.records import Rollout, TokenStats
from rlif_lightning.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=16)


def same(one: Rollout, other: Rollout) -> None:
    assert one.texts == other.texts
    for name in ("completion_ids", "mask", "ended"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for field in fields(TokenStats):
        assert torch.equal(getattr(one.stats, field.name), getattr(other.stats, field.name))


@pytest.mark.parametrize("architecture", [pytest.param("llama", marks=pytest.mark.full), "gemma3"])
# The mark: with few rows at a time the ids are the same below.
@pytest.mark.parametrize("max_rows", [512, pytest.param(5, marks=pytest.mark.full)])
def test_an_environment_of_one_turn_is_today_s_rollout(tiny_models, architecture, max_rows):
    policy = load(tiny_models[architecture])
    plain = play(policy, None, SAMPLING, max_rows=max_rows)
    for made in (settings_of(arguments={"turns": 1}), settings_of(max_turns=1)):
        found = play(policy, made, SAMPLING, max_rows=max_rows)
        same(found, plain)
        assert torch.equal(found.turn_ids, torch.where(plain.mask, 0, -1))
        stops = {episode.stop for episode in found.episodes}
        assert stops <= {"completed", "max_turns", "max_sampled_tokens"}
        assert found.ended.tolist() == [e.stop != "max_sampled_tokens" for e in found.episodes]


def rows_of(rollout: Rollout) -> list[list[tuple[bool, list[int]]]]:
    """Each row as stretches of ids: drawn, observed, drawn, ..."""
    found = []
    for row, end in enumerate(extents(rollout.mask).tolist()):
        ids, turns = rollout.completion_ids[row].tolist(), rollout.turn_ids[row].tolist()
        stretches: list[tuple[int, list[int]]] = []
        for column in range(end):
            if not stretches or stretches[-1][0] != turns[column]:
                stretches.append((turns[column], []))
            stretches[-1][1].append(ids[column])
        found.append([(turn >= 0, part) for turn, part in stretches])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_ids_are_concatenated_and_statistics_are_those_of_whole_rows(tiny_models, architecture):
    policy = load(tiny_models[architecture])
    sampling = Sampling(max_new_tokens=24, temperature=1.3)
    talker = {"turns": 4, "wide": 2, "first": "3+"}
    made = settings_of(max_turns=4, max_observation_tokens=100, arguments=talker)
    rollout = play(policy, made, sampling)
    task = problems(policy, [0], made).environment
    assert len({len(episode.turns) for episode in rollout.episodes}) > 2
    for stretches, episode, text in zip(
        rows_of(rollout), rollout.episodes, rollout.texts, strict=True
    ):
        drawn = [part for is_drawn, part in stretches if is_drawn]
        said = [part for is_drawn, part in stretches if not is_drawn]
        decoded = [policy.tokenizer.decode(part, skip_special_tokens=True) for part in drawn]
        assert [turn.action for turn in episode.turns] == decoded
        assert text == "\n".join(decoded)
        assert len(said) == len(drawn) - 1
        for number, part in enumerate(said, 1):
            words = policy.tokenizer.decode(part, skip_special_tokens=True)
            assert f"{number}+" in words
            assert f"+{len(decoded[number - 1])}=" in words
            assert part == task.suffix(words.strip("\n"), 0, ())
    scored = rescored(policy, rollout, sampling)
    for field in fields(TokenStats):
        sampled = getattr(rollout.stats, field.name)
        assert not sampled[~rollout.mask].any()
        torch.testing.assert_close(sampled, getattr(scored, field.name), rtol=1e-4, atol=1e-4)
    few = play(policy, made, sampling, max_rows=3)
    assert few.completion_ids.tolist() == rollout.completion_ids.tolist()
    other = play(policy, made, sampling, rows=(3, 1))
    assert rows_of(other) == rows_of(rollout)[3 * GROUP :] + rows_of(rollout)[GROUP : 2 * GROUP]


def test_a_prompt_ends_with_the_first_observation(tiny_models):
    policy = load(tiny_models["llama"])
    rollout = play(policy, settings_of(arguments={"first": "7+"}), SAMPLING, rows=(1,))
    text = rollout.prompts.texts[0]
    assert text.startswith("1+2=\n7+")
    assert text.endswith("\n")
    encoded = policy.tokenizer(text, add_special_tokens=False).input_ids
    assert rollout.prompts.token_ids[0].tolist() == encoded


@pytest.fixture
def merging(tiny_models):
    policy = load(tiny_models["llama"], eager_to_end=False)
    policy.tokenizer = copy.deepcopy(merging_tokenizer())
    policy.eos_ids = [2]
    return policy


def test_what_was_decoded_is_never_encoded_again(merging):
    merging.num_tokens = len(merging.tokenizer)  # ids beyond it are no tokens
    made = settings_of(max_turns=3, max_turn_tokens=5)
    rollout = play(merging, made, Sampling(max_new_tokens=15))
    task, changed = problems(merging, [0], made).environment, 0
    for stretches in rows_of(rollout):
        drawn = [part for is_drawn, part in stretches if is_drawn]
        assert all(len(part) <= 5 for part in drawn)
        for part in (part for is_drawn, part in stretches if not is_drawn):
            assert part == task.encode_apart(merging.tokenizer.decode(part))
        whole = [token for _, part in stretches for token in part]
        changed += merging.tokenizer(merging.tokenizer.decode(whole)).input_ids != whole
    assert changed  # a loop that encodes the whole text again would have fed other ids


def test_a_chat_s_marks_are_inserted_where_the_policy_did_not_draw_them(merging):
    merging.num_tokens, merging.tokenizer.chat_template = len(merging.tokenizer), CHAT
    made = settings_of(max_turns=4, max_turn_tokens=6, arguments={"first": "3+"})
    rollout = play(merging, made, Sampling(max_new_tokens=24, temperature=2.0), chat=True)
    assert rollout.prompts.messages[0][-1]["content"].startswith("3+4+5=\n\n3+")
    assert rollout.prompts.texts[0].endswith("\n[assistant]")
    endings = set()
    for stretches in rows_of(rollout):
        for (_, drawn), (_, said) in zip(stretches[::2], stretches[1::2], strict=False):
            endings.add(drawn[-1] == 2)
            assert (drawn + said).count(2) == 1  # one end of turn, drawn or inserted
            words = merging.tokenizer.decode(said)
            assert words.removeprefix("<eos>").startswith("\n[user]")
            assert words.endswith("\n[assistant]")
    assert endings == {True, False}
    torch.testing.assert_close(
        rollout.stats.logprobs,
        rescored(merging, rollout, Sampling(temperature=2.0)).logprobs,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.slow
def test_the_reasons_of_stops(tiny_models):
    policy = load(tiny_models["llama"])
    sampling = Sampling(max_new_tokens=12)
    found = {}
    for name, given in {
        "completed": {"arguments": {"turns": 2}},
        "max_turns": {"max_turns": 2, "arguments": {"turns": 5}},
        "max_sampled_tokens": {"max_turns": 50, "arguments": {"turns": 50}},
        "max_observation_tokens": {"max_observation_tokens": 15, "arguments": {"wide": 2}},
    }.items():
        rollout = play(policy, settings_of(**given), sampling, rows=(0, 1))
        stops = [episode.stop for episode in rollout.episodes]
        assert name in stops
        found[name] = rollout
        assert rollout.lengths.max() <= 12
        for episode, drawn, ended in zip(
            rollout.episodes, rollout.lengths.tolist(), rollout.ended.tolist(), strict=True
        ):
            assert ended == (episode.stop in ("completed", "max_turns"))
            assert (episode.stop == "max_sampled_tokens") <= (drawn == 12)
        turns = [int(each.max()) + 1 for each in rollout.turn_ids]
        assert turns == [len(episode.turns) for episode in rollout.episodes]
    cut = found["max_observation_tokens"]
    observed = extents(cut.mask) - cut.lengths
    assert 0 < observed.max() <= 15
    rewards = [e.reward for e in found["completed"].episodes if e.stop == "completed"]
    assert set(rewards) == {3.0}  # 1 + 2


@pytest.mark.slow
def test_a_failing_environment_ends_its_episode_alone(tiny_models):
    policy = load(tiny_models["llama"])
    made = settings_of("Failing", max_failed=1.0)
    rollout = play(policy, made, SAMPLING)
    failed = [bool(episode.failure) for episode in rollout.episodes]
    assert all(failed[GROUP : 2 * GROUP])  # the reset of "1+2=" raises
    assert rollout.turn_ids[GROUP : 2 * GROUP].max() == 0  # a turn that nobody answers
    assert rollout.mask.any(-1).all()
    for episode, ended in zip(rollout.episodes, rollout.ended.tolist(), strict=True):
        assert (episode.reward != episode.reward) == bool(episode.failure)
        assert not (ended and episode.failure)
    with pytest.raises(RuntimeError, match=r"more than max_failed=0.1: .*no such game"):
        play(policy, settings_of("Failing"), SAMPLING)


@pytest.mark.slow
def test_a_stop_string_in_an_observation_ends_no_turn(tiny_models):
    """The observation ends with "=", and each turn is searched from its own first token."""
    policy = load(tiny_models["llama"], eager_to_end=False)
    sampling = Sampling(max_new_tokens=30, stop=("=", "7"), train_stop=True, temperature=2.0)
    made = settings_of(max_turns=3, template="{observation}", arguments={"turns": 3})
    rollout = play(policy, made, sampling)
    eos, several = policy.tokenizer.eos_token_id, 0
    for stretches, episode in zip(rows_of(rollout), rollout.episodes, strict=True):
        drawn = [part for is_drawn, part in stretches if is_drawn]
        several += len(drawn) > 1
        for part, turn in zip(drawn[: len(episode.turns) - 1], episode.turns, strict=False):
            assert part[-1] == eos  # drawn, or appended by train_stop
            assert not {"=", "7"} & {*turn.action}
    assert several


def test_a_stop_string_at_the_last_token_of_a_turn_closes_no_other_turn(tiny_models):
    """Every turn has one token here, so that no turn has room for the end that train_stop adds."""
    policy = load(tiny_models["llama"], eager_to_end=False)
    made = settings_of(max_turns=3, max_turn_tokens=1, arguments={"turns": 3})
    stop = tuple("0123456789+=")
    found, plain = (
        play(policy, made, Sampling(max_new_tokens=30, stop=stop, train_stop=train_stop))
        for train_stop in (True, False)
    )
    assert any(set(stop) & {*policy.tokenizer.decode(ids)} for ids in plain.completion_ids)
    same(found, plain)


def test_observations_of_a_group_must_agree(tiny_models):
    policy = load(tiny_models["llama"])
    with pytest.raises(ValueError, match="reset returned different observations for equal seeds"):
        play(policy, settings_of("Unseeded"), SAMPLING)


def test_a_context_that_cannot_hold_the_observations_is_refused(tiny_models):
    policy = load(tiny_models["gpt2"])
    with pytest.raises(ValueError, match=r"data\.environment\.max_observation_tokens=512"):
        play(policy, settings_of(), SAMPLING)


def test_assembled_groups_keep_their_turns(tiny_models):
    """Dynamic sampling takes groups of several draws, of different widths."""
    policy = load(tiny_models["llama"])
    made = settings_of(max_turns=3, max_observation_tokens=60)
    draws = [play(policy, made, SAMPLING, rows=rows) for rows in ((0, 1), (2, 3))]
    parts = [ScoredRollout(each, {}, each.lengths.sum(), 0.0) for each in draws]
    whole, _ = assembled(parts, [(1, 1), (0, 0)])
    at_once = play(policy, made, SAMPLING, rows=(3, 0))
    assert rows_of(whole) == rows_of(at_once)
    assert torch.equal(whole.turn_ids >= 0, whole.mask)
    assert whole.episodes == at_once.episodes
    assert whole.prompts.environment is not None


def begun(number: int) -> str:
    """The second process alone has an environment that begins differently each time."""
    policy = load("rlif-arithmetic")
    with pytest.raises((ValueError, RuntimeError)) as error:
        play(policy, settings_of("Unseeded" if number else "Talker"), SAMPLING)
    return str(error.value)


@pytest.mark.slow
def test_a_beginning_that_one_process_refuses_ends_all(tmp_path):
    first, second = on_two_ranks(begun, tmp_path)
    assert second.startswith("data.environment.make=")
    assert first == f"process 1 failed: ValueError: {second}"
