"""The arguments of a module from the settings in its checkpoint, as far as they are plain values.

A checkpoint names classes. Only those of this library, and optimisers of ``torch.optim``, are
imported, so that loading a file runs no other code. For the same reason no function and no model's
own code is taken. What sends texts elsewhere, or weakens a sandbox, is left to a person: classes
list such arguments as ``needs_consent``.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

import torch

from rlif_lightning.data.described import ARGUMENTS, CLASS
from rlif_lightning.running.former_settings import present_settings

OURS, OPTIMIZERS = "rlif_lightning.", "torch.optim."
OPTIMIZER = "optimizer"
UNIONS = (typing.Union, types.UnionType)


def arguments_in(settings: Any, kind: type, given: set[str]) -> dict[str, Any]:
    """Return the arguments that a module was made with; those in ``given`` are left out.

    Args:
        settings: what the checkpoint has under ``run_settings.KEY``; None where it has nothing.
        kind: the module's class.
        given: names of arguments that are not needed.

    Raises:
        ValueError: an argument has a class of somebody else, or a value that a person has to give,
            or the checkpoint holds no settings.
    """
    needed = {name for name, it in _parameters(kind).items() if it.default is it.empty} - given
    if not isinstance(settings, dict):
        if needed:
            raise ValueError(
                "the checkpoint was saved without settings: pass"
                f" {', '.join(f'{name}=...' for name in sorted(needed))}"
            )
        return {}
    nested = _nested(present_settings(settings))
    found = nested.get("model", {}) | {"seed": nested.get("seed_everything", 0)}
    hints = typing.get_type_hints(kind.__init__, vars(import_module(kind.__module__)))
    chosen = {name: it for name, it in found.items() if name in _parameters(kind).keys() - given}
    return {name: _argument(name, hints[name], value) for name, value in chosen.items()}


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)


def _argument(name: str, hint: Any, value: Any) -> Any:
    try:
        if name == OPTIMIZER:
            kind = _imported(value[CLASS], torch.optim.Optimizer, (OURS, OPTIMIZERS))
            return _optimizer(kind, value.get(ARGUMENTS, {}))
        return _built(hint, value)
    except (LookupError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"the checkpoint cannot give the argument {name!r} ({error}); pass {name}=..."
        ) from error


def _optimizer(kind: type, defaults: dict[str, Any]) -> Any:
    """Return what makes an optimiser with these defaults; some of them are no arguments."""
    known = inspect.signature(kind).parameters
    chosen = {name: _as_tuple(value) for name, value in defaults.items() if name in known}
    return functools.partial(kind, **chosen)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Return nested dicts of values by dotted name; a list of a dict's keys says its order."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *above, last = name.split(".")
        inner = found
        for key in above:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        if not isinstance(inner.get(last), dict):
            inner[last] = value
    for name, keys in settings.items():
        *above, last = name.split(".")
        inner = functools.reduce(dict.__getitem__, above, found)
        if isinstance(keys, list) and isinstance(inner[last], dict):
            inner[last] = {key: inner[last][key] for key in keys if key in inner[last]}
    return found


def _built(hint: Any, value: Any) -> Any:
    """Return the value of a type that a plain one stands for."""
    if isinstance(value, dict) and isinstance(value.get(CLASS), str):
        return _made(_imported(value[CLASS], hint), value.get(ARGUMENTS, {}))
    if typing.get_origin(hint) in UNIONS:
        if value is None:
            return None
        fitting = [each for each in typing.get_args(hint) if each is not type(None)]
        records = [each for each in fitting if is_dataclass(each)]
        chosen = records if isinstance(value, dict) and records else fitting
        return _built(chosen[0], value) if len(chosen) == 1 else value
    if isinstance(value, dict):
        if is_dataclass(hint):
            return _made(typing.cast(type, hint), value)
        _refuse_code(value)
        inner = (typing.get_args(hint) or (Any, Any))[-1]
        return {key: _built(inner, each) for key, each in value.items()}
    return _as_tuple(value) if typing.get_origin(hint) in (tuple, Sequence) else value


def _refuse_code(values: dict[str, Any]) -> None:
    if values.get("trust_remote_code"):
        raise LookupError("trust_remote_code=true runs a model's code; loading a file runs none")


def _refuse_without_consent(kind: type, arguments: dict[str, Any]) -> None:
    for name, why in getattr(kind, "needs_consent", {}).items():
        value, usual = arguments.get(name), _parameters(kind)[name].default
        if value is not None and value != usual:
            raise LookupError(f"{name}={value!r} of {kind.__name__} {why}")


def _made(kind: type, arguments: dict[str, Any]) -> Any:
    _refuse_code(arguments)
    _refuse_without_consent(kind, arguments)
    init: Any = kind.__init__
    spaces = {k: v for base in reversed(kind.__mro__) for k, v in _space(base).items()}
    hints = typing.get_type_hints(init, spaces)
    return kind(**{name: _built(hints.get(name), each) for name, each in arguments.items()})


def _space(kind: type) -> dict[str, Any]:
    return vars(import_module(kind.__module__))


def _imported(path: str, hint: Any, trusted: tuple[str, ...] = (OURS,)) -> Any:
    """Return the class at a path, of a kind that the hint allows."""
    if not path.startswith(trusted):
        raise LookupError(f"{path} is not from this library, and loading a file imports no other")
    module, _, name = path.rpartition(".")
    kind = getattr(import_module(module), name)
    if not isinstance(kind, type) or not f"{kind.__module__}.".startswith(trusted):
        raise LookupError(f"{path} is no class of this library")
    allowed = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
    if not any(isinstance(each, type) and issubclass(kind, each) for each in allowed):
        raise LookupError(f"{path} is of another kind than is needed here")
    if getattr(kind, "names_code", False):
        raise LookupError(f"{path} names a function, and loading a file imports none")
    return kind
