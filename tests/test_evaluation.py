"""The evaluator's figures on hand-made rollouts, with and without labels."""

from __future__ import annotations

import pytest
from test_rewards import handmade

from rlif_lightning.answers import AnswerExtractor
from rlif_lightning.evaluation import Evaluation, Evaluator

TEXTS = ["#### 3", "3.0", "5", "no", "#### 7", "8", "9", "9"]  # two problems with four samples
GREEDY = handmade(["3", "none"], 1)


def figures(evaluator: Evaluator, labelled: bool) -> dict[str, float]:
    return {name: float(value) for name, value in evaluator.compute(labelled).items()}


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
    evaluator.update(handmade(TEXTS, 4), ["3", "8"], GREEDY)
    found = figures(evaluator, labelled=True)
    assert found["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found["pass@4"] == 1.0
    assert found["maj@4"] == 0.5  # 9 beats 8
    assert found["greedy_accuracy"] == 0.5


def test_batches_add_up_and_compute_starts_anew():
    evaluator = Evaluator(Evaluation(samples=2, greedy=False))
    evaluator.update(handmade(["1", "1"], 2), ["1"], None)
    evaluator.update(handmade(["1", "2", "3", "4"], 2), ["5", "4"], None)
    found = figures(evaluator, labelled=True)
    assert "greedy_accuracy" not in found
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["pass@2"] == pytest.approx(2 / 3)
    evaluator.update(handmade(["5", "5"], 2), ["5"], None)
    assert figures(evaluator, labelled=True)["accuracy"] == 1.0


def test_a_problem_without_any_answer_is_wrong_and_agrees_on_nothing():
    evaluator = Evaluator(Evaluation(samples=2, greedy=False))
    evaluator.update(handmade(["no", "idea"], 2), [0], None)
    found = figures(evaluator, labelled=True)
    names = ("accuracy", "pass@2", "maj@2", "agreement", "diversity", "parseable")
    assert {name: found[name] for name in names} == dict.fromkeys(names, 0.0)


def test_extractors_of_completions_and_gold():
    settings = Evaluation(1, None, False, AnswerExtractor("boxed"), AnswerExtractor("hash"))
    evaluator = Evaluator(settings)
    evaluator.update(handmade([r"\boxed{4} or 5", "4"], 1), ["2+2=4\n#### 4", "#### 4"], None)
    assert figures(evaluator, labelled=True)["accuracy"] == 0.5
    with pytest.raises(ValueError, match="empty gold answer"):
        evaluator.update(handmade(["4"], 1), ["4"], None)


def test_samples_are_checked():
    with pytest.raises(ValueError, match=r"evaluation.samples=0 must be at least 1"):
        Evaluation(samples=0)
