"""One rollout and one update of a policy on the twin, counted per decode step and per micro-batch.

What a rollout or an update costs once (prompts, moving rows in, gathering what came out) is taken
away by subtracting a smaller one; what is left is the cost of one more step or of one more
micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from device_twin.counting import Watch, watched
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import select_groups
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy, resolve_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

DEVICE = torch.device("cuda", 0)
TEXTS = ("123+345+678=", "451+672+890=", "100+200+300=", "711+834+925=")  # of one length
GROUP = 4
SHORT, LONG = 6, 12  # tokens of a completion


@dataclass(frozen=True)
class Counts:
    """What one step costs: launches, host waits and uploads, each also by call site."""

    launches: float
    waits: float
    uploads: float
    by_site: dict[str, dict[str, float]]

    def lines(self, most: int = 12) -> list[str]:
        """The call sites that cost most, for a reader."""
        found = []
        for kind, sites in self.by_site.items():
            costs = sorted(sites.items(), key=lambda item: -item[1])[:most]
            found += [f"  {kind:8} {number:8.1f}  {site}" for site, number in costs if number]
        return found


def check(counts: Counts, budget: tuple[int, int, int]) -> None:
    """Fail where a step costs more launches, waits or uploads than its budget."""
    report = "\n".join(
        [
            f"{counts.launches} launches, {counts.waits} waits, {counts.uploads} uploads",
            *counts.lines(),
        ]
    )
    print(report)
    spent = counts.launches, counts.waits, counts.uploads
    assert all(cost <= limit for cost, limit in zip(spent, budget, strict=True)), (
        f"over {budget}:\n{report}"
    )


def difference(longer: Watch, shorter: Watch, steps: int) -> Counts:
    """What each of the ``steps`` more costs."""

    def per_step(one: Counter[str], other: Counter[str]) -> dict[str, float]:
        return {site: (one[site] - other[site]) / steps for site in one | other}

    def launched(watch: Watch) -> Counter[str]:
        sites: Counter[str] = Counter()
        for (_, site), number in watch.launches.items():
            sites[site.split(" > ")[0]] += number
        return sites

    def waited(watch: Watch) -> Counter[str]:
        return Counter({f"{site}  {what}": number for (what, site), number in watch.waits.items()})

    totals = (one - other for one, other in zip(longer.totals(), shorter.totals(), strict=True))
    launches, waits, uploads = (total / steps for total in totals)
    by_site = {
        "launches": per_step(launched(longer), launched(shorter)),
        "waits": per_step(waited(longer), waited(shorter)),
        "uploads": per_step(longer.uploads, shorter.uploads),
    }
    return Counts(launches, waits, uploads, by_site)


def deep_model(folder: Path, layers: int = 28) -> str:
    """A random Qwen2 of a 1.5B model's depth and a tiny width, saved in a folder, whose name is
    returned.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
    }
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    sizes |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Workload:
    """A policy on the device with its prompts.

    Args:
        name: of the policy.
        precision: ``32-true`` or ``bf16-mixed``, as of Lightning.
    """

    def __init__(self, name: str, precision: str):
        self.name, self.mixed = name, precision == "bf16-mixed"
        self.policy = PolicyModel(Policy(name)).to(DEVICE)
        self.engine = NativeEngine()
        self.engine.setup(self.policy, 0)
        ids = [torch.tensor(self.policy.tokenizer(text)["input_ids"]) for text in TEXTS]
        self.prompts = Prompts(ids, list(TEXTS), {}, torch.arange(len(TEXTS))).to(DEVICE)
        self.rollout(1)  # what a policy keeps from its first rollout on is not counted

    def autocast(self) -> torch.autocast:
        """As Lightning's precision plugin does it: without a cache of cast weights."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self.mixed, cache_enabled=False)

    def rollout(self, length: int, even: bool = False) -> Rollout:
        """Completions of up to, or exactly, ``length`` tokens."""
        sampling = Sampling(max_new_tokens=length, min_new_tokens=length if even else 0)
        with self.autocast():
            return self.engine.generate(self.prompts, GROUP, sampling, 0)

    def decode_step(self, even: bool = False) -> Counts:
        """One more token of every row that is under way; rows leave, unless they are ``even``."""
        watches, lengths = [], []
        for length in (SHORT, LONG):
            with watched() as watch:
                rollout = self.rollout(length, even)
            watches.append(watch)
            lengths.append(int(rollout.lengths.max()))
        return difference(watches[1], watches[0], lengths[1] - lengths[0])

    def micro_batch(self) -> Counts:
        """One more micro-batch: the same rows in one for each prompt against all in one."""
        rollout = self.rollout(SHORT, even=True)
        tree = len(self.prompts.token_ids[0]) + GROUP * SHORT
        watches, numbers = [], []
        for budget in (tree * len(TEXTS), tree):
            with watched() as watch:
                numbers.append(self.gradient(rollout, budget))
            watches.append(watch)
        return difference(watches[1], watches[0], numbers[1] - numbers[0])

    def gradient(self, rollout: Rollout, budget: int) -> int:
        """The gradient of one update by KL-Cov with a reference; how many micro-batches it took."""
        old = rollout.stats.logprobs
        rows = torch.arange(len(old), device=DEVICE)
        advantages = (rows % 2 * 2.0 - 1).unsqueeze(1).expand_as(old) * rollout.mask
        inputs = LossInputs(
            old, old, advantages, rollout.mask, rollout.completion_numbers(0), ref_logprobs=old
        )
        groups = list(range(len(TEXTS)))
        mini_batch = select_groups(inputs, rollout.completions, groups, is_on_policy=True)
        objective = KLCov(fraction=0.02, weight=0.05, reference_kl=ReferenceKL(weight=0.03))
        passes: list[bool] = []
        calls = OptimizerCalls(_backward(passes), self.policy.zero_grad, float)
        settings = (Sampling(max_new_tokens=SHORT), TokenBudget(budget).to(DEVICE), calls)
        with self.autocast():
            Updater(self.policy, objective, *settings).accumulate_gradient(
                mini_batch, UpdateMeter(DEVICE)
            )
        self.policy.zero_grad()
        return len(passes)

    def generate_step(self) -> Counts:
        """One more token of every row by Hugging Face's ``generate``, sampling as we do."""
        model: Any = AutoModelForCausalLM.from_pretrained(
            resolve_model(self.name), attn_implementation="sdpa"
        )
        model.to(DEVICE)
        ids = torch.stack([ids for ids in self.prompts.token_ids for _ in range(GROUP)])
        sampling = {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "pad_token_id": 0,
        }
        watches = []
        for length in (SHORT, SHORT + 2):  # every step is like the others
            limits = {"max_new_tokens": length, "min_new_tokens": length}
            with torch.autocast("cuda", torch.bfloat16, enabled=self.mixed), watched() as watch:
                model.generate(ids, attention_mask=torch.ones_like(ids), **sampling, **limits)
            watches.append(watch)
        return difference(watches[1], watches[0], 2)


def _backward(passes: list[bool]) -> Callable[[torch.Tensor, bool], None]:
    def backward(loss: torch.Tensor, is_last: bool) -> None:
        loss.backward()
        passes.append(is_last)

    return backward
