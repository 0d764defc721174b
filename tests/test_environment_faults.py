"""Faults of environments: a game that hangs, where an error comes from, and gold answers."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.environments import PATIENT, all_of, eventually
from rlif_lightning import (
    ArithmeticProblems,
    ClusterVote,
    DynamicSampling,
    EnvironmentReward,
    LearnableFirst,
    PythonTool,
    RLIFModule,
    WeightedReward,
)
from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.environments import text_arena
from rlif_lightning.environments.base import Step
from rlif_lightning.environments.pool import EnvironmentPool, FailedEpisodes
from rlif_lightning.evaluation.label_checks import environment_uses, label_uses
from rlif_lightning.rewards.gate import Gate

HOLD = threading.Event()


class Drawing:
    """A game of TextArena's shape: it draws from the generator that a process shares."""

    def reset(self, num_players, seed):
        self.seen = "rules"

    def get_observation(self):
        return 0, self.seen

    def step(self, action):
        self.seen += f"\n{random.random()}"
        if action == "hang":
            HOLD.wait(PATIENT)
        return False, {}

    def close(self):
        return None, {}


def test_a_game_that_hangs_holds_no_other_s_generator():
    def seen(pool, number):
        pool.start(number, 5, {})
        all_of(pool, [number])
        pool.act(number, "go")
        return all_of(pool, [number])[number].observation

    with EnvironmentPool(Drawing, step_seconds=PATIENT) as pool:
        alone = seen(pool, 0)
    HOLD.clear()
    random.seed(3)
    state = random.getstate()
    with EnvironmentPool(Drawing, step_seconds=PATIENT) as pool:
        for number in range(3):
            pool.start(number, 5, {})
        all_of(pool, range(3))
        games = [pool._live[number].environment for number in range(3)]
        pool.act(0, "hang")
        eventually(lambda: text_arena._GENERATOR._game is games[0])
        for number in (1, 2):
            pool.act(number, "go")
        eventually(lambda: games[1].began == games[2].began == math.inf)  # they wait for it
        time.sleep(0.3)
        pool.step_seconds = 0.2
        found = {answer.number: answer for answer in pool.answers()}
        pool.step_seconds = PATIENT
        found |= all_of(pool, {1, 2} - found.keys())
        assert found[0].episode.stop == "environment_timeout"
        assert [found[n].observation for n in (1, 2)] == [alone, alone]
        assert random.getstate() == state
        HOLD.set()  # what comes late changes nobody's generator
        assert seen(pool, 5) == alone
    assert random.getstate() == state


class Broken:
    def __init__(self, is_made=True):
        if not is_made:
            raise OSError("no board")

    def reset(self, seed=None, **row):
        return ""

    def step(self, action):
        return Step(reward=json.loads(action))  # line of the fault


SOURCE = Path(__file__).read_text().splitlines()
LINE = next(n for n, text in enumerate(SOURCE, 1) if text.endswith("# line of the fault"))
PLACE = f"test_environment_faults.py:{LINE}"


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_failure_names_its_place_in_the_environment_s_own_code(processes):
    with EnvironmentPool(Broken, step_seconds=PATIENT, processes=processes) as pool:
        pool.start(0, 1, {})
        all_of(pool, [0])
        pool.act(0, "b")
        episode = all_of(pool, [0])[0].episode
        assert "JSONDecodeError: Expecting value" in episode.failure
        assert episode.failure.endswith(f"{PLACE})")
        with pytest.raises(FailedEpisodes, match=PLACE):
            pool.check_failures([episode])


def test_setup_s_errors_name_the_setting():
    with pytest.raises(ValueError, match=r"^data\.environment\.make='no_such\.thing' cannot be"):
        EnvironmentPool("no_such.thing")
    pool = EnvironmentPool(Broken, {"is_made": False})
    with pytest.raises(ValueError, match=r"^data\.environment\.make=.*OSError: no board") as info:
        pool.check()
    assert "test_environment_faults.py:" in str(info.value)


def module(rewards, **settings) -> RLIFModule:
    return RLIFModule("rlif-arithmetic", rewards, group_size=4, **settings)


def test_an_environment_that_judges_is_a_use_wherever_its_scores_decide():
    """It may pay by a gold answer: its reset is given every column."""
    game = WeightedReward(EnvironmentReward(), weight=0.0)
    assert label_uses(module({"vote": ClusterVote(), "game": game})) == []
    gated = WeightedReward(ClusterVote(), gate=Gate("game", at_least=0.5))
    told = "the gate of reward `vote` reads `game` (EnvironmentReward)"
    assert label_uses(module({"vote": gated, "game": game})) == [told]
    draws = DynamicSampling(heads=["game"])
    told = "dynamic sampling keeps groups by `game` (EnvironmentReward)"
    found = module({"vote": ClusterVote(), "game": game}, dynamic_sampling=draws)
    assert label_uses(found) == [told]
    found = module({"vote": ClusterVote(), "game": game})
    for figure in ("environment/solved", "reward/game/mean"):
        told = f"this policy was chosen by `{figure}`, which needs gold answers"
        assert label_uses(found, figure) == [told]
    source = LearnableFirst(ArithmeticProblems(), "game")
    found._trainer = SimpleNamespace(datamodule=SimpleNamespace(source=source))
    assert label_uses(found) == ["problems are ordered by `game`, which reads gold answers"]


class TakesAll:
    def reset(self, seed=None, **row):
        return row["answer"]

    def step(self, action):
        return Step(done=True)


class TakesSome(TakesAll):
    def reset(self, seed=None, question=""):
        return question


def takes_all():
    return TakesAll()


@pytest.mark.parametrize(
    ("make", "is_use"),
    [("TakesAll", True), ("takes_all", True), ("TakesSome", False), (None, False)],
)
def test_an_environment_that_can_show_gold_answers_is_a_use(make, is_use):
    """What it says is what the policy reads, whatever pays for the episode."""
    found = module({"vote": ClusterVote()})
    path = f"{PythonTool.__module__}.PythonTool" if make is None else f"{__name__}.{make}"
    features = {"question": None, "answer": None}
    split = SimpleNamespace(dataset=SimpleNamespace(features=features))
    data = SimpleNamespace(
        source=None, environment=EnvironmentSettings(path), split=lambda name: split
    )
    found._trainer = SimpleNamespace(datamodule=data)
    told = f"data.environment.make={path!r} is given the column `answer` of gold answers, and may"
    assert environment_uses(found) == [f"{told} show it"] * is_use
    assert label_uses(found) == []  # no reward reads it
    split.dataset.features = {"question": None}
    assert environment_uses(found) == []
