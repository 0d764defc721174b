"""A module in vLLM's place, with what our engine in the trainer's process uses of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from harness.stand_in_server import StandIn, Worker
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel


def output_of(choice: dict[str, Any]) -> SimpleNamespace:
    ids, found = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    logprobs = [
        {token: SimpleNamespace(logprob=each)} for token, each in zip(ids, found, strict=True)
    ]
    reason = choice["finish_reason"]
    return SimpleNamespace(
        index=choice["index"], token_ids=ids, logprobs=logprobs, finish_reason=reason
    )


class LLM:
    """Draws as the stand-in for a server does."""

    def __init__(self, model: str, **arguments: Any):
        self.worker = Worker(PolicyModel(Policy(model)))
        config = self.worker.model_runner.model_config
        self.llm_engine = SimpleNamespace(model_config=config)
        self.drawn: list[Any] = []

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        getattr(self.worker, method)(**kwargs)

    def reset_prefix_cache(self) -> bool:
        return True

    def generate(self, prompts: list[Any], settings: list[Any], use_tqdm: bool) -> list[Any]:
        found = []
        for prompt, given in zip(prompts, settings, strict=True):
            body = {"prompt": prompt["prompt_token_ids"], **given}
            choices = StandIn._complete(self, body)["choices"]  # pyright: ignore
            found.append(SimpleNamespace(outputs=[output_of(each) for each in choices]))
        return found


@contextmanager
def vllm_in_process() -> Iterator[None]:
    """In here ``import vllm`` finds this module's classes."""
    with pytest.MonkeyPatch.context() as patch:
        given = SimpleNamespace(LLM=LLM, SamplingParams=dict)
        patch.setitem(__import__("sys").modules, "vllm", given)
        yield
