"""Clusters within a time limit: cheap forms first, a budget per group and rollout, and what is
undecided is told.
"""

from __future__ import annotations

import time
import warnings

import pytest
import torch

from rlif_lightning.answers import extraction, library
from rlif_lightning.answers.final_answers import (
    AnswerExtractor,
    Budget,
    answer_name,
    cluster,
    equivalent,
)
from rlif_lightning.answers.math_verify_process import Verdict, ask
from rlif_lightning.records import Prompts, Rollout, TokenStats
from rlif_lightning.rewards.controls import Format
from rlif_lightning.rewards.voting import ClusterVote, vote_metrics

# Nothing but the library can tell these, and each takes it some milliseconds.
SUMS = [rf"\sum_{{k=1}}^{{{n}}} k^2" for n in range(2, 18)]


def rollout_of(texts: list[str]) -> Rollout:
    """One group with these texts."""
    ones, size = torch.ones(len(texts), 3), len(texts)
    prompts = Prompts([torch.tensor([1])], ["?"], {}, torch.arange(1))
    return Rollout(
        prompts,
        ones.long(),
        ones.bool(),
        TokenStats(ones, ones, ones),
        texts,
        ones[:, 0].bool(),
        size,
    )


@pytest.fixture(autouse=True)
def empty_memo():
    library._verdicts.clear()


def test_powers_are_told_apart_without_the_library(monkeypatch):
    """16 of them took 47 s, and 64 did not end in three minutes."""
    monkeypatch.setattr(
        library, "ask", lambda strings: pytest.fail(f"math-verify was asked about {strings}")
    )
    answers = [f"(x+{i})^{{{60 + i}}}" for i in range(64)]
    ids = cluster([*answers, "(1+x)^{61}"])
    assert len(set(ids)) == 64
    assert ids[-1] == ids[1]


def test_a_group_has_so_much_time_and_no_more(monkeypatch):
    """A question costs 0.3 s here: after 1 s nothing more is asked, and answers count as
    different.
    """
    asked = []
    monkeypatch.setattr(
        library, "ask", lambda strings: asked.append(strings) or Verdict(True, 0.3, True)
    )
    budget = Budget()
    assert len(set(cluster(SUMS, budget))) > 1
    assert len(asked) == 4
    assert len(budget.undecided) == 1
    budget.next_group()
    cluster([r"\sum_{k=1}^{30} k^3", r"\sum_{k=1}^{31} k^3"], budget)
    assert len(asked) == 7
    assert len(budget.undecided) == 1


def test_a_rollout_has_so_much_time_and_no_more(monkeypatch):
    asked = []
    monkeypatch.setattr(
        library, "ask", lambda strings: asked.append(strings) or Verdict(False, 0.9, False)
    )
    budget = Budget(rollout=2.0)
    for group in range(20):
        budget.next_group()
        cluster([rf"\sum_{{k=1}}^{{{n}}} k^{{{group}}}" for n in range(2, 10)], budget)
    assert len(asked) == 3
    assert len(budget.undecided) == 20


def test_a_verdict_in_time_is_remembered_and_one_that_was_not_sought_is_not(monkeypatch):
    a, b = r"\sum_{k=1}^{4} k", r"\sum_{k=1}^{4} k^1"
    assert not library.Budget(group=0.0).question(a, b)
    assert Budget().question(a, b)
    assert library.Budget(group=0.0).question(a, b)


@pytest.mark.slow
def test_towers_end_in_time_and_are_logged():
    assert ask(["x+1", "1+x"]).equal  # starts the process
    towers = [f"9^{{9^{{9^{{{n}}}}}}}" for n in range(2, 66)]
    start = time.monotonic()
    metrics = vote_metrics(towers, 64)
    assert time.monotonic() - start < 60.0  # 1 s of CPU time, and room for a loaded machine
    assert metrics["vote/undecided"] == 1.0
    assert metrics["vote/largest_cluster"] == 1 / 64


def test_the_vote_scores_and_logs_one_clustering():
    texts = [r"\boxed{18\text{ eggs}}", "The answer is 18.", r"\boxed{18}", r"\boxed{19}"]
    out = ClusterVote()(rollout_of(texts))
    assert out.scores.tolist() == [0.75, 0.75, 0.75, 0.25]
    assert out.log["vote/undecided"] == 0.0
    assert out.log["vote/largest_cluster"] == 0.75
    assert out.log["vote/distinct_answers"] == 2.0


def test_a_name_counts_answers_over_problems_without_units():
    assert (
        answer_name("18 eggs")
        == answer_name(r"18\text{ marbles}")
        == answer_name("18.0")
        == answer_name("x=18")
    )
    assert answer_name("18 eggs") != answer_name("19 eggs")
    assert answer_name("he said 3 things") == "he said 3 things"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sum_{k=1}^{3} k+1_2", r"\sum_{k=1}^{3} k+1_3"),
        (r"\sum_{k=1}^{3} kt", r"\sum_{k=1}^{3} ks"),
        (r"(\sum_{k=1}^{3} k,1)", r"\sum_{k=1}^{3} k,1"),
        (r"\int_0^1 x^x dx", r"\int_0^1 x^x dx=1"),
        (r"\int_0^1 x^2 dx", "0.333333"),
        ("3 4", "7"),  # it adds numbers that stand side by side
        ("-1 2", "-3"),
        (r"2\quad 3\quad 4", "9"),
        ("1 2 3/4", "3/2"),
        ("2^3^2", "64"),
        ("3!!", "720"),
        ("5'10\"", "510"),
        ("5' 10''", "15"),
    ],
)
def test_what_the_library_gets_wrong_it_is_not_asked(a, b, monkeypatch):
    monkeypatch.setattr(
        library, "ask", lambda strings: pytest.fail(f"math-verify was asked about {strings}")
    )
    assert not equivalent(a, b)


def test_a_pattern_that_runs_away_has_no_answer_and_one_warning():
    extraction._warn_once.cache_clear()
    extractor = AnswerExtractor("regex", r"((?:x+x+)+)y")
    start = time.process_time()
    with pytest.warns(UserWarning, match="nested repetitions"):
        assert extractor("x" * 5_000) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extractor("x" * 5_000) is None
    assert time.process_time() - start < 10.0
    assert extractor("xxxy") == "xxx"


@pytest.mark.filterwarnings("ignore:pattern=.*nested repetitions")
def test_a_format_that_runs_away_is_not_found():
    assert Format(r"(?:x+x+)+y")(rollout_of(["x" * 5_000, "a\nxxy"])).scores.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("so we get 3.14e2", "3.14e2", "314"),
        ("so we get 3 x 10^5", "3 x 10^5", "300000"),
        (r"so we get 3 \times 10^{5}.", r"3 \times 10^{5}", "300000"),
        ("so it takes 1 1/2 hours", "1 1/2", "3/2"),
        (r"so it takes 1\frac{1}{2} hours", r"1\frac{1}{2}", "3/2"),
        ("a share of 37.5%", "37.5%", "3/8"),
        ("The answer is 5, because 3+2 = 5", "5", "5"),
        ("The answer is 5 since 3+2 = 5", "5", "5"),
        ("The answer is 5, so we are done", "5", "5"),
        ("The answer is 5, 6", "5, 6", "6, 5"),
        ("The answer is (B) 42", "(B)", "B"),
        ("The answer is **(B)**.", "(B)", "B"),
        ("The answer is B) 42.", "B) 42", "B"),
        ("The answer is B: the cat.", "B: the cat", "(B)"),
        (r"so \boxed{B. 42}", "B. 42", "42"),
        (r"so \boxed{\text{C. } \frac{1}{2}}", r"\text{C. } \frac{1}{2}", "C"),
        ("The answer is (1, 2).", "(1, 2)", "(1,2)"),
        ("The answer is 18 marbles.", "18 marbles", "18"),
        ("The answer is $18.50.", "$18.50", "18.5"),
    ],
)
def test_extraction_of_what_sentences_say(text, answer, value):
    assert AnswerExtractor()(text) == answer
    assert equivalent(answer, value)
