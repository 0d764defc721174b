"""Environments for tests, rollouts of episodes with tiny models, and a tokenizer that merges."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.decoding import GROUP, QUESTIONS
from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.prompt_format import PromptFormat, PromptRenderer
from rlif_lightning.data.tokenizer import prompt_encoder, resolve_model
from rlif_lightning.data.turns import environment_task
from rlif_lightning.environments.base import Step
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Shows of an assistant's words what stands behind the last "=", or ";".
FORGETTING = CHAT.replace(
    "{{ m.content }}", "{{ m.content.split('=')[-1] if m.role == 'assistant' else m.content }}"
)
TERSE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split(';')[-1] }}</s>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %} {% endif %}"
)
ENVIRONMENT = {
    "make": "harness.episodes.Talker",
    "arguments": {"turns": 3},
    "template": "{observation}",
    "max_turns": 4,
    "max_turn_tokens": 4,
    "max_observation_tokens": 24,
}
# For runs of the embedded model.
ACTING = [f"--data.environment={json.dumps(ENVIRONMENT)}", "--model.sampling.max_new_tokens=12"]
REWARDS = {
    "game": {"head": "EnvironmentReward", "weight": 1.0},
    "coin": {"head": "Random", "weight": 1.0},
    "certainty": {"head": "MeanLogprob", "weight": 1.0},
}
PLAYING = [
    *ACTING,
    f"--model.rewards={json.dumps(REWARDS)}",
    "--model.update.micro_batch_tokens=60",
    "--trainer.check_val_every_n_epoch=1",
]
SMALL = [
    "--data.source.init_args.validation_size=2",
    "--data.prompts_per_rollout=4",
    "--data.group_size=2",
    "--model.evaluation.samples=1",
    "--trainer.log_every_n_steps=1",
]


def forking(folder: Path, **given: Any) -> list[str]:
    """Arguments of a run of the embedded model whose chat template drops thoughts."""
    shutil.copytree(resolve_model("rlif-arithmetic"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TERSE
    tokenizer.save_pretrained(folder)
    made = {**ENVIRONMENT, "thoughts": "fork", "max_observation_tokens": 120, **given}
    return [
        "--data.format.chat=true",
        f"--model.policy.name={folder}",
        f"--data.environment={json.dumps(made)}",
        "--model.sampling.max_new_tokens=24",
    ]


class Talker:
    """Answers with the number of the turn, the seed and the length of what it was told.

    Args:
        turns: after which it is done.
        first: said by reset, with the seed.
        wide: how often an answer is repeated; turn k of an episode repeats it k times more.
    """

    def __init__(self, turns: int = 3, first: str = "", wide: int = 1):
        self.turns, self.first, self.wide = turns, first, wide
        self.told: list[str] = []

    def reset(self, seed: int | None = None, **row: Any) -> str:
        self.seed, self.told = int(seed or 0), []
        return f"{self.first}{self.seed % 7}" if self.first else ""

    def step(self, action: str) -> Step:
        self.told.append(action)
        number = len(self.told)
        said = f"{number}+{self.seed % 7}+{len(action)}=" * (self.wide + number - 1)
        return Step(said, reward=float(number), done=number >= self.turns)


class Failing(Talker):
    """Fails in its second turn, or at once where the problem says so."""

    def reset(self, seed: int | None = None, **row: Any) -> str:
        if row["question"].startswith("1+2"):
            raise OSError("no such game")
        return super().reset(seed, **row)

    def step(self, action: str) -> Step:
        if self.told:
            raise RuntimeError("the board is broken")
        return super().step(action)


class Deadly(Talker):
    """Kills the process, while a file is there, in the middle of many episodes.

    Args:
        while_there: the file; it then says how many episodes are over, and how many go on.
        after: episodes that have begun, over all instances.
    """

    begun = over = 0
    one_at_a_time = threading.Lock()  # environments act in several threads

    def __init__(self, while_there: str, after: int, **talker: Any):
        super().__init__(**talker)
        self.while_there, self.after = Path(while_there), after

    def reset(self, seed: int | None = None, **row: Any) -> str:
        with Deadly.one_at_a_time:
            Deadly.begun += 1
        return super().reset(seed, **row)

    def step(self, action: str) -> Step:
        with Deadly.one_at_a_time:
            return self._step(action)

    def _step(self, action: str) -> Step:
        if Deadly.begun >= self.after and len(self.told) == 1 and self.while_there.exists():
            self.while_there.write_text(f"{Deadly.over} {Deadly.begun - Deadly.over}")
            os.kill(os.getpid(), signal.SIGKILL)
        step = super().step(action)
        is_over = step.done or len(action) % 2 == 1  # some end with their first turn
        Deadly.over += is_over
        return replace(step, done=is_over)


class Hanging(Talker):
    """Does not answer its second turn of some problems in time."""

    def step(self, action: str) -> Step:
        if self.told and self.seed % 2:
            time.sleep(60)
        return super().step(action)


class Unseeded(Talker):
    """Begins differently each time."""

    numbers = itertools.count()  # no two threads get the same one

    def reset(self, seed: int | None = None, **row: Any) -> str:
        return f"{next(Unseeded.numbers)}"


def settings_of(make: str = "Talker", **given: Any) -> EnvironmentSettings:
    return EnvironmentSettings(f"harness.episodes.{make}", **given)


def problems(
    policy: PolicyModel,
    rows: Sequence[int],
    settings: EnvironmentSettings | None,
    chat: bool = False,
) -> Prompts:
    encode = prompt_encoder(policy.tokenizer, chat)
    renderer = PromptRenderer(
        "question", PromptFormat(chat=chat), policy.tokenizer if chat else None
    )
    task = environment_task(settings, renderer, encode, policy.tokenizer)
    columns = {"question": [QUESTIONS[row] for row in rows]}
    texts = [renderer.render({"question": text}) for text in columns["question"]]
    ids = [torch.from_numpy(each).long() for each in encode(texts)]
    messages = [renderer.messages({"question": text}) or [] for text in columns["question"]]
    index = torch.tensor(rows)
    return Prompts(ids, texts, columns, index, messages if chat else None, task)


def play(
    policy: PolicyModel,
    settings: EnvironmentSettings | None,
    sampling: Sampling,
    rows: Sequence[int] = (0, 1, 2, 3),
    max_rows: int = 512,
    chat: bool = False,
) -> Rollout:
    engine = NativeEngine(max_rows)
    engine.setup(policy, seed=7)
    try:
        prompts = problems(policy, rows, settings, chat)
        return engine.generate(prompts, GROUP, sampling, rollout_number=2)
    finally:
        engine.discard_ahead()


@functools.cache
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose encoding merges pairs: 1 and 2 are one token, and so are 2 and +."""
    letters = [*"0123456789+=<>[]abcdefghijklmnopqrstuvwxyzW?'I. \n"]
    merged = ["12", "2+", "3=", "11", "=\n", "\n1"]
    words = ["<pad>", "<bos>", "<eos>", *letters, *merged]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [(pair[0], pair[1]) for pair in merged]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("\x00", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
