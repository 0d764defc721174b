"""A reward head's output, checked and moved to the rollout's device in one place.

An error that is found later could not name the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlif_lightning.processes.collectives import broadcast_from_first
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.step_scores import StepScores

_MAP = "a dictionary is needed, {} for nothing"


def received(name: str, output: Any, rollout: Rollout) -> RewardOutput:
    """Return a head's output, checked and on the rollout's device.

    A collective where processes share completions.

    Args:
        name: of the head.
        output: what it returned, on any device: a RewardOutput, or the scores alone. Scores are a
            tensor, an array, or a list of numbers, in which None is NaN.
        rollout: B completions of P prompts.

    Returns:
        ``scores [B]`` float32, ``keep_mask [B]`` bool and ``group_weight_factor [P]``, on the
        rollout's device and without a graph.

    Raises:
        RuntimeError: names the head, what it returned and what is needed.
    """
    if not isinstance(output, RewardOutput):
        output = RewardOutput(output)
    of_rows, of_groups = (len(rollout.mask),), (rollout.num_prompts,)
    scores = _tensor(
        name, "scores", as_numbers(output.scores), of_rows, "completion", rollout
    ).float()
    infinite = scores.isinf()
    if infinite.any():
        row = int(infinite.nonzero()[0])
        raise RuntimeError(
            f"reward head {name!r} returned an infinite score for {rollout.texts[row]!r}"
        )
    keep, factor = output.keep_mask, output.group_weight_factor
    if keep is not None:
        keep = _tensor(name, "keep_mask", keep, of_rows, "completion", rollout)
        if keep.dtype != torch.bool:
            raise RuntimeError(
                f"reward head {name!r} returned keep_mask of {keep.dtype}; it must be bool"
            )
        keep = broadcast_from_first(keep)
    if factor is not None:
        factor = _tensor(name, "group_weight_factor", factor, of_groups, "prompt", rollout).double()
        if not factor.isfinite().all():
            raise RuntimeError(
                f"reward head {name!r} returned group_weight_factor={factor.tolist()}; all must be"
                " finite"
            )
        factor = broadcast_from_first(factor)
    _check_lists(name, output, len(rollout.mask))
    _check_log(name, output.log)
    steps = None if output.steps is None else _steps(name, output.steps, rollout)
    checked = {"keep_mask": keep, "group_weight_factor": factor, "steps": steps}
    return replace(output, scores=broadcast_from_first(scores), **checked)


def _steps(name: str, steps: StepScores, rollout: Rollout) -> StepScores:
    """Return the scores of steps, on the rollout's device."""
    shape = tuple(steps.scores.shape)
    if len(shape) != 2 or shape[0] != len(rollout.mask):
        raise RuntimeError(
            f"reward head {name!r} returned steps of shape {shape}; one row per completion,"
            f" ({len(rollout.mask)}, S), is needed"
        )
    scores = _tensor(name, "steps.scores", steps.scores, shape, "step", rollout).float()
    ends = _tensor(name, "steps.ends", steps.ends, shape, "step", rollout)
    if scores.isinf().any():
        raise RuntimeError(f"reward head {name!r} returned an infinite score of a step")
    return StepScores(broadcast_from_first(ends), broadcast_from_first(scores))


@contextmanager
def left_as_it_is(name: str, rollout: Rollout) -> Iterator[None]:
    """Refuse a change of a rollout by the head that is asked inside; other heads and the update
    read it too. A change through an array of NumPy is not seen.

    Raises:
        RuntimeError: names the head and what it changed.
    """
    before = _state(rollout)
    yield
    changed = [field for field, state in _state(rollout).items() if state != before[field]]
    if changed:
        raise RuntimeError(
            f"reward head {name!r} changed rollout.{changed[0]} in place, which other heads and the"
            " update read as well; change a copy, such as tensor.clone() or list(texts)"
        )


def _state(rollout: Rollout) -> dict[str, Any]:
    """Return what changes with a tensor or a list: PyTorch counts changes of a tensor."""
    parts = vars(rollout) | {f"stats.{field}": each for field, each in vars(rollout.stats).items()}
    return {
        field: value._version if isinstance(value, Tensor) else tuple(value)
        for field, value in parts.items()
        if (isinstance(value, Tensor) and not value.is_inference()) or field == "texts"
    }


def kept_completions(rollout: Rollout, outputs: Mapping[str, RewardOutput]) -> Tensor:
    """Return ``[B]`` bool: the completions that no head's ``keep_mask`` drops."""
    keep = torch.ones_like(rollout.ended)
    for output in outputs.values():
        keep = keep if output.keep_mask is None else keep & output.keep_mask
    return keep


def only_scores_of(keep: Tensor, outputs: Mapping[str, RewardOutput]) -> dict[str, RewardOutput]:
    """Return outputs whose scores are NaN outside of ``keep``, ``[B]`` bool."""
    return {
        name: replace(output, scores=output.scores.masked_fill(~keep, torch.nan))
        for name, output in outputs.items()
    }


def as_numbers(scores: Any) -> Any:
    """Return a tensor of an array, or of a list of real numbers and None (NaN).

    Anything else is returned as it is.
    """
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "fiub":
        return torch.from_numpy(np.array(scores))
    if isinstance(scores, np.ndarray) and scores.dtype.kind == "O":
        scores = scores.tolist()
    if not isinstance(scores, (list, tuple)):
        return scores
    values = [torch.nan if value is None else _item(value) for value in scores]
    if not all(isinstance(value, Real) for value in values):
        return scores
    return torch.tensor([float(value) for value in values])


def _item(value: Any) -> Any:
    """Return the number in an array of one, or in a scalar of NumPy, which may be its own bool."""
    is_array = isinstance(value, (Tensor, np.generic, np.ndarray)) and math.prod(value.shape) == 1
    return value.item() if is_array else value


def _tensor(
    name: str, field: str, value: Any, shape: tuple[int, ...], one_per: str, rollout: Rollout
) -> Tensor:
    """Return a tensor of real numbers of this shape, on the rollout's device."""
    if not isinstance(value, Tensor) or value.is_complex():
        kind = getattr(value, "dtype", type(value).__name__)
        if isinstance(value, (list, tuple)):
            shown = next((v for v in value if not isinstance(v, Real) and v is not None), value)
            kind = f"{kind} with {shown!r:.60}"
        raise RuntimeError(
            f"reward head {name!r} returned {field} of type {kind}; a tensor, an array or a list"
            " of real numbers is needed"
        )
    if value.shape != shape:
        raise RuntimeError(
            f"reward head {name!r} returned {field} of shape {tuple(value.shape)}; one per"
            f" {one_per}, {shape}, is needed"
        )
    return value.detach().to(rollout.mask.device)


def _check_lists(name: str, output: RewardOutput, size: int) -> None:
    if not isinstance(output.columns, Mapping):
        raise RuntimeError(f"reward head {name!r} returned columns={output.columns!r:.60}; {_MAP}")
    lists = {
        f"values in the column {column!r}": values for column, values in output.columns.items()
    }
    if output.answers is not None:
        lists["answers"] = output.answers
    for named, values in lists.items():
        number = len(values) if isinstance(values, Sized) else type(values).__name__
        if number != size:
            raise RuntimeError(
                f"reward head {name!r} returned {number} {named}; one per completion,"
                f" {size}, is needed"
            )


def _check_log(name: str, log: Any) -> None:
    if not isinstance(log, Mapping):
        raise RuntimeError(f"reward head {name!r} returned log={log!r:.60}; {_MAP}")
    for key, value in log.items():
        number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
        if not isinstance(key, str) or not number:
            raise RuntimeError(
                f"reward head {name!r} logs {key!r}: {value!r:.100}; a log maps names to single"
                " numbers"
            )
