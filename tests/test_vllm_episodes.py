"""Episodes in the vLLM engines, with a stand-in for vLLM: the native engine's episodes, by ids."""

from __future__ import annotations

import copy
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoding import GROUP, load, rescored
from harness.episodes import (
    CHAT,
    PLAYING,
    SMALL,
    TERSE,
    merging_tokenizer,
    play,
    problems,
    settings_of,
)
from harness.launches import BASE as ON_ANY
from harness.launches import assert_same_metrics, assert_same_weights, launch, on, weights
from harness.launches import metrics as logged
from harness.runs import (
    LONG,
    assert_resumes,
    column,
    fit,
    rows,
    saving,
)
from harness.stand_in_server import HANG_SECONDS, StandIn, stand_in
from harness.stand_in_vllm import vllm_in_process
from harness.vllm_runs import changed, gap_of
from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.masked import extents
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rollout.vllm_base import VLLMBaseEngine
from rlif_lightning.rollout.vllm_engine import VLLMEngine, VLLMServerEngine
from rlif_lightning.rollout.vllm_http import VLLMError
from rlif_lightning.sampling import Sampling, request_seed, turn_seed

SEED, NUMBER = 7, 2  # of `harness.episodes.play`
COMPLETIONS = "/v1/completions"
SAMPLING = Sampling(max_new_tokens=16)
EACH, TWO = (0, 1, 2, 3), (0, 1)


def short(make: str = "Talker", **given: Any) -> EnvironmentSettings:
    """An environment whose episodes fit the 128 positions of the embedded model."""
    return settings_of(make, **{"max_observation_tokens": 60, **given})


TALKING = short(max_turns=4, max_turn_tokens=5, arguments={"turns": 4, "first": "3+"})


@pytest.fixture
def standing():
    with stand_in() as server:
        yield server


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    policy = changed(scale=0.2)
    policy.eos_ids = list(range(2, 8))  # turns end at all times
    return policy


def engine_of(server: StandIn, folder: Path, policy: PolicyModel, **settings) -> VLLMServerEngine:
    given = {"timeout": HANG_SECONDS, "max_gap": 1e-3, **settings}
    engine = VLLMServerEngine(server.url, str(folder), **given)
    engine.setup(policy, SEED)
    return engine


def played(
    engine: VLLMBaseEngine,
    settings: EnvironmentSettings | None = TALKING,
    sampling: Sampling = SAMPLING,
    rows: tuple[int, ...] = EACH,
    **given: Any,
) -> Rollout:
    prompts = problems(engine.policy, rows, settings, **given)
    return engine.generate(prompts, GROUP, sampling, NUMBER)


def ids_of(rollout: Rollout) -> list[list[int]]:
    """Each completion's ids, observations included."""
    ends = extents(rollout.mask).tolist()
    return [ids[:end].tolist() for ids, end in zip(rollout.completion_ids, ends, strict=True)]


def same_tokens(one: Rollout, other: Rollout) -> None:
    assert one.texts == other.texts
    assert ids_of(one) == ids_of(other)
    for name in ("mask", "turn_ids", "ended"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.episodes == other.episodes
    for left, right in zip(one.prompts.token_ids, other.prompts.token_ids, strict=True):
        assert torch.equal(left, right)


LIMITS = {
    "turns": TALKING,
    "sampled tokens": short(max_turns=9, arguments={"turns": 9}),
    "observations": short(max_observation_tokens=15, arguments={"wide": 2}),
    "cut turns": short(max_turns=9, max_turn_tokens=2, arguments={"turns": 9}),
    "failures": short("Failing", max_failed=1.0),
}


# The marks: test_episodes.py has each reason to stop, and both engines share what decides it.
ENOUGH = ("turns", "failures")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ENOUGH else pytest.mark.full) for n in LIMITS]
)
@pytest.mark.parametrize("stop", [(), pytest.param(("7", "1+"), marks=pytest.mark.full)])
def test_greedy_episodes_are_those_of_the_native_engine(standing, tmp_path, policy, name, stop):
    sampling = replace(SAMPLING, temperature=0, stop=stop, train_stop=bool(stop))
    found = played(engine_of(standing, tmp_path, policy), LIMITS[name], sampling, TWO)
    expected = play(policy, LIMITS[name], sampling, TWO)
    same_tokens(found, expected)
    assert {len(episode.turns) for episode in found.episodes} != {1}
    for field in fields(TokenStats):
        one, other = (getattr(each.stats, field.name) for each in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_new_contexts_are_those_of_the_native_engine(standing, tmp_path, policy, monkeypatch):
    monkeypatch.setattr(policy.tokenizer, "chat_template", TERSE)
    limits = {"max_turns": 4, "max_turn_tokens": 5, "max_observation_tokens": 90}
    made = short(**limits, arguments={"turns": 4}, thoughts="fork")
    sampling = replace(SAMPLING, temperature=0)
    found = played(engine_of(standing, tmp_path, policy), made, sampling, TWO, chat=True)
    expected = play(policy, made, sampling, TWO, chat=True)
    same_tokens(found, expected)
    assert expected.context_starts.sum(1).max() > 1
    assert torch.equal(found.context_starts, expected.context_starts)
    for each in (found.stats.logprobs, found.engine_logprobs):
        torch.testing.assert_close(each, expected.stats.logprobs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_chat_s_episodes_are_those_of_the_native_engine(tiny_models, tmp_path):
    """By a tokenizer whose encoding merges pairs: text that is encoded again would be other ids."""
    policy = load(tiny_models["llama"], eager_to_end=False)
    policy.tokenizer, policy.eos_ids = copy.deepcopy(merging_tokenizer()), [2]
    policy.num_tokens, policy.tokenizer.chat_template = len(policy.tokenizer), CHAT
    made = settings_of(max_turns=3, max_turn_tokens=6, max_observation_tokens=60)
    greedy = Sampling(temperature=0, max_new_tokens=18)
    with stand_in(str(tiny_models["llama"])) as server:
        engine = engine_of(server, tmp_path, policy)
        found = played(engine, made, greedy, chat=True)
        hot = played(engine, made, replace(greedy, temperature=2.0), chat=True)
    same_tokens(found, play(policy, made, greedy, chat=True))
    encode = policy.tokenizer
    assert any(encode(encode.decode(ids)).input_ids != ids for ids in ids_of(hot))
    asked = [tuple(body["prompt"]) for path, body in server.asked if path == COMPLETIONS]
    starts = {tuple(each) for rollout in (found, hot) for each in starts_of(rollout)}
    assert starts == set(asked[GROUP:])  # behind the comparison of the first rollout


def starts_of(rollout: Rollout) -> list[list[int]]:
    """The ids before each turn of each row, from the rollout alone."""
    found = []
    assert rollout.turn_ids is not None
    for row, turns in enumerate(rollout.turn_ids):
        prompt = rollout.prompts.token_ids[row // GROUP].tolist()
        for turn in range(int(turns.max()) + 1):
            start = int((turns == turn).nonzero()[0])
            found.append([*prompt, *rollout.completion_ids[row, :start].tolist()])
    return found


@pytest.mark.slow
def test_a_turn_is_asked_for_by_the_ids_of_its_row_and_a_seed_of_its_own(
    standing, tmp_path, policy
):
    engine = engine_of(standing, tmp_path, policy)
    engine.generate(problems(policy, EACH, None), 1, Sampling(max_new_tokens=1), 0)
    standing.asked.clear()
    rollout = played(engine)
    asked = [body for path, body in standing.asked if path == COMPLETIONS]
    assert all(body["return_token_ids"] for body in asked)
    turns, expected = [int(each.max()) + 1 for each in rollout.turn_ids], []
    starts = iter(starts_of(rollout))
    for row, count in enumerate(turns):
        for turn in range(count):
            start, place = next(starts), (row // GROUP, row % GROUP, turn)
            seed = turn_seed(SEED, NUMBER, *place)
            if turn == 0:
                seed = request_seed(SEED, NUMBER, place[0])
            if turn or not place[1]:  # the group's first turns are one request
                expected.append((start, seed, 1 if turn else GROUP))
    assert sorted(expected) == sorted((b["prompt"], b["seed"], b["n"]) for b in asked)
    assert len({seed for _, seed, _ in expected}) == len(expected)
    assert max(turns) > 2
    rounds = len([path for path, _ in standing.asked if path == "/collective_rpc"])
    assert rounds - 1 <= max(turns) + 1  # one batch for all turns that are due


@pytest.mark.full  # the native engine has the same statistics: above
def test_statistics_and_the_sampler_s_log_probs_are_those_of_whole_rows(standing, tmp_path, policy):
    sampling = replace(SAMPLING, temperature=1.3)
    rollout = played(engine_of(standing, tmp_path, policy), sampling=sampling)
    scored = rescored(policy, rollout, sampling)
    for field in fields(TokenStats):
        found = getattr(rollout.stats, field.name)
        torch.testing.assert_close(found, getattr(scored, field.name), rtol=1e-4, atol=1e-4)
    observed = torch.arange(rollout.mask.shape[1]) < extents(rollout.mask).unsqueeze(1)
    observed &= ~rollout.mask
    assert observed.any()
    assert gap_of(rollout) < 1e-3
    assert not rollout.engine_logprobs[~rollout.mask].any()
    assert torch.equal(rollout.mask, rollout.turn_ids >= 0)


@pytest.mark.full  # test_episodes.py: so it is in the native engine
def test_an_environment_of_one_turn_is_the_rollout_without_it(standing, tmp_path, policy):
    engine = engine_of(standing, tmp_path, policy)
    plain = played(engine, None)
    for made in (short(arguments={"turns": 1}), short(max_turns=1)):
        found = played(engine, made)
        assert found.texts == plain.texts
        for name in ("completion_ids", "mask", "ended", "engine_logprobs", "token_weights"):
            assert torch.equal(getattr(found, name), getattr(plain, name)), name
        for field in fields(TokenStats):
            one, other = (getattr(each.stats, field.name) for each in (found, plain))
            assert torch.equal(one, other)


@pytest.mark.slow
def test_episodes_depend_on_their_problem_alone(standing, tmp_path, policy):
    """Also in the trainer's process: what is asked for is the same, and so are its answers."""
    engine = engine_of(standing, tmp_path, policy)
    whole, some = played(engine), played(engine, rows=(3, 1))
    assert ids_of(some) == ids_of(whole)[3 * GROUP :] + ids_of(whole)[GROUP : 2 * GROUP]
    assert len({tuple(ids) for ids in ids_of(whole)}) > 2 * GROUP
    other = engine.generate(problems(policy, EACH, TALKING), GROUP, SAMPLING, NUMBER + 1)
    assert ids_of(other) != ids_of(whole)
    with vllm_in_process():
        local = VLLMEngine(max_gap=1e-3)
        local.setup(policy, SEED)
        same_tokens(played(local), whole)


@pytest.mark.slow
def test_a_failing_and_a_hanging_environment_end_their_episodes_alone(standing, tmp_path, policy):
    engine = engine_of(standing, tmp_path, policy)
    for name, stop in (("Failing", "environment_error"), ("Hanging", "environment_timeout")):
        rollout = played(engine, short(name, max_failed=1.0, step_seconds=0.5))
        stops = {episode.stop for episode in rollout.episodes}
        assert stop in stops
        for episode, ended in zip(rollout.episodes, rollout.ended.tolist(), strict=True):
            assert (episode.reward != episode.reward) == bool(episode.failure)
            assert not (ended and episode.failure)
    with pytest.raises(RuntimeError, match=r"more than max_failed=0.1: .*no such game"):
        played(engine, short("Failing"))


@pytest.mark.slow
def test_a_server_that_refuses_a_later_turn_leaves_no_episode_behind(standing, tmp_path, policy):
    engine = engine_of(standing, tmp_path, policy)
    expected, real = played(engine), standing.answer

    def refuse(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("n") == 1:
            return 400, {"error": {"message": "no second turn"}}
        return real(path, body)

    standing.answer = refuse
    with pytest.raises(VLLMError, match="400 to /v1/completions: no second turn"):
        played(engine)
    standing.answer = real
    same_tokens(played(engine), expected)


def test_a_server_that_would_cut_an_episode_is_refused(standing, tmp_path, policy):
    engine, long = engine_of(standing, tmp_path, policy), short(max_observation_tokens=120)
    said = (
        r"max_model_len=128 is less .*data\.environment\.max_observation_tokens=120 together, 148"
    )
    with pytest.raises(ValueError, match=said):
        played(engine, long)
    asked = [body for path, body in standing.asked if path == COMPLETIONS]
    assert not any(body["temperature"] for body in asked)  # the comparison before the first rollout
    tight = short(max_observation_tokens=98, arguments={"first": "3+" * 20})
    with pytest.raises(ValueError, match="max_model_len=128 is less"):  # by what reset says
        played(engine, tight)
    with pytest.raises(ValueError, match="min_new_tokens=2 is for single turns"):
        played(engine, sampling=replace(SAMPLING, min_new_tokens=2))


@pytest.mark.slow
def test_episodes_are_played_ahead(standing, tmp_path, policy):
    """With the weights of one rollout earlier; the exact mode's episodes with these weights."""
    policy = copy.deepcopy(policy)

    def coming(number: int) -> Prompts:
        return problems(policy, EACH, TALKING)

    exact = engine_of(standing, tmp_path, policy, staleness=0)
    expected = exact.generate(coming(1), GROUP, SAMPLING, 1)
    engine = engine_of(standing, tmp_path, policy, staleness=1)
    engine.look_ahead(coming, 0)
    engine.generate(coming(0), GROUP, SAMPLING, 0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.02)
    engine.look_ahead(lambda number: None, 0)
    late = engine.generate(coming(1), GROUP, SAMPLING, 1)
    same_tokens(late, expected)
    assert set(late.staleness.tolist()) == {1}
    assert gap_of(late) > 1e-3
    ratio = (late.stats.logprobs - late.engine_logprobs).exp().clamp(max=2.0)
    torch.testing.assert_close(late.token_weights[late.mask], ratio[late.mask])
    assert engine.ahead.num_discarded == 0


@pytest.mark.slow
def test_episodes_that_are_played_ahead_are_dropped_at_once(standing, tmp_path, policy):
    """As at the end of a run: a later turn is never answered."""
    engine, real = engine_of(standing, tmp_path, policy, staleness=1), standing.answer
    waits = []

    def hang(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("n") == 1 and body["max_tokens"] < 16:
            waits.append(path)
            standing.released.wait(HANG_SECONDS)
            return 400, {}
        return real(path, body)

    def coming(number: int) -> Prompts:
        standing.answer = hang
        return problems(policy, EACH, TALKING)

    engine.look_ahead(coming, 0)
    engine.generate(problems(policy, EACH, TALKING), GROUP, SAMPLING, 0)
    while not waits:
        time.sleep(0.01)
    started = time.monotonic()
    engine.discard_ahead()
    assert time.monotonic() - started < HANG_SECONDS / 4
    assert engine.ahead.num_discarded == 1
    assert engine.pool is None
    standing.released.set()


def arguments_for(server: StandIn, folder: Path, **settings: Any) -> list[str]:
    given = {"server": server.url, "weights_folder": folder / "weights"}
    given["timeout"] = HANG_SECONDS
    named = [f"--model.engine.{name}={value}" for name, value in {**given, **settings}.items()]
    return ["--model.engine=VLLMServerEngine", *named]


@pytest.mark.slow
def test_a_run_with_a_server_resumes_bit_for_bit(standing, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    given = [*PLAYING, *SMALL, *arguments_for(standing, tmp_path), saving(every=1)]
    assert_resumes(whole, again, *given)
    found = rows(whole)
    assert {is_val for _, is_val in found} == {True, False}
    assert all(float(row["episode/turns"]) > 1 for (_, val), row in found.items() if not val)


@pytest.mark.slow
def test_a_run_plays_ahead_in_the_trainer(standing, tmp_path):
    """Validation between two rollouts waits for what is played ahead, and plays by itself."""
    fit(tmp_path, *PLAYING, *LONG, *SMALL, *arguments_for(standing, tmp_path, staleness=1))
    assert column(tmp_path, "rollout/staleness") == [0, 1, 1, 1]
    assert min(column(tmp_path, "episode/turns")) > 1


@pytest.mark.full  # test_episode_runs.py plays on two; one process: above
def test_two_processes_share_a_server(standing, tmp_path):
    arguments = [
        *ON_ANY,
        *PLAYING,
        *arguments_for(standing, tmp_path),
        "--model.engine.max_gap=1e-3",
    ]
    launch(tmp_path, {"two": [*arguments, *on("ddp", 2)]}, forks=2)
    launch(tmp_path, {"one": arguments})
    assert_same_weights(weights(tmp_path, "two"), weights(tmp_path, "one"))
    assert_same_metrics(logged(tmp_path, "two"), logged(tmp_path, "one"))
    assert logged(tmp_path, "one")[0]["episode/turns"] > 1
