"""Pairs of answers judged by hand: the right verdict both ways, and one cluster or two where a vote
may tell.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.cases import check_each
from rlif_lightning.answers.final_answers import AnswerExtractor, cluster, equivalent, normalise

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "answer_verdicts.jsonl").read_text().splitlines()
]


def test_the_verdict_is_right_both_ways_and_in_a_vote():
    def check(row):
        assert equivalent(row["a"], row["b"]) is row["equal"]
        assert equivalent(row["b"], row["a"]) is row["equal"]
        assert (len(set(cluster([row["a"], row["b"], row["a"]]))) == 1) is row["equal"]

    check_each(check, ROWS)


def test_there_are_many_of_both_verdicts_and_of_every_kind():
    assert len(ROWS) >= 200
    assert 60 <= sum(not row["equal"] for row in ROWS) <= 140
    assert len({row["kind"] for row in ROWS}) >= 15
    assert len({(row["a"], row["b"]) for row in ROWS}) == len(ROWS)


def test_what_is_said_in_a_sentence_keeps_its_verdict():
    r"""``\boxed{}`` and "The answer is ..." find the same answer."""

    def check(row):
        assert equivalent(AnswerExtractor()(rf"So \boxed{{{row['a']}}}."), row["a"])

    check_each(check, ROWS)


def test_spelling_is_canonical_once():
    def check(row):
        for text in (row["a"], row["b"]):
            assert normalise(normalise(text)) == normalise(text)
            assert equivalent(text, normalise(text))

    check_each(check, ROWS)
