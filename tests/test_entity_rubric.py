"""The entity rubric: golden numbers, restatements, what it sees and refuses, and whole runs."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.files import ROOT
from harness.launches import BASE as DISTRIBUTED
from harness.launches import assert_two_are_one
from harness.python_runs import ROWS, Run, at, data, module
from harness.rollouts import Given, handmade
from harness.runs import fit
from rlif_lightning import (
    GRPO,
    EntityRubric,
    GoldAnswer,
    Random,
    Sampling,
    WeightedReward,
)
from rlif_lightning.data.entity_names import names, recall, spelled
from rlif_lightning.judges.rules import RuleJudge
from rlif_lightning.rewards import DropTruncated, RewardSet, RubricJudgeHead
from rlif_lightning.rewards.entity_rubric import traced_scores

NAN = math.nan
OVERLAY = f"--config={ROOT / 'configs' / 'related' / 'longtrace.yaml'}"


def scored(outcomes: list, recalls: list, eta: float = 0.3, positive: bool = True) -> list[float]:
    given_ = (torch.tensor([each], dtype=torch.float64) for each in (outcomes, recalls))
    return traced_scores(*given_, eta, positive)[0].tolist()


@pytest.mark.parametrize(
    ("outcomes", "recalls", "positive", "expected"),
    [
        ([1, 1, 0], [0.5, 0.25, 0], True, [1.0, 0.85, 0.0]),  # the golden case
        ([1, 1, 0], [0.5, 0.25, 0.5], True, [1.0, 0.85, 0.0]),
        ([1, 1, 0], [0.5, 0.25, 0.5], False, [1.0, 0.85, 0.3]),
        ([1, 0], [0.5, 1.0], True, [0.85, 0.0]),  # a wrong one has the group's highest recall
        ([1, 0], [0.0, 0.0], True, [0.7, 0.0]),  # the highest recall is 0
        ([1, 0], [NAN, NAN], True, [NAN, NAN]),  # a problem without entities
        ([1, NAN, 0.5], [1.0, 1.0, 0.5], True, [1.0, NAN, 0.5]),
        ([1, -1], [1.0, 1.0], True, [1.0, -1.0]),
    ],
)
def test_scores_by_hand(outcomes, recalls, positive, expected):
    found = scored(outcomes, recalls, positive=positive)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def restated(outcomes: list[float], recalls: list[float], eta: float, positive: bool) -> list:
    """The published code's rule, one completion after the other."""
    found = []
    for outcome, rubric in zip(outcomes, recalls, strict=True):
        if max(recalls) > 0:
            rubric /= max(recalls)
        if positive and outcome == 0:
            found.append(outcome)
        else:
            found.append((1 - eta) * outcome + eta * rubric)
    return found


COMPLETIONS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 4)), min_size=1, max_size=8
)


@given(COMPLETIONS, st.sampled_from([0.1, 0.3, 0.5, 1.0]), st.booleans())
def test_scores_match_a_restatement(completions, eta, positive):
    outcomes = [outcome for outcome, _ in completions]
    recalls = [found / 4 for _, found in completions]
    expected = restated(outcomes, recalls, eta, positive)
    assert scored(outcomes, recalls, eta, positive) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel-Tower, in  PARIS!", "the eiffel tower in paris"),
        ("U.S.A. snake_case 1,000", "u s a snake_case 1 000"),
        ("中文x", "中 文 x"),
        ("Москва, Café", "москва caf é"),
        ("... !", ""),
    ],
)
def test_spelling_by_hand(text, expected):
    assert spelled(text) == expected


@given(st.text(st.sampled_from("abzAZ09_ .-!\n中文龥"), max_size=12))
def test_spelling_is_the_published_one_where_that_knows_the_letters(text):
    published = re.findall(r"[a-zA-Z0-9_]+|[\u4e00-\u9fff]", text.lower().strip())
    assert spelled(text) == " ".join(published)


def test_an_entity_is_named_where_its_words_are():
    text = "Joanna saw the Eiffel Tower."
    assert names(text, ["eiffel-tower", "tower eiffel", "Ann", "Paris"]) == [
        True,
        False,
        True,
        False,
    ]
    assert names(text, ["Москва", "!"]) == [False, False]  # the published rule would find both
    assert recall(text, ["Joanna", "Paris", "Paris", "!"]) == pytest.approx(1 / 3)
    assert math.isnan(recall(text, []))
    assert math.isnan(recall(text, ["!"]))


def rubric_on(texts: list[str], entities: list, outcome, **settings):
    rollout = handmade(texts, len(texts) // len(entities), entities=entities)
    return EntityRubric(outcome, **settings)(rollout)


def test_the_head_by_hand():
    """Two groups of two: recalls 1 and 1/2, 0 and none."""
    texts = ["Ada, Bo. Bo", "Ada Bo</think> Bo", "Ada</think>", "x"]
    right = Given(torch.tensor([1.0, 1.0, 0.0, 1.0]), needs_gold=True)
    found = rubric_on(texts, [["Ada", "Bo"], ["Ada"]], right)
    assert found.scores.tolist() == pytest.approx([1.0, 0.85, 0.0, 0.7])
    assert found.scores.dtype == torch.float32
    assert found.log == {"entity/recall": 1.5 / 4, "entity/recall_wrong": 0.0}
    assert found.columns["entity_recall"] == [1.0, 0.5, 0.0, 0.0]


def test_a_thought_that_has_not_ended_names_nothing():
    """It would raise the maximum of its group, and halve what the right completion gets."""
    texts = ["<think>Ada? Bo?</think>Bo", "<think>Ada, Bo, Ada, Bo"]
    found = rubric_on(texts, [["Ada", "Bo"]], Given(torch.tensor([1.0, 0.0])))
    assert found.columns["entity_recall"] == [0.5, 0.0]
    assert found.scores.tolist() == pytest.approx([1.0, 0.0])


def test_problems_without_entities_have_no_score_and_are_in_no_figure():
    found = rubric_on(["Ada", "Bo", "Ada", "Bo"], [None, ["Bo"]], Given(torch.ones(4)))
    assert found.scores.tolist() == pytest.approx([NAN, NAN, 0.7, 1.0], nan_ok=True)
    assert found.log["entity/recall"] == 0.5
    assert math.isnan(found.log["entity/recall_wrong"])


def test_eta_0_returns_the_outcomes_bits():
    outcomes = torch.tensor([0.1, 1 / 3, -2.0, NAN])
    found = rubric_on(["a", "b", "c", "d"], [None, ["a"]], Given(outcomes), eta=0.0)
    assert torch.equal(found.scores.nan_to_num(7.0), outcomes.nan_to_num(7.0))


def test_what_the_outcome_drops_is_dropped():
    judge = RuleJudge(lambda request: "Score: 5" if "Ada" in request.values["completion"] else "?")
    rollout = handmade(["Ada", "Bo"], 2, entities=[["Ada"]], answer=["Ada"])
    found = EntityRubric(RubricJudgeHead(judge, truncated="ask"))(rollout)
    assert found.keep_mask is not None
    assert found.keep_mask.tolist() == [True, False]
    assert found.scores.tolist() == pytest.approx([1.0, NAN], nan_ok=True)
    assert found.log["judge/questions"] == 2


def test_gold_is_shown_to_who_declares_it_alone():
    free, supervised = Given(torch.ones(2)), Given(torch.ones(2), needs_gold=True)
    for outcome, seen in ((free, set()), (supervised, {"entities", "answer"})):
        head = EntityRubric(outcome)
        assert head.needs_gold
        assert head.gold_columns == ("entities",)
        given_ = RewardSet({"trace": WeightedReward(head)}, "answer")
        given_(handmade(["a", "b"], 2, entities=[["a"]], answer=["a"]))
        assert outcome.seen == seen
    assert EntityRubric(GoldAnswer()).gold_columns == ("entities", "answer")
    free.columns = ("entities",)
    with pytest.raises(ValueError, match="names the column 'entities', which shows the gold"):
        RewardSet({"trace": WeightedReward(EntityRubric(free))})


class Asking(Given):
    """Begins something in ``start``, as a judge's questions are."""

    waits = False

    def start(self, rollout) -> None:
        self.waits = True

    def abandon(self) -> None:
        self.waits = False


def test_an_outcome_that_asks_is_started_and_abandoned():
    head = EntityRubric(Asking(torch.ones(2)))
    assert not head.waits
    head.start(handmade(["a", "b"], 2, entities=[["a"]]))
    assert head.waits
    head.abandon()
    assert not head.waits


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["Ada"], "row 0 of train has 'Ada', of type str; give a list of texts"),
        ([["Ada"], [3]], r"row 1 of train has \[3\], of type list; give a list of texts"),
        ([["Ada", "?!"]], r"row 0 of train has the entity '\?!', which has no letter"),
        ([None, []], "no row of train has entities"),
    ],
)
def test_columns_that_hold_no_entities_are_refused(values, message):
    with pytest.raises(ValueError, match=rf"EntityRubric.column='entities': {message}"):
        EntityRubric(GoldAnswer()).check_gold("entities", enumerate(values), "train")


def test_problems_without_entities_are_counted():
    head = EntityRubric(GoldAnswer())
    said = head.check_gold("entities", enumerate([["Ada"], None, []]), "train")
    assert said is not None
    assert "2 of 3 rows have no entities" in said
    assert head.check_gold("entities", enumerate([["Ada"]]), "train") is None


@pytest.mark.parametrize(
    ("outcome", "eta", "message"),
    [
        (GoldAnswer(), 1.5, r"eta=1.5 must lie in \[0, 1\]"),
        (DropTruncated(), 0.3, "head=DropTruncated gives no scores"),
    ],
)
def test_what_cannot_be_meant_is_refused(outcome, eta, message):
    with pytest.raises(ValueError, match=message):
        EntityRubric(outcome, eta=eta)


TRACED = [row | {"entities": [row["answer"], "7", "12"]} for row in ROWS]


def made(head, folder, rollouts: int = 2, **way) -> Run:
    """Twelve completions are a rollout; the embedded model's are right or wrong."""
    model = module(rewards={"gold": WeightedReward(head)}, advantage=GRPO(), **way.pop("more", {}))
    problems = data(source=TRACED, answer_column="answer", group_size=6, prompts_per_rollout=2)
    return Run(folder, rollouts, model, problems, **way)


@pytest.mark.full  # the bits of the scores: above
def test_eta_0_trains_as_the_outcome_alone_bit_for_bit(tmp_path):
    more = {"sampling": Sampling(max_new_tokens=24)}
    heads = {"outcome": GoldAnswer(), "null": EntityRubric(GoldAnswer(), eta=0.0)}
    heads["rubric"] = EntityRubric(GoldAnswer())
    states = {name: made(head, tmp_path / name, more=more).state() for name, head in heads.items()}
    same = {
        name: torch.equal(value, states["null"][name]) for name, value in states["outcome"].items()
    }
    assert all(same.values())
    assert any(
        not torch.equal(value, states["rubric"][name])
        for name, value in states["outcome"].items()
        if value.is_floating_point()
    )


@pytest.mark.slow
def test_a_resumed_run_keeps_the_outcomes_state(tmp_path):
    """The coin counts its calls in a buffer; the outcome may also be label-free."""
    whole = made(EntityRubric(Random()), tmp_path / "whole", 2)
    path = at(whole.folder / "checkpoints", 1)
    again = made(EntityRubric(Random()), tmp_path / "again", 2, ckpt_path=path)
    left, right = whole.state(), again.state()
    assert int(whole.module.rewards.heads["gold"].head.calls) == 2
    assert not [name for name, value in left.items() if not torch.equal(value, right[name])]


def problem_file(folder) -> str:
    """Sums in the columns that the builder writes."""
    path = folder / "sums.jsonl"
    rows = [{**row, "prompt": row.pop("question"), "hops": 2} for row in map(dict, TRACED)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return json.dumps({"train": str(path), "validation": str(path)})


@pytest.mark.full  # test_commands_in_docs.py parses it; eta=0 trains
def test_the_overlay_trains_with_the_papers_values(tmp_path):
    given_ = f"--data.source.init_args={problem_file(tmp_path)}"
    run = fit(tmp_path, OVERLAY, given_, "--data.prompts_per_rollout=8")
    head = run.model.rewards.heads["trace"]
    assert (head.eta, head.positive_only, head.column) == (0.3, True, "entities")
    assert isinstance(head.head, GoldAnswer)
    assert run.model.advantage == GRPO()
    [group] = run.trainer.optimizers[0].param_groups
    assert (group["weight_decay"], group["betas"]) == (0.1, (0.9, 0.98))
    assert (run.model.objective.clip_low, run.model.objective.clip_high) == (0.2, 0.28)
    assert run.trainer.global_step == 2
    logged = run.trainer.callback_metrics
    assert 0 < float(logged["entity/recall"]) <= 1


@pytest.mark.full  # test_contracts.py has the head on two ranks
def test_two_processes_are_one(tmp_path):
    given_ = [*DISTRIBUTED, OVERLAY, f"--data.source.init_args={problem_file(tmp_path)}"]
    given_ += ["--data.prompts_per_rollout=4", "--model.optimizer.init_args.lr=1e-3"]
    given_ += ["--trainer.limit_val_batches=0", "--trainer.limit_train_batches=4"]
    given_ = [each for each in given_ if ".size=" not in each and "validation_size" not in each]
    logged = assert_two_are_one(tmp_path, given_)
    assert 0 < float(logged[-1]["entity/recall"]) <= 1
