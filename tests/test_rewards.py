"""Reward heads on hand-made rollouts, and the set of them: gates, hidden answers, one clear error
per fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from harness.rollouts import Given, handmade
from rlif_lightning.answers.final_answers import AnswerExtractor
from rlif_lightning.model.token_stats import token_stats
from rlif_lightning.records import RewardOutput, Rollout, TokenStats
from rlif_lightning.rewards import (
    Format,
    Gate,
    GoldAnswer,
    Length,
    MeanLogprob,
    NegativeEntropy,
    Random,
    RewardHead,
    RewardSet,
    SelfCertainty,
    WeightedReward,
)


def one_token(probabilities: list[float]) -> TokenStats:
    """Statistics of a single token drawn from a distribution."""
    stats = token_stats(torch.tensor([probabilities]).log(), torch.tensor([0]))
    return stats.map(lambda values: values.view(1, 1))


def test_self_certainty_in_both_directions():
    """p = (1/2, 1/4, 1/8, 1/8): KL(U||p) = -mean(log p) - log 4 = 9/4 log 2 - 2 log 2; H = 7/4 log
    2.
    """
    rollout = handmade(["x"], 1, one_token([0.5, 0.25, 0.125, 0.125]))
    assert SelfCertainty()(rollout).scores.item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
    other = SelfCertainty("model_to_uniform")(rollout).scores
    assert other.item() == pytest.approx(-1.75 * math.log(2), abs=1e-6)
    with pytest.raises(
        ValueError, match="direction='reverse' is unknown; use one of uniform_to_model"
    ):
        SelfCertainty("reverse")


def test_internal_rewards_are_means_over_the_completion():
    rollout = handmade(["a", "b", "c"], 3)
    torch.testing.assert_close(MeanLogprob()(rollout).scores, torch.tensor([0.0, -0.35, -0.7]))
    torch.testing.assert_close(SelfCertainty()(rollout).scores, torch.tensor([0.0, 0.7, 1.4]))


def test_negative_entropy_charges_a_missing_answer_the_floor(monkeypatch):
    rollout = handmade(["#### 1", "none", "none"], 3)  # mean entropies 0, 0.175, 0.35
    torch.testing.assert_close(NegativeEntropy()(rollout).scores, torch.tensor([0.0, -10.0, -10.0]))
    monkeypatch.setattr("rlif_lightning.rewards.internal.ENTROPY_FLOOR", 0.2)
    low = NegativeEntropy(AnswerExtractor("hash"))(rollout).scores
    torch.testing.assert_close(low, torch.tensor([0.0, -0.2, -0.35]))


def test_format_and_length():
    rollout = handmade(["<a>\n</a>", "<a>", "</a><a>"], 3)
    assert Format("<a>.*</a>")(rollout).scores.tolist() == [1, 0, 0]
    assert Length()(rollout).scores.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"pattern='\(' is not a regular expression"):
        Format("(")


@pytest.mark.parametrize(
    ("equivalence", "scores"),
    [
        ("string", [1, 0, 0, 0]),
        ("numeric", [1, 1, 0, 0]),
        ("exact", [1, 1, 0, 0]),
        ("math_verify", [1, 1, 1, 0]),
    ],
)
def test_gold_answers_are_compared_by_the_equivalence(equivalence, scores):
    """7/9 as it is, 14/18 of the same value, 0.777778 rounded to six digits, and another."""
    texts = [r"\boxed{\frac{7}{9}}", r"\boxed{14/18}", r"\boxed{0.777778}", r"\boxed{8/9}"]
    rollout = handmade(texts, 4, answer=[r"\frac{7}{9}"])
    head = GoldAnswer(equivalence=equivalence)
    assert head(rollout).scores.tolist() == scores
    with pytest.raises(ValueError, match=r"equivalence='loose'.*numeric"):
        GoldAnswer(equivalence="loose")


def test_gold_answer():
    rollout = handmade(["so 1/2", "0.5", "nothing", "#### 12"], 2, answer=["0.5", 12])
    assert GoldAnswer()(rollout).scores.tolist() == [1, 1, 0, 1]
    worked = handmade(["12", "7"], 2, solution=["7+5=12\n#### 12"])
    hashed = GoldAnswer("solution", gold_extractor=AnswerExtractor("hash"))
    assert hashed(worked).scores.tolist() == [1, 0]
    with pytest.raises(
        ValueError, match=r"column 'answer' is not in the data set \(it has \['solution'\]\)"
    ):
        GoldAnswer()(worked)
    assert (
        hashed(handmade(["12"], 1, solution=["no mark"])).scores.isnan().all()
    )  # does not apply: nothing to read


def test_random_is_a_fair_coin_repeatable_through_its_state():
    rollout = handmade(["x"] * 400, 4)
    head = Random(seed=3)
    first, second = head(rollout).scores, head(rollout).scores
    assert set(first.tolist()) == {0.0, 1.0}
    assert 0.4 < first.mean() < 0.6
    assert not torch.equal(first, second)
    resumed = Random(seed=3)
    resumed.load_state_dict(Random(seed=3).state_dict())
    assert torch.equal(resumed(rollout).scores, first)
    resumed.load_state_dict(head.state_dict())
    assert torch.equal(resumed(rollout).scores, head(rollout).scores)
    assert not torch.equal(Random(seed=4)(rollout).scores, first)


def test_a_prediction_counts_no_coins():
    """Its coins are the same in whatever batches, and from wherever it is gone on with."""
    rollout = handmade(["x"] * 400, 4)
    head = Random(seed=3)
    head(rollout)
    head.eval()
    assert torch.equal(head(rollout).scores, head(rollout).scores)
    assert int(head.calls) == 1


class Broken(RewardHead):
    """Raises what a user's mistake would raise."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        raise KeyError("colour")


def test_a_gate_turns_scores_below_its_threshold_to_nan():
    rewards = RewardSet(
        {
            "vote": WeightedReward(Given(torch.tensor([0.4, 0.5, 0.6, math.nan]))),
            "certainty": WeightedReward(
                Given(torch.tensor([1.0, 2.0, 3.0, 4.0])), gate=Gate("vote", 0.5)
            ),
        }
    )
    outputs = rewards(handmade(["x"] * 4, 2))
    nan = pytest.approx([math.nan, 2.0, 3.0, math.nan], nan_ok=True)
    assert outputs["certainty"].scores.tolist() == nan
    assert outputs["vote"].scores[:3].tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_gold_answers_are_hidden_from_heads_that_do_not_ask():
    blind, sighted = Given(torch.zeros(2)), Given(torch.zeros(2), needs_gold=True)
    rewards = RewardSet(
        {"blind": WeightedReward(blind), "sighted": WeightedReward(sighted)}, answer_column="answer"
    )
    rewards(handmade(["x"] * 2, 2, answer=["1"], solution=["so 1"], level=[3]))
    assert blind.seen == set()  # a second column may hold the answer too
    assert sighted.seen == {"answer", "solution", "level"}


class Reads(RewardHead):
    """Reads a column in one of the ways that Python has."""

    def __init__(self, columns: tuple[str, ...], read: Callable[[Rollout], object]):
        super().__init__()
        self.columns, self.read = columns, read

    def forward(self, rollout: Rollout) -> RewardOutput:
        self.value = self.read(rollout)
        return RewardOutput(torch.zeros(len(rollout.texts)))


WAYS = {
    "column": lambda rollout: rollout.column("solution"),
    "item": lambda rollout: rollout.prompts.columns["solution"],
    "get": lambda rollout: rollout.prompts.columns.get("solution", "none"),
    "in": lambda rollout: "solution" in rollout.prompts.columns,
    "nested": lambda rollout: rollout.column("solution.text"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_column_that_a_head_did_not_name_is_refused_and_the_error_says_what_to_write(way):
    rewards = RewardSet(
        {"mine": WeightedReward(Reads(("level",), WAYS[way]))}, answer_column="answer"
    )
    message = (
        r"'mine' \(Reads\) raised ValueError: column 'solution' is hidden from this reward head:"
        r" name it in the class"
        r" attribute `columns`, as in `columns = \('solution',\)`"
    )
    with pytest.raises(RuntimeError, match=message):
        rewards(handmade(["x"], 1, answer=["1"], solution=["so 1"], level=[3]))


def test_a_head_sees_what_it_named_and_a_column_that_no_data_set_has_is_missing_as_ever():
    named = Reads(("level", "info.topic", "hint"), lambda rollout: dict(rollout.prompts.columns))
    rewards = RewardSet({"mine": WeightedReward(named)}, answer_column="info.answer")
    rewards(handmade(["x"], 1, level=[3], info=[{"topic": "sums", "answer": "1"}]))
    assert named.value == {"level": [3], "info.topic": ["sums"]}
    absent = Reads((), lambda rollout: rollout.prompts.columns.get("hint", "none"))
    RewardSet({"mine": WeightedReward(absent)})(handmade(["x"], 1, level=[3]))
    assert absent.value == "none"
    keyed = RewardSet(
        {"mine": WeightedReward(Reads((), lambda rollout: rollout.prompts.columns["hint"]))}
    )
    with pytest.raises(RuntimeError, match="KeyError: 'hint'"):
        keyed(handmade(["x"], 1, level=[3]))


@pytest.mark.parametrize("named", ["info.answer", "info", "info.answer.text"])
def test_a_label_free_head_cannot_name_what_shows_the_gold_answer(named):
    head = Reads((named,), len)
    with pytest.raises(
        ValueError,
        match=f"reward 'mine' names the column '{named}', which shows the gold answers of",
    ):
        RewardSet({"mine": WeightedReward(head)}, answer_column="info.answer")
    rewards = {"mine": WeightedReward(head), "gold": WeightedReward(GoldAnswer("info.answer"))}
    with pytest.raises(ValueError, match="set needs_gold = True"):
        RewardSet(rewards)
    RewardSet(
        {"mine": WeightedReward(Reads(("info.topic", "information"), len))},
        answer_column="info.answer",
    )


def test_a_gold_answer_may_be_a_number_or_a_list_of_acceptable_ones_in_a_nested_column():
    rollout = handmade(["33", "3", "0.5", "3"], 2, info=[{"gold": 33.0}, {"gold": ["1/2", "7"]}])
    assert GoldAnswer("info.gold")(rollout).scores.tolist() == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="is None"):
        GoldAnswer("info.gold")(handmade(["1"], 1, info=[{"gold": None}]))


def test_weights_and_names():
    head = Given(torch.zeros(1))
    rewards = RewardSet(
        {
            "a": WeightedReward(head, 0.5),
            "b": WeightedReward(head, -2.0),
            "c": WeightedReward(head, 0),
        }
    )
    assert rewards.names == ["a", "b", "c"]
    assert rewards.weights.tolist() == [0.5, -2.0, 0.0]


def test_a_raising_head_is_named_with_a_completion():
    rewards = RewardSet({"mine": WeightedReward(Broken())})
    with pytest.raises(
        RuntimeError, match=r"(?s)'mine' \(Broken\) raised KeyError: 'colour'.*'a strange text'"
    ) as info:
        rewards(handmade(["a strange text"], 1))
    assert isinstance(info.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"'mine' returned scores of shape \(3,\); one per completion, \(2,\)"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        (torch.tensor([0.0, -math.inf]), "'mine' returned an infinite score for 'second'"),
    ],
)
def test_wrong_shapes_and_infinite_scores_are_refused(scores, message):
    with pytest.raises(RuntimeError, match=message):
        RewardSet({"mine": WeightedReward(Given(scores))})(handmade(["first", "second"], 2))


def test_scores_of_any_number_type_become_float32():
    scores = RewardSet({"mine": WeightedReward(Given(torch.tensor([1, 0])))})(
        handmade(["a", "b"], 2)
    )["mine"].scores
    assert scores.dtype == torch.float32


def test_a_head_whose_constructor_forgets_its_base_is_told():
    class Forgetful(Given):
        def __init__(self):
            self.limit = 3

    with pytest.raises(TypeError, match=r"head=Forgetful: its __init__ has to call super\(\)"):
        WeightedReward(Forgetful())


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "at least one reward"),
        ({"a": {"weight": 0.0}, "b": {"weight": 0.0}}, r"rewards=\['a', 'b'\]: at least one"),
        (
            {"a": {"gate": Gate("vote", 1.0)}},
            r"gate of reward 'a' names 'vote'; known heads: \['a'\]",
        ),
        ({"a b": {}}, "'a b' must be a plain identifier"),
        ({"../a": {}}, r"'\.\./a' must be a plain identifier"),
        ({"type": {}}, "reward name 'type' is an attribute of torch's modules; choose another"),
        ({"compile": {}}, "reward name 'compile' is an attribute of torch's modules"),
        ({"a": {"weight": math.nan}}, "weight=nan"),
    ],
)
def test_settings_of_the_set_are_checked(rewards, message):
    with pytest.raises(ValueError, match=message):
        RewardSet(
            {
                name: WeightedReward(Given(torch.zeros(1)), **settings)
                for name, settings in rewards.items()
            }
        )
