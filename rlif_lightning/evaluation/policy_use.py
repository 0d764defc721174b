"""What a person does with a module beside training: sample from it, write it, load it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning import LightningModule

from rlif_lightning.data.tokenizer import prompt_encoder
from rlif_lightning.model.export import write_model
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.fsdp import whole_state_dict
from rlif_lightning.processes.collectives import all_process_attempt, is_first_process
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.running.checkpoint_faults import read_rest
from rlif_lightning.running.rebuilt import arguments_in
from rlif_lightning.running.run_settings import KEY
from rlif_lightning.sampling import PREDICTION_ROLLOUT, Sampling

Conversation = Sequence[Mapping[str, str]]


class PolicyUse(LightningModule):
    """Sampling, writing and loading, on the parts that a subclass sets."""

    engine: RolloutEngine
    sampling: Sampling
    policy: PolicyModel | None
    policy_settings: Policy

    def generate(
        self,
        prompts: str | Conversation | Sequence[str] | Sequence[Conversation],
        group_size: int = 1,
        sampling: Sampling | None = None,
    ) -> list[list[str]]:
        """Draw completions of prompts; the same call draws the same ones.

        Args:
            prompts: P texts as the model reads them (the template of a data module is not applied),
                or P conversations, lists of ``{role, content}``, for the chat template. One of
                them may stand alone.
            group_size: G completions for each.
            sampling: how to draw; None = as in training.

        Returns:
            P lists of G texts.

        Raises:
            ValueError: there are no prompts, or the model cannot read them.
        """
        self.configure_model()
        assert self.policy is not None
        one = isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Mapping))
        asked: Any = [prompts] if one else list(prompts)
        if not asked or group_size < 1:
            raise ValueError(
                f"generate: {len(asked)} prompts with group_size={group_size}: at least 1 of each"
                " is needed"
            )
        drawn = self.engine.generate(
            _encoded(self.policy, asked), group_size, sampling or self.sampling, PREDICTION_ROLLOUT
        )
        texts = list(drawn.texts)
        return [texts[start : start + group_size] for start in range(0, len(texts), group_size)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy and its tokenizer as a Hugging Face folder, which is replaced.

        A LoRA policy is written as its adapters, which name their base model. Every process calls
        this, and the first one writes.

        Raises:
            ValueError: the folder has something that is no model.
        """
        self.configure_model()
        assert self.policy is not None
        policy, path = self.policy, Path(folder).expanduser()
        weights = whole_state_dict(self.policy)

        def write() -> None:
            if not is_first_process():
                return
            found = path.is_dir() and [each.name for each in path.iterdir()]
            if path.is_file() or (found and not {"config.json", "adapter_config.json"} & {*found}):
                raise ValueError(
                    f"folder={str(folder)!r} is there and holds no model; name another"
                )
            write_model(policy, weights, path)

        all_process_attempt(write)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a module from a checkpoint, as Lightning does, with the settings in the checkpoint.

        Args:
            checkpoint_path: a file.
            args: as in Lightning.
            kwargs: as in Lightning; arguments of the module replace those of the checkpoint.

        Raises:
            ValueError: an argument that the checkpoint cannot give, such as a head of a class that
                is not from this library; names it.
            TypeError: an argument that neither Lightning nor the module knows.
        """
        known = {*inspect.signature(super().load_from_checkpoint).parameters} - {"kwargs"}
        taken = inspect.signature(cls).parameters
        is_closed = all(it.kind is not it.VAR_KEYWORD for it in taken.values())
        if is_closed and (unknown := sorted({*kwargs} - known - {*taken})):
            raise TypeError(
                f"load_from_checkpoint: {unknown[0]!r} is no argument of {cls.__name__}; use one of"
                f" {', '.join(taken)}"
            )
        saved = arguments_in(read_rest(Path(checkpoint_path)).get(KEY), cls, {*kwargs})
        settings = {"weights_only": True, **saved, **kwargs}  # a pickle could run code
        return super().load_from_checkpoint(checkpoint_path, *args, **settings)


def _is_conversation(prompt: Any) -> bool:
    """Return whether a prompt is messages; a template would show others as empty turns."""
    return isinstance(prompt, Sequence) and all(
        isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in prompt
    )


def _encoded(policy: PolicyModel, asked: Sequence[Any]) -> Prompts:
    """Return prompts on the policy's device."""
    chats = [not isinstance(prompt, str) for prompt in asked]
    for prompt, chat in zip(asked, chats, strict=True):
        if chat and not _is_conversation(prompt):
            raise ValueError(
                f"generate: the prompt {prompt!r:.200} is neither a text nor a conversation, a list"
                " of {role, content}"
            )
    if any(chats) and policy.tokenizer.chat_template is None:
        raise ValueError(
            f"generate: the tokenizer of {policy.name!r} has no chat template; pass texts instead"
            " of conversations"
        )
    texts = [
        str(
            policy.tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, tokenize=False
            )
        )
        if chat
        else prompt
        for prompt, chat in zip(asked, chats, strict=True)
    ]
    encoders = {chat: prompt_encoder(policy.tokenizer, chat) for chat in {*chats}}
    device = next(policy.parameters()).device
    ids = [encoders[chat]([text])[0] for text, chat in zip(texts, chats, strict=True)]
    if empty := [text for text, each in zip(texts, ids, strict=True) if not len(each)]:
        raise ValueError(f"generate: the prompt {empty[0]!r} has no tokens; pass a longer one")
    token_ids = [torch.tensor(each, dtype=torch.int64, device=device) for each in ids]
    return Prompts(token_ids, texts, {}, torch.arange(len(texts)))
