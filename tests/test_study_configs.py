"""The study's arms: each is built by the real parser from its own command line, and each is what
its name says.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.collapse_study import Job
from benchmarks.study_arms import ARMS, CONFIGS, RATES
from callbacks import CollapseGuard, LearningRateFactors
from harness.command_line import ON_CPU, build
from harness.files import ROOT
from rlif_lightning.data.sources import LocalFiles
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.objectives import Clipped, KLCov
from rlif_lightning.learning.optimizer import starting_rate
from rlif_lightning.rewards import MeanLogprob, OfflineVote, SelfCertainty
from rlif_lightning.rewards.vote_band import VoteBand

WEIGHTS = {
    "gold": {"gold": 1.0},
    "random": {"coin": 1.0},
    "certainty": {"certainty": 1.0},
    "vote": {"vote": 1.0},
    "paper": {"vote": 0.5, "certainty": 0.5},
    "preset": {"vote": 0.5, "certainty": 0.5},
}
CLIPPED = {"paper-hot-no_kl_cov", "paper-hot-one_update"}
SCALES = {
    "guard_now": {"learning_rate": 0.5},
    "guard": {"learning_rate": 0.5},
    "guard_vote": {"rewards.vote.weight": 0.5},
}
POLICIES = {"words": "runs/words/checkpoint_4", "smollm2": "runs/smollm2"}
BANDS = {"band": ((0.3, 0.9), "any"), "majority": ((0, 1), "half")}
# Others differ in nothing but the rate, or the number of problems.
BUILT = [arm for arm in ARMS if "-hot" in arm and not arm.endswith(("-32", "-128"))]


def has_news(arm: str) -> bool:
    """Whether no arm before it has its recipe, or none its control but for numbers."""
    seen = BUILT[: BUILT.index(arm)]
    parts = [(*re.sub(r"[\d.]+", "", each).split("-", 2), "") for each in (*seen, arm)]
    *others, own = [(each[0], each[2]) for each in parts]
    return any(own[k] not in {other[k] for other in others} for k in (0, 1))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def built(arm: str, tmp_path: Path, factors=()):
    """The arm as its command builds it: without Python, the module and the subcommand."""
    command = Job(arm, 40, 300, tmp_path, tmp_path).command([list(each) for each in factors])
    settings = [word for word in command[4:] if not word.startswith("--ckpt_path")]
    return build([*settings, *ON_CPU])


def check_objective(arm: str, objective):
    assert type(objective) is (Clipped if arm in CLIPPED else KLCov)
    has_kl = arm.endswith("-kl") or (arm.startswith("preset") and not arm.endswith("-no_kl"))
    assert objective.reference_kl.weight == (0.03 if has_kl else 0)
    if isinstance(objective, KLCov):
        cell = re.search(r"-w([\d.]+)-f([\d.]+)", arm)
        weight, fraction = cell.groups() if cell else ("0.05", "0.02")
        assert (objective.weight, objective.fraction) == (float(weight), float(fraction))


@pytest.mark.slow  # presets are their arms: below
@pytest.mark.parametrize(
    "arm", [pytest.param(arm, marks=() if has_news(arm) else pytest.mark.full) for arm in BUILT]
)
def test_an_arm_is_what_its_name_says(arm, tmp_path):
    recipe, _, control = (*arm.split("-", 2), "")[:3]
    factors = ARMS[arm].factors or ([(9, 0.5)] if ARMS[arm].yoked_to else ())
    run = built(arm, tmp_path, factors)
    model, callbacks = run.model, run.trainer.callbacks
    weights = zip(model.rewards.names, model.rewards.weights.tolist(), strict=True)
    band = {"band": 1.0} if control in BANDS else {}
    assert dict(weights) == WEIGHTS[recipe] | band
    check_objective(arm, model.objective)
    assert type(model.advantage) is GDPO
    (guard,) = [each for each in callbacks if isinstance(each, CollapseGuard)]
    assert guard.action == ("adjust" if control in SCALES else "warn")
    assert guard.detectors["unanimous"].within == (16 if control == "guard_now" else None)
    assert guard.scale == SCALES.get(control, {"learning_rate": 0.5})
    steps = [each.steps for each in callbacks if isinstance(each, LearningRateFactors)]
    assert bool(steps) == (control in ("yoked", "halved"))
    rate = 1e-5 if control == "smollm2" else 5e-4
    assert starting_rate(model.make_optimizer) == pytest.approx(rate)
    assert model.schedule.name == "constant"
    updates = model.plan.updates_per_rollout
    assert updates == ARMS[arm].updates == {"one_update": 1, "smollm2": 2}.get(control, 4)
    assert run.trainer.max_steps == 300 * updates
    source = run.datamodule.source
    if control in POLICIES:
        assert (type(source), model.policy_settings.name) == (LocalFiles, POLICIES[control])
    else:
        assert source.sizes["train"] == (512 if control == "512" else 4800)
    if control == "offline":
        assert isinstance(model.rewards.heads["vote"], OfflineVote)
    if "certainty" in model.rewards.names:
        head = model.rewards.heads["certainty"]
        assert isinstance(head, MeanLogprob if recipe == "preset" else SelfCertainty)
    if control in BANDS:
        head = model.rewards.heads["band"]
        assert isinstance(head, VoteBand)
        assert (tuple(head.share), head.majority) == BANDS[control]


# The mark: a point of the curve has it, below.
@pytest.mark.parametrize(
    "rate", [pytest.param(r, marks=pytest.mark.full if r == "quarter" else ()) for r in RATES]
)
def test_a_rate_is_its_name_s(rate, tmp_path):
    model = built(f"vote-{rate}", tmp_path).model
    assert starting_rate(model.make_optimizer) == pytest.approx(RATES[rate])
    assert RATES[rate] * 2 ** list(RATES).index(rate) == 5e-4


def test_the_preset_is_the_arm(tmp_path):
    arm = built("preset-quarter", tmp_path)
    preset = build(
        [f"--config={CONFIGS}/base.yaml", f"--config={ROOT}/configs/stable.yaml", *ON_CPU]
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


def acting(run) -> list[CollapseGuard]:
    guards = [each for each in run.trainer.callbacks if isinstance(each, CollapseGuard)]
    return [guard for guard in guards if guard.acts]


def test_the_study_s_guard_and_the_present_one(tmp_path):
    assert acting(built("preset-quarter", tmp_path)) == []
    (first,) = acting(built("preset-hot-guard", tmp_path))
    assert (first.action, first.scale, first.max_actions) == ("adjust", {"learning_rate": 0.5}, 10)
    (now,) = acting(built("preset-hot-guard_now", tmp_path))
    assert now.detectors == CollapseGuard().detectors != first.detectors


def test_a_point_of_the_curve_has_its_checkpoint_and_problems(tmp_path):
    run = built("vote-quarter-words2_one", tmp_path)
    assert run.model.policy_settings.name == "runs/words/checkpoint_2"
    folder = "runs/words/problems"
    files = {split: f"{folder}/one_{split}.jsonl" for split in ("train", "validation")}
    assert run.datamodule.source.paths == files
    assert starting_rate(run.model.make_optimizer) == pytest.approx(RATES["quarter"])
    assert run.model.rewards.names == ["vote"]


def test_an_overlay_is_one_change():
    for path in CONFIGS.glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path
        assert len(lines) <= 15 or path.stem in ("base", "smollm2"), path
