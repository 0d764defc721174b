"""The overlays of ExpRL, and the rule that judges in their place on a CPU."""

from __future__ import annotations

import pytest

from benchmarks.exprl import check_sums
from harness.files import ROOT
from harness.runs import fit
from rlif_lightning import PolicyJudge, RuleJudge, StepDelta, StepRubricJudgeHead
from rlif_lightning.judges.base import Request

RELATED = ROOT / "configs" / "related"


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("2+3=5;5+7=12####12", 5),
        ("2+3=5;5+7=13####13", 2),  # 1 of 3: 1 + round(4 / 3)
        ("2+3=6;5+7=12####12", 4),  # 2 of 3: 1 + round(8 / 3)
        ("####12", 5),
        ("####11", 1),
        (";5+7=12", 5),
        ("no sum", 1),
        ("", 1),
    ],
)
def test_the_rule_by_hand(completion, score):
    request = Request("", {"completion": completion, "reference": "12"})
    assert check_sums(request).endswith(f"Score: {score}")


@pytest.mark.full  # test_commands_in_docs.py parses them; one is built below
def test_the_overlays_train(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [f"--config={RELATED / name}" for name in ("exprl.yaml", "exprl_cpu.yaml")]
    run = fit(tmp_path, *given)
    head = run.model.rewards.heads["expert"]
    assert isinstance(head.judge, RuleJudge)
    assert run.model.advantage == StepDelta()
    logged = run.trainer.callback_metrics
    assert float(logged["judge/steps"]) > 1
    assert float(logged["policy/grad_norm"]) > 0


def test_the_overlay_has_the_papers_judge(tmp_path, monkeypatch):
    """Its replies are cut short here. None of them can be read, so every completion is dropped."""
    monkeypatch.chdir(ROOT)
    short = "--model.rewards.expert.head.init_args.judge.init_args.sampling.max_new_tokens=2"
    few = ["--trainer.limit_train_batches=1", "--data.prompts_per_rollout=4", "--data.group_size=2"]
    run = fit(tmp_path, f"--config={RELATED / 'exprl.yaml'}", short, *few)
    head = run.model.rewards.heads["expert"]
    assert isinstance(head, StepRubricJudgeHead)
    assert isinstance(head.judge, PolicyJudge)
    assert (head.judge.frozen, head.judge.sampling.temperature) == (True, 0.0)
    assert float(run.trainer.callback_metrics["judge/unparsed"]) == 1
