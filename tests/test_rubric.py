"""Rubric rewards: golden numbers, a restatement in plain Python, criteria, and what is refused."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.python_runs import data
from harness.rollouts import handmade
from rlif_lightning import (
    GRPO,
    CodeTests,
    Contains,
    Criterion,
    DropTruncated,
    Format,
    GoldAnswer,
    Length,
    Matches,
    NumberWithin,
    RewardFunction,
    RewardHead,
    RewardOutput,
    Rollout,
    Rubric,
    Scored,
    WeightedCriterion,
)
from rlif_lightning.answers.code_tasks import CodeExtractor
from rlif_lightning.data.prompt_table import PromptTable
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.rewards.reward_set import RewardSet
from rlif_lightning.rewards.rubric_weights import (
    diva_weights,
    kept_criteria,
    next_factors,
    num_dropped,
    rubric_scores,
)
from rlif_lightning.running.setup_checks import _most_visits
from rlif_lightning.sandbox.pool import Sandbox

NAN = math.nan
BOUNDS = (0.67, 1.5)
ONE = torch.ones(1, 3, dtype=torch.bool)
A = [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
AB = [[1, 1, 0, 1, NAN], [1, 0, 0, 1, NAN], [1, 1, 0, 0, 0], [1, 0, 0, 1, 0]]
W_A, W_AB = [5.0, 3, 2], [5.0, 3, 2, 4, 4]
TWO = torch.tensor([[True] * 3 + [False] * 2, [False] * 3 + [True] * 2])


def matrix(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def scores(rows, weights, categories=ONE) -> list[float]:
    given = torch.tensor([weights], dtype=torch.float64)
    return rubric_scores(matrix(rows), given, categories)[0].tolist()


def after(factors, rows, weights, categories, settings=(0.5, 0.5, BOUNDS)) -> list[float]:
    given = torch.tensor([factors], dtype=torch.float64), matrix(rows)
    wanted = torch.tensor(weights, dtype=torch.float64)
    return next_factors(*given, wanted, categories, settings)[0].tolist()


def times(weights, factors) -> list[float]:
    return [w * a for w, a in zip(weights, factors, strict=True)]


@pytest.mark.parametrize(
    ("settings", "factors", "expected"),
    [
        ((0.5, 0.5, BOUNDS), [0.835, 1.25, 0.835], [0.825951, 0.435122] * 2),
        ((0.5, 1.0, BOUNDS), [0.67, 1.5, 0.67], [0.854189, 0.364527] * 2),
        ((0.5, 0.5, (0.5, 2.0)), [0.76592, 1.5, 0.76592], [0.84466, 0.38834] * 2),
    ],
)
def test_golden_of_one_category(settings, factors, expected):
    assert scores(A, W_A) == pytest.approx([0.8, 0.5] * 2)
    found = after([1, 1, 1], A, W_A, ONE, settings)
    assert found == pytest.approx(factors, abs=1e-5)
    assert scores(A, times(W_A, found)) == pytest.approx(expected, abs=1e-5)


def test_golden_of_two_categories_and_three_visits():
    """The last criterion has 2 of 4 verdicts, less than 0.75: it keeps its factor."""
    factors = [1.0] * 5
    for rewards, expected in (
        ([0.9, 0.75, 0.4, 0.5], [0.835, 1.25, 0.835, 1, 1]),
        ([0.912976, 0.717561, 0.412976, 0.467561], [0.7525, 1.375, 0.7525, 1, 1]),
        ([0.919883, 0.700293, 0.419883, 0.450293], [0.71125, 1.4375, 0.71125, 1, 1]),
    ):
        assert scores(AB, times(W_AB, factors), TWO) == pytest.approx(rewards, abs=1e-6)
        factors = after(factors, AB, W_AB, TWO)
        assert factors == pytest.approx(expected, abs=1e-9)


def test_golden_of_diva_and_dropout():
    found = rubric_scores(matrix(A), diva_weights(matrix(A)), ONE)[0].tolist()
    assert found == pytest.approx([0.9996, 0.0004] * 2, abs=1e-5)
    rows = [[0 if math.isnan(verdict) else verdict for verdict in row] for row in AB]
    all_in_one = torch.ones(1, 5, dtype=torch.bool)
    full = [0.666667, 0.5, 0.444444, 0.5]
    assert scores(rows, W_AB, all_in_one) == pytest.approx(full, abs=1e-6)
    kept = [[v if k in (0, 1, 3) else NAN for k, v in enumerate(row)] for row in rows]
    assert scores(kept, W_AB, all_in_one) == pytest.approx([1, 0.75, 0.666667, 0.75], abs=1e-6)
    unjudged = [0.857143, 0.642857, 0.444444, 0.5]  # the two missing verdicts left out
    assert scores(AB, W_AB, all_in_one) == pytest.approx(unjudged, abs=1e-6)


def test_a_completion_without_a_verdict_has_no_score_and_an_empty_category_no_mass():
    rows = [[NAN, NAN, NAN], [NAN, 1, NAN], [1, NAN, 0]]
    categories = torch.tensor([[True, False, False], [False, True, True]])
    found = scores(rows, [1.0, 2, 3], categories)
    assert math.isnan(found[0])
    assert found[1:] == [1.0, 0.5]


def restated_score(row, weights, categories) -> float:
    shares = []
    for category in dict.fromkeys(categories):
        members = [
            j for j, name in enumerate(categories) if name == category and not math.isnan(row[j])
        ]
        if members:
            mass = sum(weights[j] for j in members)
            shares.append(sum(weights[j] * row[j] for j in members) / mass)
    return sum(shares) / len(shares) if shares else NAN


def restated_factors(factors, rows, weights, categories, lam, beta, low, high) -> list[float]:
    """Algorithm 4 of arXiv 2609.35646, criterion by criterion."""
    spread: dict[int, float] = {}
    for j in range(len(weights)):
        given = [row[j] for row in rows if not math.isnan(row[j])]
        if len(given) >= 0.75 * len(rows):
            mean = sum(given) / len(given)
            spread[j] = math.sqrt(sum((v - mean) ** 2 for v in given) / len(given) + 1e-4)
    found = list(factors)
    for j in spread:
        same = [k for k in spread if categories[k] == categories[j]]
        mean = sum(weights[k] * spread[k] for k in same) / sum(weights[k] for k in same)
        aim = min(max((1 - lam) + lam * spread[j] / mean, low), high)
        found[j] = min(max((1 - beta) * factors[j] + beta * aim, low), high)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_restatement(seed):
    draw = random.Random(seed)
    size, group = draw.randint(2, 6), draw.randint(2, 6)
    names = [draw.choice("abc") for _ in range(size)]
    weights = [draw.uniform(0.5, 5) for _ in range(size)]
    groups = [
        [[draw.choice([0.0, 0.0, 1.0, 0.5, NAN]) for _ in range(size)] for _ in range(group)]
        for _ in range(3)
    ]
    factors = [[draw.uniform(0.7, 1.4) for _ in range(size)] for _ in groups]
    settings = draw.random(), draw.uniform(0.1, 1), BOUNDS
    categories = torch.tensor([[name == each for name in names] for each in dict.fromkeys(names)])
    verdicts, own, base = (
        torch.tensor(each, dtype=torch.float64) for each in (groups, factors, weights)
    )
    found = rubric_scores(verdicts, base * own, categories)
    moved = next_factors(own, verdicts, base, categories, settings)
    for p, rows in enumerate(groups):
        expected = [restated_score(row, times(weights, factors[p]), names) for row in rows]
        assert found[p].tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        wanted = restated_factors(factors[p], rows, weights, names, *settings[:2], *BOUNDS)
        assert moved[p].tolist() == pytest.approx(wanted, abs=1e-12)


def test_without_eps_a_category_without_spread_keeps_its_weights():
    given = torch.ones(1, 3).double(), matrix([[1, 0, 1]] * 4), torch.ones(3).double(), ONE
    assert next_factors(*given, (0.5, 1.0, BOUNDS), eps=0.0).tolist() == [[1, 1, 1]]
    assert next_factors(*given, (0.5, 1.0, BOUNDS)).tolist() == [[1, 1, 1]]


def test_std_normalised_advantages_do_not_see_the_normaliser():
    """Proposition 1 of Rubric Dropout: the same constant below every score of a group."""
    generator = torch.Generator().manual_seed(0)
    verdicts = (torch.rand(6, 8, 5, generator=generator) < 0.5).double()
    kept = torch.rand(6, 5, generator=generator).double()
    weights = torch.tensor([[5.0, 3, 2, 4, 4]]).double() * kept
    normalised = rubric_scores(verdicts, weights, torch.ones(1, 5, dtype=torch.bool))
    summed = (verdicts * weights.unsqueeze(1)).sum(-1)
    one, lengths = torch.ones(1), torch.ones(6, 8)
    estimate = GRPO(eps=1e-12)
    found = [estimate(s.unsqueeze(0), one, lengths) for s in (normalised, summed)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_a_dropout_mask_is_one_of_its_problem_and_rollout():
    protected = [False, True, False, False, False, False]
    kept = kept_criteria(range(200), 3, protected, 0.5)
    assert (kept.sum(1) == 3).all()
    assert kept[:, 1].all()
    rates = kept.double().mean(0)[[0, 2, 3, 4, 5]]
    assert ((rates - 2 / 5).abs() < 0.12).all()  # two of the five others stay
    assert torch.equal(kept_criteria([7, 150], 3, protected, 0.5), kept[[7, 150]])
    assert not torch.equal(kept_criteria(range(200), 4, protected, 0.5), kept)


@pytest.mark.parametrize(
    ("fraction", "size", "protected", "expected"),
    [
        (0.5, 8, 0, 4),
        (0.3, 8, 0, 2),
        (0.9, 8, 0, 5),
        (0.5, 8, 6, 2),
        (0.5, 3, 0, 0),
        (0.1, 8, 0, 0),
    ],
)
def test_how_many_criteria_are_left_out(fraction, size, protected, expected):
    assert num_dropped(fraction, size, protected) == expected


TEXTS = ["1+2=3", "three", "1+2=4 so 4", "", "Three: 3", "12", "no", "1,234"]


def judged(criterion: Criterion, **columns) -> list[float]:
    return criterion.verdicts(handmade(TEXTS, 4, **columns)).tolist()


def test_criteria_by_rule():
    assert judged(Matches(r"\d\+\d")) == [1, 0, 1, 0, 0, 0, 0, 0]
    assert judged(Matches(r"\p{Lu}")) == [0, 0, 0, 0, 1, 0, 0, 0]
    found = judged(Contains("word"), word=["THREE", None])
    assert found[:4] == [0, 1, 0, 0]
    assert all(map(math.isnan, found[4:]))
    assert judged(NumberWithin(3, 4)) == [1, 0, 1, 0, 1, 0, 0, 0]
    assert judged(NumberWithin(low=1000)) == [0, 0, 0, 0, 0, 0, 0, 1]


def test_criteria_by_another_head():
    length = handmade(TEXTS, 4).lengths.tolist()
    expected = [float(2 <= each <= 2) for each in length]
    assert judged(Scored(Length(), 2, 2)) == expected
    found = judged(Scored(GoldAnswer()), answer=["3", "12"])
    assert found == [1, 0, 0, 0, 0, 1, 0, 0]
    assert judged(Scored(Format("="))) == [1, 0, 1, 0, 0, 0, 0, 0]


class Drops(RewardHead):
    """Takes every second completion out, as a judge does whose reply cannot be read."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        keep = torch.arange(len(rollout.texts)) % 2 == 0
        return RewardOutput(keep.float(), keep_mask=keep)


def test_what_a_head_takes_out_has_no_verdict():
    found = judged(Scored(Drops()))
    assert found[::2] == [1] * 4
    assert all(map(math.isnan, found[1::2]))


def test_a_criterion_by_unit_tests():
    code = {"prompt": ["def f(x): return x+"], "entry_point": ["f"]}
    code |= {"test": ["def check(f):\n    assert f(1) == 2"]}
    tests = CodeTests(CodeExtractor("continuation"), sandbox=Sandbox("rlimits+"))
    assert Scored(tests).verdicts(handmade(["1", "2"], 2, **code)).tolist() == [1, 0]


def shouts(completions: list[str], prompts: list[str], word: list[str]) -> list[float | None]:
    """Judge by a column; None where it is empty."""
    assert len(completions) == len(prompts) == len(word) == 8
    return [None if not w else float(w in c) for c, w in zip(completions, word, strict=True)]


def test_a_criterion_by_function():
    found = judged(Scored(RewardFunction(shouts)), word=["three", ""])
    assert found[:4] == [0, 1, 0, 0]
    assert all(map(math.isnan, found[4:]))


class Waits(RewardHead):
    """Remembers what a run offers it before it scores."""

    def bind(self, models) -> None:
        self.models = models

    def start(self, rollout: Rollout) -> None:
        self.seen = set(rollout.prompts.columns)

    def forward(self, rollout: Rollout) -> RewardOutput:
        assert self.models == "models"
        return RewardOutput(torch.ones(len(rollout.texts)))


def test_a_criterions_head_is_bound_and_started():
    waits = Waits()
    criteria = {"w": WeightedCriterion(Scored(waits)), "g": WeightedCriterion(Scored(GoldAnswer()))}
    head = Rubric(criteria, weighting="static")
    head.bind("models")  # pyright: ignore[reportArgumentType]
    set_of = RewardSet({"r": WeightedReward(head)}, "answer")
    found = set_of(handmade(TEXTS, 4, answer=["3", "12"]))["r"]
    assert found.log["criterion/w"] == 1
    assert waits.seen == set()  # the gold answers are the other criterion's


def rubric(**settings: Any) -> Rubric:
    """Four criteria in two categories; ``plus`` and ``digit`` hold for some, ``never`` for none."""
    given: dict[str, Any] = {"weighting": "pow3r"}
    criteria = {
        "digit": WeightedCriterion(Matches(r"\d"), 5.0, "a"),
        "plus": WeightedCriterion(Matches(r"\+"), 3.0, "a", required=True),
        "words": WeightedCriterion(Matches("[a-z]"), -2.0, "b"),
        "never": WeightedCriterion(Matches("never"), 2.0, "b"),
    }
    return Rubric(criteria, **(given | settings))


def test_the_figures_of_a_rubric():
    output = rubric(weighting="category")(handmade(TEXTS, 4))
    digit = [1, 0, 1, 0, 1, 1, 0, 1]
    plus = [1, 0, 1, 0, 0, 0, 0, 0]
    clean = [1, 0, 0, 1, 0, 1, 0, 1]  # no small letter
    expected = [(5 * d + 3 * p) / 16 + c / 4 for d, p, c in zip(digit, plus, clean, strict=True)]
    assert output.scores.tolist() == pytest.approx(expected)
    assert output.log == {
        "rubric/saturated": 0,
        "rubric/unreachable": 3 / 8,  # `never` in both groups, and `plus` in the second
        "rubric/strict": 2 / 8,
        "rubric/static": pytest.approx(sum(expected) / 8),
        "rubric/unjudged": 0,
        "criterion/digit": 5 / 8,
        "criterion/plus": 2 / 8,
        "criterion/words": 4 / 8,
        "criterion/never": 0,
    }


def test_missing_verdicts_in_the_figures():
    half = Scored(RewardFunction(shouts))
    criteria = {"half": WeightedCriterion(half), "any": WeightedCriterion(Matches(""))}
    head = Rubric(criteria, weighting="static")
    output = head(handmade(TEXTS, 4, word=["three", ""]))
    assert output.scores.tolist() == [0.5, 1, 0.5, 0.5, 1, 1, 1, 1]
    assert output.log["rubric/unjudged"] == 4 / 16
    assert output.log["rubric/saturated"] == 2 / 3  # `any` twice, of three judged pairs
    assert output.log["rubric/strict"] == 1 / 8  # a missing verdict is not a fulfilled one
    assert output.log["criterion/half"] == 1 / 4


def visited(
    head: Rubric, *, rollouts: Sequence[tuple[int, int]], training: bool = True, rows=(0, 1)
):
    """The head's scores in these (rollout number, epoch)."""
    table, found = PromptTable(), []
    head.use_table(table, "rubric")
    head.train(training)
    for number, epoch in rollouts:
        sampled = handmade(TEXTS, 4)
        sampled = replace(sampled, prompts=replace(sampled.prompts, index=torch.tensor(rows)))
        with table.visiting(number, epoch):
            found.append(head(sampled).scores)
        table.gather()
    return table, found


def test_factors_are_those_of_the_previous_epoch():
    """A second visit in one epoch is scored with the factors of the first."""
    head = rubric()
    table, (first, again, second, third) = visited(head, rollouts=[(0, 0), (1, 0), (2, 1), (5, 4)])
    category = rubric(weighting="category")(handmade(TEXTS, 4)).scores
    assert torch.equal(first, category)
    assert torch.equal(again, category)
    verdicts = head.verdicts(handmade(TEXTS, 4)).view(2, 4, 4)
    factors = torch.ones(2, 4).double()
    for scored in (second, third):
        given = factors, verdicts, head.weights, head.categories, (0.5, 0.5, BOUNDS)
        factors = next_factors(*given)
        expected = rubric_scores(verdicts, head.weights * factors, head.categories)
        assert torch.equal(scored, expected.flatten().float())
        assert not torch.equal(scored, category)
    known = table.columns["rubric/factors"].numbers([0, 1], [])
    assert known[:, 0].tolist() == [4, 4]
    assert torch.equal(known[:, 1:5], factors)


def test_an_evaluation_has_the_criterias_own_weights_and_all_of_them():
    table, _ = visited(head := rubric(dropout=0.25), rollouts=[(0, 0), (1, 1)])
    head.eval()
    category = rubric(weighting="category")(handmade(TEXTS, 4)).scores
    assert torch.equal(head(handmade(TEXTS, 4)).scores, category)
    for weighting in ("static", "diva"):
        head = rubric(weighting=weighting)
        _, (scored,) = visited(head, rollouts=[(0, 0)], training=False)
        same = torch.equal(head(handmade(TEXTS, 4)).scores, scored)
        assert same == (weighting == "static")
    assert table.visit is None


def test_groups_that_are_drawn_again_have_factors_and_leave_none():
    """In a redraw the heads are in evaluation mode, and a data rank may score a stand-in."""
    table, _ = visited(head := rubric(), rollouts=[(0, 0)])
    before = table.columns["rubric/factors"].numbers([0, 1], [])
    head.eval()
    with table.visiting(1, 1):
        redrawn = head(handmade(TEXTS, 4)).scores
    table.gather()
    assert torch.equal(table.columns["rubric/factors"].numbers([0, 1], []), before)
    _, (_, trained) = visited(rubric(), rollouts=[(0, 0), (1, 1)])
    assert torch.equal(redrawn, trained)


def test_strength_0_in_one_category_is_the_static_rubric_bit_for_bit():
    criteria = {name: replace(each, category="") for name, each in rubric().settings.items()}
    null = Rubric(criteria, strength=0.0)
    _, found = visited(null, rollouts=[(0, 0), (1, 1), (2, 2)])
    static = Rubric(criteria, weighting="static")(handmade(TEXTS, 4)).scores
    assert all(torch.equal(each, static) for each in found)


def test_diva_and_dropout_in_a_rollout_of_training():
    head = rubric(weighting="diva")
    _, (found, again) = visited(head, rollouts=[(0, 0), (1, 1)])
    verdicts = head.verdicts(handmade(TEXTS, 4)).view(2, 4, 4)
    expected = rubric_scores(verdicts, diva_weights(verdicts), torch.ones(1, 4).bool())
    assert torch.equal(found, expected.flatten().float())
    assert torch.equal(found, again)
    head = rubric(weighting="static", dropout=0.25)
    _, (found,) = visited(head, rollouts=[(6, 0)], rows=(11, 12))
    kept = kept_criteria([11, 12], 6, [False, True, False, False], 0.25)
    seen = verdicts.masked_fill(~kept.unsqueeze(1), NAN)
    one = torch.ones(1, 4).bool()
    expected = rubric_scores(seen, head.weights.expand(2, -1), one)
    assert torch.equal(found, expected.flatten().float())


class Greedy(Criterion):
    """Looks at gold answers without saying so."""

    def verdicts(self, rollout: Rollout) -> Tensor:
        return torch.ones(len(rollout.column("answer")))


def test_criteria_see_the_columns_that_they_name():
    """A criterion beside one that reads gold answers does not see them."""
    criteria = {
        "right": WeightedCriterion(Scored(GoldAnswer())),
        "word": WeightedCriterion(Contains("word")),
    }
    head = Rubric(criteria, weighting="static")
    assert (head.needs_gold, head.gold_columns) == (True, ("answer",))
    found = RewardSet({"r": WeightedReward(head)}, "answer")(
        handmade(TEXTS, 4, answer=["3", "12"], word=["=", "2"])
    )["r"]
    assert found.log["criterion/right"] == 2 / 8
    greedy = Rubric({**criteria, "greedy": WeightedCriterion(Greedy())}, weighting="static")
    with pytest.raises(RuntimeError, match=r"criterion 'greedy' .* 'answer' is hidden"):
        RewardSet({"r": WeightedReward(greedy)}, "answer")(
            handmade(TEXTS, 4, answer=["3", "12"], word=["=", "2"])
        )
    del criteria["right"]
    head = Rubric(criteria, weighting="static")
    assert (head.needs_gold, head.columns) == (False, ("word",))
    label_free = {"word": WeightedCriterion(Contains("answer"))}
    with pytest.raises(ValueError, match="names the column 'answer', which shows the gold"):
        RewardSet({"r": WeightedReward(Rubric(label_free, weighting="static"))}, "answer")


def test_a_criterions_gold_column_is_checked(tmp_path):
    head = rubric(weighting="static")
    assert head.check_gold("answer", [(0, "1")], "the train split") is None
    criteria = {"right": WeightedCriterion(Scored(GoldAnswer()))}
    head = Rubric(criteria, weighting="static")
    said = head.check_gold("answer", iter([(0, "1"), (1, "\\frac{1}{")]), "the train split")
    assert "1 of 2 gold answers" in str(said)


class Wrong(Criterion):
    """Gives what it was given."""

    def __init__(self, given: Any):
        super().__init__()
        self.given = given

    def verdicts(self, rollout: Rollout) -> Tensor:
        return self.given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.ones(7), r"verdicts have shape \(7,\), not \(8,\)"),
        (torch.full((8,), 2.0), r"verdicts must lie in \[0, 1\], or be NaN"),
        (None, "TypeError"),
    ],
)
def test_verdicts_of_another_kind_name_their_criterion(given, said):
    head = Rubric({"odd": WeightedCriterion(Wrong(given))}, weighting="static")
    with pytest.raises(RuntimeError, match=rf"criterion 'odd' \(Wrong\) raised .*{said}"):
        head(handmade(TEXTS, 4))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weighting": "pow4r"}, "weighting='pow4r' is unknown"),
        ({"strength": 1.1}, "strength=1.1"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"bounds": (1.1, 1.5)}, "bounds="),
        ({"weighting": "static", "rate": 1.0}, "has no effect with weighting='static'"),
        ({"dropout": 1.0}, "dropout=1.0 leaves out none"),
        ({"dropout": 0.2}, "dropout=0.2 leaves out none of 4 criteria"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        rubric(**settings)


def test_weights_are_not_rounded():
    """In float32 a weight of 0.1 is another number."""
    criteria = {n: WeightedCriterion(Matches(n), w) for n, w in (("1", 0.1), ("3", 0.7))}
    criteria = {f"c{name}": each for name, each in criteria.items()}
    assert Rubric(criteria).weights.tolist() == [0.1, 0.7]


def test_criteria_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match="at least one criterion"):
        Rubric({})
    with pytest.raises(ValueError, match="plain identifier"):
        Rubric({"a b": WeightedCriterion(Matches("a"))}, weighting="static")
    with pytest.raises(ValueError, match="there is 1; add one"):
        Rubric({"a": WeightedCriterion(Matches("a"))})
    for weight in (0.0, NAN, math.inf):
        with pytest.raises(ValueError, match=r"must be (a number|finite and not 0)"):
            WeightedCriterion(Matches("a"), weight)
    with pytest.raises(ValueError, match="is not a regular expression"):
        Matches("(")
    with pytest.raises(ValueError, match="of NumberWithin: give one of them"):
        NumberWithin()
    with pytest.raises(ValueError, match="low=3 of NumberWithin is above high=2"):
        NumberWithin(3, 2)
    with pytest.raises(ValueError, match="DropTruncated gives no scores"):
        Scored(DropTruncated())


def test_problems_that_cannot_be_judged_are_refused():
    problems = data()
    problems.setup("fit")
    split = problems.split("train")
    assert split is not None
    for criterion in (Contains("word"), Scored(RewardFunction(shouts))):
        head = Rubric({"a": WeightedCriterion(criterion)}, weighting="static")
        with pytest.raises(ValueError, match="word"):
            head.check(split, 4)
    rubric().check(split, 4)
    with pytest.raises(ValueError, match="weighting='pow3r' needs groups"):
        rubric().check(split, 1)


def test_a_run_of_one_visit_is_refused_and_diva_named():
    for weighting in ("static", "category", "diva"):
        rubric(weighting=weighting).check_visits(1)
    rubric().check_visits(2)
    with pytest.raises(ValueError, match=r"would equal weighting=category.*weighting=diva"):
        rubric().check_visits(1)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"max_epochs": 1}, 1),
        ({"max_epochs": 2}, 2),
        ({"max_epochs": -1, "max_steps": 8}, 1),  # two updates a rollout, four rollouts a visit
        ({"max_epochs": -1, "max_steps": 9}, 2),
        ({"max_epochs": 2, "limit_train_batches": 2}, 1),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 2),
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": 1, "fast_dev_run": True}, math.inf),
    ],
)
def test_how_often_a_run_visits_a_problem(length, expected):
    given = {"max_steps": -1, "limit_train_batches": 1.0, "fast_dev_run": False} | length
    problems = data(prompts_per_rollout=4)
    problems.setup("fit")
    run = SimpleNamespace(trainer=SimpleNamespace(**given), plan=SimpleNamespace(num_updates=2))
    assert _most_visits(run, problems) == expected
    if "limit_train_batches" not in length and "max_steps" not in length:
        assert _most_visits(run, None) in (expected, length["max_epochs"])


def test_a_criterion_without_consent_names_no_gold_column_beside_one_that_reads_it():
    criteria = {
        "right": WeightedCriterion(Scored(GoldAnswer("solution"))),
        "shows": WeightedCriterion(Contains("solution")),
    }
    with pytest.raises(ValueError, match="'rubric' names the column 'solution', which shows"):
        RewardSet({"rubric": WeightedReward(Rubric(criteria, "static"))})
