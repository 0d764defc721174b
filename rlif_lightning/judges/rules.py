"""``RuleJudge``: a judge that is a function, for tests, demonstrations and cheap rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from rlif_lightning.judges.base import Judge, Reply, Request

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class RuleJudge(Judge):
    """A judge that replies by a rule.

    Args:
        rule: a function from a :class:`Request` to the reply's text, by its import path in YAML. A
            rule that raises counts as a failed call.
        max_failed: as for :class:`Judge`.
    """

    repeats_itself = True
    names_code: ClassVar[bool] = True  # no checkpoint may have it imported

    def __init__(self, rule: Callable[[Request], str], max_failed: float = 0.1):
        super().__init__(max_failed)
        self.rule = rule

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        try:
            return Reply(str(self.rule(request)))
        except Exception as error:  # whatever a user's rule raises
            return Reply(None, f"the rule raised {type(error).__name__}: {error}")


def reference_numbers(request: Request) -> str:
    """Score 1 to 5 by the share of the reference's numbers that the response writes too.

    The template needs the placeholders ``{response}`` or ``{completion}``, and ``{reference}``.
    """
    values = request.values
    wanted = set(_NUMBER.findall(values["reference"]))
    found = wanted & set(_NUMBER.findall(values.get("response", values.get("completion", ""))))
    share = len(found) / len(wanted) if wanted else 0.0
    return f"{len(found)} of the reference's {len(wanted)} numbers.\nScore: {1 + round(4 * share)}"
