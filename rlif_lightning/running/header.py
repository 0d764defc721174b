"""What is about to be trained, in a few lines at the beginning of a run."""

from __future__ import annotations

import shutil
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlif_lightning.data.streams import Streamed
from rlif_lightning.learning.optimizer import starting_rate
from rlif_lightning.model.four_bits import num_elements
from rlif_lightning.running.planned import planned_of

WIDTH = 78  # characters of a line, but for a path; a wider terminal has more


class RunHeader(Callback):
    """Prints once, in the first process, what a run will train; RLIFTrainer adds it."""

    def __init__(self) -> None:
        self.is_printed = False

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Print before the evaluation of the policy that training begins with."""
        if getattr(pl_module, "fits_next", False):
            self._print(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Print before the first rollout."""
        self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, module: Any) -> None:
        if not self.is_printed:
            folder = trainer.log_dir  # a collective
            if trainer.is_global_zero:
                print("\n".join(header_lines(trainer, module, folder)), flush=True)
        self.is_printed = True


def header_lines(trainer: Any, module: Any, folder: str | None) -> list[str]:
    """Return what a run will train, one subject a line.

    Args:
        trainer: after the data and the policy are loaded.
        module: the ``RLIFModule``.
        folder: where the run goes; None = nowhere.
    """
    lines = {
        "device": _devices(trainer),
        "data": _data(getattr(trainer, "datamodule", None)),
        "rewards": _rewards(module),
        "rollouts": _rollouts(trainer, module),
        "updates": _updates(module),
        "evaluated": _evaluated(module),
        "run": str(folder or "no logger: nothing is written"),
    }
    made = [_cut(f"  {name:<9} {text}", name == "run") for name, text in lines.items() if text]
    return [_cut(f"training {_model(module)}"), *made]


def _cut(line: str, is_whole: bool = False) -> str:
    width = max(WIDTH, shutil.get_terminal_size().columns - 1)
    return line if is_whole or len(line) <= width else f"{line[: width - 1]}…"


def _model(module: Any) -> str:
    counts = [num_elements(p) for p in module.policy.parameters()]
    trained = [p.numel() for p in module.policy.parameters() if p.requires_grad]
    share = f", {count(sum(trained))} trained" if sum(trained) < sum(counts) else ""
    settings = module.policy_settings
    name = getattr(settings, "name", type(module.policy).__name__)
    dtype = next((str(p.dtype).removeprefix("torch.") for p in module.policy.parameters()), "")
    bits = ", base in 4 bits" if getattr(settings, "in_4bit", False) else ""
    return f"{name} ({count(sum(counts))} parameters{share}, {dtype}{bits})"


def count(number: int) -> str:
    """Return a count with three digits and its unit.

    Example:
        >>> [count(n) for n in (442_368, 1_543_714_304, 17)]
        ['442 k', '1.54 G', '17']
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _devices(trainer: Any) -> str:
    processes = trainer.world_size
    shown = f"{trainer.accelerator.name()}, {trainer.precision}"
    return shown if processes == 1 else f"{processes} processes of {shown}"


def _data(data: Any) -> str:
    if not hasattr(data, "split"):
        return ""
    sizes = {name: data.split(name) for name in ("train", "validation")}
    kept = [f"{len(split):,} {name}" for name, split in sizes.items() if split is not None]
    if isinstance(data.source, Streamed):
        kept[:1] = [f"windows of {data.source.buffer:,} train"]
    return f"{type(data.source).__name__}: {', '.join(kept)} problems"


def _rewards(module: Any) -> str:
    settings = module.rewards.settings
    shown = [
        f"{reward.weight:g} x {name}"
        + (f" ({kind})" if (kind := type(reward.head).__name__).lower() != name else "")
        for name, reward in settings.items()
    ]
    return " + ".join(shown)


def _rollouts(trainer: Any, module: Any) -> str:
    data = getattr(trainer, "datamodule", None)
    planned, done = planned_of(trainer, module), int(module.num_rollouts)
    number = "without an end" if planned is None else str(planned)
    since = f" ({done} are done)" if done else ""
    prompts = getattr(data, "prompts_per_rollout", None)
    longest = f"of up to {module.sampling.max_new_tokens:,} tokens"
    groups = f"{module.group_size} completions"
    if prompts is None:
        return f"{number}{since}, {groups} a prompt {longest}"
    return f"{number}{since} of {prompts} prompts x {groups} {longest}"


def _updates(module: Any) -> str:
    rate, schedule = starting_rate(module.make_optimizer), module.schedule.name
    objective = type(module.objective).__name__
    steps = module.plan.num_updates
    return f"{steps} a rollout by {objective}, learning rate {rate:g} ({schedule})"


def _evaluated(module: Any) -> str:
    """Name what evaluations draw by that is not as in training, lengths and stops first."""
    own, trained = module.evaluator.evaluation.sampling, module.sampling
    if own is None:
        return ""
    names = ("max_new_tokens", "stop", "temperature", "min_new_tokens", "top_p", "top_k")
    pairs = {name: (getattr(own, name), getattr(trained, name)) for name in names}
    others = [
        f"{name} {_value(own)} (training: {_value(trained)})"
        for name, (own, trained) in pairs.items()
        if _value(own) != _value(trained)
    ]
    return f"with {', '.join(others)}" if others else ""


def _value(setting: Any) -> str:
    return f"{setting:g}" if isinstance(setting, int | float) else str([*setting])
