"""Compare gradients, advantages and importance weights with verl's on random numbers.

    python scripts/compare_objectives.py    # in an environment that has verl 0.9 as well

Each objective is summed by its own aggregation, verl's by the mode of the same meaning. A line
shows the largest difference of a log-prob's gradient, an advantage or a token's weight, relative
to the largest.
The exit code is 1 where one is above 1e-5. ``--write`` replaces docs/results/compare_verl.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import FOLDER, write_results
from rlif_lightning import (
    CISPO,
    DPPO,
    GDPO,
    GMPO,
    GRPO,
    GSPO,
    OPO,
    RLOO,
    SAPO,
    Advantage,
    Clipped,
    KLCov,
    LossInputs,
    Objective,
    ReinforcePlusPlus,
)
from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.rollout.importance_weights import CORRECTIONS, ICEPOP, Correction

MODES = {"token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean"}
LARGEST = 1e-5
Line = tuple[str, Callable[[int], float]]  # our name, and the difference for a seed


@dataclass(frozen=True)
class Pair:
    """An objective and what verl calls it.

    Args:
        name: of verl's loss.
        objective: ours.
        settings: verl's of the same meaning.
        is_weighted: whether an engine's token weights multiply both losses.
    """

    name: str
    objective: Objective
    settings: dict[str, Any]
    is_weighted: bool = False


def bounds(low: float, high: float, **more: Any) -> dict[str, Any]:
    """Return verl's settings of two bounds."""
    return {"clip_ratio": low, "clip_ratio_low": low, "clip_ratio_high": high, **more}


PAIRS = [
    Pair("vanilla", Clipped(clip_high=0.3, dual_clip=3.0), bounds(0.2, 0.3, clip_ratio_c=3.0)),
    Pair("gspo", GSPO(clip_low=0.05, clip_high=0.1), bounds(0.05, 0.1)),
    Pair("cispo", CISPO(clip_low=0.2, clip_high=0.2), bounds(0.2, 0.2)),
    Pair("sapo", SAPO(), {"tau_pos": 1.0, "tau_neg": 1.05}),
    Pair("geo_mean", GMPO(clip_low=0.2, clip_high=0.3), bounds(0.2, 0.3)),
    Pair("geo_mean", GMPO(clip_low=0.2, clip_high=0.3), bounds(0.2, 0.3), is_weighted=True),
    Pair("gspo", GSPO(clip_low=0.05, clip_high=0.1), bounds(0.05, 0.1), is_weighted=True),
    Pair(
        "kl_cov",
        KLCov(fraction=0.1, weight=0.5, unselected="plain", rank_by="current", pick="top"),
        {"policy_loss": {"kl_cov_ratio": 0.1, "ppo_kl_coef": 0.5}},
    ),
    Pair("dppo_tv", DPPO(clip_low=0.05, clip_high=0.1), bounds(0.05, 0.1, clip_ratio_c=20.0)),
    Pair("dppo_kl", DPPO(divergence="kl", clip_low=0.02, clip_high=0.03), bounds(0.02, 0.03)),
]
ESTIMATORS = {
    "opo": OPO(),
    "reinforce_plus_plus_baseline": ReinforcePlusPlus(eps=0.0),
    "rloo": RLOO(),
    "grpo": GRPO(eps=1e-6),
    "gdpo": GDPO("token", eps=1e-6),
}


def tokens(seed: int, completions: int = 16, length: int = 24) -> LossInputs:
    """Return random tokens whose ratios are on both sides of every bound, one advantage each."""
    generator = torch.Generator().manual_seed(seed)
    old = -0.05 - 2 * torch.rand(completions, length, generator=generator, dtype=torch.float64)
    change = 0.3 * torch.randn(old.shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(completions, 1, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, length + 1, (completions, 1), generator=generator)
    mask = torch.arange(length) < lengths
    new = (old + change).clamp(max=-1e-3)
    return LossInputs(new, old, advantages.expand_as(old), mask, torch.arange(completions))


def gradient(loss: Callable[[Tensor], Tensor], logprobs: Tensor) -> Tensor:
    """Return the derivative of a scalar loss by each log-prob."""
    leaf = logprobs.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def difference(pair: Pair, theirs: Callable[..., Any], config: Any, batch: LossInputs) -> float:
    """Return the largest difference of two gradients, relative to the largest gradient."""
    objective = pair.objective
    if pair.is_weighted:
        engine = batch.old_logprobs + 0.3 * batch.old_logprobs.roll(1, -1).sin()
        weights, _ = Correction(1.2).weights(batch.old_logprobs, engine, batch.mask)
        batch = replace(batch, token_weights=weights)
    weights = aggregation_weights(batch.mask, objective.aggregation, batch.mask.shape[1]).double()
    marks, inputs = objective.select(batch), vars(batch)

    def our_loss(logprobs: Tensor) -> Tensor:
        given = LossInputs(**{**inputs, "logprobs": logprobs})
        return (objective.token_loss(given, marks) * weights).sum()

    def their_loss(logprobs: Tensor) -> Tensor:
        tensors = batch.old_logprobs, logprobs, batch.advantages, batch.mask.double()
        return theirs(*tensors, MODES[objective.aggregation], config, batch.token_weights)[0]

    ours, expected = gradient(our_loss, batch.logprobs), gradient(their_loss, batch.logprobs)
    return float((ours - expected).abs().max() / expected.abs().max())


def advantage_difference(name: str, estimator: Advantage, seed: int) -> float:
    """Return the largest difference to verl's estimator, relative to the largest advantage."""
    from verl.trainer.ppo.core_algos import (  # pyright: ignore[reportMissingImports]
        get_adv_estimator_fn,
    )

    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(5, 4, generator=generator, dtype=torch.float64)  # [P, G]
    lengths = torch.randint(1, 9, (5, 4), generator=generator)
    mask = torch.arange(8) < lengths.view(-1, 1)  # [B, T]
    last = torch.nn.functional.one_hot(lengths.flatten() - 1, 8)
    more = {}
    if name == "gdpo":
        more["config"] = {"gdpo_reward_keys": ["one"], "gdpo_reward_weights": [1.0]}
        more["non_tensor_batch"] = {"one": rewards.flatten().numpy()}
        more["batch"] = {"prompts": mask[:, :0], "attention_mask": mask.long()}
    groups = np.repeat(np.arange(5), 4)
    theirs = get_adv_estimator_fn(name)
    expected = theirs(rewards.view(-1, 1) * last, mask.double(), groups, **more)[0][:, 0]
    ours = estimator(rewards[None], torch.ones(1), lengths).flatten()
    return float((ours - expected).abs().max() / expected.abs().max())


def weights_difference(kind: str, seed: int) -> float:
    """Return the largest difference to verl's importance weights, relative to the largest one."""
    from verl.trainer.ppo.rollout_corr_helper import (  # pyright: ignore[reportMissingImports]
        compute_rollout_correction_weights,
    )

    batch, bound = tokens(seed), 1.2
    level, _, action = kind.partition("_")
    # verl's mask needs a lower bound as well; this one is below every ratio.
    threshold = str(bound) if action == "truncate" else f"1e-12_{bound}"
    given = (batch.logprobs - batch.old_logprobs, batch.mask.double(), level, threshold)
    expected = compute_rollout_correction_weights(*given)[0]
    ours = Correction(bound, kind).weights(batch.logprobs, batch.old_logprobs, batch.mask)[0]
    return float(((ours - expected) * batch.mask).abs().max() / expected.max())


def compare(lines: Mapping[str, Line], peer: str, script: str, text: str | None) -> bool:
    """Print the largest difference of each line over the seeds.

    Args:
        lines: the peer's name -> our name, and what measures the difference for a seed.
        peer: distribution; its version is kept with the results.
        script: file name, for the command that is kept with them.
        text: the command line's description.

    Returns:
        Whether one is above 1e-5.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="replace the result file")
    a = parser.parse_args()
    rows, worst = {}, []
    for name, (ours, difference) in lines.items():
        found = float(torch.tensor([difference(seed) for seed in range(a.seeds)]).max())  # or NaN
        worst.append(found)
        rows[name] = {"ours": ours, "largest difference": f"{found:.0e}" if found else "0"}
        print(f"{name:40} {ours:18} {found:.1e}", flush=True)
    if a.write:
        notes = {
            "command": f"python scripts/{script} --seeds {a.seeds} --write",
            "conditions": f"{peer} {version(peer)}, torch {torch.__version__}, CPU",
        }
        write_results(FOLDER / f"compare_{peer}.csv", notes, rows, peer)
    return not all(found <= LARGEST for found in worst)


def main() -> None:
    """Print a line for each objective."""
    from verl.trainer.ppo.core_algos import (  # pyright: ignore[reportMissingImports]
        get_policy_loss_fn,
    )
    from verl.workers.config import (  # pyright: ignore[reportMissingImports]
        ActorConfig,
        PolicyLossConfig,
    )

    def of_loss(pair: Pair) -> Callable[[int], float]:
        settings = dict(pair.settings)
        if "policy_loss" in settings:
            settings["policy_loss"] = PolicyLossConfig(**settings["policy_loss"])
        config = ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, **settings)
        theirs = get_policy_loss_fn(pair.name)
        return lambda seed: difference(pair, theirs, config, tokens(seed))

    lines: dict[str, Line] = {}
    for pair in PAIRS:
        name = f"{pair.name}, rollout_is_weights" if pair.is_weighted else pair.name
        lines[name] = type(pair.objective).__name__, of_loss(pair)
    for name, estimator in ESTIMATORS.items():
        lines[name] = type(estimator).__name__, partial(advantage_difference, name, estimator)
    for kind in sorted({*CORRECTIONS} - {ICEPOP}, key=CORRECTIONS.index):
        lines[f"rollout_is, {kind}"] = "engine.correction", partial(weights_difference, kind)
    sys.exit(compare(lines, "verl", Path(__file__).name, __doc__))


if __name__ == "__main__":
    main()
