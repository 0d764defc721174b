"""Measure how much KL-Cov acts on rounding, and what rescoring costs: a table of docs/method.md.

    python scripts/kl_cov_noise.py --rollouts 4

For each precision, on the embedded model and the quickstart's problems:

- the noise floor of the sampler's log-probs, and of rescored ones, against a training forward with
  other micro-batches;
- how much KL-Cov's penalty changes a rollout's first gradient, with the sampler's log-probs as old
  ones ("before") and with the present ones;
- CPU seconds of a rollout's parts (one thread; the update without the optimizer).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.learning.objective_base import Objective
from rlif_lightning.learning.objectives import Clipped, KLCov
from rlif_lightning.learning.old_logprobs import loss_inputs, rollout_logprobs, settle_old_logprobs
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import MiniBatch, select_groups
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

SAMPLING, PROBLEMS, GROUP, UPDATES = Sampling(max_new_tokens=48), 16, 8, 4
BUDGET, SMALL = (
    8192,
    300,
)  # tokens of a pass, and of a pass under a budget that cuts the mini-batch up
PRECISIONS = ("float32", "bf16-mixed", "bfloat16", "float64")


class Measured:
    """One precision's policy, and its measurements."""

    def __init__(self, precision: str):
        dtype = "float32" if precision == "bf16-mixed" else precision
        self.precision, self.policy, self.engine = (
            precision,
            PolicyModel(Policy("rlif-arithmetic", dtype=dtype)),
            NativeEngine(),
        )
        self.engine.setup(self.policy, 0)
        self.found: dict[str, list[float]] = defaultdict(list)

    def autocast(self) -> Any:
        mixed = self.precision == "bf16-mixed"
        return (
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if mixed else nullcontext()
        )

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        with self.autocast():
            result = work()
        self.found[name].append(time.process_time() - started)
        return result

    def gradient(
        self, objective: Objective, batch: MiniBatch, tokens: int = BUDGET
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of all parameters as one vector, and the forward's log-probs."""
        self.policy.zero_grad()
        calls = OptimizerCalls(lambda share, _: share.backward(), self.policy.zero_grad, float)
        updater = Updater(self.policy, objective, SAMPLING, TokenBudget(tokens), calls)
        with self.autocast():
            forward = updater.accumulate_gradient(batch, UpdateMeter(batch.index.device))
        gradients = [
            parameter.grad.flatten().double()
            for parameter in self.policy.parameters()
            if parameter.grad is not None
        ]
        return torch.cat(gradients), forward

    def rollout(self, step: int, questions: list[str]) -> None:
        """Sample, then measure on the first mini-batch."""
        ids = [torch.tensor(self.policy.tokenizer(question)["input_ids"]) for question in questions]
        prompts = Prompts(ids, questions, {}, torch.arange(PROBLEMS) + PROBLEMS * step)
        rollout = self.timed(
            "rollout, s", lambda: self.engine.generate(prompts, GROUP, SAMPLING, step)
        )
        rescored = self.timed(
            "rescoring, s",
            lambda: rollout_logprobs(self.policy, rollout.completions, SAMPLING, BUDGET),
        )
        noise = torch.randn(PROBLEMS * GROUP, 1, generator=torch.Generator().manual_seed(step))
        noise = noise.expand(rollout.mask.shape)
        inputs = loss_inputs(rollout, noise, rollout.stats.logprobs, None, step)
        parts = [
            list(range(start, start + PROBLEMS // UPDATES))
            for start in range(0, PROBLEMS, PROBLEMS // UPDATES)
        ]
        first, later = (
            select_groups(inputs, rollout.completions, parts[0], is_on_policy)
            for is_on_policy in (True, False)
        )
        forward = self.gradient(Clipped(), first, SMALL)[1]
        settled, figures = settle_old_logprobs(inputs, first.index, forward, lambda: rescored)
        exact = settle_old_logprobs(
            replace(inputs, old_logprobs=rescored), first.index, forward, lambda: rescored
        )[1]
        self.found["floor, sampler"].append(float(figures["policy/noise_floor"]))
        self.found["floor, rescored"].append(float(exact["policy/noise_floor"]))
        for weight in (0.05, 1.0):
            for name, batch in (("before", later), ("now", first)):
                plain, changed = (
                    self.gradient(objective, batch)[0]
                    for objective in (Clipped(), KLCov(weight=weight))
                )
                self.found[f"{name}, weight {weight}"].append(
                    float((changed - plain).norm() / plain.norm())
                )
        for part in parts:
            batch = select_groups(settled, rollout.completions, part)
            self.timed("update, s", lambda b=batch: self.gradient(KLCov(), b))


def main() -> None:
    """Measure; print the largest of each figure, and seconds of the fastest rollout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=4)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    problems = ArithmeticProblems(min_terms=3, max_terms=4).load("train")
    for precision in PRECISIONS:
        measured = Measured(precision)
        for step in range(settings.rollouts):
            measured.rollout(
                step, problems.select(range(PROBLEMS * step, PROBLEMS * (step + 1)))["question"]
            )
        print(precision)
        for name, values in measured.found.items():
            shown = (
                min(values) * (UPDATES if name == "update, s" else 1)
                if name.endswith("s")
                else max(values)
            )
            print(f"  {name:20} {shown:.3g}   ({' '.join(f'{value:.2g}' for value in values)})")


if __name__ == "__main__":
    main()
