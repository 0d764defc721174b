"""The model card of an exported policy: what it is, who taught it, and what was measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.report.callback import versions
from rlif_lightning.data.columns import has_column
from rlif_lightning.data.described import arguments_of, describe, plain
from rlif_lightning.data.sources import HubDataset
from rlif_lightning.evaluation.bootstrap import CONFIDENCE
from rlif_lightning.evaluation.label_checks import sees_gold
from rlif_lightning.running.run_settings import run_settings

# What decides the weights. Engines, judges, evaluations and users' own callbacks may name servers
# and are left out.
RECIPE = (
    *("model.policy.dtype", "model.policy.lora", "model.policy.vocabulary", "model.advantage"),
    *("model.objective", "model.sampling", "model.dynamic_sampling", "model.answer_tokens"),
    *("model.update", "model.replay", "model.optimizer", "model.schedule", "data.group_size"),
    *("data.prompts_per_rollout", "seed_everything", "trainer."),
)
Figures = Mapping[str, Any]  # of ``Report.as_dict``


def model_card(
    trainer: Any,
    module: Any,
    uses: Sequence[str],
    measured: Sequence[Figures],
    is_merged: bool = False,
    dtype: str | None = None,
) -> str:
    """Return the card as Markdown with front matter.

    Paths of this machine are written as their last part.

    Args:
        trainer: of the run.
        module: the ``RLIFModule``, with the policy that is exported.
        uses: how gold answers reached the weights (`label_uses`).
        measured: the evaluation of the starting policy and that of this one; either may be ``{}``.
        is_merged: whether adapters were added to the weights.
        dtype: that the weights are exported in; None = as they are trained.
    """
    base, data = module.policy_settings.name, getattr(trainer, "datamodule", None)
    rollouts, settings = int(module.num_rollouts), run_settings(trainer, module)
    own = tuple(
        f"trainer.callbacks.{type(each).__name__}."
        for each in trainer.callbacks
        if type(each).__module__.partition(".")[0] not in ("callbacks", "rlif_lightning")
    )
    recipe = {
        name: value
        for name, value in settings.items()
        if name.startswith(RECIPE) and not name.startswith(own)
    }
    parts = {
        "Labels": _labels(module, uses),
        "Rewards": _rewards(module),
        "Data": _data(data),
        "Measured": _measured(*measured, rounding=_rounding(module, dtype)),
        "Prompts": _prompts(data),
        "Recipe": _table(("setting", "value"), ([f"`{n}`", _shown(v)] for n, v in recipe.items())),
        "Versions": _table(("package", "version"), versions().items()),
    }
    sections = "\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items() if text)
    return (
        f"---\n{_front_matter(module, data, uses, is_merged)}\n---\n\n"
        f"# A policy trained from {_shown(base)}\n\n"
        f"Trained by {_way(module)} from {rollouts} rollouts in {trainer.global_step}"
        f" optimiser steps of `{type(module.objective).__name__}`, with rlif-lightning.\n\n"
        f"{sections}\n"
    )


def _way(module: Any) -> str:
    return "reinforcement learning" if module.objective.needs_rewards else "supervised learning"


def _front_matter(module: Any, data: Any, uses: Sequence[str], is_merged: bool) -> str:
    from huggingface_hub import ModelCardData

    base, source = module.policy_settings.name, getattr(data, "source", None)
    has_adapters = module.policy_settings.lora is not None and not is_merged
    named = [source.name] if isinstance(source, HubDataset) and _is_hub_name(source.name) else None
    label_free = [] if uses else ["label-free"]
    return ModelCardData(
        base_model=base if _is_hub_name(base) else None,
        library_name="peft" if has_adapters else "transformers",
        pipeline_tag="text-generation",
        datasets=named,
        tags=["rlif-lightning", _way(module).replace(" ", "-"), *label_free],
    ).to_yaml()


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and "." not in parts and not Path(name).exists()


def _labels(module: Any, uses: Sequence[str]) -> str:
    if uses:
        said = "Gold answers reached the weights:\n\n" + "\n".join(f"- {use}" for use in uses)
    else:
        said = "No gold answers reached the weights in this run."
    seen = sorted({path for each in module.rewards.settings.values() for path in each.head.columns})
    shown = ", ".join(f"`{path}`" for path in seen) or "none"
    return (
        f"{said}\n\nThis is derived from the rewards with their weights and gates, the templates of"
        " judges, dynamic sampling, the teacher, the environment, and the figures by which a policy"
        " or the run's end was chosen. It says nothing about the training of the base model."
        f" Columns of the data that rewards name: {shown}."
    )


def _rewards(module: Any) -> str:
    lines = []
    for name, reward in module.rewards.settings.items():
        gate = "" if reward.gate is None else f"`{reward.gate.head}`"
        reads = "yes" if reward.head.needs_gold else "perhaps" if sees_gold(reward.head) else "no"
        lines.append([f"`{name}`", type(reward.head).__name__, f"{reward.weight:g}", gate, reads])
    return _table(("reward", "head", "weight", "gate on", "reads gold answers"), lines)


def _data(data: Any) -> str:
    if not hasattr(data, "split"):
        return ""
    rows = [[f"`{name}`", _shown(value)] for name, value in _source(data.source).items()]
    for name in ("train", "validation"):
        if (split := data.split(name)) is not None:
            rows.append([f"{name} problems", str(len(split))])
            if data.answer_column and has_column(split.dataset.features, data.answer_column):
                rows.append([f"{name} column of gold answers", f"`{data.answer_column}`"])
    return _table(("setting", "value"), rows)


def _source(source: Any) -> dict[str, Any]:
    kind = {"source": type(source).__name__}
    return kind | describe(arguments_of(source), "source") if arguments_of(source) else kind


def _rounding(module: Any, dtype: str | None) -> str:
    """Say where the exported numbers are others than those that were measured."""
    trained = str(module.policy.causal_lm.dtype).removeprefix("torch.")
    if dtype in (None, trained):
        return ""
    return f" They were measured with weights in {trained}, and these are in {dtype}."


def _measured(before: Figures, after: Figures, rounding: str) -> str:
    if not after:
        return "This policy was not evaluated before it was written."
    share = f"{100 * CONFIDENCE:g} % interval"
    start = before.get("figures", {})
    rows = [
        [name, _figure(start[name]) if name in start else "", _figure(figure)]
        for name, figure in after["figures"].items()
    ]
    return (
        f"On {after['problems']} held-out problems, with each figure's {share} over problems."
        f" Accuracies are measured with gold answers.{rounding}\n\n"
        + _table(("figure", "before training", "this policy"), rows)
    )


def _figure(figure: Mapping[str, float]) -> str:
    return "{value:.4g} [{low:.4g}, {high:.4g}]".format(**figure)


def _prompts(data: Any) -> str:
    shape = getattr(data, "format", None)
    if shape is None:
        return ""
    chat = " It then goes into the tokenizer's chat template." if shape.chat else ""
    shots = f" {len(shape.examples)} solved examples stand before it." if shape.examples else ""
    if shape.system_prompt:
        chat += f" The system prompt is `{_cell(shape.system_prompt)}`."
    code = "\n".join(f"    {line}" for line in shape.template.splitlines())
    return f"The policy was trained on problems in this text.{shots}{chat}\n\n{code}"


def _shown(value: Any) -> str:
    """Return a setting as a table's cell, a path of this machine as its last part."""
    if isinstance(value, str) and (os.path.isabs(value) or Path(value).exists()):
        return Path(value).name
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return value if isinstance(value, str) else json.dumps(plain(value))


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "⏎")
