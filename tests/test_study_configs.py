"""The study's arms: each is built by the real parser, and each differs from the base in what its
name says.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks import CollapseGuard, KLCovScheduler
from harness.command_line import ON_CPU, build
from harness.files import ROOT
from rlif_lightning.learning.advantages import GDPO, GRPO
from rlif_lightning.learning.objectives import Clipped, KLCov
from rlif_lightning.learning.optimizer import starting_rate
from rlif_lightning.rewards import MeanLogprob, SelfCertainty

STUDY = ROOT / "configs" / "study"
ARMS = sorted(path.stem for path in STUDY.glob("*.yaml") if path.stem != "base")
REWARDS = {
    "gold": {"gold": 1.0},
    "random": {"coin": 1.0},
    "certainty": {"certainty": 1.0},
    "certainty_guard": {"certainty": 1.0},
    "vote": {"vote": 1.0},
    "vote_guard": {"vote": 1.0},
    "light_certainty": {"vote": 0.5, "certainty": 0.2},
    "stable_vote": {"vote": 1.0},
}
OBJECTIVES = {
    "no_kl_cov": (Clipped, 0.0),
    "reference_kl": (Clipped, 0.005),
    "light_certainty": (KLCov, 0.1),
    "anchored": (KLCov, 0.3),
    "stable": (KLCov, 0.03),
    "stable_cosine": (KLCov, 0.03),
    "stable_no_guard": (KLCov, 0.03),
    "stable_no_kl_cov": (Clipped, 0.03),
    "stable_self_certainty": (KLCov, 0.03),
    "stable_vote": (KLCov, 0.03),
}
BY_LOGPROB = {
    "anchored",
    "logprob",
    "logprob_guard",
    "stable",
    "stable_cosine",
    "stable_no_anchor",
    "stable_no_guard",
    "stable_no_kl_cov",
}
ACTIONS = {
    **dict.fromkeys(["guard", "logprob_guard", "certainty_guard"], "rollback"),
    **dict.fromkeys(
        [
            "stable",
            "stable_no_anchor",
            "stable_no_kl_cov",
            "stable_self_certainty",
            "stable_vote",
            "vote_guard",
        ],
        "adjust",
    ),
}


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_in_what_its_name_says(arm, tmp_path: Path):
    run = build(
        [
            f"--config={STUDY}/base.yaml",
            f"--config={STUDY}/{arm}.yaml",
            f"--trainer.default_root_dir={tmp_path}",
            *ON_CPU,
        ]
    )
    model = run.model
    weights = {
        name: pytest.approx(value)
        for name, value in zip(model.rewards.names, model.rewards.weights.tolist(), strict=True)
    }
    assert weights == REWARDS.get(arm, {"vote": 0.5, "certainty": 0.5})
    kind, kl = OBJECTIVES.get(arm, (KLCov, 0.0))
    assert type(model.objective) is kind
    assert model.objective.reference_kl.weight == kl
    assert type(model.advantage) is (GRPO if arm == "summed" else GDPO)
    guards = [callback for callback in run.trainer.callbacks if isinstance(callback, CollapseGuard)]
    assert [guard.action for guard in guards] == [ACTIONS.get(arm, "warn")]
    assert any(isinstance(callback, KLCovScheduler) for callback in run.trainer.callbacks) == (
        arm == "closed_loop"
    )
    schedule = "cosine" if arm == "stable_cosine" else "constant"
    assert (starting_rate(model.make_optimizer), model.schedule.name) == (5e-4, schedule)
    assert run.datamodule.prompts_per_rollout == 16
    certainty = model.rewards.settings.get("certainty")
    if certainty is not None:
        assert isinstance(
            model.rewards.heads["certainty"], MeanLogprob if arm in BY_LOGPROB else SelfCertainty
        )
        assert (certainty.length == "neutral") == (arm == "length_neutral")
        assert (certainty.gate is not None) == (arm == "no_unanimous")
        assert (certainty.spread_floor > 0) == (arm == "spread_floor")


def test_the_preset_is_the_arm():
    """On a base without a guard, as the quickstart: beside the study's own, the preset's would be a
    second one.
    """
    no_guard = "--trainer.callbacks=[EntropyMonitor]"
    arm = build([f"--config={STUDY}/base.yaml", f"--config={STUDY}/stable.yaml", *ON_CPU])
    preset = build(
        [f"--config={STUDY}/base.yaml", no_guard, f"--config={ROOT}/configs/stable.yaml", *ON_CPU]
    )
    assert preset.model.objective == arm.model.objective
    assert preset.model.advantage == arm.model.advantage
    described = [
        {
            name: (repr(model.rewards.heads[name]), reward.weight)
            for name, reward in model.rewards.settings.items()
        }
        for model in (arm.model, preset.model)
    ]
    assert described[0] == described[1]
    guards = [
        [callback for callback in run.trainer.callbacks if isinstance(callback, CollapseGuard)]
        for run in (arm, preset)
    ]
    assert [[(g.action, g.scale, g.max_actions, g.detectors) for g in each] for each in guards] == [
        [("adjust", {"learning_rate": 0.5}, 10, CollapseGuard().detectors)]
    ] * 2


def test_an_arm_is_one_setting():
    for arm in ARMS:
        lines = (STUDY / f"{arm}.yaml").read_text().splitlines()
        assert lines[0].startswith("# "), arm
        assert len(lines) <= 7, arm
