"""The overlays of label-free methods: what each sets, and that it trains the quickstart's model."""

from __future__ import annotations

import math

import pytest
import torch

from harness.command_line import ON_CPU, build
from harness.files import ROOT
from harness.rollouts import handmade
from harness.runs import TINY, fit
from rlif_lightning.learning.advantages import GDPO, GRPO, RLOO
from rlif_lightning.learning.entropy_minimisation import EntropyMinimisation
from rlif_lightning.records import TokenStats
from rlif_lightning.rewards import (
    SCRL,
    ClusterVote,
    FlipWeight,
    MeanLogprob,
    NegativeEntropy,
    SelfCertainty,
    TrainFirst,
)

FOLDER = ROOT / "configs" / "label_free"
LOGPROBS, ENTROPY = [-0.356675, -1.203973], [0.940448, 1.279854]
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def overlay(name: str) -> str:
    return f"--config={FOLDER / name}.yaml"


def built(name: str):
    return build(["--config=configs/quickstart.yaml", overlay(name), *ON_CPU])


def test_every_overlay_is_in_this_file_and_in_the_docs():
    page = (ROOT / "docs" / "label-free.md").read_text()
    assert not [name for name in NAMES if f"`configs/label_free/{name}.yaml`" not in page]
    assert {*NAMES} == {*HEADS, "ttrl", "em_ft"}


HEADS = {
    "ttrl_guard": (FlipWeight, {"flip_cost": 0.5, "sure_cost": 0.3, "sure_share": 0.6}),
    "scrl": (SCRL, {"scores": "continuous", "limits": (0.375, 0.125, 0.125)}),
    "empo": (ClusterVote, {"mode": "gated", "denominator": "group"}),
    "intuitor": (SelfCertainty, {"direction": "uniform_to_model"}),
    "rent": (NegativeEntropy, {"reduce": "mean"}),
    "em_rl": (NegativeEntropy, {"reduce": "sum"}),
    "om_grpo": (ClusterVote, {"mode": "soft"}),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_lone_reward(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = built(name)
    [found] = run.model.rewards.heads.values()
    kind, settings = HEADS[name]
    assert type(found) is kind
    assert {key: getattr(found, key) for key in settings} == settings
    assert run.model.rewards.weights.tolist() == [1.0]
    kinds = {"em_rl": RLOO, "ttrl_guard": GDPO}
    assert isinstance(run.model.advantage, kinds.get(name, GRPO))


def test_those_with_more_or_without_a_reward(monkeypatch):
    monkeypatch.chdir(ROOT)
    ttrl = built("ttrl")
    heads = ttrl.model.rewards.heads
    assert heads["vote"].mode == "hard"
    assert isinstance(heads["first"], TrainFirst)
    assert (heads["first"].count, ttrl.datamodule.group_size) == (32, 64)
    em_ft = built("em_ft")
    assert isinstance(em_ft.model.objective, EntropyMinimisation)
    assert not em_ft.model.rewards.names
    assert em_ft.model.sampling.temperature == 0.5
    answers = built("om_grpo").model.answer_tokens
    assert answers is not None
    assert answers.factor == 0.0


@pytest.mark.full  # each overlay is built above; the parts have tests of their own
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    size = {"ttrl": "34", "em_ft": "1"}.get(name, "4")
    given = [*TINY, overlay(name), f"--data.group_size={size}", "--trainer.max_epochs=2"]
    run = fit(tmp_path, *given, "--data.source.init_args.size=8")
    assert int(run.model.num_rollouts) == 4
    assert math.isfinite(float(run.trainer.callback_metrics["policy/entropy"]))


def test_sums_of_em_rl_by_hand():
    """Log-probs -.356675, -1.203973 and entropies .940448, 1.279854 of .7 .1 .1 .1, .4 .3 .2 .1."""
    logprobs, entropy = (torch.tensor([row]) for row in (LOGPROBS, ENTROPY))
    rollout = handmade(["3"], 1, TokenStats(logprobs, entropy, entropy))
    assert MeanLogprob(reduce="sum")(rollout).scores.item() == pytest.approx(-1.560648, abs=1e-6)
    found = NegativeEntropy(reduce="sum")(rollout).scores.item()
    assert found == pytest.approx(-2.220302, abs=1e-6)
    assert NegativeEntropy()(rollout).scores.item() == pytest.approx(-1.110151, abs=1e-6)
    with pytest.raises(ValueError, match="reduce='max' is unknown; use one of mean, sum"):
        MeanLogprob(reduce="max")
