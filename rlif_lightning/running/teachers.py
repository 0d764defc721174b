"""A run's teacher: how it is built, what it reads, how its average follows, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlif_lightning.data.columns import check_column
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.data.tokenizer import special_texts, without_tokens
from rlif_lightning.learning.feedback import (
    FeedbackWriter,
    OutputsWithoutGold,
    feedback_prompts,
    feedback_texts,
)
from rlif_lightning.learning.lessons import Lesson
from rlif_lightning.learning.teacher import CALLBACK, SIBLING, Teacher
from rlif_lightning.masked import extents
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import reshard_after_forward
from rlif_lightning.records import RewardOutput, Rollout, overlap
from rlif_lightning.rewards.unread import tell_unread
from rlif_lightning.rollout.self_check import check_architecture

SETTING = "model.objective.teacher"


def build_teacher(
    settings: Teacher, policy: PolicyModel, build: Callable[[Policy], PolicyModel]
) -> PolicyModel | None:
    """Return a teacher's model; None = the policy without its adapters.

    Args:
        settings: of the teacher.
        policy: is taught.
        build: returns a frozen model as the run's strategy has it.

    Raises:
        ValueError: its tokenizer is not the policy's, its weights are too coarse to average, or
            this library does not compute its own log-probs.
    """
    if settings.model is None and not settings.averages and policy.has_adapters:
        return None
    if settings.model is not None:
        check_architecture(settings.model)
    teacher = build(settings.model or policy.settings)
    if teacher.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            f"{SETTING}.model.name={teacher.name!r} has another tokenizer than"
            f" model.policy.name={policy.name!r}: the same ids are other texts to it; use a teacher"
            " with the policy's tokenizer"
        )
    trained = [each for each in policy.parameters() if each.requires_grad]
    coarse = [each.dtype for each in trained if each.dtype.itemsize < 4]
    if settings.averages and coarse:
        raise ValueError(
            f"{SETTING}.ema_rate={settings.ema_rate}: in weights of {coarse[0]} most steps of an"
            " average are less than rounding; set model.policy.dtype=float32, or ema_rate=0"
        )
    return teacher


@torch.no_grad()
def follow(teacher: PolicyModel, policy: PolicyModel, rate: float) -> None:
    """Move the teacher's weights by a share of the way to the policy's; 1 copies them.

    Weights in 4 bits are never trained, so that both have the same.
    """
    for model in (teacher, policy):
        reshard_after_forward(model)
    both = zip(teacher.parameters(), policy.parameters(), strict=True)
    pairs = [(_local(own), _local(other)) for own, other in both if other.is_floating_point()]
    own, others = ([pair[side] for pair in pairs] for side in (0, 1))
    if rate == 1:
        torch._foreach_copy_(own, others)
    else:
        torch._foreach_lerp_(own, others, rate)


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def lesson_of(module: Any, rollout: Rollout, outputs: Mapping[str, RewardOutput]) -> Lesson | None:
    """Return what a teacher reads in a rollout's updates (a collective); None = there is none.

    Raises:
        ValueError: a callback has given the run another teacher than it began with.
    """
    teacher: Teacher | None = module.objective.teacher
    if teacher != module.first_teacher:
        raise ValueError(
            f"{SETTING} is {teacher} now and was {module.first_teacher} at the start: a teacher"
            " cannot be changed in a run; leave the callback out that replaces the objective, or"
            " let it keep the teacher"
        )
    if teacher is None:
        return None
    writer = _writer(module)
    if writer is not None and not writer.needs_gold:
        heads = module.rewards.heads
        free = {name: each for name, each in outputs.items() if not heads[name].needs_gold}
        outputs = OutputsWithoutGold(free)
    said = feedback_texts(teacher, rollout, outputs, _weighted(module), writer)
    # A special token that feedback spells out would be read as one, and could end its turn.
    special = special_texts((module.teacher or module.policy).tokenizer)
    texts = [None if text is None else without_tokens(text, special) for text in said]
    split = module.trainer.datamodule.split("train")
    prompts = feedback_prompts(rollout, texts, teacher.template, split)
    reads = module.teacher or module.policy
    lengths = extents(rollout.mask).tolist()
    faults = [_fault(reads, *each) for each in zip(prompts, lengths, strict=True)]
    tell_unread(teacher, faults, "leaves out")
    read = [None if fault else each for each, fault in zip(prompts, faults, strict=True)]
    return Lesson(module.teacher, read, teacher.top_k)


def _fault(reads: PolicyModel, prompt: Tensor | None, length: int) -> str:
    """Return why the teacher cannot read a prompt with feedback; nothing where it can."""
    if prompt is None or not length:
        return ""
    asked = f" with the feedback that {SETTING} shows"
    return reads.limits.fault(reads.name, len(prompt), len(prompt) + length + 1, asked)


def _weighted(module: Any) -> str | None:
    names = [name for name, reward in module.rewards.settings.items() if reward.weight]
    return names[0] if len(names) == 1 else None


def _writers(module: Any) -> list[FeedbackWriter]:
    return [each for each in module.trainer.callbacks if isinstance(each, FeedbackWriter)]


def _writer(module: Any) -> FeedbackWriter | None:
    return next(iter(_writers(module)), None)


def check_teacher(module: Any, data: PromptData | None) -> None:
    """Refuse what a teacher cannot work with, and gold answers that nobody consented to.

    Raises:
        ValueError: names the setting and the remedy.
    """
    teacher: Teacher | None = module.objective.teacher
    if teacher is None:
        if writers := _writers(module):
            raise ValueError(
                f"trainer.callbacks: {type(writers[0]).__name__} writes feedback that no teacher"
                " reads; use the objective DistIL, or take the callback out"
            )
        return
    name = type(module.objective).__name__
    if module.replay_buffer is not None:
        raise ValueError(
            f"model.replay={module.replay_buffer.settings}: a replayed group has no feedback for"
            f" the teacher of {name}; set model.replay=null"
        )
    if staleness := getattr(module.engine, "staleness", 0):
        raise ValueError(
            f"model.engine.staleness={staleness}: {name} credits a token for the present policy's"
            " later tokens, and these are an older one's; set staleness=0"
        )
    if data is None:
        raise ValueError(
            f"model.objective={name} renders problems with feedback through PromptData; use it as"
            " the data module"
        )
    _check_source(module, teacher, data)


def _check_source(module: Any, teacher: Teacher, data: PromptData) -> None:
    writers = _writers(module)
    if teacher.feedback != CALLBACK and writers:
        raise ValueError(
            f"trainer.callbacks: {type(writers[0]).__name__} writes feedback, and {SETTING}"
            f".feedback={teacher.feedback} reads none of it; set feedback=callback, or take it out"
        )
    if teacher.feedback == SIBLING:
        _check_siblings(module)
    elif teacher.feedback == CALLBACK:
        if len(writers) != 1:
            raise ValueError(
                f"{SETTING}.feedback=callback needs one FeedbackWriter among trainer.callbacks, and"
                f" there are {len(writers)}; add one, or name a data column"
            )
        columns = module.rewards.gold_columns if writers[0].needs_gold else writers[0].columns
        _check_gold(module, teacher, columns, type(writers[0]).__name__, writers[0].needs_gold)
    else:
        if (split := data.split("train")) is not None:
            named = f"{SETTING}.feedback={teacher.feedback!r}"
            check_column(named, teacher.feedback, split.dataset, "the train split")
        _check_gold(module, teacher, [teacher.feedback], f"the column {teacher.feedback!r}")


def _check_siblings(module: Any) -> None:
    if (weighted := _weighted(module)) is None:
        raise ValueError(
            f"{SETTING}.feedback=sibling takes a completion as right by the only reward with a"
            f" weight, and rewards={module.rewards.names} have several; set the weights of the"
            " others to 0"
        )
    if module.rewards.settings[weighted].length == "neutral":
        raise ValueError(
            f"rewards.{weighted}.length=neutral moves scores by length, and {SETTING}"
            ".feedback=sibling takes a completion as right from a score of 0.5 on: set"
            " length=keep"
        )
    if module.group_size < 2:
        raise ValueError(
            f"data.group_size={module.group_size} leaves a completion without siblings, which"
            f" {SETTING}.feedback=sibling needs; set it to 2 or more"
        )


def _check_gold(
    module: Any, teacher: Teacher, columns: Any, source: str, reads_all: bool = False
) -> None:
    """Refuse gold answers in feedback without consent, and consent to none; say what is shown."""
    golds = module.rewards.gold_columns
    seen = [gold for gold in golds if any(overlap(column, gold) for column in columns)]
    if (seen or reads_all) and not teacher.needs_gold:
        raise ValueError(
            f"{SETTING}.feedback={teacher.feedback}: {source} shows gold answers"
            f" ({', '.join(seen) or 'needs_gold'}) to the teacher, so that the run is not"
            f" label-free; set {SETTING}.needs_gold=true if that is meant, or name other feedback"
        )
    if teacher.needs_gold:
        shown = ", ".join(seen) if seen else "as model.objective.teacher.needs_gold says"
        rank_zero_info(
            f"the teacher's feedback from {source} shows gold answers ({shown}): this run is not"
            " label-free"
        )
