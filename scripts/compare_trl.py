"""Compare gradients, advantages and weights with TRL's own code on random numbers.

    python scripts/compare_trl.py    # in an environment that has trl 1.16 as well

Each line calls a method of TRL's trainers: ``_compute_loss`` with given log-probs, or
``_generate_and_score_completions`` with given completions and rewards. A line shows the largest
difference of a gradient, an advantage, a weight or a reward, relative to the largest. The exit
code is 1 where one is above 1e-5. ``--write`` replaces docs/results/compare_trl.csv.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from compare_objectives import Line, compare, gradient, tokens
from torch import Tensor

from rlif_lightning import (
    CISPO,
    GDPO,
    GMPO,
    GRPO,
    GSPO,
    RLOO,
    SAPO,
    Advantage,
    Clipped,
    LossInputs,
    Objective,
    ReferenceKL,
)
from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.rewards.overlong import DropTruncated, OverlongPenalty
from rlif_lightning.rollout.importance_weights import CORRECTIONS, ICEPOP, Correction

EOS, PAD, P, G = 1, 0, 5, 4
LENGTH = 24  # TRL's max_completion_length
GRPO_TRAINER, RLOO_TRAINER, GMPO_TRAINER = "GRPOTrainer", "RLOOTrainer", "GMPOTrainer"


@dataclass(frozen=True)
class Loss:
    """An objective and TRL's settings of the same meaning.

    Args:
        objective: ours.
        settings: TRL's.
        trainer: TRL's class.
        max_length: ours, for the aggregation ``constant``.
        is_weighted: whether an engine's token weights multiply both losses.
    """

    objective: Objective
    settings: dict[str, Any]
    trainer: str = GRPO_TRAINER
    max_length: int = LENGTH
    is_weighted: bool = False


def bounds(low: float, high: float, **more: Any) -> dict[str, Any]:
    """Return TRL's settings of two bounds."""
    return {"epsilon": low, "epsilon_high": high, **more}


SEQUENCE = {"importance_sampling_level": "sequence"}
WIDE = bounds(0.2, 0.3)
LOSSES = {
    "grpo": Loss(Clipped("sequence_mean", clip_high=0.3), {**WIDE, "loss_type": "grpo"}),
    "bnpo": Loss(Clipped(clip_high=0.3), {**WIDE, "loss_type": "bnpo"}),
    "dapo": Loss(Clipped(clip_high=0.3), {**WIDE, "loss_type": "dapo"}),
    "dr_grpo": Loss(Clipped("constant", clip_high=0.3), {**WIDE, "loss_type": "dr_grpo"}),
    "dapo, delta": Loss(Clipped(dual_clip=1.5), bounds(0.2, 0.2, loss_type="dapo", delta=1.5)),
    "dapo, beta": Loss(
        Clipped(reference_kl=ReferenceKL(0.1)),
        bounds(0.2, 0.2, loss_type="dapo", beta=0.1, use_bias_correction_kl=False),
    ),
    "dapo, beta, use_bias_correction_kl": Loss(
        Clipped(reference_kl=ReferenceKL(0.1, "k3_ratio")),
        bounds(0.2, 0.2, loss_type="dapo", beta=0.1, use_bias_correction_kl=True),
    ),
    "bnpo, entropy_coef": Loss(
        Clipped(entropy_bonus=0.1), bounds(0.2, 0.2, loss_type="bnpo", entropy_coef=0.1)
    ),
    "grpo, sequence (GSPO)": Loss(
        GSPO(clip_low=0.05, clip_high=0.1), bounds(0.05, 0.1, loss_type="grpo", **SEQUENCE)
    ),
    "dapo, sequence": Loss(
        GSPO("token_mean", clip_low=0.05, clip_high=0.1),
        bounds(0.05, 0.1, loss_type="dapo", **SEQUENCE),
    ),
    "luspo, sequence": Loss(
        GSPO("constant", clip_low=0.05, clip_high=0.1),
        bounds(0.05, 0.1, loss_type="luspo", **SEQUENCE),
        max_length=1,
    ),
    "cispo": Loss(CISPO(clip_high=0.2), bounds(0.2, 1.2, loss_type="cispo")),
    "sapo": Loss(SAPO(), {"loss_type": "sapo"}),
    "GMPO": Loss(GMPO(clip_low=0.2, clip_high=0.3), WIDE, GMPO_TRAINER),
    "dapo, vllm weights": Loss(
        Clipped(clip_high=0.3), {**WIDE, "loss_type": "dapo"}, is_weighted=True
    ),
}
ESTIMATORS: dict[str, tuple[Advantage, str, dict[str, Any]]] = {
    "scale_rewards=group": (GRPO(), GRPO_TRAINER, {"scale_rewards": "group"}),
    "scale_rewards=batch": (GRPO("batch"), GRPO_TRAINER, {"scale_rewards": "batch"}),
    "scale_rewards=none": (GRPO("none"), GRPO_TRAINER, {"scale_rewards": "none"}),
    "normalize_then_sum (GDPO)": (
        GDPO("sample"),
        GRPO_TRAINER,
        {"multi_objective_aggregation": "normalize_then_sum"},
    ),
    "RLOOTrainer": (RLOO(), RLOO_TRAINER, {"beta": 0.0}),
}


def bare(trainer: str, **settings: Any) -> Any:
    """Return a TRL trainer with its default settings but these, and without model or data."""
    import trl  # pyright: ignore[reportMissingImports]
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
    from trl.experimental import gmpo  # pyright: ignore[reportMissingImports]

    where = gmpo if trainer == GMPO_TRAINER else trl
    config = getattr(where, trainer.replace("Trainer", "Config"))
    made = object.__new__(getattr(where, trainer))
    batch = {"per_device_train_batch_size": P * G, "num_generations": G}
    made.args = config("unused", use_cpu=True, bf16=False, **batch, **settings)
    made.__dict__ |= {
        name: value for name, value in vars(made.args).items() if not hasattr(made, name)
    }
    made.epsilon_low = made.args.epsilon
    made.epsilon_high = made.epsilon if made.epsilon_high is None else made.epsilon_high
    made._entropy_bonus_enabled = getattr(made.args, "entropy_coef", 0.0) != 0
    made.accelerator = Accelerator(cpu=True)
    model: Any = torch.nn.Identity()
    model.is_gradient_checkpointing = False
    made.model = model
    made.current_gradient_accumulation_steps, made.aux_loss_enabled = 1, False
    made._metrics = {"train": defaultdict(list)}
    made._logs = defaultdict(lambda: defaultdict(list)) | {"prompt": [], "completion": []}
    made._logs["advantages"] = []
    made._pending_extra_logs, made._pending_metrics = {}, {}
    made._tokenizer, made.eos_token_ids = SimpleNamespace(pad_token_id=PAD), [EOS]
    made.tools, made.environment_factories, made.environments = [], None, None
    made.pad_to_multiple_of, made.ref_model = None, None
    return made


def loss_difference(pair: Loss, seed: int) -> float:
    """Return the largest difference of two gradients by log-probs and entropies."""
    batch = more_of(tokens(seed, P * G, LENGTH), seed, pair.is_weighted)
    objective, mask = pair.objective, batch.mask
    weights = aggregation_weights(mask, objective.aggregation, pair.max_length).double()
    theirs = bare(pair.trainer, max_completion_length=LENGTH, **pair.settings)
    theirs.use_vllm = pair.is_weighted
    empty = torch.zeros(P * G, 0, dtype=torch.long)
    inputs = {"prompt_ids": empty, "prompt_mask": empty, "completion_ids": mask.long()}
    inputs |= {"completion_mask": mask.long(), "advantages": batch.advantages[:, 0]}
    inputs |= {"old_per_token_logps": batch.old_logprobs, "num_items_in_batch": mask.sum()}
    inputs |= {"ref_per_token_logps": batch.ref_logprobs}
    inputs |= {"importance_sampling_ratio": batch.token_weights}

    def our_loss(both: Tensor) -> Tensor:
        given = replace(batch, logprobs=both[0], entropy=both[1])
        return (objective.token_loss(given, torch.zeros_like(mask)) * weights).sum()

    def their_loss(both: Tensor) -> Tensor:
        theirs._get_per_token_logps_and_entropies = lambda *_, **__: (both[0], both[1], None)
        return theirs._compute_loss(None, inputs)

    assert batch.entropy is not None
    both = torch.stack([batch.logprobs, batch.entropy])
    return relative(gradient(our_loss, both), gradient(their_loss, both))


def more_of(batch: LossInputs, seed: int, is_weighted: bool) -> LossInputs:
    """Return the tokens with entropies, a reference's log-probs, and an engine's weights."""
    generator = torch.Generator().manual_seed(seed + 1000)
    noise = torch.randn(3, *batch.mask.shape, generator=generator, dtype=torch.float64)
    engine = batch.old_logprobs + 0.3 * noise[0]
    weights, _ = Correction(1.2).weights(batch.old_logprobs, engine, batch.mask)
    return replace(
        batch,
        entropy=noise[1].abs(),
        ref_logprobs=batch.old_logprobs + 0.2 * noise[2],
        token_weights=weights if is_weighted else None,
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest of theirs."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def scored(theirs: Any, rewards: Tensor, lengths: Tensor, logprobs: list[Tensor]) -> dict[str, Any]:
    """Return what TRL makes of given completions, rewards ``[R, P, G]`` and two log-probs."""
    ids = [[2] * (int(n) - 1) + [EOS if n < LENGTH else 2] for n in lengths.flatten()]
    sampled = [row[: len(one)].tolist() for row, one in zip(logprobs[0], ids, strict=True)]
    prompts, texts = [[3]] * (P * G), [""] * (P * G)
    answer = prompts, ids, None, texts, sampled, {}, None, None
    short = prompts, ids, texts
    theirs._generate = lambda _: short if type(theirs).__name__ == RLOO_TRAINER else answer
    theirs._calculate_rewards = lambda *_: rewards.flatten(1).T
    theirs._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs[1], None, None)
    theirs.reward_funcs = theirs.reward_func_names = ["first", "second"]
    theirs.reward_weights = torch.tensor([0.5, 2.0])
    return theirs._generate_and_score_completions([{"prompt": ""}] * (P * G))


def sample(seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return two rewards ``[2, P, G]``, lengths ``[P, G]`` and two log-probs ``[B, T]``."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(2, P, G, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, LENGTH + 1, (P, G), generator=generator)
    lengths[0, 0] = LENGTH
    old = -2 * torch.rand(P * G, LENGTH, generator=generator)
    return rewards, lengths, [old + 0.3 * torch.randn(old.shape, generator=generator), old]


def advantage_difference(name: str, seed: int) -> float:
    """Return the largest difference of two estimators' advantages."""
    ours, trainer, settings = ESTIMATORS[name]
    rewards, lengths, logprobs = sample(seed)
    found = ours(rewards, torch.tensor([0.5, 2.0]), lengths)
    return relative(
        found.flatten(), scored(bare(trainer, **settings), rewards, lengths, logprobs)["advantages"]
    )


def weight_difference(kind: str, seed: int) -> float:
    """Return the largest difference of the weights for an engine's other distribution."""
    rewards, lengths, logprobs = sample(seed)
    theirs = bare(GRPO_TRAINER, vllm_importance_sampling_mode=kind)
    theirs.use_vllm, theirs.vllm_importance_sampling_clip_max = True, 1.2
    found = scored(theirs, rewards, lengths, logprobs)["importance_sampling_ratio"]
    mask = torch.arange(LENGTH) < lengths.view(-1, 1)
    ours, _ = Correction(1.2, kind).weights(logprobs[1], logprobs[0], mask)
    return relative(ours * mask, found * mask)


def truncation_difference(seed: int) -> float:
    """Return in how many tokens the masks without completions at the limit differ."""
    rewards, lengths, logprobs = sample(seed)
    theirs = bare(GRPO_TRAINER, mask_truncated_completions=True)
    found = scored(theirs, rewards, lengths, logprobs)["completion_mask"].bool()
    mask, ended = torch.arange(LENGTH) < lengths.view(-1, 1), (lengths < LENGTH).flatten()
    kept = DropTruncated()(SimpleNamespace(mask=mask, ended=ended)).keep_mask
    assert kept is not None
    assert not kept.all()
    return float((found != mask & kept.view(-1, 1)).sum())


def overlong_difference(seed: int) -> float:
    """Return the largest difference of DAPO's soft punishment."""
    from trl.rewards import (  # pyright: ignore[reportMissingImports]
        get_soft_overlong_punishment,
    )

    lengths = torch.randint(1, 30, (50,), generator=torch.Generator().manual_seed(seed))
    theirs = get_soft_overlong_punishment(20, 8)(completion_ids=[[2] * int(n) for n in lengths])
    ours = OverlongPenalty(20, 8)(SimpleNamespace(lengths=lengths)).scores  # pyright: ignore
    return relative(ours.double(), torch.tensor(theirs, dtype=torch.float64))


def main() -> None:
    """Print a line for each comparison."""
    lines: dict[str, Line] = {}
    for name, pair in LOSSES.items():
        shown = f"loss_type={name}" if pair.trainer == GRPO_TRAINER else f"{name}Trainer"
        lines[shown] = type(pair.objective).__name__, partial(loss_difference, pair)
    for name, (ours, *_) in ESTIMATORS.items():
        lines[name] = type(ours).__name__, partial(advantage_difference, name)
    for kind in sorted({*CORRECTIONS} - {ICEPOP}, key=CORRECTIONS.index):
        lines[kind] = "engine.correction", partial(weight_difference, kind)
    lines["mask_truncated_completions"] = "DropTruncated", truncation_difference
    lines["get_soft_overlong_punishment"] = "OverlongPenalty", overlong_difference
    sys.exit(compare(lines, "trl", Path(__file__).name, __doc__))


if __name__ == "__main__":
    main()
