"""ReuseRL: the dictionary of action phrases, the penalty, and what a checkpoint keeps of it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.forked import on_two_ranks
from harness.rollouts import handmade
from rlif_lightning.environments.base import Episode, Turn
from rlif_lightning.learning.advantages import GRPO, DrGRPO
from rlif_lightning.rewards import WeightedReward
from rlif_lightning.rewards.environment import EnvironmentReward
from rlif_lightning.rewards.phrases import code_bits, learn_phrases, segments
from rlif_lightning.rewards.reuse import ReuseRL

STRINGS = ["03102", "03102", "0102", "031032", "0102", "040102"]
GOLDEN = Counter(tuple(each) for each in STRINGS)


def test_the_golden_dictionary():
    """Bits of each merge, worked by hand: 34 symbols at log2 5 at first, and so on."""
    steps = [(), ("10",), ("10", "102"), ("10", "102", "03")]
    bits = [code_bits(GOLDEN, [tuple(p) for p in phrases], 5, 4) for phrases in steps]
    assert bits == pytest.approx([69.6578, 66.683, 64.949, 64.2535], abs=5e-4)
    assert bits[0] == pytest.approx(30 * math.log2(5))
    assert bits[3] == pytest.approx(7 * math.log2(5) + 16 * 3)  # 2 2 2 4 2 4 segments, |C| = 8
    phrases, found = learn_phrases(GOLDEN, 5, 4)
    assert phrases == [tuple("10"), tuple("102"), tuple("03")]
    assert found == bits[3]
    assert [len(segments(tuple(s), phrases, 4)) for s in STRINGS] == [2, 2, 2, 4, 2, 4]
    assert len(segments(tuple("440102"), phrases, 4)) == 4


def test_shared_motifs_are_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    motifs = [(0, 1, 2), (3, 4), (5, 6, 0, 1)]
    shared = [sum((motifs[rng.integers(3)] for _ in range(4)), ()) for _ in range(32)]
    noise = [tuple(int(x) for x in rng.integers(0, 7, 12)) for _ in range(32)]
    texts = Counter(tuple(map(str, each)) for each in shared)
    phrases, bits = learn_phrases(texts, 7, 4)
    assert {tuple(map(str, motif)) for motif in motifs} <= {*phrases}
    assert round(code_bits(texts, (), 7, 4)) == 1084
    assert round(bits) == 477
    assert learn_phrases(Counter(tuple(map(str, each)) for each in noise), 7, 4)[0] == []


def spelled_by_trying(string, phrases, longest):
    """The fewest pieces over all ways to cut a string."""
    best = len(string)
    for cuts in itertools.product((False, True), repeat=max(len(string) - 1, 0)):
        pieces, start = [], 0
        for end, cut in enumerate([*cuts, True], 1):
            if cut:
                pieces.append(string[start:end])
                start = end
        if all(len(p) == 1 or (len(p) <= longest and p in phrases) for p in pieces):
            best = min(best, len(pieces))
    return best


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=7).map(tuple)


@given(words, st.sets(st.lists(st.sampled_from("abc"), min_size=2, max_size=5).map(tuple)))
def test_no_way_to_spell_is_shorter(string, phrases):
    found = segments(string, phrases, 4)
    assert sum(found, ()) == string
    assert all(len(p) == 1 or p in phrases for p in found)
    assert len(found) == spelled_by_trying(string, phrases, 4)


@given(st.lists(words, min_size=1, max_size=8))
def test_every_merge_shortens_the_code(strings):
    counts = Counter(strings)
    phrases, bits = learn_phrases(counts, 3, 4)
    before = math.inf
    for number in range(len(phrases) + 1):
        now = code_bits(counts, phrases[:number], 3, 4)
        assert now < before
        before = now
    assert bits == before
    assert all(2 <= len(phrase) <= 4 for phrase in phrases)


def episode(actions, reward=1.0, max_turns=50, failure=""):
    turns = [Turn(f"{a} x", info={"action": a}) for a in actions[:-1]]
    turns.append(Turn("end", reward, {"action": actions[-1]}))
    return Episode(tuple(turns), "completed", max_turns, failure=failure)


def rollout_of(episodes, group_size):
    return replace(handmade(["x"] * len(episodes), group_size), episodes=episodes)


def head(**settings):
    return ReuseRL(**settings).train()


def test_the_golden_rewards():
    rollout = rollout_of([episode(s) for s in STRINGS] + [episode("440102", 0.0)] * 2, 4)
    output = head(strength=0.2)(rollout)
    expected = [0.992, 0.992, 0.992, 0.984, 0.992, 0.984, 0.0, 0.0]
    assert output.scores.tolist() == pytest.approx(expected)
    assert output.columns["phrases"][0] == "0+3 | 1+0+2"
    figures = {name: value for name, value in output.log.items() if name.startswith("reuse/")}
    assert figures["reuse/phrases"] == 3
    assert figures["reuse/saved"] == pytest.approx(1 - 64.2535 / 69.6578, abs=1e-5)
    assert figures["reuse/segments"] == pytest.approx(16 / 6)
    assert figures["reuse/actions"] == pytest.approx(5)
    assert figures["reuse/only_penalty"] == 0.5  # the second group has failures too
    single = head(strength=0.2, dictionary="single")(rollout)
    expected = [0.98, 0.98, 0.984, 0.976, 0.984, 0.976, 0.0, 0.0]
    assert single.scores.tolist() == pytest.approx(expected)


def test_null_setting_is_the_environments_reward_to_the_last_bit():
    rewards = torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist()
    episodes = [episode("abab", reward) for reward in rewards]
    episodes[2] = episode("ab", failure="x")
    rollout = rollout_of(episodes, 4)
    plain, null = EnvironmentReward()(rollout), head(strength=0.0)(rollout)
    assert torch.equal(plain.scores.isnan(), torch.arange(8) == 2)
    assert torch.equal(plain.scores.nan_to_num(7), null.scores.nan_to_num(7))


@pytest.mark.parametrize(("strength", "expected"), [(0.02, 0.7117), (0.2, 0.8486), (1.0, 0.8617)])
def test_with_normalised_advantages_the_strength_hardly_matters(strength, expected):
    """A group that is solved throughout, of 2, 2, 4 and 4 segments in 50 turns."""
    outcome = torch.tensor([1.0] * 4) - strength * torch.tensor([2.0, 2.0, 4.0, 4.0]) / 50
    rewards, weights = outcome.view(1, 1, 4), torch.tensor([1.0])
    advantages = GRPO()(rewards, weights).abs().flatten()
    assert advantages.tolist() == pytest.approx([expected] * 4, abs=2e-3)
    plain = DrGRPO()(rewards, weights).abs().flatten()
    assert plain.tolist() == pytest.approx([strength / 50] * 4, rel=1e-3)


def test_symbols_are_the_environments_or_first_words():
    turns = (Turn("ADD 1 2"), Turn("", info={"action": "INVALID"}), Turn("  "), Turn("x", 1.0))
    output = head()(rollout_of([Episode(turns, "completed", 4)], 1))
    assert output.columns["phrases"] == ["ADD | INVALID |  | x"]
    assert output.scores.tolist() == pytest.approx([1 - 0.2 * 4 / 4])


def batches():
    rng = np.random.default_rng(3)
    for _ in range(4):
        strings = ["".join(rng.choice(list("abcd"), rng.integers(2, 7))) for _ in range(8)]
        yield [episode(s, float(rng.random() < 0.7), 8) for s in strings]


def test_the_buffer_keeps_the_latest():
    learner = head(buffer=5)
    seen = []
    for episodes in batches():
        learner(rollout_of(episodes, 4))
        seen += [it for it in episodes if it.is_solved]
    assert learner.strings == [tuple(turn.info["action"] for turn in it.turns) for it in seen[-5:]]
    none = head(buffer=0)
    for episodes in batches():
        none(rollout_of(episodes, 4))
    assert none.strings == []
    alone = head(buffer=0)
    alone(rollout_of(episodes, 4))
    assert none.phrases == alone.phrases


def test_what_is_learned_anew_is_forgotten_where_one_symbol_has_no_phrases():
    """Symbols of one kind cost no bits, so no phrase shortens anything: each costs a segment."""
    learner = head(buffer=0)
    learner(rollout_of([episode("aaaab"), episode("baaaa")] * 8, 4))
    assert ("a", "a") in learner.phrases
    output = learner(rollout_of([episode("aaaa")] * 4, 4))
    assert (learner.phrases, output.log["reuse/phrases"]) == ([], 0.0)
    assert output.columns["phrases"] == ["a | a | a | a"] * 4
    assert output.scores.tolist() == pytest.approx([1 - 0.2 * 4 / 50] * 4)


def test_evaluation_learns_nothing():
    learner = head()
    first, *_ = batches()
    learner(rollout_of(first, 4))
    before = list(learner.strings), list(learner.phrases)
    output = learner.eval()(rollout_of([episode("dddddd", 1.0, 8)] * 4, 4))
    assert (learner.strings, learner.phrases) == before
    assert "reuse/phrases" not in output.log


def test_a_resumed_head_is_the_uninterrupted_one():
    whole, half = head(buffer=20), head(buffer=20)
    every = list(batches())
    for episodes in every:
        last = whole(rollout_of(episodes, 4))
    for episodes in every[:2]:
        half(rollout_of(episodes, 4))
    resumed = head(buffer=20)
    resumed.load_state_dict(half.state_dict())
    for episodes in every[2:]:
        output = resumed(rollout_of(episodes, 4))
    assert torch.equal(output.scores, last.scores)
    assert (resumed.strings, resumed.phrases) == (whole.strings, whole.phrases)
    assert torch.equal(resumed.state_dict()["memory"], whole.state_dict()["memory"])


def on_rank(rank):
    learner, found = head(buffer=6), []
    for episodes in batches():
        own = rollout_of(episodes[4 - 4 * rank : 8 - 4 * rank], 4)
        prompts = replace(own.prompts, index=torch.tensor([1 - rank]))  # in the other order
        output = learner(replace(own, prompts=prompts))
        found.append((output.scores.tolist(), output.log))
    return found, learner.strings, learner.phrases


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    one = head(buffer=6)
    expected = [one(rollout_of(episodes, 4)) for episodes in batches()]
    ranks = on_two_ranks(on_rank, tmp_path)
    for found, strings, phrases in ranks:
        assert (strings, phrases) == (one.strings, one.phrases)
        for (_, log), output in zip(found, expected, strict=True):
            assert log == pytest.approx(output.log, nan_ok=True)
    for number, output in enumerate(expected):
        both = ranks[1][0][number][0] + ranks[0][0][number][0]
        assert both == output.scores.tolist()


def test_too_large_a_buffer_for_a_checkpoint_is_refused(monkeypatch):
    monkeypatch.setattr("rlif_lightning.rewards.reuse.MEMORY_BYTES", 64)
    rollout = rollout_of([episode("abcabdacbdaefghijk") for _ in range(4)], 4)
    with pytest.raises(ValueError, match="buffer=256: that many episodes do not fit into 64 bytes"):
        head()(rollout)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, "strength=-1.0 must be at least 0"),
        ({"dictionary": "both"}, "dictionary='both' is unknown; use one of learned, single"),
        ({"longest": 1}, "longest=1 must be at least 2"),
        ({"buffer": -1}, "buffer=-1 must be at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ReuseRL(**settings)


def test_single_turn_rollouts_have_no_episodes():
    with pytest.raises(ValueError, match=r"set data\.environment"):
        EnvironmentReward()(handmade(["a", "b"], 2))


def test_turns_are_scored_by_what_follows():
    """Two turns of 2 and 1 tokens with an observation between them, and a failed episode."""
    turns = torch.tensor([[0, 0, -1, 1], [0, -1, -1, -1]])
    good = Episode((Turn("a", 0.5), Turn("b", 1.0)), "completed", 8, metrics={"moves": 2.0})
    bad = Episode((Turn("a"),), "environment_error", 8, failure="x", metrics={"moves": 9.0})
    rollout = replace(rollout_of([good, bad], 2), turn_ids=turns, mask=turns >= 0)
    output = EnvironmentReward(per_turn=True)(rollout)
    assert output.steps.ends[0].tolist() == [1, 3]
    assert output.steps.scores[0].tolist() == [1.5, 1.0]
    assert output.steps.scores[1].isnan().all()
    assert output.scores[0] == 1.5
    assert output.scores[1].isnan()
    assert output.log == {"environment/solved": 1.0, "environment/moves": 2.0}
    assert WeightedReward(EnvironmentReward()).weight == 1.0
