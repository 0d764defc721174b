"""Rewards by a judge: what is asked, what its reply becomes, and whole runs."""

from __future__ import annotations

import json
import math
import threading

import pytest
import torch

from harness.files import ROOT
from harness.judge_server import judge_server
from harness.rollouts import handmade
from harness.runs import BASE, assert_same, fit, metrics, parameters
from rlif_lightning import EndpointJudge, JudgeHead, RubricJudgeHead, RuleJudge, ScoreParser, cli
from rlif_lightning.judges.base import Request
from rlif_lightning.records import RewardOutput
from rlif_lightning.rewards import RewardHead, RewardSet, WeightedReward

NAN = math.nan


def by_length(request: Request) -> str:
    """Score 1 + characters, fail at "x", say nothing of "?"."""
    completion = request.values["completion"]
    if completion == "x":
        raise RuntimeError("no connection")
    return "Hm." if completion == "?" else f"Score: {1 + len(completion)}"


def scored(head: JudgeHead, texts: list[str], group_size: int = 4, **columns):
    rollout = handmade(texts, group_size, **columns)
    return RewardSet({"judge": WeightedReward(head)})(rollout)["judge"]


def test_the_question_is_the_template_filled_with_this_completion():
    asked = []

    def rule(request: Request) -> str:
        asked.append(request)
        return "Score: 1"

    head = JudgeHead(RuleJudge(rule), "{prompt}|{completion}|{hint.text}|{form}")
    assert head.columns == ("hint.text",)
    scored(head, ["a", "b"], 1, hint=[{"text": "first"}, {"text": "second"}], answer=["1", "2"])
    form = ScoreParser().form
    assert [each.text for each in asked] == [
        f"problem 0|a|first|{form}",
        f"problem 1|b|second|{form}",
    ]
    assert asked[0].schema == ScoreParser().schema


def test_scores_by_hand():
    """Lengths 0, 1, 2, 4 are scores 1, 2, 3, 5 of 5; "truncated" are completions 1 and 3."""
    output = scored(JudgeHead(RuleJudge(by_length), "{completion}"), ["", "a", "ab", "abcd"])
    assert output.scores.tolist() == [0.0, 0.25, 0.5, 1.0]
    head = JudgeHead(RuleJudge(by_length), "{completion}", truncated="zero")
    output = scored(head, ["", "a", "ab", "abcd"])
    assert output.scores.tolist() == [0.0, 0.0, 0.5, 0.0]
    assert output.log["judge/questions"] == output.log["judge/calls"] == 2


@pytest.mark.parametrize(
    ("unparsed", "score", "kept"), [("nan", NAN, True), ("zero", 0.0, True), ("drop", NAN, False)]
)
def test_a_reply_that_cannot_be_read_is_the_parsers_decision(unparsed, score, kept):
    judge = RuleJudge(by_length, max_failed=0.25)
    head = JudgeHead(judge, "{completion}", ScoreParser(unparsed=unparsed))
    output = scored(head, ["a", "?", "x", "ab"])
    assert output.scores.nan_to_num(-1).tolist() == [0.25, -1 if score != 0 else 0.0, -1, 0.5]
    keep = [True] * 4 if output.keep_mask is None else output.keep_mask.tolist()
    assert keep == [True, kept, True, True]  # a failed call never drops a completion
    assert (output.log["judge/unparsed"], output.log["judge/failed"]) == (0.25, 0.25)


def test_more_failures_than_allowed_stop_the_run_by_one_error():
    head = JudgeHead(RuleJudge(by_length), "{completion}")
    with pytest.raises(RuntimeError, match=r"JudgeError: judge: 1 of 4 questions .* no connection"):
        scored(head, ["a", "x", "b", "c"])


def test_a_rubric_judge_sees_the_reference_and_a_judge_head_may_not():
    seen = []

    def rule(request: Request) -> str:
        seen.append(request.text)
        return "Score: 5"

    scored(RubricJudgeHead(RuleJudge(rule), truncated="ask"), ["a"], 1, answer=["SECRET"])
    assert seen[0].count("SECRET") == 1
    head = JudgeHead(RuleJudge(rule), "{completion} {answer}")
    with pytest.raises(ValueError, match=r"'answer'.*without needs_gold"):
        RewardSet({"judge": WeightedReward(head)}, "answer")


def test_a_truncated_completion_scores_zero_without_a_question():
    head = RubricJudgeHead(RuleJudge(lambda request: "Score: 5"))
    output = scored(head, ["a", "b", "c", "d"], answer=["1"])
    assert output.scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert output.log["judge/questions"] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JudgeHead(RuleJudge(str), "Is it good?"), "no .completion."),
        (lambda: JudgeHead(RuleJudge(str), "{completion}", truncated="no"), "truncated='no'"),
        (lambda: RubricJudgeHead(RuleJudge(str), template="{completion}"), "no .reference."),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def only(name: str, **arguments) -> str:
    head = {"class_path": name, "init_args": arguments}
    return "--model.rewards=" + json.dumps({"judge": {"head": head, "weight": 1.0}})


def by_answer(request: Request) -> str:
    """As the gold reward would."""
    right = request.values["completion"].split()[-1:] == [request.values["reference"]]
    return f"verdict: {'yes' if right else 'no'}"


RULE = {"class_path": "RuleJudge", "init_args": {"rule": "test_judge_heads.by_answer"}}


@pytest.mark.full  # test_turing_runs.py judges every reply of a run
def test_a_run_with_a_rubric_judge_learns_and_logs(tmp_path):
    judge = only("RubricJudgeHead", judge=RULE, parser="VerdictParser", truncated="ask")
    run = fit(tmp_path, judge)
    rows = [row for row in metrics(tmp_path) if row.get("judge/questions")]
    assert {row["judge/questions"] for row in rows} == {"32.0"}
    assert all(float(row["judge/unparsed"]) == float(row["judge/failed"]) == 0 for row in rows)
    assert run.trainer.global_step == 8


def test_a_column_that_is_not_there_is_refused_before_anything_is_sampled(tmp_path, capsys):
    judge = only("JudgeHead", judge=RULE, template="{completion} {hint}")
    with pytest.raises(SystemExit):
        fit(tmp_path, judge)
    assert (
        "{hint} of the template (known without a column: prompt, completion, form;"
        in capsys.readouterr().err
    )


@pytest.mark.full  # test_endpoint_judge.py refuses; test_run.py resumes
def test_a_run_that_a_judge_stops_is_resumed_as_if_nothing_had_happened(tmp_path):
    """The server refuses every question of the second rollout."""
    with judge_server() as server:
        endpoint = {"url": server.url, "model": "m", "cache": str(tmp_path / "replies.sqlite")}
        judge = {"class_path": "EndpointJudge", "init_args": endpoint}
        given = only("JudgeHead", judge=judge, template="{prompt} {completion}")
        server.usual = lambda body: f"Score: {1 + len(body['messages'][0]['content']) % 5}"
        whole = parameters(fit(tmp_path / "whole", given))
        (tmp_path / "replies.sqlite").unlink()
        calls, working = [], server.usual

        def soon_down(body):
            calls.append(body)
            return working(body) if len(calls) <= 30 else (401, {}, {})

        server.usual = soon_down
        saving = '--trainer.callbacks+={"class_path": "RunCheckpoints", "init_args": {}}'
        with pytest.raises(RuntimeError, match=r"reward head 'judge' .*answered 401"):
            fit(tmp_path / "stopped", given, saving)
        server.usual = working
        resumed = fit(tmp_path / "stopped", given, saving, "--ckpt_path=auto")
    assert_same(whole, parameters(resumed))


def test_the_judge_of_the_docs_works():
    page = (ROOT / "docs" / "judges.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    names: dict = {"__name__": "my_judge"}
    exec(code, names)
    head = JudgeHead(names["ShortestWins"](limit=2), "{completion}")
    assert scored(head, ["a", "ab", "abc", "ab"]).scores.tolist() == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.slow
def test_preflight_says_what_the_judge_will_cost(tmp_path, capsys):
    """A call has 14 tokens; equal completions of a prompt are asked about once."""
    with judge_server() as server:
        judge = {"class_path": "EndpointJudge", "init_args": {"url": server.url, "model": "m"}}
        server.usual = lambda body: "Score: 3"
        given = only("JudgeHead", judge=judge, template="{prompt} {completion} {form}")
        sampled = ["--prompts=4", f"--trainer.default_root_dir={tmp_path}", given]
        cli.main(["preflight", *(each for each in BASE if "compare" not in each), *sampled])
    printed = " ".join(capsys.readouterr().out.split())
    different = len({body["messages"][0]["content"] for _, body in server.asked})
    calls = 32 * different / 16
    expected = f"a rollout of 32 completions will make about {calls:.0f} calls of {14 * calls:.0f}"
    assert expected in printed
    lines = next(tmp_path.rglob("preflight.jsonl")).read_text().splitlines()
    extra = [json.loads(line)["extra"]["judge"] for line in lines]
    assert {each["judge_reply"] for each in extra} == {"Score: 3"}
    assert sum(each["judge_tokens"] for each in extra) == 14 * different


def test_two_endpoints_are_asked_at_one_time_and_other_heads_score_meanwhile():
    """Each server answers only when the other has been asked and the third head has scored."""
    both, scoring = threading.Barrier(2), threading.Event()

    class Meanwhile(RewardHead):
        def forward(self, rollout):
            scoring.set()
            return RewardOutput(torch.zeros(len(rollout.texts)))

    def usual(body):
        both.wait(60)
        return "Score: 4" if scoring.wait(60) else "late"

    with judge_server() as first, judge_server() as second:
        rewards = {"meanwhile": WeightedReward(Meanwhile())}
        for name, server in (("first", first), ("second", second)):
            server.usual = usual
            judge = EndpointJudge(server.url, "judge", max_concurrent=1)
            rewards = {name: WeightedReward(JudgeHead(judge)), **rewards}
        outputs = RewardSet(rewards)(handmade(["a", "b"], 2))
    assert outputs["first"].scores.tolist() == outputs["second"].scores.tolist() == [0.75, 0.75]


def test_a_head_that_raises_leaves_no_judge_to_wait_for():
    asked = threading.Event()

    class Broken(RewardHead):
        def forward(self, rollout):
            assert asked.wait(60)
            raise ValueError("broken")

    with judge_server() as server:
        server.usual = lambda body: asked.set() or server.HANG
        head = JudgeHead(EndpointJudge(server.url, "judge", timeout=0.2, max_concurrent=1))
        rewards = RewardSet({"broken": WeightedReward(Broken()), "judge": WeightedReward(head)})
        with pytest.raises(RuntimeError, match="broken"):
            rewards(handmade([str(n) for n in range(40)], 2))
        replies = head._started.result()
        assert replies[-1].failure.endswith("the run was interrupted")
        assert len(server.asked) < 10


def test_a_call_that_succeeds_after_an_interruption_lets_no_other_question_through():
    asked, raised = threading.Event(), threading.Event()

    class Broken(RewardHead):
        def forward(self, rollout):
            assert asked.wait(60)
            raise ValueError("broken")

    def usual(body):
        asked.set()
        return "Score: 4" if raised.wait(60) else "late"

    with judge_server() as server:
        server.usual = usual
        head = JudgeHead(EndpointJudge(server.url, "judge", max_concurrent=1))
        rewards = RewardSet({"broken": WeightedReward(Broken()), "judge": WeightedReward(head)})
        with pytest.raises(RuntimeError, match="broken"):
            rewards(handmade([str(n) for n in range(8)], 2))
        raised.set()
        first, *others = head._started.result()
        assert first.text == "Score: 4"
        assert {reply.failure for reply in others} == {"the run was interrupted"}
        assert len(server.asked) == 1
        replies = head.judge.ask([Request("a"), Request("b")])  # of a run that goes on
    assert [reply.text for reply in replies] == ["Score: 4"] * 2
