"""The pool of environments: what goes wrong in one ends its episode and no other."""

from __future__ import annotations

import math
import threading
import time

import pytest

from harness.environments import PATIENT, Bad, Drawn, all_of, eventually
from harness.forked import on_two_ranks
from rlif_lightning.environments.base import MAX_CHARACTERS, Episode, Step, Turn
from rlif_lightning.environments.pool import EnvironmentPool, FailedEpisodes, episode_seed


@pytest.fixture
def opened():
    Bad.made, Bad.hold = [], threading.Event()
    pools = []

    def make(**settings):
        pools.append(EnvironmentPool(Bad, **{"step_seconds": PATIENT, **settings}))
        return pools[-1]

    yield make
    Bad.hold.set()
    for pool in pools:
        pool.close()


def started(pool, count, **row):
    for number in range(count):
        pool.start(number, 10 + number, {"n": number, **row})
    return all_of(pool, range(count))


def test_episodes_side_by_side_and_instances_used_again(opened):
    pool = opened(max_turns=3)
    for _ in range(3):
        begun = started(pool, 4)
        assert [begun[n].observation for n in range(4)] == [f"{n} {10 + n}" for n in range(4)]
        for number, action in enumerate(("end", "late", "go", "go")):
            pool.act(number, action)
        found = all_of(pool, range(4))
        assert [found[n].episode.stop for n in (0, 1)] == ["completed", "truncated"]
        assert (found[2].observation, found[2].episode) == ("go", None)
        pool.end(3, "max_sampled_tokens", "cut off")
        for _ in range(2):
            pool.act(2, "go")
            if 3 not in found or found[3].episode is None:
                found |= all_of(pool, (2, 3))
            else:
                found |= all_of(pool, (2,))
        assert found[3].episode.turns == (Turn("go", 0.25, {}, "go"), Turn("cut off"))
        assert found[3].episode.stop == "max_sampled_tokens"
        episode = found[2].episode
        assert (episode.stop, episode.reward, len(episode.turns)) == ("max_turns", 0.75, 3)
    assert len(Bad.made) == 4
    assert episode.metrics["resets"] == 3
    pool.close()
    pool.close()
    assert [made.closed for made in Bad.made] == [1] * 4


def test_the_row_and_the_seed_reach_the_environment(opened):
    pool = opened()
    pool.start(5, 77, {"n": 1, "seed": "a column of that name"})
    assert pool.answers()[0].observation == "1 77"
    assert Bad.made[0].row == {"n": 1}


@pytest.mark.parametrize(
    ("action", "reason"), [("raise", "KeyError: 'lost'"), ("nan", "it must be a finite number")]
)
def test_an_error_ends_its_episode_alone(opened, action, reason):
    pool = opened()
    started(pool, 2)
    pool.act(0, action)
    pool.act(1, "go")
    found = all_of(pool, range(2))
    failed = found[0].episode
    assert reason in failed.failure
    assert (failed.stop, failed.turns) == ("environment_error", (Turn(action),))
    assert math.isnan(failed.reward)
    assert found[1].episode is None
    pool.start(0, 1, {"n": 0})  # by another instance: the one that raised is not used again
    pool.answers()
    assert len(Bad.made) == 3
    pool.close()
    assert [made.closed for made in Bad.made] == [1, 1, 1]


class Sloppy(Bad):
    """Reuses one ``info`` for all of its steps, and says in words whether it is solved."""

    def __init__(self):
        super().__init__()
        self.info = {}

    def step(self, action):
        self.info["action"] = action
        return Step(
            "",
            done=action == "end",
            info=self.info | {"success": "no"} if action == "no" else self.info,
        )


def test_what_is_known_of_a_turn_changes_no_more_and_can_be_read():
    with EnvironmentPool(Sloppy, step_seconds=PATIENT) as pool:
        started(pool, 2)
        for action in ("go", "end"):
            pool.act(0, action)
            found = all_of(pool, [0])
        assert [turn.info["action"] for turn in found[0].episode.turns] == ["go", "end"]
        pool.act(1, "no")
        assert "success='no'" in all_of(pool, [1])[1].episode.failure


def test_an_error_of_reset_too(opened):
    pool = opened()
    found = started(pool, 1, fails=True)
    assert found[0].episode.failure.startswith("OSError: no disk (")
    assert found[0].episode.turns == ()


@pytest.mark.slow
def test_a_hanging_environment_holds_nobody(opened):
    before = {*threading.enumerate()}
    pool = opened(workers=2)
    started(pool, 5)
    for number in range(5):
        pool.act(number, "hang" if number in (0, 1) else "go")
    eventually(lambda: max(pool._live[n].started for n in (0, 1)) < math.inf)
    time.sleep(0.4)
    pool.step_seconds = 0.3
    found = {answer.number: answer for answer in pool.answers()}
    pool.step_seconds = PATIENT
    # Three wait behind two that hang, for both threads.
    found |= all_of(pool, {*range(5)} - found.keys())
    assert [found[n].episode is None for n in range(5)] == [False, False, True, True, True]
    assert found[0].episode.stop == "environment_timeout"
    assert found[0].episode.failure == "no answer within step_seconds=0.3"
    Bad.hold.set()  # what comes late is of no episode, not even of one with the same number
    pool.start(0, 1, {"n": 0})
    assert [(it.number, it.episode) for it in pool.answers()] == [(0, None)]
    pool.close()
    eventually(lambda: [made.closed for made in Bad.made] == [1] * 6)
    eventually(lambda: "environment" not in {it.name for it in {*threading.enumerate()} - before})


def test_a_huge_answer_is_cut(opened):
    pool = opened()
    started(pool, 1)
    pool.act(0, "huge")
    [answer] = pool.answers()
    assert answer.observation.endswith("x\n[55 more characters]")
    assert len(answer.observation) < MAX_CHARACTERS


def test_instances_are_closed_though_the_run_is_abandoned(opened):
    with opened() as pool:
        started(pool, 3)
        pool.abandon()
        assert started(pool, 2)[1].observation == "1 11"
    eventually(lambda: [made.closed for made in Bad.made] == [1] * 5)


def test_nothing_is_awaited_where_nothing_goes_on(opened):
    pool = opened()
    assert pool.answers() == []
    started(pool, 1)
    assert pool.answers(wait=False) == []


def episodes(failed, others):
    bad = Episode((), "environment_error", 8, failure="KeyError: 'lost'")
    return [bad] * failed + [Episode((Turn("a"),), "completed", 8)] * others


def test_a_bound_of_failures(opened):
    pool = opened(max_failed=0.25)
    assert pool.check_failures(episodes(1, 3)) == 0.25
    assert pool.check_failures([]) == 0.0
    expected = r"2 of 4 episodes.*max_failed=0.25: KeyError: 'lost'\."
    with pytest.raises(FailedEpisodes, match=expected):
        pool.check_failures(episodes(2, 2))


def counted(number):
    pool = EnvironmentPool(Bad, max_failed=0.25)
    share = pool.check_failures(episodes(1, 3) if number else episodes(0, 4))
    with pytest.raises(FailedEpisodes, match="3 of 8 episodes"):
        pool.check_failures(episodes(3, 1) if number else episodes(0, 4))
    return share


@pytest.mark.slow
def test_failures_are_counted_over_all_data_ranks(tmp_path):
    assert on_two_ranks(counted, tmp_path) == [0.125, 0.125]


def test_what_cannot_be_made_is_refused_at_once():
    with pytest.raises(ValueError, match=r"make='no_such.thing' cannot be imported"):
        EnvironmentPool("no_such.thing")
    pool = EnvironmentPool(Bad, {"hnit": 1})
    with pytest.raises(ValueError, match=r"arguments=\{'hnit': 1\}: no environment could be made"):
        pool.check()
    Bad.made = []
    pool = EnvironmentPool(Bad)
    pool.check()
    started(pool, 1)
    assert len(Bad.made) == 1
    pool.close()


def test_tools_are_asked_of_one_instance():
    with EnvironmentPool("rlif_lightning.environments.tools.PythonTool") as pool:
        assert [it["function"]["name"] for it in pool.tools] == ["python"]
    with EnvironmentPool(Bad) as pool:
        assert pool.tools == []


def test_seeds_depend_on_every_counter():
    seeds = {
        episode_seed(*counters) for counters in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0),
                                                 (0, 0, 1, 0), (0, 0, 0, 1), (0, 2**62, 0, 0)]
    }  # fmt: skip
    assert len(seeds) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert episode_seed(1, 2, 3, 4) == episode_seed(1, 2, 3, 4)


@pytest.mark.slow
def test_processes_have_generators_of_their_own_and_are_killed():
    with EnvironmentPool(Drawn, step_seconds=PATIENT, processes=True) as pool:
        seen = []
        for _ in range(2):
            for number in (0, 1):
                pool.start(number, 5, {})
            found = all_of(pool, (0, 1))
            seen += [found[0].observation, found[1].observation]
            pool.act(1, "go")
            pool.act(0, "go")
            found = all_of(pool, (0, 1))
            assert found[0].observation == found[1].observation
            pool.end(0, "max_sampled_tokens")
            pool.end(1, "max_sampled_tokens")
            assert all(it.episode.turns for it in all_of(pool, (0, 1)).values())
        assert len(set(seen)) == 1
    assert not pool._free
    with EnvironmentPool(Bad, step_seconds=PATIENT, processes=True) as pool:
        started(pool, 3)
        children = [live.environment._process for live in pool._live.values()]
        for number, action in enumerate(("hang", "exit", "huge")):
            pool.act(number, action)
        found = all_of(pool, (1, 2))
        pool.step_seconds = 0.5
        found |= all_of(pool, [0])
        assert found[0].episode.stop == "environment_timeout"
        assert "process ended (exit code 3)" in found[1].episode.failure
        assert found[2].observation.endswith("[55 more characters]")
    # A thread of the pool may be the one that reaps a child.
    eventually(lambda: not any(child.is_alive() for child in children))
