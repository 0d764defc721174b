"""What is refused beside an environment, or without one; and what its mistakes look like."""

from __future__ import annotations

import json
import math

import pytest

from harness.command_line import refused
from harness.episodes import ACTING, ENVIRONMENT
from harness.runs import BASE, fit
from rlif_lightning import PythonTool, cli
from rlif_lightning.environments.base import Step
from rlif_lightning.environments.pool import EnvironmentPool
from rlif_lightning.evaluation.label_checks import label_uses

SUPERVISED = [
    '--model.objective={"class_path": "Supervised", "init_args": {"column": "answer"}}',
    "--data.group_size=1",
    "--model.rewards={}",
]


def adds(a: int) -> int:
    """
    Add one.

    Args:
        a: a number.
    """
    return a + 1


def tools() -> list:
    return [adds]


class SaysYes:
    def reset(self, seed=None, **row):
        return None

    def step(self, action):
        return Step(reward=1.0, done=True, info={"success": action})


@pytest.mark.parametrize("head", ["EnvironmentReward", "ReuseRL"])
def test_a_head_of_episodes_without_an_environment_is_refused_in_setup(tmp_path, capsys, head):
    root = f"--trainer.default_root_dir={tmp_path}"
    rewards = f"--model.rewards={json.dumps({'game': {'head': head}})}"
    said = refused(capsys, "fit", *BASE, root, rewards)
    assert f"{head} scores episodes, and data.environment is null" in said


def test_a_stage_on_texts_does_not_ignore_an_environment(tmp_path, capsys):
    root = f"--trainer.default_root_dir={tmp_path}"
    said = refused(capsys, "fit", *BASE, *SUPERVISED, *ACTING, root)
    assert "data.environment.make='harness.episodes.Talker': model.objective=Supervised" in said


@pytest.mark.slow
def test_environments_that_fail_end_the_command_in_one_line(tmp_path, capsys):
    failing = {**ENVIRONMENT, "make": "harness.episodes.Failing", "max_failed": 0.0}
    given = [*BASE, *ACTING, f"--data.environment={json.dumps(failing)}"]
    with pytest.raises(SystemExit) as info:
        cli.main(["fit", *given, f"--trainer.default_root_dir={tmp_path}"])
    assert info.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: data.environment.make='harness.episodes.Failing': ")
    assert "RuntimeError: the board is broken" in said


def test_tools_that_no_template_shows_are_told(tmp_path):
    given = {"make": f"{__name__}.tools", "max_turns": 2}
    with pytest.warns(UserWarning, match="has tools, and data.format.chat=false shows the policy"):
        fit(tmp_path, f"--data.environment={json.dumps(given)}", "--trainer.max_steps=1")


@pytest.mark.parametrize(("said", "failure"), [("yes", "success='yes'"), ("1", "")])
def test_a_success_that_is_no_number_fails_its_episode_alone(said, failure):
    with EnvironmentPool(SaysYes) as pool:
        pool.start(0, 1, {})
        pool.answers()
        pool.act(0, said)
        [answer] = pool.answers()
    assert failure in answer.episode.failure
    assert bool(answer.episode.failure) == bool(failure)
    assert answer.episode.is_solved == (not failure)
    assert math.isnan(answer.episode.reward) == bool(failure)


def test_the_python_tool_takes_its_sandbox_from_yaml():
    tool = PythonTool({"call_seconds": 2.0})
    assert tool.sandbox.call_seconds == 2.0
    assert tool.python("print(1 + 1)").strip() == "2"
    with pytest.raises((TypeError, ValueError), match="seconds"):
        PythonTool({"seconds": 2.0})


@pytest.mark.slow
def test_turns_that_an_environment_pays_for_are_steps(tmp_path, capsys):
    advantage = {"class_path": "StepDelta", "init_args": {"baseline": "group"}}
    given = [*ACTING, f"--model.advantage={json.dumps(advantage)}", "--trainer.max_steps=1"]

    def rewards(per_turn: bool) -> str:
        head = {"class_path": "EnvironmentReward", "init_args": {"per_turn": per_turn}}
        return f"--model.rewards={json.dumps({'game': {'head': head}})}"

    run = fit(tmp_path / "steps", *given, rewards(True))
    assert run.model.rewards.settings["game"].head.gives_steps
    # It may pay by a gold answer, so that a model card must not say label-free.
    [use] = label_uses(run.model)
    assert use.endswith("is an environment's, which sees every column")
    root = f"--trainer.default_root_dir={tmp_path}"
    said = refused(capsys, "fit", *BASE, *given, rewards(False), root)
    assert "model.advantage=StepDelta needs a reward that scores steps" in said
