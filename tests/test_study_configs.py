"""The study's arms: each is built by the real parser, and each differs from the base in what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_configs import ON_CPU, ROOT, build

from callbacks import CollapseGuard, KLCovScheduler
from rlif_lightning.advantages import GDPO, GRPO
from rlif_lightning.objectives import Clipped, KLCov
from rlif_lightning.rewards import MeanLogprob, SelfCertainty

STUDY = ROOT / "configs" / "study"
ARMS = sorted(path.stem for path in STUDY.glob("*.yaml") if path.stem != "base")
REWARDS = {
    "gold": {"gold": 1.0},
    "random": {"coin": 1.0},
    "certainty": {"certainty": 1.0},
    "certainty_guard": {"certainty": 1.0},
    "vote": {"vote": 1.0},
    "light_certainty": {"vote": 0.5, "certainty": 0.2},
    "stable_vote": {"vote": 1.0},
}
OBJECTIVES = {
    "no_kl_cov": (Clipped, 0.0),
    "reference_kl": (Clipped, 0.005),
    "light_certainty": (KLCov, 0.1),
    "stable": (KLCov, 0.3),
    "stable_no_kl_cov": (Clipped, 0.3),
    "stable_vote": (KLCov, 0.3),
    "stable_self_certainty": (KLCov, 0.3),
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
    assert [guard.action for guard in guards] == ["rollback" if arm.endswith("guard") else "warn"]
    assert any(isinstance(callback, KLCovScheduler) for callback in run.trainer.callbacks) == (arm == "closed_loop")
    assert model.optimizer_plan.learning_rate == 5e-4
    assert run.datamodule.prompts_per_step == 16
    certainty = model.rewards.settings.get("certainty")
    if certainty is not None:
        by_logprob = arm in ("logprob", "logprob_guard", "stable", "stable_no_kl_cov")
        assert isinstance(model.rewards.heads["certainty"], MeanLogprob if by_logprob else SelfCertainty)
        assert (certainty.length == "neutral") == (arm == "length_neutral")
        assert (certainty.gate is not None) == (arm == "no_unanimous")
        assert (certainty.spread_floor > 0) == (arm == "spread_floor")


def test_the_preset_is_the_arm():
    runs = [build([f"--config={STUDY}/base.yaml", f"--config={path}", *ON_CPU]) for path in
            (STUDY / "stable.yaml", ROOT / "configs" / "stable.yaml")]  # fmt: skip
    arm, preset = (run.model for run in runs)
    assert preset.objective == arm.objective
    assert preset.advantage == arm.advantage
    described = [
        {name: (repr(model.rewards.heads[name]), reward.weight) for name, reward in model.rewards.settings.items()}
        for model in (arm, preset)
    ]
    assert described[0] == described[1]


def test_an_arm_is_one_setting():
    for arm in ARMS:
        lines = (STUDY / f"{arm}.yaml").read_text().splitlines()
        assert lines[0].startswith("# "), arm
        assert len(lines) <= 7, arm
