"""Former names of arguments, and what the saved settings of an older checkpoint become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlif_lightning.data.described import ARGUMENTS, CLASS

Arguments = dict[str, Any]
SPREADS = ("GDPO", "GRPO", "ReinforcePlusPlus")  # advantages by a group's standard deviation
# Class -> former name of an argument -> what to give instead.
ARGUMENTS_OF = {
    "BehaviourVote": {
        **{f"{name}_column": f"columns.{name}" for name in ("function", "inputs", "header")},
        "seed": "the constant 0",
    },
    "BenchmarkData": {"split": "validation_split", "file": "name"},
    "CISPO": {"lowest": "clip_low = 1 - lowest", "highest": "clip_high = highest - 1"},
    "ClipCov": {"low": "band[0]", "high": "band[1]", "seed": "the constant 0"},
    "CompletionWriter": {
        "table": "'terminal' in show",
        "tensorboard": "'tensorboard' in show",
        "width": "the constant 80",
    },
    "DPPO": {"low": "clip_low", "high": "clip_high"},
    "EntropyMonitor": {
        "window": "the constant 20",
        **{
            name: f"in CollapseGuard.detectors: {{{name}: {{metric: policy/entropy, side: {side},"
            " bound: ..., window: 1}}"
            for name, side in (("floor", "below"), ("ceiling", "above"))
        },
    },
    "Evaluation": {
        "resamples": "the constant 1000",
        "bootstrap_seed": "the constant 0",
        "confidence": "the constant 0.95",
    },
    "GMPO": {"log_low": "clip_low", "log_high": "clip_high"},
    **{name: {"std_floor": "the constant 1e-6"} for name in SPREADS},
    "LabelFreeStopping": {name: f"limits.{name}" for name in ("agreement", "diversity", "entropy")},
    "LoRA": {"target_modules": "options.target_modules"},
    "NegativeEntropy": {"entropy_floor": "the constant 10"},
    "SAPO": {
        "positive_temperature": "temperatures[0]",
        "negative_temperature": "temperatures[1]",
    },
    "SamplerGap": {"factor": "the constant 4"},
    "Sandbox": {
        "cpu_seconds": "wall_seconds",
        "file_mb": "the constant 16",
        "minimum": "isolation, with a + behind the level",
    },
    "Schedule": {
        "kind": "said by points, shape (linear, cosine) and target",
        "end": "the value of the last of points",
        "steps": "the rollout of the last of points",
    },
    "VLLMEngine": {"scoring_tokens": "model.update.micro_batch_tokens"},
    "VLLMServerEngine": {
        "scoring_tokens": "model.update.micro_batch_tokens",
        "timeout_per_token": "the constant 0.001 (raise a slow server's timeout)",
    },
}
# Class -> arguments that came later -> what they are in a checkpoint that does not have them.
_ADDED: dict[str, Arguments] = {
    "ClusterVote": {"equivalence": "exact", "format_weight": 0.0},
    "GDPO": {"leave_one_out": False},
    "GoldAnswer": {"equivalence": "exact"},
    "KLCov": {"allow_inactive": False},
    "VLLMEngine": {"correction": "token_truncate"},
    "VLLMServerEngine": {"correction": "token_truncate", "staleness": 0},
}
# Off where they are missing.
_ADDED_TO_MODULE = ("model.dynamic_sampling", "model.answer_tokens", "model.replay")


def present_settings(saved: Arguments) -> Arguments:
    """Return saved settings (``run_settings.py``) under their present names.

    A setting that is a constant now is left out where it had that value. With another value it is
    kept under its former name, so that it is listed as a change.
    """
    found, places = dict(saved), {name.rpartition(".")[0] for name in saved}
    for place in places:
        kind, start = _class_at(place, saved), f"{place}."
        arguments = {
            name.removeprefix(start): saved[name] for name in saved if name.startswith(start)
        }
        if kind in _PRESENT and ARGUMENTS_OF[kind].keys() & arguments.keys():
            for name in arguments:
                del found[f"{start}{name}"]
            names = [name for name in ARGUMENTS_OF[kind] if name in arguments]
            former = {name: arguments.pop(name) for name in names}
            present = arguments | _PRESENT[kind](former, arguments)
            found |= {f"{start}{name}": value for name, value in present.items()}
        added = {f"{start}{name}": value for name, value in _ADDED.get(kind, {}).items()}
        found |= {name: value for name, value in added.items() if name not in found}
    is_run = f"model.objective.{CLASS}" in saved
    later = [name for name in _ADDED_TO_MODULE if is_run and name not in places]
    return found | dict.fromkeys(name for name in later if name not in found)


def _class_at(place: str, saved: Arguments) -> str:
    """Return the name of the class whose arguments stand below a place; empty if unknown."""
    above, _, last = place.rpartition(".")
    if last == ARGUMENTS:
        return str(saved.get(f"{above}.{CLASS}", "")).rpartition(".")[2]
    if above == "trainer.callbacks":
        return last
    if above == "trainer.callbacks.KLCovScheduler":
        return "Schedule"
    return {"sandbox": "Sandbox", "evaluation": "Evaluation", "lora": "LoRA"}.get(last, "")


def _unless(arguments: Arguments, constants: Arguments) -> Arguments:
    """Return the arguments that did not have the value that is a constant now."""
    return {
        name: arguments[name]
        for name, now in constants.items()
        if name in arguments and arguments[name] != now
    }


def _changes(name: str, given: Arguments, defaults: Arguments) -> Arguments:
    """Return what a setting of changes to defaults is saved as."""
    changed = _unless(given, defaults)
    return {f"{name}.{key}": value for key, value in changed.items()} or {name: None}


def _behaviour_vote(former: Arguments, _: Arguments) -> Arguments:
    usual = {"function": "entry_point", "inputs": "inputs", "header": "prompt"}
    columns = {name: former[f"{name}_column"] for name in usual}
    return _changes("columns", columns, usual) | _unless(former, {"seed": 0})


def _schedule(former: Arguments, others: Arguments) -> Arguments:
    kind, points = former["kind"], others["points"]
    if kind == "piecewise":
        later = [point for point in points if point[0] > 0]
        return {"start": points[0][1], "points": later or None, "shape": "linear"}
    is_plan = kind in ("linear", "cosine")
    shape = kind if is_plan else "linear"
    return {"points": [[former["steps"], former["end"]]] if is_plan else None, "shape": shape}


def _benchmark_data(former: Arguments, _: Arguments) -> Arguments:
    names = {"split": "validation_split", "file": "name"}
    return {names[name]: value for name, value in former.items() if value is not None}


def _lora(former: Arguments, others: Arguments) -> Arguments:
    if former["target_modules"] is not None:
        others.pop("options", None)  # they were empty
        return {"options.target_modules": former["target_modules"]}
    return {} if any(name.startswith("options") for name in others) else {"options": {}}


def _sandbox(former: Arguments, others: Arguments) -> Arguments:
    found = _unless(former, {"cpu_seconds": others["wall_seconds"], "file_mb": 16})
    if others["isolation"] == "auto":
        found["isolation"] = f"{former['minimum']}+"
    return found


# Class -> (former arguments, the others) -> their present form.
_PRESENT: dict[str, Callable[[Arguments, Arguments], Arguments]] = {
    "BehaviourVote": _behaviour_vote,
    "BenchmarkData": _benchmark_data,
    "CISPO": lambda old, _: {
        "clip_low": round(1 - old["lowest"], 9),
        "clip_high": round(old["highest"] - 1, 9),
    },
    "ClipCov": lambda old, _: {"band": [old["low"], old["high"]]} | _unless(old, {"seed": 0}),
    "DPPO": lambda old, _: {"clip_low": old["low"], "clip_high": old["high"]},
    "EntropyMonitor": lambda old, _: _unless(old, {"window": 20, "floor": None, "ceiling": None}),
    "Evaluation": lambda old, _: _unless(
        old, {"resamples": 1000, "bootstrap_seed": 0, "confidence": 0.95}
    ),
    "GMPO": lambda old, _: {"clip_low": old["log_low"], "clip_high": old["log_high"]},
    "LabelFreeStopping": lambda old, _: _changes(
        "limits", old, {"agreement": 0.95, "diversity": 0.4, "entropy": 0.1}
    ),
    **dict.fromkeys(SPREADS, lambda old, _: _unless(old, {"std_floor": 1e-6})),
    "LoRA": _lora,
    "NegativeEntropy": lambda old, _: _unless(old, {"entropy_floor": 10.0}),
    "SAPO": lambda old, _: {
        "temperatures": [old["positive_temperature"], old["negative_temperature"]]
    },
    "Sandbox": _sandbox,
    "Schedule": _schedule,
    "VLLMEngine": lambda old, _: _unless(old, {"scoring_tokens": 8192}),
    "VLLMServerEngine": lambda old, _: _unless(
        old, {"timeout_per_token": 0.001, "scoring_tokens": 8192}
    ),
}
