"""Preflight: formulas against numbers worked by hand, verdicts at their thresholds, and the
subcommand itself.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.command_line import base
from rlif_lightning import ClusterVote, PromptData, RLIFModule, RLIFTrainer, cli
from rlif_lightning.evaluation.preflight import (
    Findings,
    HeadFindings,
    examine,
    judge_groups,
    judge_head,
    limit,
    within_group_auc,
    within_group_correlation,
)
from rlif_lightning.sampling import counter_uniforms

NAN = math.nan


def test_auc_by_hand():
    """Group 1: right 3, 1 against wrong 2, 1: wins 1, 1, 0, 1/2. Group 2: right 5 against wrong 5,
    9: 1/2, 0.
    """
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [5.0, 5.0, 9.0, NAN], [1.0, 2.0, 3.0, 4.0]])
    correct = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]]).bool()
    assert within_group_auc(scores, correct) == (pytest.approx((2.5 + 0.5) / 6), 6)


def test_auc_without_a_pair_is_unknown():
    scores = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert within_group_auc(scores, torch.tensor([[1, 1], [0, 0]]).bool()) == (None, 0)


def test_auc_compares_inside_groups_only():
    """A head that only knows how easy a problem is cannot rank the completions of one."""
    scores = torch.tensor([[9.0, 9.0, 9.0], [1.0, 1.0, 1.0]])
    correct = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert within_group_auc(scores, correct) == (0.5, 4)


def test_correlation_by_hand():
    """dx = -1 0 1 | -1 1, dy = 1 1 -2 | -1 1: Σdxdy = -3 + 2, Σdx² = 4, Σdy² = 8."""
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 12.0, NAN]])
    y = torch.tensor([[5.0, 5.0, 2.0], [100.0, 102.0, 7.0]])
    assert within_group_correlation(x, y) == pytest.approx(-1 / math.sqrt(32))


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_correlation_is_unknown_where_groups_do_not_vary(shift):
    constant = (
        torch.tensor([[0.1], [0.7]], dtype=torch.float64).expand(2, 7) + shift
    )  # whose mean rounds
    assert within_group_correlation(constant, torch.arange(14.0).view(2, 7)) is None


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(0.1, 10))
def test_both_ignore_a_groups_level_and_the_scale(seed, shift, scale):
    scores, lengths, coins = (
        counter_uniforms(seed, 0, [0] * 12, list(range(12)), 3).view(3, 4, 3).unbind(-1)
    )
    moved = scale * scores + shift * torch.arange(3.0).unsqueeze(1)
    correct = coins > 0.5
    assert within_group_correlation(moved, lengths) == pytest.approx(
        within_group_correlation(scores, lengths)
    )
    assert within_group_auc(moved, correct)[1] == within_group_auc(scores, correct)[1]
    assert within_group_auc(moved, correct)[0] == pytest.approx(
        within_group_auc(scores, correct)[0]
    )
    value, pairs = within_group_auc(scores, correct)
    assert pairs == 0 or within_group_auc(-scores, correct)[0] == pytest.approx(1 - value)


def record(length: int, score: float | None, ended: bool = True) -> dict:
    return {"length": length, "scores": {"head": score}, "ended": ended}


def test_figures_of_made_up_groups():
    """Groups 3 3 5 - and 7 7 7 7, gold 5 and 7."""
    answers = ["3", "3.0", "5", None, "7", "7", "7", "7"]
    records = [record(n, float(n), n != 4) for n in (1, 2, 3, 4)] + [
        record(n, 1.0) for n in (1, 2, 3, 4)
    ]
    found = examine(records, answers, [["5"], ["7"]], {"head": 0.5}, 4)
    assert (found.groups, found.mixed, found.unanimous) == (2, 0.5, 0.5)
    assert found.agreement == pytest.approx((2 / 3 + 1) / 2)
    assert (found.parseable, found.ended, found.mean_length) == (7 / 8, 7 / 8, 2.5)
    assert (found.accuracy, found.majority_right) == (5 / 8, 0.5)
    head = found.heads[0]
    assert head.varied == 0.5
    # Lengths vary in both groups, scores in the first: 5 / sqrt(5 * 10).
    assert head.length_correlation == pytest.approx(5 / math.sqrt(50))
    # Votes 2/3 2/3 1/3 0, minus 5/12: 3 3 -1 -5 twelfths; scores -1.5 -.5 .5 1.5: -14/12 / sqrt(5 *
    # 44/144).
    assert head.agreement_correlation == pytest.approx(-14 / 12 / math.sqrt(5 * 44 / 144))
    assert (head.auc, head.pairs) == (pytest.approx(2 / 3), 3)


def test_a_head_of_negative_weight_is_judged_by_what_it_rewards():
    """Right completions are short: a weight of -1 on the length ranks them first."""
    records = [record(n, float(n)) for n in (1, 2, 8, 9)]
    for weight, auc, link in ((1.0, 0.0, -1.0), (-1.0, 1.0, 1.0), (0.0, 0.0, -1.0)):
        [head] = examine(records, ["5", "5", "3", "4"], [["5"]], {"head": weight}, 4).heads
        assert head.auc == auc
        assert head.agreement_correlation == pytest.approx(0.99 * link, abs=0.01)
        assert head.length_correlation == pytest.approx(-link)


def test_a_gold_answer_of_several_digits_or_several_texts_is_right_as_a_whole():
    records = [record(1, 1.0), record(2, 0.0)]
    assert examine(records, ["12", "1"], [["12", "13"]], {"head": 1.0}, 2).accuracy == 0.5
    assert examine(records, ["12", "1"], [[]], {"head": 1.0}, 2).accuracy == 0.0


def test_answers_are_equal_where_they_are_for_the_checker():
    """By strings, a half in three spellings is three answers, and 3 is the majority."""
    records = [record(1, float(n)) for n in range(5)]
    given = records, ["1/2", "0.5", "2/4", "3", "3"], [["3"]], {"head": 1.0}, 5
    exact, string = (examine(*given, equivalence) for equivalence in ("exact", "string"))
    assert (exact.majority_right, string.majority_right) == (0.0, 1.0)
    assert (exact.agreement, string.agreement) == (pytest.approx(0.6), pytest.approx(0.4))
    # Votes .6 .6 .6 .4 .4 and .2 .2 .2 .4 .4 with scores 0 to 4: 0.6 / sqrt(10 * .048).
    found = [each.heads[0].agreement_correlation for each in (exact, string)]
    assert found == pytest.approx([-math.sqrt(0.75), math.sqrt(0.75)])
    halves = records[:2], ["0.5", "1/2"], None, {"head": 1.0}, 2
    both = [examine(*halves, equivalence) for equivalence in ("exact", "string")]
    assert [(each.unanimous, each.mixed) for each in both] == [(1.0, 0.0), (0.0, 1.0)]


def test_without_labels_nothing_is_said_about_them():
    found = examine([record(1, 1.0), record(2, None)], ["1", "2"], None, {"head": 1.0}, 2)
    assert (found.accuracy, found.majority_right, found.heads[0].auc) == (None, None, None)
    assert found.heads[0].varied == 0.0
    assert "right" not in found.why + found.heads[0].why


def head(**changes) -> HeadFindings:
    values = {
        "varied": 1.0,
        "agreement_correlation": 0.5,
        "length_correlation": 0.0,
        "auc": 0.8,
        "pairs": 100,
    }
    return judge_head(HeadFindings("head", 0.5, **(values | changes)))


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "good", "supports the vote (r = +0.50); tells right from wrong (AUC 0.80)"),
        ({"varied": limit("min_varied") - 0.01}, "poor", "gives no signal"),
        ({"varied": limit("min_varied")}, "good", "supports"),
        (
            {"length_correlation": -limit("length_link")},
            "caution",
            "prefers shorter completions (r = -0.50)",
        ),
        ({"length_correlation": 0.9}, "caution", "prefers longer"),
        ({"length_correlation": 0.49}, "good", "supports"),
        ({"agreement_correlation": -0.2}, "caution", "works against the vote"),
        ({"agreement_correlation": 0.1}, "caution", "unrelated to the vote"),
        ({"agreement_correlation": None}, "caution", "unrelated to the vote"),
        ({"auc": 0.44}, "poor", "ranks wrong completions first"),
        ({"auc": 0.45}, "caution", "hardly tells right from wrong"),
        ({"auc": 0.69}, "caution", "hardly tells right from wrong (AUC 0.69)"),
        ({"auc": 0.7}, "good", "tells right from wrong (AUC 0.70)"),
        ({"auc": 0.1, "pairs": 49}, "caution", "only 49 pairs"),
        ({"auc": None, "pairs": 0}, "good", "supports"),
    ],
)
def test_verdicts_of_a_head(changes, verdict, words):
    judged = head(**changes)
    assert judged.verdict == verdict
    assert words in judged.why


def groups(**changes) -> Findings:
    values = {
        "groups": 8,
        "group_size": 4,
        "mixed": 0.5,
        "unanimous": 0.5,
        "agreement": 0.6,
        "parseable": 1.0,
    }
    values |= {"ended": 1.0, "mean_length": 9.0, "accuracy": 0.5, "majority_right": 0.8}
    return judge_groups(Findings(**(values | changes), verdict="", why="", heads=[]))


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "good", "something to vote on"),
        ({"mixed": 0.19}, "poor", "disagree in 19% of the problems only"),
        ({"parseable": 0.4}, "poor", "40% of the completions have an answer"),
        ({"ended": 0.4}, "poor", "60% of the completions are cut"),
        ({"majority_right": 0.4, "accuracy": 0.3}, "poor", "a vote would teach mistakes"),
        ({"majority_right": 0.8, "accuracy": 0.8}, "caution", "nothing to gain"),
        ({"majority_right": None, "accuracy": None}, "good", "something to vote on"),
    ],
)
def test_verdicts_of_the_groups(changes, verdict, words):
    judged = groups(**changes)
    assert judged.verdict == verdict
    assert words in judged.why


def preflight(folder, *arguments: str) -> dict:
    given = base("--compare", "limit_train")
    cli.main(
        ["preflight", *given, f"--trainer.default_root_dir={folder}", "--prompts=12", *arguments]
    )
    return json.loads((folder / "version_0" / "preflight.json").read_text())


@pytest.mark.slow
def test_the_subcommand_prints_and_writes_its_findings(tmp_path, capsys):
    found = preflight(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert (found["groups"], found["group_size"]) == (12, 4)
    assert [item["name"] for item in found["heads"]] == ["vote", "certainty"]
    vote, certainty = found["heads"]
    assert vote["agreement_correlation"] == pytest.approx(1.0)  # it is the vote share
    assert vote["pairs"] == certainty["pairs"] > 0
    assert 0 < found["accuracy"] < 1
    assert found["thresholds"]["length_link"] == limit("length_link")
    for text in (
        f"{100 * found['mixed']:.1f} %",
        "certainty:",
        "length_link = 0.5",
        f"{certainty['auc']:.2f}",
    ):
        assert text in printed


@pytest.mark.slow
def test_a_head_that_scores_nothing_has_no_verdict(tmp_path):
    found = preflight(tmp_path, '--model.rewards.drop={"head": "DropTruncated", "weight": 0}')
    assert [item["name"] for item in found["heads"]] == ["vote", "certainty"]


@pytest.mark.slow
def test_figures_are_those_of_the_completions_beside_them(tmp_path):
    found = preflight(tmp_path)
    records = [
        json.loads(line)
        for line in (tmp_path / "version_0" / "preflight.jsonl").read_text().splitlines()
    ]
    assert len(records) == 48
    sums = [sum(map(int, r["prompt"].rstrip("=").split("+"))) for r in records]
    right = [
        r["completion"].split("####")[-1] == str(total)
        for r, total in zip(records, sums, strict=True)
    ]
    assert found["accuracy"] == pytest.approx(sum(right) / 48)
    assert found["mean_length"] == pytest.approx(sum(r["length"] for r in records) / 48)
    assert len({r["index"] for r in records}) == 12  # of the 16 training problems


@pytest.mark.slow
def test_the_policy_is_left_as_it_was_and_the_starting_one(tmp_path):
    assert preflight(tmp_path / "first") == preflight(tmp_path / "again")


def test_labels_are_not_needed(tmp_path, capsys):
    found = preflight(tmp_path, "--data.answer_column=null", "--trainer.limit_val_batches=0")
    assert found["accuracy"] is None
    assert "majority right" not in capsys.readouterr().out


def test_no_prompt_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        preflight(tmp_path, "--prompts=0")
    assert "prompts=0 must be at least 1" in capsys.readouterr().err


def test_a_preflight_that_fails_leaves_the_trainer_s_callbacks(tmp_path):
    trainer = RLIFTrainer(default_root_dir=tmp_path, max_epochs=1)
    before = [*trainer.callbacks]
    module = RLIFModule("rlif-arithmetic", {"vote": ClusterVote()})
    data = PromptData([{"question": "1+2="}] * 4, prompts_per_rollout=2, group_size=2)
    with pytest.raises(FileNotFoundError):
        trainer.preflight(module, data, prompts=2, ckpt_path=str(tmp_path / "no.ckpt"))
    assert trainer.callbacks == before
