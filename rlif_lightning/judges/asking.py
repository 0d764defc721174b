"""Questions of all data ranks together: failures are counted over them, and all stop alike."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from rlif_lightning.judges.base import Judge, Reply, Request
from rlif_lightning.processes.collectives import (
    all_process_objects,
    all_rank_objects,
    all_rank_sum,
    is_collectives_error,
)
from rlif_lightning.processes.ranks import num_data_ranks, num_processes, writes_completions

REASONS = 3  # failures that an error quotes


_ASKS_NOTHING = ContextVar("asks_nothing", default=False)


@contextmanager
def asking_nothing(is_idle: bool = True) -> Iterator[None]:
    """Score completions without a question to any judge: they are of a rollout that nobody uses.

    A question fails without a call then, and is not counted. Collectives are made as otherwise.

    Args:
        is_idle: whether nothing is asked; False = this changes nothing.
    """
    before = _ASKS_NOTHING.set(is_idle)
    try:
        yield
    finally:
        _ASKS_NOTHING.reset(before)


class JudgeError(RuntimeError):
    """Too many calls failed; says why, and what remains."""


def start_asking(judge: Judge, requests: Sequence[Request]) -> Future[list[Reply]] | None:
    """Ask in a thread while this process scores otherwise; None = the judge must be asked later.

    Example: heads a and b ask two endpoints, and v is a vote. ``RewardSet`` starts a and b, scores
    v meanwhile, and waits for the slower of a and b.
    """
    if not judge.answers_elsewhere or num_processes() != num_data_ranks() or _ASKS_NOTHING.get():
        return None
    thread = ThreadPoolExecutor(1)
    replies = thread.submit(_ask, judge, requests)
    thread.shutdown(wait=False)
    return replies


def ask_all(
    judge: Judge,
    requests: Sequence[Request],
    where: str,
    device: torch.device,
    started: Future[list[Reply]] | None = None,
) -> tuple[list[Reply], dict[str, float]]:
    """Ask about this data rank's completions (a collective).

    Where processes share completions, the first one asks for all, unless the judge is a model that
    they hold together.

    Args:
        judge: is asked.
        requests: of this data rank; they may be none.
        where: the judge's setting, for the message.
        device: of collectives.
        started: what :func:`start_asking` returned for these requests.

    Returns:
        One reply per request, and what to log: sums over all data ranks.

    Raises:
        JudgeError: on every data rank, if the calls of more than ``max_failed`` of all questions
            failed.
    """
    since, unasked = time.perf_counter(), len(requests) if _ASKS_NOTHING.get() else 0
    requests = requests[unasked:]
    replies = _replies(judge, requests) if started is None else started.result()
    names = _SUMS if judge.prices is None else (*_SUMS, "cost")
    failed = [reply.failure for reply in replies if reply.text is None]
    counts = torch.tensor(
        [
            len(requests),
            len(failed),
            *(sum(getattr(reply, name) for reply in replies) for name in names),
        ],
        dtype=torch.float64,
        device=device,
    )
    asked, num_failed, *sums = all_rank_sum(counts).tolist()
    if num_failed > judge.max_failed * asked:
        reasons = dict.fromkeys(each for rank in all_rank_objects(failed) for each in rank)
        raise JudgeError(
            f"{where}: {num_failed:.0f} of {asked:.0f} questions of this rollout have no reply,"
            f" more than max_failed={judge.max_failed:g}: {'; '.join([*reasons][:REASONS])}. The"
            " run is saved up to its last step: put the judge right and resume"
            " (--ckpt_path=auto)"
        )
    log = {
        "judge/questions": asked,
        "judge/failed": num_failed / max(asked, 1),
        **{f"judge/{name}": value for name, value in zip(names, sums, strict=True)},
        "time/judge": time.perf_counter() - since,
    }
    return [*[Reply(None, calls=0)] * unasked, *replies], log


_SUMS = ("calls", "prompt_tokens", "completion_tokens")
COST_COLUMNS = ("judge_calls", "judge_tokens", "judge_cost")  # as `cost_columns` makes them


def cost_of(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what :func:`ask_all` logs for several askings together; nothing without any.

    Args:
        logs: of each asking, or of something else; other figures in them are left out.
    """
    logs = [log for log in logs if "judge/questions" in log]
    if not logs:
        return {}
    names = ["judge/questions", *(f"judge/{name}" for name in _SUMS), "time/judge"]
    names += ["judge/cost"] if any("judge/cost" in log for log in logs) else []
    total = {name: math.fsum(log.get(name, 0.0) for log in logs) for name in names}
    failed = math.fsum(log["judge/failed"] * log["judge/questions"] for log in logs)
    return total | {"judge/failed": failed / max(total["judge/questions"], 1)}


def cost_columns(said: Sequence[Sequence[Reply]]) -> dict[str, list[float]]:
    """Return what the replies about each completion cost, for completion tables."""
    return {
        "judge_calls": [sum(each.calls for each in replies) for replies in said],
        "judge_tokens": [
            sum(each.prompt_tokens + each.completion_tokens for each in replies) for replies in said
        ],
        "judge_cost": [sum(each.cost for each in replies) for replies in said],
    }


def _replies(judge: Judge, requests: Sequence[Request]) -> list[Reply]:
    """Return the replies to this data rank's questions (a collective of the data rank)."""
    if num_processes() == num_data_ranks() or judge.asks_together:
        return _ask(judge, requests)
    own = _ask(judge, requests) if writes_completions() else []
    return all_process_objects(own)[0]


def _ask(judge: Judge, requests: Sequence[Request]) -> list[Reply]:
    """Ask each of equal questions once, where the judge would repeat itself."""
    if not judge.repeats_itself:
        return _attempt(judge, requests)
    different: dict[str, Request] = {}
    names = [repr((request.text, sorted(request.values.items()))) for request in requests]
    for name, request in zip(names, requests, strict=True):
        different.setdefault(name, request)
    replies = dict(zip(different, _attempt(judge, [*different.values()]), strict=True))
    found = []
    for name in names:
        found.append(replies[name])
        # Its calls and tokens count once.
        replies[name] = Reply(replies[name].text, replies[name].failure, calls=0)
    return found


def _attempt(judge: Judge, requests: Sequence[Request]) -> list[Reply]:
    """Ask; an error of the judge's code is a failure of every question of this data rank.

    Another data rank waits for the counts, so this one must not raise alone.
    """
    try:
        replies = judge.ask(requests)
        if len(replies) == len(requests):
            return replies
        failure = f"{len(replies)} replies to {len(requests)} questions"
    except Exception as error:
        if is_collectives_error(error):
            raise  # another process was lost
        failure = f"{type(error).__name__}: {error}"
    return [Reply(None, f"{type(judge).__name__}: {failure}", calls=0) for _ in requests]
