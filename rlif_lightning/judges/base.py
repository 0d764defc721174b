"""``Judge``: questions in, replies out. What a reply means is decided elsewhere.

Asking is apart from parsing (``parsing.py``), and parsing from arithmetic (reward heads). The
questions are made by ``template.py``, and counted over all data ranks by ``asking.py``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rlif_lightning.data.described import Described
from rlif_lightning.sampling import Sampling

if TYPE_CHECKING:
    from rlif_lightning.model.loading import Policy
    from rlif_lightning.model.policy import PolicyModel

# At the temperature 0 a model gives one reply to one question.
GREEDY = Sampling(temperature=0.0, max_new_tokens=512)


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        text: the filled template, what a model reads.
        values: what it was filled with, as it was given; rules read these.
        schema: the JSON schema of a reply, for a judge that can hold a server to it; None = none.
    """

    text: str
    values: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        text: the judge's words without its thinking; None = the call failed. An empty text is a
            reply without words, which no parser can read.
        failure: why the call failed.
        calls: how often a model was asked, failed calls included; 0 for a remembered reply.
        prompt_tokens: of the question, all calls together.
        completion_tokens: of the reply.
        cost: of all calls, in the currency of the judge's prices.
    """

    text: str | None
    failure: str = ""
    calls: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class RunModels:
    """What a run offers to a judge that is a model.

    Attributes:
        policy: that is trained.
        settings: how it was loaded.
        load: returns a frozen model, divided as the run's strategy says (a collective then).
        device: that this process computes on.
        seed: of the run.
        max_new_tokens: of a completion in training.
    """

    policy: PolicyModel
    settings: Policy
    load: Callable[[Policy], PolicyModel]
    device: torch.device
    seed: int
    max_new_tokens: int = 0


class Judge(Described, ABC):
    """Whoever is asked about completions. Write ``ask``, name the class in YAML.

    Args:
        max_failed: largest share of a rollout's questions whose calls may fail, over all data
            ranks; more of them stop the run.

    Attributes:
        asks_together: whether every process must call ``ask``, also without a question.
        repeats_itself: whether equal questions have equal replies, so that each is asked once.
        answers_elsewhere: whether a thread may ask while this process scores otherwise: replies
            are computed outside of it.
        prices: of a million tokens of questions, and of replies; None = unknown.

    Raises:
        ValueError: a share out of range.
    """

    asks_together = False
    repeats_itself = False
    answers_elsewhere = False
    prices: tuple[float, float] | None = None

    def __init__(self, max_failed: float = 0.1):
        super().__init__()
        if not 0 <= max_failed <= 1:
            raise ValueError(
                f"max_failed={max_failed} must lie in [0, 1]: a share of the questions"
            )
        self.max_failed = max_failed

    def bind(self, models: RunModels) -> None:
        """Take what the run offers, before the first question."""

    def check(self) -> None:
        """Refuse what would make every call fail, before anything is sampled.

        Raises:
            ValueError: names the setting and the remedy.
        """

    def interrupt(self) -> None:
        """End an ``ask`` that runs in another thread: the run was interrupted."""

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply per request, in their order.

        A call that fails is a reply without text, never an exception: other data ranks may be
        waiting.
        """


class ModelJudge(Judge):
    """A judge that is a language model.

    Args:
        sampling: how its reply is drawn; by default greedy, 512 tokens at most.
        max_failed: as for :class:`Judge`.
    """

    def __init__(self, sampling: Sampling = GREEDY, max_failed: float = 0.1):
        super().__init__(max_failed)
        self.sampling = sampling


def question_number(text: str) -> int:
    """Return 62 bits of a question's hash: what a sampled reply's random numbers depend on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def final_text(prompt: str, text: str) -> str:
    """Return a completion without its thought, which a prompt may have opened.

    Example:
        >>> final_text("Who?", "<think>Ada? Bo?</think>Bo."), final_text("Who?<think>", "Ada? Bo?")
        ('Bo.', '')
    """
    opened = "<think>" if prompt.rstrip().endswith("<think>") else ""
    return without_thinking(opened + text)


def without_thinking(text: str) -> str:
    """Return what follows the last ``</think>``; nothing where a ``<think>`` is still open.

    Example:
        >>> without_thinking("<think>Score: 5?</think>Score: 2"), without_thinking("<think>5")
        ('Score: 2', '')
    """
    _, closed, rest = text.rpartition("</think>")
    after = rest if closed else text
    return "" if "<think>" in after else after.strip()
