"""What every reward head, advantage and objective promises, whatever it computes.

A new part joins by one line.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
import torch
from restatement import loss_and_gradient, rows_in, update

from harness.files import ROOT
from harness.forked import on_two_ranks
from harness.models import classifier_folder
from harness.objectives import OBJECTIVES, inputs
from harness.rollouts import handmade, with_observations
from rlif_lightning import rewards
from rlif_lightning.answers.code_tasks import CodeExtractor
from rlif_lightning.environments.base import Episode, Turn
from rlif_lightning.judges.base import Request, RunModels
from rlif_lightning.judges.pairwise import MERITS, PENALTIES, SIDES
from rlif_lightning.judges.rules import RuleJudge, reference_numbers
from rlif_lightning.learning.advantages import GDPO, GRPO, RLOO, Advantage, DrGRPO
from rlif_lightning.learning.baselines import OPO, ReinforcePlusPlus
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.learning.objective_base import ClippedObjective, Objective, ReferenceKL
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.ratio_objectives import CISPO, SAPO
from rlif_lightning.learning.step_advantages import StepDelta
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Rollout
from rlif_lightning.sandbox.pool import Sandbox

SANDBOX = Sandbox("rlimits+")


def digits(completions: list[str], **kwargs) -> list[float]:
    return [float(sum(letter.isdigit() for letter in text)) for text in completions]


def longer(request: Request) -> str:
    """Prefer the longer reply by far."""
    sizes = [float(min(len(request.values[side]), 3)) for side in SIDES]
    none = dict.fromkeys(PENALTIES, 0.0)
    pairs = zip(SIDES, sizes, strict=True)
    return json.dumps({side: dict.fromkeys(MERITS, size / 3) | none for side, size in pairs})


def target_logprob() -> rewards.TargetLogprob:
    """Bound to the embedded model, as a run binds it."""
    policy = PolicyModel(Policy("rlif-arithmetic"))
    head = rewards.TargetLogprob("answer")
    head.bind(RunModels(policy, policy.settings, lambda _: policy, torch.device("cpu"), 0))
    return head


HEADS = {
    "BehaviourVote": lambda: rewards.BehaviourVote(
        extractor=CodeExtractor("continuation"), sandbox=SANDBOX
    ),
    "CheckerReward": lambda: rewards.CheckerReward(
        rewards.GradedAnswer(),
        rewards.JudgeScorer(RuleJudge(lambda request: "Verdict: entailment")),
        evidence=rewards.EvidenceColumn("test"),
    ),
    "ClusterVote": rewards.ClusterVote,
    "CodeTests": lambda: rewards.CodeTests(CodeExtractor("continuation"), sandbox=SANDBOX),
    "DropTruncated": rewards.DropTruncated,
    "EntityRubric": lambda: rewards.EntityRubric(rewards.GoldAnswer()),
    "EnvironmentReward": rewards.EnvironmentReward,
    "FlipWeight": lambda: rewards.FlipWeight(rewards.ClusterVote()),
    "Format": lambda: rewards.Format("[0-9]"),
    "GoldAnswer": rewards.GoldAnswer,
    "GradedAnswer": rewards.GradedAnswer,
    "JudgeHead": lambda: rewards.JudgeHead(
        RuleJudge(lambda request: f"Score: {1 + len(request.values['completion']) % 5}"),
        "{prompt} {completion} {form}",
    ),
    "Length": rewards.Length,
    "MeanLogprob": rewards.MeanLogprob,
    "NegativeEntropy": rewards.NegativeEntropy,
    "OfflineVote": lambda: rewards.OfflineVote(str(ROOT / "tests/data/frozen_votes.jsonl")),
    "OverlongPenalty": lambda: rewards.OverlongPenalty(3, 2),
    "PairwiseJudgeHead": lambda: rewards.PairwiseJudgeHead(
        RuleJudge(longer), "answer", reasons=False
    ),
    "Random": rewards.Random,
    "ReuseRL": rewards.ReuseRL,
    "RewardFunction": lambda: rewards.RewardFunction(digits),
    "RewardModel": lambda: rewards.RewardModel(classifier_folder()),
    "RubricJudgeHead": lambda: rewards.RubricJudgeHead(RuleJudge(reference_numbers)),
    "Rubric": lambda: rewards.Rubric(
        {
            "number": rewards.WeightedCriterion(rewards.Matches("[0-9]"), 2.0, "form"),
            "right": rewards.WeightedCriterion(rewards.Scored(rewards.GoldAnswer())),
            "short": rewards.WeightedCriterion(rewards.Scored(rewards.Length(), 3), -1.0),
        }
    ),
    "SCRL": rewards.SCRL,
    "SelfCertainty": rewards.SelfCertainty,
    "ShortAnswerPenalty": rewards.ShortAnswerPenalty,
    "SimilarityJudgeHead": lambda: rewards.SimilarityJudgeHead(
        RuleJudge(reference_numbers), "answer"
    ),
    "StepRubricJudgeHead": lambda: rewards.StepRubricJudgeHead(RuleJudge(reference_numbers)),
    "TargetLogprob": target_logprob,
    "TrainFirst": lambda: rewards.TrainFirst(2),
    "VoteBand": rewards.VoteBand,
}
ADVANTAGES = [
    GDPO(),
    GDPO("sample"),
    GDPO("token"),
    GDPO(leave_one_out=True),
    GDPO("sample", leave_one_out=True),
    GRPO(),
    GRPO("batch"),
    GRPO("none"),
    DrGRPO(),
    RLOO(),
    ReinforcePlusPlus(),
    ReinforcePlusPlus("sample"),
    OPO(),
    StepDelta(),
]
GROUP = 4
TEXTS = ["1", "2", "1", "no", "3", "3", "4 or 5", "", "7", "7", "7", "8"]


def rollout(order: list[int] | None = None) -> Rollout:
    """Three groups, in another order if asked."""
    code = {
        "prompt": ["def f(x): return x+"] * 3,
        "entry_point": ["f"] * 3,
        "inputs": [["1"], ["2"], ["3"]],
    }
    code |= {"test": [f"def check(f):\n    assert f(1) == {n}" for n in (2, 4, 8)]}
    columns = {"answer": ["1", "3", "7"], "entities": [["1"], ["3", "no"], ["7", "8"]]}
    whole = handmade(TEXTS, GROUP, level=[1, 2, 3], **columns, **code)
    acts = [(Turn("a"), Turn("b", len(text) % 3 / 2)) for text in TEXTS]
    whole = replace(whole, episodes=[Episode(turns, "completed", 4) for turns in acts])
    assert whole.episodes is not None
    if order is None:
        return whole
    rows = torch.tensor([p * GROUP + g for p in order for g in range(GROUP)])
    prompts = replace(
        whole.prompts,
        token_ids=[whole.prompts.token_ids[p] for p in order],
        texts=[whole.prompts.texts[p] for p in order],
        columns={
            name: [values[p] for p in order] for name, values in whole.prompts.columns.items()
        },
        index=whole.prompts.index[order],
    )
    return Rollout(
        prompts,
        whole.completion_ids[rows],
        whole.mask[rows],
        whole.stats.map(lambda values: values[rows]),
        [whole.texts[row] for row in rows],
        whole.ended[rows],
        GROUP,
        episodes=[whole.episodes[row] for row in rows],
    )


def subclasses(kind: type) -> set[type]:
    found = set(kind.__subclasses__()) | {
        grandchild for child in kind.__subclasses__() for grandchild in subclasses(child)
    }
    return {
        cls
        for cls in found
        if cls.__module__.startswith("rlif_lightning.")
        and not inspect.isabstract(cls)
        and not cls.__name__.startswith("_")  # stands for a head where nobody asks one
    }


def test_every_part_of_the_library_is_in_this_suite():
    assert {cls.__name__ for cls in subclasses(rewards.RewardHead)} == set(HEADS)
    assert subclasses(Advantage) == {type(advantage) for advantage in ADVANTAGES}
    assert subclasses(Objective) == {type(objective) for objective in OBJECTIVES}


@pytest.mark.parametrize("name", HEADS)
class TestRewardHeads:
    def test_one_float_per_completion_without_a_gradient(self, name):
        sampled = rollout()
        for values in vars(sampled.stats).values():
            values.requires_grad_()
        scores = rewards.RewardSet({"head": rewards.WeightedReward(HEADS[name]())})(sampled)[
            "head"
        ].scores
        assert scores.shape == (len(TEXTS),)
        assert scores.dtype == torch.float32
        assert bool(scores.isfinite().all()) == HEADS[name]().gives_scores
        assert not scores.requires_grad

    def test_permuting_the_groups_permutes_the_scores(self, name):
        scores = HEADS[name]()(rollout()).scores.view(3, GROUP)
        permuted = HEADS[name]()(rollout([2, 0, 1])).scores.view(3, GROUP)
        assert torch.equal(permuted.nan_to_num(-7.0), scores[[2, 0, 1]].nan_to_num(-7.0))

    def test_observations_change_no_score(self, name):
        """What an environment says is in the row, and the policy did not write it."""
        scores = HEADS[name]()(rollout()).scores
        seen = HEADS[name]()(with_observations(rollout())).scores
        torch.testing.assert_close(seen, scores, rtol=1e-6, atol=1e-7, equal_nan=True)

    def test_the_rollout_is_left_alone(self, name):
        sampled = rollout()
        HEADS[name]()(sampled)
        expected = rollout()
        assert torch.equal(sampled.stats.logprobs, expected.stats.logprobs)
        assert torch.equal(sampled.stats.entropy, expected.stats.entropy)
        assert torch.equal(sampled.mask, expected.mask)
        assert sampled.prompts.columns == expected.prompts.columns


def said(problems: list[int]) -> dict[str, tuple[list[float], dict[str, float]]]:
    """The scores and the figures of each head on some of the groups."""
    outputs = {name: make()(rollout(problems)) for name, make in HEADS.items()}
    return {
        name: (it.scores.tolist(), {k: float(v) for k, v in it.log.items() if "time/" not in k})
        for name, it in outputs.items()
    }


# Of a process's own groups: all processes have as many, and a run averages over processes.
MEANS_OF_GROUPS = {
    "code/solved",
    "rollout/parseable",
    "vote/largest_cluster",
    "vote/negative",
    "vote/positive",
}


def test_two_data_ranks_score_and_log_what_one_does(tmp_path):
    shares, alone = [[0], [1, 2]], said([0, 1, 2])
    parts = on_two_ranks(lambda rank: said(shares[rank]), tmp_path)
    for name, (scores, figures) in alone.items():
        (first, own), (second, other) = (part[name] for part in parts)
        assert first + second == pytest.approx(scores, nan_ok=True), name
        assert own.keys() == other.keys() == figures.keys(), name
        for each, whole in figures.items():
            found = [own[each], other[each]]
            if each in MEANS_OF_GROUPS:
                found = [(found[0] + 2 * found[1]) / 3] * 2
            assert found == pytest.approx([whole] * 2, nan_ok=True), (name, each)


def scores_and_lengths() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rewards_ = torch.randn(2, 5, GROUP, generator=generator)
    rewards_[0, 1, 2] = torch.nan
    return rewards_, torch.tensor([0.5, 2.0]), torch.randint(1, 9, (5, GROUP), generator=generator)


@pytest.mark.parametrize("advantage", ADVANTAGES, ids=str)
class TestAdvantages:
    def test_shape_and_type(self, advantage):
        rewards_, weights, lengths = scores_and_lengths()
        values = advantage(rewards_, weights, lengths)
        assert values.shape == (5, GROUP)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert values.any()
        assert advantage.parts(rewards_, weights, lengths).shape == rewards_.shape

    def test_permuting_the_groups_permutes_the_advantages(self, advantage):
        rewards_, weights, lengths = scores_and_lengths()
        order = [3, 1, 4, 0, 2]
        permuted = advantage(rewards_[:, order], weights, lengths[order])
        torch.testing.assert_close(permuted, advantage(rewards_, weights, lengths)[order])

    @pytest.mark.parametrize("group_size", [1, GROUP])
    def test_nothing_to_compare_gives_exactly_zero(self, advantage, group_size):
        rewards_ = torch.full((2, 3, group_size), 0.1) + torch.arange(3).view(1, 3, 1)
        assert not advantage(rewards_, torch.ones(2), torch.ones(3, group_size)).any()

    def test_a_constant_added_to_a_group_changes_nothing(self, advantage):
        if getattr(advantage, "normalize", "group") == "batch":
            pytest.skip("the spread of the batch includes that between groups")
        rewards_, weights, lengths = scores_and_lengths()
        moved = advantage(rewards_ + torch.arange(5).view(1, 5, 1), weights, lengths)
        torch.testing.assert_close(
            moved, advantage(rewards_, weights, lengths), rtol=1e-4, atol=1e-5
        )

    def test_it_is_frozen(self, advantage):
        with pytest.raises(AttributeError):
            advantage.eps = 1.0


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
class TestObjectives:
    def test_marks_are_among_the_update_s_tokens(self, objective):
        batch = inputs(objective)
        marks = objective.select(batch)
        assert marks.shape == batch.mask.shape
        assert marks.dtype in (torch.bool, torch.float32)
        assert not marks[~batch.mask].any()
        assert bool(marks.any()) == hasattr(objective, "fraction")

    def test_loss_and_gradient_are_finite_also_at_equal_logprobs(self, objective):
        moved = inputs(objective)
        for batch in (moved, replace(moved, logprobs=moved.old_logprobs)):
            loss, gradient = loss_and_gradient(objective, batch, objective.select(batch))
            assert loss.shape == gradient.shape == batch.mask.shape
            assert loss.isfinite().all()
            assert gradient.isfinite().all()
            assert gradient.any()

    def test_observations_change_no_gradient(self, objective):
        """Columns that nobody drew, with values that nobody could read unnoticed."""
        batch, shape = inputs(objective), update().mask.shape

        def widened(values):
            is_token = isinstance(values, torch.Tensor) and values.shape[:2] == shape
            if not is_token:
                return values
            seen = torch.full_like(values[:, :2], 0 if values.dtype == torch.bool else 3)
            return torch.cat([values[:, :1], seen, values[:, 1:]], 1)

        teacher = batch.teacher
        if teacher is not None:
            teacher = type(teacher)(*map(widened, vars(teacher).values()))
        seen = replace(batch, **{name: widened(each) for name, each in vars(batch).items()})
        seen, marks = replace(seen, teacher=teacher), objective.select(batch)
        assert not objective.select(seen)[:, 1:3].any()

        def gradient(of: LossInputs, marks: torch.Tensor) -> torch.Tensor:
            weights = aggregation_weights(of.mask, objective.aggregation, 20)
            leaf = of.logprobs.clone().requires_grad_()
            loss = objective.token_loss(replace(of, logprobs=leaf), marks) * weights
            return torch.autograd.grad(loss.sum(), leaf, allow_unused=True)[0]

        plain, found = gradient(batch, marks), gradient(seen, widened(marks))
        if plain is None:  # its gradient comes through other inputs
            assert found is None
            return
        assert not found[:, 1:3].any()
        kept = torch.cat([found[:, :1], found[:, 3:]], 1)
        torch.testing.assert_close(kept, plain, rtol=1e-6, atol=1e-8)

    def test_permuting_the_rows_permutes_the_loss(self, objective):
        batch, order = inputs(objective), [3, 0, 5, 1, 4, 2]
        marks = objective.select(batch)
        assert torch.equal(objective.select(rows_in(batch, order)), marks[order])
        losses = loss_and_gradient(objective, rows_in(batch, order), marks[order])
        assert torch.equal(losses[0], loss_and_gradient(objective, batch, marks)[0][order])

    def test_its_null_setting_is_clipped(self, objective):
        if not isinstance(objective, Clipped) and not hasattr(objective, "fraction"):
            pytest.skip("it has none; see the next test")
        null = replace(objective, fraction=0.0) if hasattr(objective, "fraction") else objective
        shared = {name: getattr(null, name) for name in vars(Clipped())}
        batch = update()
        marks = null.select(batch)
        assert not marks.any()
        found, expected = (loss_and_gradient(o, batch, marks) for o in (null, Clipped(**shared)))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])

    def test_at_ratio_one_its_gradient_is_that_of_clipped(self, objective):
        """Summed with its own aggregation; one advantage a completion, as GRPO has it."""
        if not objective.uses_advantages:
            pytest.skip("its gradient has tests of its own: test_distil.py, test_supervised.py")
        if hasattr(objective, "fraction"):
            objective = replace(objective, fraction=0.0)
        given = update()
        each = given.advantages[:, :1].expand_as(given.mask)
        batch = replace(given, logprobs=given.old_logprobs, advantages=each)
        names = ("aggregation", "entropy_bonus", "reference_kl")
        clipped = Clipped(**{name: getattr(objective, name) for name in names})
        weights = aggregation_weights(batch.mask, objective.aggregation, 20)

        def gradient(one: Objective) -> torch.Tensor:
            leaf = batch.logprobs.clone().requires_grad_()
            loss = one.token_loss(replace(batch, logprobs=leaf), one.select(batch))
            return torch.autograd.grad((loss * weights).sum(), leaf)[0]

        torch.testing.assert_close(gradient(objective), gradient(clipped), atol=1e-6, rtol=0)

    def test_tokens_that_it_holds_have_no_gradient(self, objective):
        if not objective.uses_advantages:
            pytest.skip("it holds none, and a last token answers for no later one")
        if hasattr(objective, "fraction"):
            objective = replace(objective, fraction=0.0)
        plain = replace(objective, entropy_bonus=0.0, reference_kl=ReferenceKL())
        batch = update()
        held = plain.held(batch)
        assert held.shape == batch.mask.shape
        assert held.dtype == torch.bool
        _, gradient = loss_and_gradient(plain, batch, plain.select(batch))
        assert torch.equal((gradient == 0) & batch.mask, held & batch.mask)
        assert bool((held & batch.mask).any()) == (not isinstance(objective, CISPO | SAPO))

    def test_it_is_frozen_and_replaced_as_a_whole(self, objective):
        with pytest.raises(AttributeError):
            objective.entropy_bonus = 0.1
        assert replace(objective, entropy_bonus=0.3).entropy_bonus == 0.3
        with pytest.raises(ValueError, match="aggregation='sum'"):
            replace(objective, aggregation="sum")
        if isinstance(objective, ClippedObjective):
            with pytest.raises(ValueError, match=r"clip_low=0\.0"):
                replace(objective, clip_low=0.0)
