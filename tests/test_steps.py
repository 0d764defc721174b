"""Scores of steps: where steps end, what a judge is asked about them, and their advantages."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness.launches import BASE, assert_same_runs, launch, metrics, on
from harness.rollouts import handmade
from harness.runs import ONE, assert_same, fit, parameters
from rlif_lightning import GRPO, RuleJudge, ScoreParser, StepRubricJudgeHead
from rlif_lightning.judges.base import Request
from rlif_lightning.learning.rollout_advantages import score_rollout
from rlif_lightning.learning.scored_rollouts import ScoredRollout, assembled
from rlif_lightning.learning.step_advantages import StepDelta, spread
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards import Gate, RewardHead, RewardSet, WeightedReward
from rlif_lightning.rewards.step_scores import StepScores, split_text, token_ends

NAN = math.nan


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a ### b ### c", ["a ", "### b ", "### c"]),
        ("### a ### b", ["### a ", "### b"]),
        ("a ### ### b", ["a ", "### ### b"]),
        ("a ### b ###", ["a ", "### b ###"]),
        ("no step", ["no step"]),
        ("###", ["###"]),
        ("", [""]),
        ("a#### b", ["a", "#### b"]),
    ],
)
def test_a_delimiter_opens_a_step(text, steps):
    ends = split_text(text, "###")
    assert [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] == steps


@pytest.mark.parametrize(
    ("tokens", "last"),
    [
        (["a", " ", "###", "b", "###", "c"], [1, 3, 5]),
        (["a #", "##b", "###", "c"], [0, 1, 3]),  # the delimiter begins inside of a token
        (["a ##", "#b##", "#c"], [0, 1, 2]),
        (["a###b###c"], [0, 0, 0]),
        (["a", " ", "###b#", "##c", "", ""], [1, 2, 5]),
    ],
)
def test_a_step_ends_with_the_token_that_holds_its_last_character_first(tokens, last):
    text = "".join(tokens)
    found = token_ends(
        split_text(text, "###"), len(tokens), lambda number: "".join(tokens[:number])
    )
    assert found == last


def steps(*scores: list[float], ends: list[list[int]] | None = None) -> StepScores:
    ends = ends or [[2 * number + 1 for number in range(len(each))] for each in scores]
    return StepScores.of(ends, scores, torch.device("cpu"))


def of(advantage: StepDelta, given: StepScores, tokens: list[int], group_size: int) -> list:
    mask = torch.arange(max(tokens)) < torch.tensor(tokens).unsqueeze(1)
    return advantage.of_steps(given, mask, group_size).tolist()


def test_delta_by_hand():
    """1/4 - 1/2, 3/4 - 1/4, 1/2 - 3/4; two tokens each. The values of the steps sum to 0."""
    found = of(StepDelta(), steps([0.25, 0.75, 0.5]), [6], 1)
    assert found == [[-0.25, -0.25, 0.5, 0.5, -0.25, -0.25]]


def test_end_by_hand():
    found = of(StepDelta("end"), steps([0.25, 0.75, 0.5]), [6], 1)
    assert found == [[-0.25, -0.25, 0.25, 0.25, 0.0, 0.0]]


def test_group_and_batch_by_hand():
    """Tokens of the first group: 0, 0, 1, 1 and 1/2 twice, mean 1/2; of the second: 1 and 0, 0, 0,
    mean 1/4. All ten: (3 + 1) / 10.
    """
    given = steps([0.0, 1.0], [0.5], [1.0], [0.0], ends=[[1, 3], [1], [0], [2]])
    group = of(StepDelta("group"), given, [4, 2, 1, 3], 2)
    assert group[0] == [-0.5, -0.5, 0.5, 0.5]
    assert group[1:] == [[0.0] * 4, [0.75, 0, 0, 0], [-0.25, -0.25, -0.25, 0]]
    batch = of(StepDelta("batch"), given, [4, 2, 1, 3], 2)
    assert batch[0] == pytest.approx([-0.4, -0.4, 0.6, 0.6])
    assert batch[2] == pytest.approx([0.6, 0, 0, 0])


def test_one_step_is_zero_or_its_score():
    given = steps([0.75], [NAN])
    for baseline in ("delta", "end"):
        assert of(StepDelta(baseline), given, [3, 2], 2) == [[0.0] * 3] * 2
        raw = of(StepDelta(baseline, single_segment="raw"), given, [3, 2], 2)
        assert raw == [[0.75] * 3, [0.0] * 3]
    longer = of(StepDelta(single_segment="raw"), steps([0.25, 0.75]), [4], 1)
    assert longer == of(StepDelta(), steps([0.25, 0.75]), [4], 1)


def test_steps_without_scores_and_padding_have_no_advantage():
    given = steps([0.0, 1.0], [], ends=[[0, 1], []])
    assert of(StepDelta(), given, [2, 3], 2) == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_against_a_restatement_in_loops():
    generator = torch.Generator().manual_seed(0)
    tokens = [9, 4, 7, 1]
    scores, ends = [], []
    for length in tokens:
        number = min(length, int(torch.randint(1, 4, (), generator=generator)))
        scores.append(torch.rand(number, generator=generator).tolist())
        inner = torch.randperm(length - 1, generator=generator)[: number - 1].sort().values
        ends.append([*inner.tolist(), length - 1])
    found = of(StepDelta(), steps(*scores, ends=ends), tokens, 2)
    for row, (length, s, e) in enumerate(zip(tokens, scores, ends, strict=True)):
        for position in range(max(tokens)):
            value = 0.0
            if position < length:
                t = next(t for t, end in enumerate(e) if position <= end)
                value = s[0] - s[-1] if t == 0 else s[t] - s[t - 1]
            assert found[row][position] == pytest.approx(value)


def test_a_step_without_tokens_is_skipped():
    mask = torch.ones(1, 3, dtype=torch.bool)
    values, ends = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0, 0, 2]])
    assert spread(values, ends, values > 0, mask).tolist() == [[1.0, 3.0, 3.0]]


class Stepped(RewardHead):
    """Gives fixed steps."""

    gives_steps = True

    def __init__(self, steps: StepScores, keep: torch.Tensor | None = None):
        super().__init__()
        self.steps, self.keep = steps, keep

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(self.steps.scores.nanmean(1), self.keep, steps=self.steps)


def test_other_heads_count_beside_the_steps():
    """Rows of 1, 2, 3 and 1 tokens. The lengths minus their group's means are -1/2, 1/2, 1, -1,
    with weight 0.1; the steps' weight is 2.
    """
    rollout = handmade(["a", "b", "c", "d"], 2)
    given = steps([0.5], [0.0, 1.0], [0.2, 0.4, 0.9], [0.3], ends=[[0], [0, 1], [0, 1, 2], [0]])
    heads = RewardSet(
        {"steps": WeightedReward(Stepped(given), 2.0), "length": WeightedReward(Lengths(), 0.1)}
    )
    weights, ones = heads.weights, torch.ones(4, 3) / 7
    advantages, logged = score_rollout(rollout, heads(rollout), StepDelta(), weights, ones)
    expected = [
        [-0.05, 0.0, 0.0],
        [-2 + 0.05, 2 + 0.05, 0.0],
        [-1.4 + 0.1, 0.4 + 0.1, 1.0 + 0.1],
        [-0.1, 0.0, 0.0],
    ]
    torch.testing.assert_close(advantages * rollout.mask, torch.tensor(expected))
    # |A| of a completion's steps is the mean of its tokens: 2 and 2.8 / 3; of lengths 0.3 in all.
    share = (2 + 2.8 / 3) / (2 + 2.8 / 3 + 0.3)
    assert float(logged["reward/steps/share"]) == pytest.approx(share)
    norm = math.sqrt(4 + 4 + 1.4**2 + 0.4**2 + 1) / 7
    assert float(logged["reward/steps/gradient_norm"]) == pytest.approx(norm)
    assert float(logged["reward/steps/mean"]) == pytest.approx((0.5 + 0.5 + 0.5 + 0.3) / 4)


class Lengths(RewardHead):
    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(rollout.lengths.float())


def test_another_estimator_sees_one_score_per_completion():
    rollout = handmade(["a", "b"], 2)
    heads = RewardSet({"steps": WeightedReward(Stepped(steps([0.5], [0.0, 1.0])))})
    advantages, _ = score_rollout(rollout, heads(rollout), GRPO(), heads.weights)
    assert not advantages.any()


def test_what_a_gate_or_another_head_takes_out_has_no_steps():
    rollout = handmade(["a", "b"], 2)
    given = steps([0.0, 1.0], [0.0, 1.0], ends=[[0, 1], [0, 1]])
    gated = WeightedReward(Stepped(given), gate=Gate("length", at_least=2.0))
    for heads in (
        {"steps": gated, "length": WeightedReward(Lengths(), 0.0)},
        {"steps": WeightedReward(Stepped(given, torch.tensor([False, True])))},
    ):
        rewards = RewardSet(heads)
        advantages, _ = score_rollout(rollout, rewards(rollout), StepDelta(), rewards.weights)
        assert advantages.tolist() == [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]


def test_groups_of_several_draws_keep_their_steps():
    few, many = steps([0.1], [0.2]), steps([0.3, 0.4, 0.5], [0.6])
    draws = []
    for given in (few, many):
        rollout = handmade(["a", "b"], 2)
        output = {"steps": RewardOutput(torch.zeros(2), steps=given)}
        draws.append(ScoredRollout(rollout, output, torch.tensor(0), 0.0))
    _, outputs = assembled(draws, [(1, 0), (0, 0)])
    found = outputs["steps"].steps.scores
    expected = [[0.3, 0.4, 0.5], [0.6, -1, -1], [0.1, -1, -1], [0.2, -1, -1]]
    torch.testing.assert_close(found.nan_to_num(-1), torch.tensor(expected))


def test_steps_of_a_wrong_shape_are_refused():
    rollout = handmade(["a", "b"], 2)
    head = Stepped(steps([0.5]))
    head.forward = lambda rollout: RewardOutput(torch.zeros(2), steps=steps([0.5]))
    with pytest.raises(RuntimeError, match=r"steps of shape \(1, 1\)"):
        RewardSet({"steps": WeightedReward(head)})(rollout)


def by_letters(request: Request) -> str:
    """Score 1 + the number of letters; nothing for a "?"."""
    text = request.values["completion"]
    return "Hm." if "?" in text else f"Score: {1 + sum(map(str.isalpha, text))}"


def head(texts: list[str], **settings) -> tuple[StepRubricJudgeHead, Rollout, list[str]]:
    """A head and a rollout with a token for each character."""
    seen: list[str] = []

    def rule(request: Request) -> str:
        seen.append(request.values["completion"])
        return by_letters(request)

    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids = torch.tensor([[ord(c) for c in text.ljust(mask.shape[1])] for text in texts])
    rollout = handmade(texts, len(texts), answer=["x"])
    zeros = torch.zeros(mask.shape)
    stats = rollout.stats.map(lambda values: zeros)
    ended = torch.ones(len(texts), dtype=torch.bool)
    rollout = replace(rollout, completion_ids=ids, mask=mask, stats=stats, ended=ended)
    settings = {"delimiter": ";", "template": "{completion}{reference}", **settings}
    made = StepRubricJudgeHead(RuleJudge(rule), **settings)
    made._tokenizer = SimpleNamespace(
        decode=lambda ids, skip_special_tokens: "".join(map(chr, ids.tolist()))
    )
    return made, rollout, seen


def test_a_judge_sees_one_step_or_all_up_to_its_end():
    """Segments "ab", ";c": scores 3 and 2, in [0, 1] 1/2 and 1/4. Prefixes: 3 and 4."""
    segment, rollout, seen = head(["ab;c", "d"])
    output = segment(rollout)
    assert seen == ["ab", ";c", "d"]
    assert output.steps.ends.tolist() == [[1, 3], [0, 0]]
    assert output.steps.scores.nan_to_num(-1).tolist() == [[0.5, 0.25], [0.25, -1]]
    assert output.scores.tolist() == [0.375, 0.25]
    assert output.log["judge/steps"] == 1.5
    prefix, rollout, seen = head(["ab;c", "d"], scope="prefix")
    output = prefix(rollout)
    assert seen == ["ab", "ab;c", "d"]
    assert output.scores.tolist() == [0.75, 0.25]


def test_one_step_that_cannot_be_read_takes_the_completion_out():
    own, rollout, _ = head(["ab;?", "a;b"])
    output = own(rollout)
    assert output.keep_mask.tolist() == [False, True]
    assert output.scores.isnan().tolist() == [True, False]
    assert output.steps.scores[0].isnan().all()
    zero, rollout, _ = head(["ab;?", "a;b"], parser=ScoreParser(unparsed="zero"))
    assert zero(rollout).steps.scores[0].tolist() == [0.5, 0.0]


def test_a_truncated_completion_has_score_zero_and_no_step():
    own, rollout, seen = head(["ab;c", "d"])
    output = own(replace(rollout, ended=torch.tensor([False, True])))
    assert seen == ["d"]
    assert output.scores.tolist() == [0.0, 0.25]
    assert output.steps.scores[0].isnan().all()
    assert output.log["judge/steps"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepRubricJudgeHead(RuleJudge(str), scope="token"), "scope='token'"),
        (lambda: StepRubricJudgeHead(RuleJudge(str), delimiter=" "), "delimiter=' '"),
        (lambda: StepDelta("mean"), "baseline='mean'"),
        (lambda: StepDelta(single_segment="one"), "single_segment='one'"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


JUDGE = {"class_path": "RuleJudge", "init_args": {"rule": "test_steps.digits"}}


def digits(request: Request) -> str:
    """Score by the number of digits, from 1 to 5."""
    return f"Score: {1 + sum(map(str.isdigit, request.values['completion'])) % 5}"


def rewards(name: str, **settings) -> str:
    arguments = {"judge": JUDGE, "template": "{completion} {reference}", **settings}
    made = {"class_path": name, "init_args": arguments}
    return "--model.rewards=" + json.dumps({"judge": {"head": made, "weight": 1.0}})


@pytest.mark.full  # a judge sees one step, and its score is the completion's: above
def test_one_segment_under_grpo_is_the_outcome_head_bit_for_bit(tmp_path):
    process = rewards("StepRubricJudgeHead", delimiter="never")
    runs = [
        parameters(fit(tmp_path / name, *ONE, "--model.advantage=GRPO", given))
        for name, given in (("process", process), ("outcome", rewards("RubricJudgeHead")))
    ]
    assert_same(*runs)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("RubricJudgeHead", "keep", "StepDelta needs a reward that scores steps"),
        ("StepRubricJudgeHead", "neutral", "rewards.judge.length=neutral"),
    ],
)
def test_an_estimator_of_steps_refuses_what_it_cannot_read(tmp_path, capsys, name, length, message):
    given = rewards(name).replace('"weight"', f'"length": "{length}", "weight"')
    with pytest.raises(SystemExit):
        fit(tmp_path, "--model.advantage=StepDelta", given)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_steps_on_two_processes_are_those_of_one(tmp_path):
    given = [*BASE, rewards("StepRubricJudgeHead", delimiter=";", truncated="ask")]
    runs = {
        name: [*given, f'--model.advantage={{"class_path": "StepDelta", "init_args": {arguments}}}']
        for name, arguments in (("delta", "{}"), ("batch", '{"baseline": "batch"}'))
    }
    small = ["--model.update.micro_batch_tokens=60"]
    launch(tmp_path / "one", runs)
    two = {name: [*run, *on("ddp", 2), *small] for name, run in runs.items()}
    launch(tmp_path / "two", two, forks=2)
    for name in runs:
        assert_same_runs((tmp_path / "one", name), (tmp_path / "two", name))
        assert metrics(tmp_path / "one", name)[1]["judge/steps"] > 1
