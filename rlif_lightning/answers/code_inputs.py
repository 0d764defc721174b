"""Inputs to try a function on, without labels: a data set's, or drawn by the header's types."""

from __future__ import annotations

import ast
import random
import string
from collections.abc import Callable
from typing import Any

_LETTERS = string.ascii_letters + string.digits + "  "


def read_arguments(text: str) -> tuple[Any, ...]:
    """Read the arguments of a call: ``"[1, 2], 'a'"`` gives ``([1, 2], 'a')``.

    Raises:
        ValueError: it is no list of literals.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.keywords:
            raise ValueError("no list of positional arguments")
        return tuple(ast.literal_eval(argument) for argument in call.args)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(
            f"inputs: {text!r} must be literals as in a call, such as \"[1, 2], 'a'\": {error}"
        ) from error


def draw_arguments(
    source: str, function: str, count: int, seed: int, index: int
) -> list[tuple[Any, ...]]:
    """Draw arguments by the annotated types of a function's header.

    Known: int, float, str, bool, None, list, tuple, set, dict, Optional, Union and ``|``, in either
    spelling (``list[int]``, ``typing.List[int]``). Sizes run from 0 to 6, integers from -100 to
    100, half of them from -3 to 9.

    Args:
        source: Python source text that holds the header (a HumanEval prompt does).
        function: the function's name.
        count: how many tuples of arguments.
        seed: another number draws others.
        index: the problem's row in its data set; the draw depends on (seed, index) and the header
            alone.

    Raises:
        ValueError: no such header, or a type that is missing or unknown.
    """
    drawers = [_drawer(annotation, function) for annotation in _annotations(source, function)]
    rng = random.Random(f"{seed}/{index}")
    return [tuple(draw(rng) for draw in drawers) for _ in range(count)]


def _annotations(source: str, function: str) -> list[ast.expr | None]:
    tree = _parse(source, function)
    headers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    if not headers:
        raise ValueError(f"no function {function!r} in {source!r:.200}; give a column of inputs")
    arguments = headers[-1].args
    return [
        argument.annotation
        for argument in [*arguments.posonlyargs, *arguments.args]
        if argument.arg != "self"
    ]


def _parse(source: str, function: str) -> ast.Module:
    """Return the source's tree; a header at its end may lack its body."""
    problem = None
    for body in ("", "\n    pass", "\n        pass"):
        try:
            return ast.parse(source + body)
        except (SyntaxError, ValueError) as error:
            problem = problem or error
    raise ValueError(
        f"the header of {function!r} cannot be read: {problem}; give a column of inputs"
    )


Draw = Callable[[random.Random], Any]


def _drawer(annotation: ast.expr | None, function: str) -> Draw:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _union([_drawer(part, function) for part in (annotation.left, annotation.right)])
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return lambda rng: None
    base, parameters = annotation, []
    if isinstance(annotation, ast.Subscript):
        base, inner = annotation.value, annotation.slice
        parameters = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    name = (
        base.attr
        if isinstance(base, ast.Attribute)
        else base.id
        if isinstance(base, ast.Name)
        else ""
    )
    if name in _PLAIN and not parameters:
        return _PLAIN[name]
    kind = name.lower()
    if kind not in _GENERIC:
        shown = "no type" if annotation is None else repr(ast.unparse(annotation))
        raise ValueError(
            f"{function!r} has {shown} for an argument, which cannot be drawn; give a column of"
            " inputs"
        )
    variable = [p for p in parameters if not (isinstance(p, ast.Constant) and p.value is ...)]
    items = [_drawer(parameter, function) for parameter in variable] or [_PLAIN["int"]] * 2
    return _GENERIC[kind](items, len(variable) != len(parameters))


def _int(rng: random.Random) -> int:
    return rng.randint(-3, 9) if rng.random() < 0.5 else rng.randint(-100, 100)


def _sized(rng: random.Random, draw: Draw) -> list[Any]:
    return [draw(rng) for _ in range(rng.randint(0, 6))]


_PLAIN: dict[str, Draw] = {
    "int": _int,
    "float": lambda rng: round(rng.uniform(-10, 10), 2),
    "str": lambda rng: "".join(_sized(rng, lambda r: r.choice(_LETTERS))),
    "bool": lambda rng: rng.random() < 0.5,
}


def _union(options: list[Draw]) -> Draw:
    return lambda rng: rng.choice(options)(rng)


def _tuple(items: list[Draw], repeated: bool) -> Draw:
    if repeated:  # tuple[int, ...]
        return lambda rng: tuple(_sized(rng, items[0]))
    return lambda rng: tuple(draw(rng) for draw in items)


_GENERIC: dict[str, Callable[[list[Draw], bool], Draw]] = {
    "list": lambda items, _: lambda rng: _sized(rng, items[0]),
    "sequence": lambda items, _: lambda rng: _sized(rng, items[0]),
    "set": lambda items, _: lambda rng: set(_sized(rng, items[0])),
    "dict": lambda items, _: lambda rng: {key: items[-1](rng) for key in _sized(rng, items[0])},
    "tuple": _tuple,
    "optional": lambda items, _: _union([items[0], lambda rng: None]),
    "union": lambda items, _: _union(items),
}
