"""The evaluator's figures on hand-made rollouts, with and without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness.rollouts import handmade
from rlif_lightning.answers.checkers import AnswerChecker, LiteralChecker
from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.evaluation.evaluator import Evaluation, Evaluator
from rlif_lightning.records import Rollout

TEXTS = ["#### 3", "3.0", "5", "no", "#### 7", "8", "9", "9"]  # two problems with four samples


def figures(evaluator: Evaluator, labelled: bool) -> dict[str, float]:
    return {name: figure.value for name, figure in evaluator.compute(labelled).figures().items()}


def rollout(
    texts: list[str], group_size: int, gold: Sequence[str | int] = (), **columns: list
) -> Rollout:
    """A hand-made rollout whose problems have gold answers (and other columns)."""
    made = handmade(texts, group_size)
    return replace(made, prompts=replace(made.prompts, columns={"answer": list(gold), **columns}))


def test_figures_without_labels():
    evaluator = Evaluator(Evaluation(samples=4))
    evaluator.update(handmade(TEXTS, 4), None, None)
    # Row b has (b mod 3) + 1 tokens with entropies 0.05 * (3 b + t).
    tokens = [0.05 * (3 * b + t) for b in range(8) for t in range(b % 3 + 1)]
    expected = {
        "entropy": sum(tokens) / len(tokens),
        "length": 15 / 8,
        "ended": 0.5,
        "parseable": 7 / 8,
        "agreement": (2 / 3 + 2 / 4) / 2,
        "diversity": (2 / 4 + 3 / 4) / 2,
    }
    assert figures(evaluator, labelled=False) == pytest.approx(expected)


def test_figures_with_labels():
    evaluator = Evaluator(Evaluation(samples=4))
    evaluator.update(rollout(TEXTS, 4, ["3", "8"]), "answer", rollout(["3", "none"], 1, ["3", "8"]))
    found = figures(evaluator, labelled=True)
    assert found["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found["pass@4"] == 1.0
    assert found["maj@4"] == 0.5  # 9 beats 8
    assert found["greedy_accuracy"] == 0.5


def test_batches_add_up_and_compute_starts_anew():
    evaluator = Evaluator(Evaluation(samples=2, greedy=False))
    evaluator.update(rollout(["1", "1"], 2, ["1"]), "answer", None)
    evaluator.update(rollout(["1", "2", "3", "4"], 2, ["5", "4"]), "answer", None)
    found = figures(evaluator, labelled=True)
    assert "greedy_accuracy" not in found
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["pass@2"] == pytest.approx(2 / 3)
    evaluator.update(rollout(["5", "5"], 2, ["5"]), "answer", None)
    assert figures(evaluator, labelled=True)["accuracy"] == 1.0


def test_a_problem_without_any_answer_is_wrong_and_agrees_on_nothing():
    evaluator = Evaluator(Evaluation(samples=2, greedy=False))
    evaluator.update(rollout(["no", "idea"], 2, [0]), "answer", None)
    found = figures(evaluator, labelled=True)
    names = ("accuracy", "pass@2", "maj@2", "agreement", "diversity", "parseable")
    assert {name: found[name] for name in names} == dict.fromkeys(names, 0.0)


def test_extractors_of_completions_and_gold():
    checker = AnswerChecker(AnswerExtractor("boxed"), AnswerExtractor("hash"))
    settings = Evaluation(1, None, False, checker)
    evaluator = Evaluator(settings)
    evaluator.update(
        rollout([r"\boxed{4} or 5", "4"], 1, ["2+2=4\n#### 4", "#### 4"]), "answer", None
    )
    assert figures(evaluator, labelled=True)["accuracy"] == 0.5
    evaluator.update(rollout(["4"], 1, ["4"]), "answer", None)
    assert (
        figures(evaluator, labelled=True)["accuracy"] == 0.0
    )  # setup counts gold answers that cannot be read


def test_a_list_is_a_set_of_acceptable_answers_and_nested_columns_have_dotted_names():
    evaluator = Evaluator(Evaluation(2, greedy=False, subset_column="info.level"))
    info = [{"gold": ["7", "1/2"], "level": 1}, {"gold": 3.0, "level": 2}]
    records = evaluator.update(
        rollout(["0.5", "8", "3", "3"], 2, [0, 0], info=info), "info.gold", None
    )
    assert [record["correct"] for record in records] == [True, False, True, True]
    report = evaluator.compute(labelled=True)
    assert {label: part.figures()["accuracy"].value for label, part in report.subsets.items()} == {
        "1": 0.5,
        "2": 1.0,
    }


def test_a_gold_value_that_is_no_answer_is_never_a_text():
    for value in (None, {"a": 1}, True, float("nan"), []):
        with pytest.raises(ValueError, match="is "):
            Evaluator(Evaluation(1, greedy=False)).update(
                rollout(["1"], 1, [value]), "answer", None
            )


def test_pass_at_further_k_is_unbiased():
    evaluator = Evaluator(Evaluation(samples=4, pass_at=[2], greedy=False))
    evaluator.update(rollout(TEXTS, 4, ["3", "8"]), "answer", None)
    found = figures(evaluator, labelled=True)
    assert found["pass@2"] == pytest.approx(
        ((1 - 1 / 6) + (1 - 3 / 6)) / 2
    )  # 2 and 1 of 4 right: 1 - C(4-c,2)/C(4,2)


def test_subsets_have_figures_of_their_own():
    evaluator = Evaluator(Evaluation(samples=2, greedy=False, subset_column="level"))
    evaluator.update(
        rollout(["1", "2", "3", "3", "5", "5"], 2, ["1", "3", "4"], level=[1, 2, 1]), "answer", None
    )
    report = evaluator.compute(labelled=True)
    assert {label: subset.num_problems for label, subset in report.subsets.items()} == {
        "1": 2,
        "2": 1,
    }
    assert report.subsets["1"].figures()["accuracy"].value == pytest.approx(0.25)
    assert report.subsets["2"].figures()["accuracy"].value == 1.0
    assert report.figures()["accuracy"].value == pytest.approx(0.5)


def test_records_carry_answers_verdicts_and_subset():
    evaluator = Evaluator(Evaluation(samples=2, subset_column="level"))
    batch = rollout(["#### 1", "no"], 2, ["1"], level=["hard"])
    records = evaluator.update(batch, "answer", rollout(["2"], 1, ["1"], level=["hard"]))
    kept = [
        (r["kind"], r["completion_number"], r["answer"], r["correct"], r["subset"]) for r in records
    ]
    assert kept == [
        ("sample", 0, "1", True, "hard"),
        ("sample", 1, None, False, "hard"),
        ("greedy", 0, "2", False, "hard"),
    ]
    assert all(record["correct"] is None for record in evaluator.update(batch, None, None))


def test_another_checker_judges_clusters_and_votes():
    evaluator = Evaluator(Evaluation(samples=4, greedy=False, checker=LiteralChecker()))
    texts = [
        "[ANSWER]{2, 1}[/ANSWER]",
        "[ANSWER]{1, 2}[/ANSWER]",
        "[ANSWER]'a'[/ANSWER]",
        "[ANSWER]open(",
    ]
    evaluator.update(rollout(texts, 4, ["{1, 2}"]), "answer", None)
    found = figures(evaluator, labelled=True)
    assert (found["accuracy"], found["maj@4"], found["parseable"]) == (0.5, 1.0, 0.75)
    assert found["agreement"] == pytest.approx(2 / 3)


def test_the_vote_is_the_largest_cluster_s_and_ties_go_to_the_first():
    evaluator = Evaluator(Evaluation(samples=4, greedy=False))
    evaluator.update(rollout(["2", "2", "1/2", "0.5"], 4, ["1/2"]), "answer", None)
    assert (
        figures(evaluator, labelled=True)["maj@4"] == 0.0
    )  # two each; "2" is the most frequent string


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 4, "pass_at": [4]}, r"pass_at=\[4\]: each k must lie between 1 and samples=4"),
        ({"samples": 4, "pass_at": [1]}, "which are always there"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**settings)


def test_samples_are_checked():
    with pytest.raises(ValueError, match=r"evaluation.samples=0 must be at least 1"):
        Evaluation(samples=0)
