"""STAREController: gate and weights by hand, in real runs and after a resume."""

from __future__ import annotations

import json
import math

import pytest

from callbacks import STAREController
from harness.runs import (
    adding,
    assert_same,
    callback_of,
    column,
    parameters,
    run_with,
    whole_and_resumed,
)
from rlif_lightning.learning.stare import STARE

C2 = {"class_path": "STARE", "init_args": {"positive_weight": 1.2, "negative_weight": 0.9}}
OBJECTIVE = f"--model.objective={json.dumps(C2)}"


def controller(given: tuple[float, float] = (1.2, 0.9), **settings) -> STAREController:
    """One that has seen its objective."""
    made = STAREController(**settings)
    made.given = dict(zip(("positive_weight", "negative_weight"), given, strict=True))
    return made


def test_the_gate_is_on_below_the_target_and_keeps_its_place_without_a_number():
    gate = controller(target=0.3)
    assert gate.is_on
    found = []
    for entropy in (0.4, math.nan, 0.3, 0.29, math.inf, math.nan, 0.31):
        gate.follow(entropy)
        found.append(gate.is_on)
    assert found == [False, False, False, True, True, True, False]
    assert gate.weights == {}


def test_weights_move_by_a_step_between_their_bounds():
    """1.2 and 0.9, up to 1.5 and 0.5; a step of 0.2; at the target itself they rest."""
    gate = controller(target=0.3, step=0.2)
    found = []
    for entropy in (0.2, 0.2, 0.2, math.nan, 0.3, 0.4, 0.4, 0.4, 0.4):
        gate.follow(entropy)
        found.append(tuple(round(value, 6) for value in gate.weights.values()))
    assert found == [
        (1.4, 0.7), (1.5, 0.5), (1.5, 0.5), (1.5, 0.5), (1.5, 0.5), (1.3, 0.7), (1.1, 0.9),
        (1.0, 1.0), (1.0, 1.0),
    ]  # fmt: skip


def test_a_weight_that_is_off_stays_off():
    gate = controller(given=(1.1, 1.0), target=0.3, step=0.1)
    for entropy in (0.4, 0.4, 0.2):
        gate.follow(entropy)
    assert gate.weights == pytest.approx({"positive_weight": 1.1})  # 1.0, 1.0, and up again


def test_state_is_the_gate_and_the_weights_that_moved():
    gate = controller(target=0.3, step=0.1)
    gate.follow(0.4)
    state = json.loads(json.dumps(gate.state_dict()))
    resumed = controller(target=0.3, step=0.1)
    resumed.load_state_dict(state)
    assert (resumed.is_on, resumed.weights) == (False, gate.weights)
    fixed = controller(target=0.3)  # resumed with a step of 0: the objective's weights count
    fixed.load_state_dict(state)
    assert (fixed.is_on, fixed.weights) == (False, {})


@pytest.mark.slow
def test_the_gate_follows_the_rollout_that_it_trains_on(tmp_path):
    """A target between two rollouts' entropies: the first is above it, the second below."""
    fast = [OBJECTIVE, "--model.optimizer.lr=2e-3", "--trainer.limit_val_batches=0"]
    run_with(tmp_path / "look", "STAREController", *fast, target=1e-9)
    first, second = column(tmp_path / "look", "policy/entropy")
    assert first > second
    run = run_with(tmp_path / "run", "STAREController", *fast, target=(first + second) / 2)
    assert column(tmp_path / "run", "stare/gate") == [0.0, 1.0]
    assert column(tmp_path / "run", "stare/positive_weight") == pytest.approx([1.0, 1.2])
    assert column(tmp_path / "run", "stare/negative_weight") == pytest.approx([1.0, 0.9])
    picked = column(tmp_path / "run", "policy/picked_fraction")
    assert picked[0] == 0
    assert 0.05 < picked[1] < 0.3  # of the tokens trained on, rounded up in each mini-batch
    assert run.model.objective == STARE(positive_weight=1.2, negative_weight=0.9)


STEPS = {"target": 9.0, "step": 0.1}


# Every run logs into a new folder, so Lightning finds another folder of checkpoints than the one it
# resumes from.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    """Two rollouts, and two more in another process, are four in one."""
    whole, resumed = whole_and_resumed(tmp_path, "STAREController", OBJECTIVE, **STEPS)
    found = column(tmp_path / "second", "stare/positive_weight")
    assert found == pytest.approx([1.5, 1.5])  # 1.3 and 1.4 came before
    assert_same(parameters(resumed), parameters(whole))
    kept = [callback_of(run, STAREController).state_dict() for run in (resumed, whole)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 0.0}, r"target=0\.0 must be positive, in nats"),
        ({"target": math.nan}, "target=nan"),
        ({"step": -0.1}, r"step=-0\.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        STAREController(**settings)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("Clipped", {}, "STAREController needs model.objective=STARE, not Clipped"),
        (
            '{"class_path": "STARE", "init_args": {"positive_weight": 1.0}}',
            {},
            "fraction=0.1, positive_weight=1.0, negative_weight=1.0 weigh no token",
        ),
        (
            '{"class_path": "STARE", "init_args": {"positive_weight": 2.0}}',
            {"step": 0.1},
            "step=0.1 needs 1 <= positive_weight <= 1.5",
        ),
    ],
)
def test_objectives_that_it_cannot_steer_are_refused(
    tmp_path, capsys, objective, settings, message
):
    with pytest.raises(SystemExit):
        run_with(tmp_path, "STAREController", f"--model.objective={objective}", **settings)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_guard_that_would_change_the_same_objective_is_refused(tmp_path, capsys):
    guard = adding("CollapseGuard", action="adjust", scale={"objective.positive_weight": 0.9})
    with pytest.raises(SystemExit):
        run_with(tmp_path, "STAREController", OBJECTIVE, guard)
    assert "STAREController sets the objective" in capsys.readouterr().err
