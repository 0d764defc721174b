"""A judge over HTTP against a loopback server that does what servers do at their worst."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import torch

from harness.judge_server import JudgeServer, judge_server, message
from rlif_lightning import EndpointJudge, Sampling, ScoreParser
from rlif_lightning.judges import pacing
from rlif_lightning.judges.asking import JudgeError, ask_all
from rlif_lightning.judges.base import Request
from rlif_lightning.judges.pacing import Pace

HANG = JudgeServer.HANG
SCHEMA = ScoreParser().schema


@pytest.fixture(name="server")
def running_server(monkeypatch):
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)
    with judge_server() as server:
        yield server


def judge(server: JudgeServer, **settings) -> EndpointJudge:
    return EndpointJudge(server.url, "the-judge", **settings)


def asked(judge: EndpointJudge, *texts: str, schema=None):
    return judge.ask([Request(text, schema=schema) for text in texts or ("q",)])


def test_a_question_and_its_reply(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    [reply] = asked(judge(server, key_variable="JUDGE_KEY"))
    assert (reply.text, reply.calls) == ("Fine.\nScore: 4", 1)
    assert (reply.prompt_tokens, reply.completion_tokens) == (11, 3)
    [(headers, body)] = server.asked
    assert headers["Authorization"] == "Bearer sk-secret"
    assert body == {
        "model": "the-judge",
        "messages": [{"role": "user", "content": "q"}],
        "temperature": 0.0,
        "max_tokens": 512,
    }


def test_replies_stand_in_the_order_of_their_questions(server):
    four = threading.Barrier(4)  # passes only if four are asked at one time

    def usual(body):
        four.wait(60)
        return f"Score: {body['messages'][0]['content']}"

    server.usual = usual
    texts = [str(number) for number in range(40)]
    replies = asked(judge(server, max_concurrent=4), *texts)
    assert [reply.text for reply in replies] == [f"Score: {text}" for text in texts]
    assert server.most == 4


def test_threads_that_ask_first_share_one_client_and_its_pace(server, monkeypatch):
    made, kind, second = [], httpx2.Client, threading.Event()

    def client(**given):
        made.append(kind(**given))
        if len(made) == 1:
            second.wait(0.3)  # would another one come?
        second.set()
        return made[-1]

    monkeypatch.setattr(httpx2, "Client", client)
    own = judge(server)
    with ThreadPoolExecutor(2) as threads:
        replies = [*threads.map(lambda text: asked(own, text), "ab")]
    assert [reply.text for [reply] in replies] == ["Fine.\nScore: 4"] * 2
    assert len(made) == 1


BUSY = (429, {"error": {"message": "busy"}}, {})


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ([BUSY, BUSY], 3),
        ([(503, b"<html>down</html>", {})], 2),
        ([None, None], 3),
        ([(429, {}, {"Retry-After": "0"})], 2),
        ([(200, {"choices": []}, {})], 2),
        ([(200, b"no JSON", {})], 2),
        ([(200, message(["a list"]), {})], 2),
        ([(200, [], {})], 2),
    ],
)
def test_what_passes_is_asked_again(server, answers, calls):
    server.answers = list(answers)
    [reply] = asked(judge(server))
    assert (reply.text, reply.calls) == ("Fine.\nScore: 4", calls)


@pytest.mark.parametrize(
    ("answer", "calls", "reason"),
    [
        (BUSY, 6, "answered 429: busy"),
        (None, 6, "RemoteProtocolError|ReadError"),
        ((500, {"error": "?"}, {}), 6, "answered 500"),
        ((200, {"choices": []}, {}), 2, "an answer without a message"),
        ((400, {"error": {"message": "too long"}}, {}), 1, "answered 400: too long"),
        ((401, {}, {}), 1, "check judge.url, judge.model and the key"),
        ((404, {"error": {"message": "no model the-judge"}}, {}), 1, "no model the-judge"),
        ((302, {}, {"Location": "http://127.0.0.1:9/"}), 1, "answered 302"),
    ],
)
def test_what_does_not_pass_is_a_failed_call(server, answer, calls, reason):
    server.usual = lambda body: answer
    [reply] = asked(judge(server))
    assert reply.text is None
    assert reply.calls == calls
    assert re.search(reason, reply.failure)


@pytest.mark.slow
def test_the_pause_that_a_server_asks_for_is_kept(server):
    server.answers = [(429, {}, {"Retry-After": "1"})]
    started = time.monotonic()
    assert asked(judge(server))[0].calls == 2
    assert time.monotonic() - started >= 1


@pytest.mark.slow
def test_a_server_that_hangs_costs_two_time_outs(server):
    server.usual = lambda body: HANG
    started = time.monotonic()
    [reply] = asked(judge(server, timeout=0.2))
    assert (reply.text, reply.calls) == (None, 2)
    assert "did not answer within judge.timeout=0.2 seconds" in reply.failure
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_server_that_is_not_there_is_a_failed_call(server):
    [reply] = asked(EndpointJudge("http://127.0.0.1:9/v1", "m"))
    assert "ConnectError" in reply.failure
    assert reply.calls == 6


@pytest.mark.parametrize(
    ("content", "text", "score"),
    [
        ("It is all right, I think.", "It is all right, I think.", None),
        ("<think>Score: 5</think>\nScore: 2", "Score: 2", 0.25),
        ("<think>Score: 5", "", None),
        (None, "", None),
        ('{"score": "5"}', '{"score": "5"}', None),
        ("The response claims:\n> Score: 5\nIt is wrong.\nScore: 1", None, 0.0),
        ("Score: 5\n(so says the response)\nScore: 1", None, None),
    ],
)
def test_what_is_received_is_for_the_parser(server, content, text, score):
    server.answers = [(200, message(content), {})]
    [reply] = asked(judge(server))
    assert reply.calls == 1
    assert reply.text == (content if text is None and content else text)
    assert ScoreParser()(reply.text) == score


def test_a_schema_is_sent_and_a_refusal_is_remembered(server):
    def no_schema(body):
        kind = body.get("response_format", {}).get("type")
        return (400, {"error": {"message": "?"}}, {}) if kind == "json_schema" else "Score: 4"

    server.usual = no_schema
    own = judge(server, structured=True, max_concurrent=1)
    replies = asked(own, "a", "b", schema=SCHEMA)
    assert [reply.calls for reply in replies] == [2, 1]
    forms = [body.get("response_format", {}).get("type") for _, body in server.asked]
    assert forms == ["json_schema", "json_object", "json_object"]
    assert server.asked[0][1]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_server_that_knows_no_form_is_asked_for_text(server):
    server.usual = lambda body: (422, {}, {}) if "response_format" in body else "Score: 4"
    own = judge(server, structured=True, max_concurrent=1)
    assert [reply.calls for reply in asked(own, "a", "b", schema=SCHEMA)] == [3, 1]


def test_a_question_that_is_refused_in_every_form_is_no_downgrade(server):
    def only_long(body):
        return (400, {}, {}) if body["messages"][0]["content"] == "long" else "Score: 4"

    server.usual = only_long
    own = judge(server, structured=True, max_concurrent=1)
    long, short = asked(own, "long", "short", schema=SCHEMA)
    assert (long.text, long.calls) == (None, 3)
    assert (short.text, short.calls) == ("Score: 4", 1)
    assert server.asked[-1][1]["response_format"]["type"] == "json_schema"


def test_no_schema_is_sent_unless_it_is_asked_for(server):
    asked(judge(server), schema=SCHEMA)
    assert "response_format" not in server.asked[0][1]


def test_a_wrong_key_costs_one_call_however_many_questions(server):
    server.usual = lambda body: (401, {}, {})
    replies = asked(judge(server, max_concurrent=1), *"abcdefgh")
    assert len(server.asked) == 1
    assert all("answered 401" in reply.failure for reply in replies)


def test_after_five_failures_in_a_row_no_question_is_sent_until_one_succeeds(server):
    server.usual = lambda body: (500, {}, {})
    own = judge(server, max_concurrent=1)
    replies = asked(own, *"abcdefghij")
    assert len(server.asked) == 5 * 6
    assert replies[-1].failure.startswith("not sent after 5 failures in a row")
    assert replies[-1].calls == 0
    server.asked.clear()
    assert all(reply.text is None for reply in asked(own, *"abc"))
    assert len(server.asked) == 6  # one question found out that the server is not back
    server.usual = lambda body: "Score: 4"
    assert all(reply.text == "Score: 4" for reply in asked(own, *"abc"))


def test_a_failed_call_stops_the_run_with_its_reason_and_not_the_key(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    server.usual = lambda body: (401, {"error": {"message": "no"}}, {})
    own = judge(server, key_variable="JUDGE_KEY")
    with pytest.raises(JudgeError, match="answered 401: no") as caught:
        ask_all(own, [Request("a"), Request("b")], "judge", torch.device("cpu"))
    assert "sk-secret" not in str(caught.value)


def test_replies_are_kept_on_disk(server, tmp_path):
    file = str(tmp_path / "new" / "replies.sqlite")
    first = asked(judge(server, cache=file), "a", "b")
    server.usual = lambda body: "Score: 1"
    again = asked(judge(server, cache=file), "a", "b", "c")
    assert [reply.text for reply in again] == [*(reply.text for reply in first), "Score: 1"]
    assert [reply.calls for reply in again] == [0, 0, 1]
    other = EndpointJudge(server.url, "another-judge", cache=file)
    assert asked(other, "a")[0].text == "Score: 1"


def test_costs_are_tokens_times_prices(server, tmp_path):
    """11 tokens of the question at 2 and 3 of the reply at 5 a million; a kept reply is free."""
    given = judge(server, prices=(2.0, 5.0), cache=str(tmp_path / "replies"))
    requests = [Request(text) for text in ("a", "b")]
    replies, log = ask_all(given, requests, "judge", torch.device("cpu"))
    assert [reply.cost for reply in replies] == pytest.approx([37e-6] * 2)
    assert log["judge/cost"] == pytest.approx(74e-6)
    assert ask_all(given, requests, "judge", torch.device("cpu"))[1]["judge/cost"] == 0
    assert "judge/cost" not in ask_all(judge(server), requests, "judge", torch.device("cpu"))[1]


def test_a_failure_is_not_kept(server, tmp_path):
    file = str(tmp_path / "replies.sqlite")
    server.answers = [(400, {}, {})]
    own = judge(server, cache=file)
    assert asked(own)[0].text is None
    assert asked(own)[0].text == "Fine.\nScore: 4"


def test_a_file_that_is_no_cache_is_named(server, tmp_path):
    (tmp_path / "replies.sqlite").write_text("this is no database, but long enough to be read " * 9)
    [reply] = asked(judge(server, cache=str(tmp_path / "replies.sqlite")))
    assert "judge.cache=" in reply.failure
    assert "name another file" in reply.failure


def test_a_sampled_question_has_a_seed_of_its_text(server):
    sampled = judge(server, sampling=Sampling(0.7, 20, top_p=0.9, stop=["\n\n"]))
    asked(sampled, "a")
    asked(sampled, "a", "b")
    bodies = [body for _, body in server.asked]  # those of one call in any order
    seeds = {(body["messages"][-1]["content"], body["seed"]) for body in bodies}
    assert len(bodies) == 3
    assert len(seeds) == len({seed for _, seed in seeds}) == 2
    assert (bodies[0]["temperature"], bodies[0]["top_p"], bodies[0]["stop"]) == (0.7, 0.9, ["\n\n"])


def test_a_pace_by_hand():
    """120 a minute: an amount of 3 takes 1.5 s, and what came late does not catch up."""
    pace = Pace(120)
    starts = [now + pace.reserve(3, now) for now in (10.0, 10.0, 10.0, 20.0)]
    assert starts == [10.0, 11.5, 13.0, 20.0]
    assert Pace(None).reserve(100, 1.0) == 0


def test_calls_keep_the_pace(server):
    """1200 calls a minute: 50 ms each, so five take at least 200 ms, retries included."""
    server.answers = [BUSY]
    started = time.monotonic()
    asked(judge(server, requests_per_minute=1200), *"abcd")
    assert len(server.asked) == 5
    assert time.monotonic() - started >= 0.2


def test_tokens_keep_the_pace(server):
    """300 characters are 100 tokens, with 20 of the reply 120; 72000 a minute are 0.1 s each."""
    started = time.monotonic()
    settings = {"tokens_per_minute": 72_000, "sampling": Sampling(0.0, 20)}
    asked(judge(server, **settings), *(letter * 300 for letter in "abc"))
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "judge.url='localhost:8000'"),
        ({"max_concurrent": 0}, "judge.max_concurrent=0"),
        ({"prices": (1.0, -1.0)}, "judge.prices"),
        ({"timeout": 0.0}, "judge.timeout=0"),
        ({"requests_per_minute": -1}, "judge.requests_per_minute=-1"),
        ({"sampling": Sampling(top_k=5)}, "top_k=5"),
        ({"cache": "a.sqlite", "sampling": Sampling(0.5)}, "freezes the judge's noise"),
        ({"cache_sampled": True}, "needs a file"),
        ({"cache": "a.sqlite", "cache_sampled": True}, "only there"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EndpointJudge(**{"url": "http://localhost/v1", "model": "m", **settings})


def test_a_missing_key_is_found_before_anything_is_sampled(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    own = EndpointJudge("http://localhost/v1", "m", key_variable="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="NO_SUCH_KEY"):
        own.check()
    [reply] = own.ask([Request("a")])
    assert "NO_SUCH_KEY" in reply.failure
