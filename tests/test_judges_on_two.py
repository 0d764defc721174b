"""A judge on two processes: failures are counted over both, and both stop; under tensor parallelism
the first one asks.
"""

from __future__ import annotations

import torch

from harness.forked import on_two_ranks
from rlif_lightning.judges.asking import JudgeError, ask_all
from rlif_lightning.judges.base import Request
from rlif_lightning.judges.rules import RuleJudge
from rlif_lightning.processes.ranks import share_completions

CPU = torch.device("cpu")


def fails(request: Request) -> str:
    if request.text == "bad":
        raise RuntimeError("no connection")
    return f"Score: {request.text}"


def test_failures_are_counted_over_both(tmp_path):
    """One of two questions fails on the first process: 1 of 5 in all."""

    def work(rank: int) -> list:
        texts = [["1", "bad"], ["3", "4", "5"]][rank]
        requests = [Request(text) for text in texts]
        replies, log = ask_all(RuleJudge(fails, max_failed=0.2), requests, "judge", CPU)
        texts = [reply.text for reply in replies]
        try:
            ask_all(RuleJudge(fails, max_failed=0.1), requests, "judge", CPU)
        except JudgeError as error:
            return [texts, log["judge/questions"], log["judge/failed"], str(error)]
        return []

    first, second = on_two_ranks(work, tmp_path)
    assert first[:3] == [["Score: 1", None], 5.0, 0.2]
    assert second[:3] == [["Score: 3", "Score: 4", "Score: 5"], 5.0, 0.2]
    for found in (first, second):
        assert "1 of 5 questions" in found[3]
        assert "no connection" in found[3]


def test_a_process_without_questions_takes_part(tmp_path):
    def work(rank: int) -> float:
        requests = [Request("1")] if rank == 0 else []
        return ask_all(RuleJudge(fails), requests, "judge", CPU)[1]["judge/questions"]

    assert on_two_ranks(work, tmp_path) == [1.0, 1.0]


def test_one_process_asks_for_those_that_share_completions(tmp_path):
    def work(rank: int) -> list:
        share_completions(True)
        asked = []

        def rule(request: Request) -> str:
            asked.append(request.text)
            return f"Score: {rank}"

        replies, log = ask_all(RuleJudge(rule), [Request("1"), Request("2")], "judge", CPU)
        return [asked, [reply.text for reply in replies], log["judge/calls"]]

    first, second = on_two_ranks(work, tmp_path)
    assert first == [["1", "2"], ["Score: 0", "Score: 0"], 2.0]
    assert second == [[], ["Score: 0", "Score: 0"], 2.0]
