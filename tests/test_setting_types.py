"""Settings that are given from Python: each setting of every class refuses another type."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal

import numpy as np
import pytest

from callbacks.kl_cov_scheduler import Schedule
from harness.python_runs import NAME, data
from harness.settings import buildable
from rlif_lightning import RLIFModule
from rlif_lightning.data.prompt_format import PromptFormat
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.learning.dynamic_sampling import DynamicSampling
from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov
from rlif_lightning.learning.optimizer import LearningRateSchedule
from rlif_lightning.learning.replay import Replay
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.rewards import ClusterVote, Contains, Gate, WeightedReward
from rlif_lightning.sampling import Sampling
from rlif_lightning.setting_types import check_arguments, check_types

# What a class needs besides the setting that is wrong.
NEEDED: dict[str, dict[str, Any]] = {
    "Policy": {"name": NAME},
    "Gate": {"head": "vote", "at_least": 0.5},
    "WeightedReward": {"head": ClusterVote()},
    "WeightedCriterion": {"criterion": Contains("x")},
    "Replay": {"groups": 1},
    "EnvironmentSettings": {"make": NAME},
    "Schedule": {"start": 0.05},
}


class Other:
    """No setting has this type."""


def wrong(kind: Any) -> list[Any]:
    """Values that a setting of a type must not take."""
    found: list[Any] = [Other(), {"samples": 2}]
    kinds = typing.get_args(kind) if NoneType in typing.get_args(kind) else (kind, NoneType)
    found += [2.5, True, "3", math.nan] if int in kinds else []
    found += [True, "3", math.nan] if float in kinds else []
    found += [1, "true"] if bool in kinds else []
    found += [3] if str in kinds else []
    found += [None] if NoneType not in typing.get_args(kind) else []
    return found[:1] if typing.get_origin(kind) is dict else found


SETTINGS = [
    (cls, field.name, typing.get_type_hints(cls)[field.name])
    for cls in sorted(buildable(), key=lambda cls: cls.__name__)
    if dataclasses.is_dataclass(cls) and not getattr(cls, "__abstractmethods__", None)
    for field in dataclasses.fields(cls)
]


def test_every_setting_of_every_settings_class_refuses_another_type():
    """A class without the check takes these, or fails with an error that names nothing."""
    assert len(SETTINGS) > 140
    for cls, name, kind in SETTINGS:
        needed = {key: value for key, value in NEEDED.get(cls.__name__, {}).items() if key != name}
        for value in wrong(kind):
            with pytest.raises(ValueError, match=rf"^{name}=.* of {cls.__name__} must be "):
                cls(**needed, **{name: value})


def test_defaults_are_of_their_types():
    for cls, name, _ in SETTINGS:
        made = cls(**NEEDED.get(cls.__name__, {}))
        assert hasattr(made, name)


def refusal(make: Any) -> str:
    with pytest.raises(ValueError, match="must be") as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Replay(8.5, 2), "groups=8.5 of Replay must be a whole number"),  # pyright: ignore
        (
            lambda: DynamicSampling(["vote"], 2.5),  # pyright: ignore[reportArgumentType]
            "max_draws=2.5 of DynamicSampling must be a whole number",
        ),
        (
            lambda: DynamicSampling("vote"),
            "heads='vote' of DynamicSampling must be a list, each of it a string or None",
        ),
        (
            lambda: ClipCov(band=(1.0, 2.0, 3.0)),  # pyright: ignore[reportArgumentType]
            "band=(1.0, 2.0, 3.0) of ClipCov must be [a number, a number]",
        ),
        (
            lambda: Clipped(reference_kl={"weight": 0.1}),  # pyright: ignore[reportArgumentType]
            "reference_kl={'weight': 0.1} of Clipped must be of the class ReferenceKL; write"
            " ReferenceKL(weight=0.1)",
        ),
        (
            lambda: WeightedReward(ClusterVote(), gate={"head": "a"}),  # pyright: ignore
            "gate={'head': 'a'} of WeightedReward must be of the class Gate or None; write"
            " Gate(head='a')",
        ),
        (
            lambda: RLIFModule(Policy(NAME), {"vote": ClusterVote()}, engine="mine"),  # pyright: ignore
            "engine='mine' of RLIFModule must be of the class RolloutEngine or None",
        ),
        (
            lambda: RLIFModule(
                Policy(NAME),
                {"vote": WeightedReward(ClusterVote())},
                dynamic_sampling={"max_draws": 2},  # pyright: ignore[reportArgumentType]
            ),
            "dynamic_sampling={'max_draws': 2} of RLIFModule must be of the class DynamicSampling"
            " or None; write DynamicSampling(max_draws=2)",
        ),
        (
            lambda: data(source=ArithmeticProblems(), group_size=2.5),
            "group_size=2.5 of PromptData must be a whole number",
        ),
        (lambda: TokenBudget(2.5), "tokens=2.5 of TokenBudget must be a whole number"),  # pyright: ignore
    ],
)
def test_refusals_name_setting_value_class_and_remedy(make, message):
    assert message in refusal(make)


def test_numbers_and_lists_of_other_kinds_are_taken():
    """A float may be whole, numbers may be NumPy's, and a list may stand for a tuple."""
    assert UpdatePlan(updates_per_rollout=np.int64(2)).updates_per_rollout == 2  # pyright: ignore
    assert KLCov(weight=1, fraction=np.float32(0.5)).weight == 1  # pyright: ignore
    assert list(ClipCov(band=[1, 5]).band) == [1, 5]  # pyright: ignore[reportArgumentType]
    assert Sampling(stop=["a"]).stop == ["a"]
    assert Schedule(0.1, points=((3, 0.2),)).points == ((3, 0.2),)  # pyright: ignore
    assert LoRA(options={"use_dora": True}).options == {"use_dora": True}
    assert PromptFormat(examples=[{"question": "a", "answer": "b"}]).chat is False
    assert LearningRateSchedule("polynomial", options={"power": 2}).options == {"power": 2}
    assert Gate("vote", at_least=1).at_least == 1


def test_types_that_nobody_can_look_at_are_left_alone():
    class Own:
        def __init__(self, given: NotThere, also: int):  # noqa: F821  # pyright: ignore
            pass

    class Choice:
        def __init__(self, one: Literal["a", "b"], several: Sequence[int | None] = ()):
            pass

    check_arguments(Own, {"given": 3, "also": "x"})
    check_arguments(Choice, {"one": "a", "several": [1, None], "further": 3})
    assert "one='c' of Choice must be 'a' or 'b'" in refusal(
        lambda: check_arguments(Choice, {"one": "c"})
    )
    assert "a list, each of it a whole number or None" in refusal(
        lambda: check_arguments(Choice, {"several": [1, "b"]})
    )
    check_types(Clipped())
