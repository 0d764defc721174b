"""Replay: old groups that join the update of a later rollout, with their own old log-probs.

A group is kept for ``max_age`` rollouts if any of its advantages is not 0. Which groups are kept
and which are replayed depends on (seed, rollout number) and on how many there are, over all data
ranks. So neither the number of data ranks nor a resume changes it. With ``groups=2`` and
``max_age=2``:

    rollout   replayed, by the rollout that drew them   in the buffer afterwards
    0         none                                      0 0
    1         0 0                                       0 0 1 1
    2         two of 0 0 1 1                            1 1 2 2

Every data rank holds the whole buffer in CPU memory. Group j belongs to data rank ``j % ranks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.old_logprobs import fresh_tokens
from rlif_lightning.masked import extents
from rlif_lightning.processes.collectives import all_rank_objects
from rlif_lightning.processes.ranks import data_rank, num_data_ranks
from rlif_lightning.records import Completions
from rlif_lightning.sampling import purpose_seeds
from rlif_lightning.setting_types import check_types

SIGNAL = 1e-6  # |advantage|: what rounding leaves of a mean over the batch is less
KEPT, REPLAYED = 0, 1  # the two choices of a rollout
WEIGHTS, ENTROPY = "token_weights", "sampled_entropy"
PER_TOKEN = ("completion_ids", "old_logprobs", "advantages", WEIGHTS, ENTROPY)
PER_COMPLETION = ("completion_numbers", "noise_floor")


@dataclass(frozen=True)
class Replay:
    """How many old groups join each rollout's update, and how old they may be.

    Args:
        groups: old groups in the update of a rollout, at most, over all data ranks. As many of each
            rollout are kept, chosen at random among those whose advantages are not all 0.
        max_age: rollouts that a group may be replayed in, counted from the one that drew it.

    Raises:
        ValueError: a number is less than 1.
    """

    groups: int
    max_age: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("groups", "max_age"):
            if getattr(self, name) < 1:
                need = "must be at least 1; model.replay=null turns replay off"
                raise ValueError(f"replay.{name}={getattr(self, name)} {need}")

    def check(self, objective: Objective, prompts_per_rollout: int | None) -> None:
        """Refuse an objective that would take old tokens for new ones, and too many groups.

        Args:
            objective: of the run.
            prompts_per_rollout: over all data ranks; None = not known.

        Raises:
            ValueError: names the setting and the remedy.
        """
        if not reads_old_logprobs(objective):
            raise ValueError(
                f"model.replay={self}: the gradient of objective {type(objective).__name__} does"
                " not depend on the old log-probs, so it would train on replayed tokens as if the"
                " present policy had sampled them; use an objective with an importance ratio, such"
                " as Clipped, or set model.replay=null"
            )
        if prompts_per_rollout is not None and self.groups > self.max_age * prompts_per_rollout:
            raise ValueError(
                f"model.replay.groups={self.groups}: {self.max_age} rollouts"
                f" (model.replay.max_age) of data.prompts_per_rollout={prompts_per_rollout} never"
                f" have so many; set it to {self.max_age * prompts_per_rollout} or less"
            )


def reads_old_logprobs(objective: Objective) -> bool:
    """Return whether the gradient of an objective's policy loss depends on the old log-probs."""
    gradients = []
    for shift in (0.0, 0.5):
        now = torch.full((2, 2), -1.0, requires_grad=True)
        advantages, mask = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2) > 0
        old = now.detach() - shift
        known: dict[str, Any] = {"entropy": torch.ones_like(old), "ref_logprobs": now.detach()}
        batch = LossInputs(now, old, advantages, mask, torch.arange(2), **known)
        loss = objective.policy_loss(batch, torch.zeros_like(mask)).sum()
        gradients.append(torch.autograd.grad(loss, now)[0] if loss.requires_grad else None)
    return gradients[0] is not None and not torch.equal(gradients[0], gradients[1])


@dataclass(frozen=True)
class OldGroup:
    """One group of an earlier rollout, on the CPU, with what an update needs of it.

    Attributes:
        rollout_number: of the rollout that drew it.
        place: of its prompt among the prompts of all data ranks.
        prompt_ids: ``[L]`` int64.
        completion_ids: ``[G, t]`` int64, t = the longest completion of the group.
        mask: ``[G, t]`` bool.
        old_logprobs: ``[G, t]``, the old log-probs of its own rollout's update.
        advantages: ``[G, t]``, as its own rollout's.
        completion_numbers: ``[G]`` int64.
        noise_floor: ``[G]``, of its own rollout, nats.
        token_weights: ``[G, t]``; 1 where the engine's log-probs were the policy's.
        sampled_entropy: ``[G, t]``, of the policy that drew it, nats.

    Raises:
        ValueError: shapes do not agree.
    """

    rollout_number: int
    place: int
    prompt_ids: Tensor
    completion_ids: Tensor
    mask: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    completion_numbers: Tensor
    noise_floor: Tensor
    token_weights: Tensor
    sampled_entropy: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.mask.shape)
        shapes = dict.fromkeys(PER_TOKEN, shape) | dict.fromkeys(PER_COMPLETION, shape[:1])
        wrong = [name for name in shapes if tuple(getattr(self, name).shape) != shapes[name]]
        if wrong or self.prompt_ids.dim() != 1:
            raise ValueError(
                f"{', '.join(wrong) or 'prompt_ids'} of a replayed group has another shape than"
                f" its mask, {shape}: the checkpoint's replay buffer is none of this library's"
            )


class ReplayBuffer:
    """The groups that may be replayed, the same on every data rank.

    Args:
        settings: how many and how old.
    """

    def __init__(self, settings: Replay):
        self.settings = settings
        self.groups: list[OldGroup] = []  # by rollout number, then by place

    def clear(self) -> None:
        """Drop every group."""
        self.groups = []

    def draw(self, rollout_number: int, seed: int, group_size: int) -> list[OldGroup]:
        """Choose the groups that join a rollout's update, over all data ranks.

        Args:
            rollout_number: of the rollout, counted from 0.
            seed: of the run.
            group_size: G; groups of another size stay out.
        """
        oldest = rollout_number - self.settings.max_age
        young = [group for group in self.groups if group.rollout_number >= oldest]
        usable = [group for group in young if len(group.mask) == group_size]
        return [usable[i] for i in self._choice(len(usable), seed, rollout_number, REPLAYED)]

    def keep(
        self, completions: Completions, inputs: LossInputs, rollout_number: int, seed: int
    ) -> None:
        """Keep groups of a rollout after its updates, and drop those that are too old.

        It is a collective.

        Args:
            completions: of the update; the rollout's own come first.
            inputs: ``[B, T]``, with settled old log-probs.
            rollout_number: of the rollout.
            seed: of the run.
        """
        ranks, own = num_data_ranks(), data_rank()
        groups = {group * ranks + own: group for group in _with_signal(completions, inputs)}
        places = sorted(chain.from_iterable(all_rank_objects(list(groups))))
        chosen = {places[i] for i in self._choice(len(places), seed, rollout_number, KEPT)}
        kept = [
            _taken(completions, inputs, group, rollout_number, place)
            for place, group in groups.items()
            if place in chosen
        ]
        new = sorted(chain.from_iterable(all_rank_objects(kept)), key=lambda group: group.place)
        oldest = rollout_number + 1 - self.settings.max_age
        self.groups = [each for each in self.groups if each.rollout_number >= oldest] + new

    def _choice(self, size: int, seed: int, rollout_number: int, which: int) -> list[int]:
        seeds = purpose_seeds("replay", seed, rollout_number, which)
        return np.random.default_rng(seeds).permutation(size)[: self.settings.groups].tolist()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the groups as tensors and plain values."""
        return [dict(vars(group)) for group in self.groups]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]] | None) -> None:
        """Take a checkpoint's groups; none where it has no buffer.

        Raises:
            ValueError: the checkpoint holds something else.
        """
        names = {field.name for field in fields(OldGroup)}
        if any(set(group) != names for group in state or ()):
            raise ValueError("the checkpoint's replay buffer is none of this library's")
        self.groups = [OldGroup(**group) for group in state or ()]


def why_empty(state: Sequence[Mapping[str, Any]] | None, group_size: int) -> str | None:
    """Return why nothing of a checkpoint's buffer is replayed, for the user; None if something is.

    Args:
        state: of :meth:`ReplayBuffer.state_dict`; None = the checkpoint has none.
        group_size: G of the run that goes on.
    """
    if state is None:
        return "the checkpoint has no replay buffer: it begins empty"
    sizes = {len(group["mask"]) for group in state}
    if sizes and group_size not in sizes:
        return (
            f"the replay buffer's groups have {min(sizes)} completions and new ones {group_size}:"
            " it begins empty"
        )
    return None


def joined(
    completions: Completions, inputs: LossInputs, groups: Sequence[OldGroup]
) -> tuple[Completions, LossInputs]:
    """Put this data rank's replayed groups, possibly none, behind its rollout's own.

    Args:
        completions: of the rollout, B.
        inputs: its ``[B, T]`` loss inputs, without reference log-probs.
        groups: replayed in this rollout on this data rank.

    Returns:
        Both for B' = B + G * replayed groups, padded to the longest completion.
    """
    width = max([inputs.mask.shape[1], *(group.mask.shape[1] for group in groups)])

    def together(own: Tensor, name: str) -> Tensor:  # [B, T] or [B] to [B', T'] or [B']
        parts = [own, *(getattr(group, name).to(own) for group in groups)]
        if own.dim() == 1:
            return torch.cat(parts)
        return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])

    old, weights = inputs.old_logprobs, inputs.token_weights
    old_logprobs, mask = together(old, "old_logprobs"), together(inputs.mask, "mask")
    assert inputs.sampled_logprobs is not None
    assert inputs.sampled_entropy is not None
    all_inputs = LossInputs(
        old_logprobs,
        old_logprobs,
        together(inputs.advantages, "advantages"),
        mask,
        together(inputs.completion_numbers, "completion_numbers"),
        token_weights=together(torch.ones_like(old) if weights is None else weights, WEIGHTS),
        sampled_logprobs=together(inputs.sampled_logprobs, "old_logprobs"),
        sampled_entropy=together(inputs.sampled_entropy, ENTROPY),
        # The ratio of the rollout's own tokens is exactly 1 until a floor is measured.
        noise_floor=together(torch.zeros_like(old[:, 0]), "noise_floor").unsqueeze(1),
        is_replayed=torch.arange(len(mask), device=mask.device) >= len(old),
    )
    prompts = [*completions.prompt_ids, *(group.prompt_ids.to(mask.device) for group in groups)]
    ids = together(completions.completion_ids, "completion_ids")
    return Completions(prompts, ids, mask, completions.group_size), all_inputs


def _with_signal(completions: Completions, inputs: LossInputs) -> list[int]:
    """Return this data rank's groups of its own rollout whose advantages are not all 0."""
    told = (inputs.advantages.abs() > SIGNAL) & fresh_tokens(inputs)  # [B, T]
    return told.view(-1, completions.group_size * told.shape[1]).any(-1).nonzero()[:, 0].tolist()


def _taken(
    completions: Completions, inputs: LossInputs, group: int, rollout_number: int, place: int
) -> OldGroup:
    """Copy one group of an update into the CPU's memory, without its padding."""
    size = completions.group_size
    own = slice(group * size, (group + 1) * size)
    width = int(extents(inputs.mask[own]).max())

    def part(values: Tensor) -> Tensor:  # a view would keep the whole rollout in memory
        chosen = values[own, :width] if values.ndim == 2 else values[own]
        return chosen.cpu().clone(memory_format=torch.contiguous_format)

    old, weights, floor = inputs.old_logprobs, inputs.token_weights, inputs.noise_floor
    assert floor is not None
    assert inputs.sampled_entropy is not None
    return OldGroup(
        rollout_number,
        place,
        completions.prompt_ids[group].cpu().clone(),
        part(completions.completion_ids),
        part(inputs.mask),
        part(old),
        part(inputs.advantages),
        part(inputs.completion_numbers),
        part(floor.expand(len(old), 1)[:, 0]),
        part(torch.ones_like(old) if weights is None else weights),
        part(inputs.sampled_entropy),
    )
