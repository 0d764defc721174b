"""Rewards for code, which runs in a sandbox: tests passed (gold), and a vote by behaviour.

Read in this order: ``pass_rates`` (the checker, also for evaluation), ``CodeTests`` (its reward
head), ``behaviour`` and ``same_behaviour`` (what is compared), ``BehaviourVote``. How code is
isolated: ``rlif_lightning/sandbox``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rlif_lightning.answers.code_inputs import draw_arguments, read_arguments
from rlif_lightning.answers.code_tasks import CodeExtractor
from rlif_lightning.answers.code_verdicts import RunsCode, lines_of_words, sandbox_run
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.vote_head import VoteHead
from rlif_lightning.rewards.voting import vote_metrics, vote_shares
from rlif_lightning.sandbox.pool import Outcome, Run, Sandbox

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
_NO_BEHAVIOUR = (None, "")
# What a column holds -> its name, in the order in which `BehaviourVote` reads them.
COLUMNS = {"function": "entry_point", "inputs": "inputs", "header": "prompt"}
DRAW_SEED = 0  # of drawn inputs


class CodeTests(RunsCode, RewardHead):
    """Scores a completion's code by the share of its problem's unit tests that it passes (gold).

    Logs ``code/solved``, the share of completions that pass all.

    Args:
        extractor: finds the code of a completion.
        credit: share (tests passed / tests) | all (1 if all pass, else 0).
        sandbox: where and within which limits the code runs.
    """

    needs_gold = True

    def __init__(
        self,
        extractor: CodeExtractor = CodeExtractor(),
        credit: str = "share",
        sandbox: Sandbox | None = None,
    ):
        RewardHead.__init__(self)
        if credit not in ("share", "all"):
            raise ValueError(f"credit={credit!r} is unknown; choose one of ['share', 'all']")
        RunsCode.__init__(self, extractor, sandbox)
        self.credit = credit

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems without tests that can be read."""
        for _, problem in problems.problems():
            self.pass_rates([""], [problem])

    def forward(self, rollout: Rollout) -> RewardOutput:
        names = list(rollout.prompts.columns)
        problems = [
            dict(zip(names, values, strict=True))
            for values in zip(*map(rollout.column, names), strict=True)
        ]
        rates = torch.tensor(self.pass_rates(rollout.texts, problems))
        solved = (rates == 1).float()
        scores = solved if self.credit == "all" else rates
        return RewardOutput(
            scores.to(rollout.mask.device), log={"code/solved": float(solved.mean())}
        )


def behaviour(outcomes: Sequence[Outcome]) -> str | None:
    """Return what code does with all its inputs, as one canonical text.

    None where the code does nothing that can be compared.

    An exception counts as behaviour, named by its built-in type. Code has no behaviour where any
    input has no answer (too slow, died, a value that cannot leave the sandbox). It has none either
    where every input gives an exception, None or an empty text: a group must not agree on doing
    nothing.
    """
    if any(outcome.kind == "none" for outcome in outcomes):
        return None
    if all(outcome.kind == "error" or outcome.value in _NO_BEHAVIOUR for outcome in outcomes):
        return None
    parts = [
        _canonical(o.value) if o.kind == "value" else json.dumps({"error": o.reason})
        for o in outcomes
    ]
    return f"[{', '.join(parts)}]"


def _behaviour_of(run: Run, outcomes: Sequence[Outcome]) -> str | None:
    """Return what code does; of a program, with what it prints as lines of words."""
    if run.function is not None:
        return behaviour(outcomes)
    return behaviour(
        [replace(o, value=printed(o.value)) if o.kind == "value" else o for o in outcomes]
    )


def printed(text: str) -> Any:
    """Return the lines of words that unit tests compare, numbers as numbers; '' without words.

    Example:
        >>> printed(" 1 0.5 x "), printed(" ")
        ([[1, 0.5, 'x']], '')
    """
    return [[_word(word) for word in line] for line in lines_of_words(text)] or ""


def _word(word: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(word)
            return number if abs(number) < math.inf else word
    return word


def _canonical(value: Any) -> str:
    """Write JSON with the items of sets and dictionaries in one order, from the inside out."""
    if isinstance(value, list):
        if any(isinstance(item, (list, dict)) for item in value):
            return f"[{', '.join(map(_canonical, value))}]"
    elif isinstance(value, dict):
        [(tag, content)] = value.items()
        unordered = tag in ("set", "frozenset", "dict")
        inner = (
            f"[{', '.join(sorted(map(_canonical, content)))}]" if unordered else _canonical(content)
        )
        return f'{{"{tag}": {inner}}}'
    return json.dumps(value)


def same_behaviour(one: Any, other: Any) -> bool:
    """Return whether two behaviours (read from their JSON) are equal.

    Numbers are equal to 1e-6 relative or 1e-9 absolute, everything else exactly.
    """
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_behaviour, one, other))
    a, b = _number(one), _number(other)
    if a is not None and b is not None and float in (type(a), type(b)):
        try:
            return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
        except OverflowError:  # an integer that is larger than every float
            return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            same_behaviour(one[key], other[key]) for key in one
        )
    return type(one) is type(other) and one == other


def _number(value: Any) -> int | float | None:
    """Return the number that a value stands for; None where it is no finite number.

    Long integers are written under a tag.
    """
    if isinstance(value, dict) and "int" in value:
        return int(value["int"], 16)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def behaviour_labels(
    behaviours: Sequence[str | None], group_size: int, index: Sequence[int]
) -> list[str | None]:
    """Name the cluster of each behaviour, as a text to vote with; None stays None.

    As with answers, each is compared with one representative per cluster, the most frequent texts
    first. Names are counted over processes and over problems. So a name is a checksum of what is
    the same in every process: the problem's row in the data set and the representative.

    Args:
        behaviours: B behaviours, prompt-major.
        group_size: G.
        index: each of the P problems' row in the data set.
    """
    labels: list[str | None] = [None] * len(behaviours)
    for start, problem in zip(range(0, len(behaviours), group_size), index, strict=True):
        counts = Counter(
            text for text in behaviours[start : start + group_size] if text is not None
        )
        opened: list[tuple[Any, str]] = []
        known: dict[str, str] = {}
        for text in sorted(counts, key=lambda text: (-counts[text], text)):
            value = json.loads(text)
            label = next((label for first, label in opened if same_behaviour(first, value)), None)
            if label is None:
                label = _name(problem, text)
                opened.append((value, label))
            known[text] = label
        for row in range(start, start + group_size):
            labels[row] = known.get(behaviours[row] or "")
    return labels


def _name(problem: int, representative: str) -> str:
    """Name a behaviour by a whole number of 64 bits.

    A vote compares such answers exactly; texts of digits and letters it may read as values.
    """
    checksum = hashlib.sha256(f"{problem} {representative}".encode()).digest()
    return str(int.from_bytes(checksum[:8], "big"))


class BehaviourVote(RunsCode, VoteHead):
    """Label-free reward for code: the share of the group whose code behaves the same.

    Logs ``vote/largest_cluster``, ``vote/unanimous``, ``vote/distinct_answers`` (here: behaviours,
    counted problem by problem) and ``rollout/parseable`` (completions with a behaviour).

    Args:
        columns: what a column holds -> its name, where that is not ``{function: entry_point,
            inputs: inputs, header: prompt}``. ``function``: the name of the function to call;
            where the data set has no such column, or the value is empty, code runs as a program on
            standard input. ``inputs``: a list of inputs, for a function texts such as
            ``"[1, 2], 'a'"``, the text between the parentheses of a call, for a program what it
            reads; where the data set has no such column, inputs are drawn by the types in the
            function's header. ``header``: source text with that header, which a completion may
            also continue.
        num_inputs: inputs drawn for a problem, always the same; those of a column are all used.
        extractor: finds the code of a completion.
        mode, denominator, min_parseable, entropy_range: as for :class:`VoteHead`.
        sandbox: where and within which limits the code runs.

    Raises:
        ValueError: an unknown name, a number out of range, or no sandbox that is strong enough.
    """

    def __init__(
        self,
        columns: dict[str, str] | None = None,
        num_inputs: int = 8,
        extractor: CodeExtractor = CodeExtractor(),
        mode: str = "soft",
        denominator: str = "parseable",
        min_parseable: int = 2,
        entropy_range: tuple[float, float] | None = None,
        sandbox: Sandbox | None = None,
    ):
        VoteHead.__init__(self, mode, denominator, min_parseable, entropy_range)
        RunsCode.__init__(self, extractor, sandbox)
        if num_inputs < 1:
            raise ValueError(f"num_inputs={num_inputs} must be at least 1")
        if unknown := sorted(set(columns or {}) - set(COLUMNS)):
            raise ValueError(f"columns={columns}: {unknown[0]!r} is none of {', '.join(COLUMNS)}")
        self.columns = tuple({**COLUMNS, **(columns or {})}.values())
        self.num_inputs = num_inputs

    def check(self, problems: EncodedSplit, group_size: int) -> None:
        """Refuse problems without inputs, and groups too small for a vote."""
        super().check(problems, group_size)
        for row, problem in problems.problems(self.columns):
            self._problem(problem, row)

    def forward(self, rollout: Rollout) -> RewardOutput:
        group_size = rollout.group_size
        labels = behaviour_labels(
            self.behaviours(rollout), group_size, rollout.prompts.index.tolist()
        )
        settings = (group_size, self.mode, self.denominator, self.min_parseable)
        scores = vote_shares(labels, *settings, entropy_range=self.entropy_range)
        log = vote_metrics(labels, group_size, self.denominator, self.min_parseable)
        return RewardOutput(scores.to(rollout.mask.device), log=log, answers=labels)

    def behaviours(self, rollout: Rollout) -> list[str | None]:
        """Return what the code of each of the B completions does; None without a behaviour."""
        runs: list[Run | None] = []
        for p in range(rollout.num_prompts):
            problem = {
                name: values[p]
                for name, values in rollout.prompts.only(self.columns).columns.items()
            }
            function, header, inputs = self._problem(problem, int(rollout.prompts.index[p]))
            functions = (function,) if function else ()
            for text in rollout.texts[p * rollout.group_size : (p + 1) * rollout.group_size]:
                code = self.extractor(text, header)
                runs.append(None if code is None else sandbox_run(code, functions, inputs))
        outcomes = iter(self.sandbox.outcomes([run for run in runs if run is not None]))
        return [None if run is None else _behaviour_of(run, next(outcomes)) for run in runs]

    def _problem(self, problem: Mapping[str, Any], index: int) -> tuple[str, str, list[Any]]:
        """Return a problem's function, header and inputs; ``index`` is its row in the data set."""
        function, given, header = (problem.get(name) for name in self.columns)
        if given:
            return (
                function or "",
                header or "",
                [read_arguments(text) for text in given] if function else list(given),
            )
        if not function or not header:
            named, inputs, source = self.columns
            raise ValueError(
                f"problem {index} has no inputs to compare behaviour on: give a column {inputs!r},"
                f" or {named!r} and {source!r} to draw them by type; of these there are"
                f" {sorted(problem)}"
            )
        return function, header, draw_arguments(header, function, self.num_inputs, DRAW_SEED, index)
