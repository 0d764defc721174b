"""What preflight says of the cost of judges that a head asks about claims."""

from __future__ import annotations

import pytest
import torch

from harness.files import ROOT
from rlif_lightning import cli
from rlif_lightning.evaluation.preflight_report import print_judges
from rlif_lightning.judges.base import Reply
from rlif_lightning.rewards.claims import Questions


def test_columns_of_questions_have_what_preflight_sums(capsys):

    questions = Questions(2, torch.device("cpu"))
    questions.replies = [[Reply("yes", calls=2, prompt_tokens=3, cost=0.25)], []]
    questions.logs = [{}]
    columns = questions.columns({"judge_calls": [1, 0], "judge_cost": [0.5, 0.25]})
    assert columns == {
        "judge_calls": [3, 0],
        "judge_tokens": [3, 0],
        "judge_cost": [0.75, 0.25],
    }
    records = [
        {"extra": {"checker": {name: values[row] for name, values in columns.items()}}}
        for row in range(2)
    ]
    print_judges(records, per_rollout=20)
    assert "about 30 calls of 30 tokens, for 10 by judge.prices" in capsys.readouterr().out


@pytest.mark.slow
def test_preflight_of_the_checkers_overlay(tmp_path, capsys):
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("quickstart", "related/checker")]
    root = f"--trainer.default_root_dir={tmp_path}"
    cli.main(["preflight", *configs, root, "--prompts=2"])
    assert "judge of checker: a rollout of 128 completions" in capsys.readouterr().out
