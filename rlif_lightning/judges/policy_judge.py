"""``PolicyJudge``: a local language model as the judge, sampled by the native engine.

The questions are prompts of their own, so the policy never sees what the judge sees. Under a
strategy that divides weights, the judge is divided likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlif_lightning.data.tokenizer import prompt_encoder, special_texts, without_tokens
from rlif_lightning.judges.base import (
    GREEDY,
    ModelJudge,
    Reply,
    Request,
    RunModels,
    final_text,
    question_number,
)
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.processes.ranks import num_processes
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.self_check import check_architecture
from rlif_lightning.sampling import JUDGE_ROLLOUT, Sampling


class PolicyJudge(ModelJudge):
    """A judge that is a Hugging Face model in this process: by default the policy's frozen start.

    A sampled reply follows from the run's seed and the question alone, so it depends neither on
    batches nor on processes, and an equal question has an equal reply throughout a run.

    Args:
        policy: the judge's model; null = the one that is trained.
        frozen: whether the judge stays as its files are. Without it the judge is the policy as it
            is now.
        sampling: how its reply is drawn.
        max_failed: as for :class:`Judge`.

    Raises:
        ValueError: another model that is not frozen: nothing trains it.
    """

    asks_together = True
    repeats_itself = True

    def __init__(
        self,
        policy: Policy | None = None,
        frozen: bool = True,
        sampling: Sampling = GREEDY,
        max_failed: float = 0.1,
    ):
        super().__init__(sampling, max_failed)
        if policy is not None and not frozen:
            raise ValueError(
                f"judge.policy.name={policy.name!r} with frozen=false: nothing trains this model;"
                " set frozen=true, or leave judge.policy out to ask the policy itself"
            )
        if policy is not None and policy.lora is not None:
            raise ValueError(
                "judge.policy.lora: adapters of a judge are never trained; leave it out"
            )
        self.policy, self.frozen = policy, frozen
        self._model: PolicyModel | None = None

    def bind(self, models: RunModels) -> None:
        """Load the judge's model once, or take the policy itself."""
        self._device, self._engine = models.device, NativeEngine()
        if not self.frozen:
            self._model = models.policy
        elif self._model is None:
            if self.policy is not None:
                check_architecture(self.policy)
            start = models.settings
            if not start.in_4bit:  # adapters that begin change nothing, and only they have 4 bits
                start = replace(start, lora=None)
            self._model = models.load(self.policy or start)
        assert self._model is not None
        self._engine.setup(self._model, models.seed)
        tokenizer = self._model.tokenizer
        self._special = special_texts(tokenizer)
        self._encode = prompt_encoder(tokenizer, chat=tokenizer.chat_template is not None)
        self._asking = self._in_chat("?")  # its end may open a thought

    @torch.no_grad()
    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        ids = self._token_ids([request.text for request in requests])
        faults = [self._fault(each) for each in ids]
        asked = [number for number, fault in enumerate(faults) if not fault]
        if not asked and num_processes() == 1:
            return [Reply(None, fault, calls=0) for fault in faults]
        # A process without a question still takes part: its weights may be divided.
        prompts = self._prompts(
            [ids[number] for number in asked] or self._token_ids(["?"]),
            [requests[number].text for number in asked] or ["?"],
        )
        drawn = self._engine.generate(prompts, 1, self.sampling, JUDGE_ROLLOUT)
        replies = [Reply(None, fault, calls=0) for fault in faults]
        for place, number in enumerate(asked):
            replies[number] = Reply(
                final_text(self._asking, drawn.texts[place]),
                prompt_tokens=len(ids[number]),
                completion_tokens=int(drawn.lengths[place]),
            )
        return replies

    def _token_ids(self, texts: Sequence[str]) -> list[Tensor]:
        # A special token that a completion spells out would be read as one.
        plain = [self._in_chat(without_tokens(text, self._special)) for text in texts]
        encoded = self._encode(plain) if plain else []
        return [torch.from_numpy(each).long().to(self._device) for each in encoded]

    def _in_chat(self, text: str) -> str:
        """Return a question as the model reads it."""
        assert self._model is not None
        tokenizer, turns = self._model.tokenizer, [{"role": "user", "content": text}]
        if tokenizer.chat_template is None:
            return text
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _fault(self, ids: Tensor) -> str:
        """Return why the model cannot read a question; nothing where it can."""
        assert self._model is not None
        if len(ids) == 0:
            return "the question has no tokens"
        try:
            self._model.check_context([ids], self.sampling.max_new_tokens)
        except ValueError as error:
            return f"the judge cannot read the question: {error}"
        return ""

    def _prompts(self, ids: Sequence[Tensor], texts: Sequence[str]) -> Prompts:
        index = torch.tensor([question_number(text) for text in texts], device=self._device)
        return Prompts(ids, texts, {}, index)
