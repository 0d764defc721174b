"""Programming tasks: the tests of a data-set row in one shape, and the code of a completion.

Read in this order: ``CodeTask`` (the shape), ``task_of`` with one adapter for each of three public
layouts, then ``CodeExtractor``. Nothing here runs or unpickles anything of a data set or a model.
"""

from __future__ import annotations

import ast
import base64
import builtins
import json
import pickletools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlif_lightning.setting_types import check_types

TEST_COLUMNS = ("test", "test_list", "public_test_cases", "private_test_cases")


@dataclass(frozen=True)
class CodeTask:
    """What code must do, with tests as code or as pairs of input and output.

    Attributes:
        prompt: source text that a base model's completion continues; empty if there is none.
        functions: the functions that tests call; none for a program that reads standard input.
        setup: source text that tests need.
        tests: source text of each test; it passes if it raises nothing.
        cases: pairs of input and expected output: for a function a tuple of arguments and a value,
            for a program texts.
    """

    prompt: str = ""
    functions: tuple[str, ...] = ()
    setup: str = ""
    tests: tuple[str, ...] = ()
    cases: tuple[tuple[Any, Any], ...] = ()


def task_of(row: Mapping[str, Any]) -> CodeTask:
    """Read the tests of one data-set row.

    Three layouts are known by their columns: HumanEval (``prompt``, ``entry_point``, ``test`` with
    a function ``check``), MBPP (``test_list`` of assertions, optional ``test_imports`` and
    ``test_setup_code``) and LiveCodeBench (``public_test_cases`` and, optional,
    ``private_test_cases``, ``metadata``: inputs and outputs, for a function or for standard input
    and output).

    Raises:
        ValueError: the row has none of these columns, or no test.
    """
    for column, read in (
        ("test_list", _mbpp),
        ("public_test_cases", _livecodebench),
        ("test", _humaneval),
    ):
        if row.get(column):
            task = read(row)
            if not task.tests and not task.cases:
                raise ValueError(f"column {column!r} holds no test: {row[column]!r:.200}")
            return task
    raise ValueError(
        f"no tests in a row with the columns {sorted(row)}; give test_list (assertions),"
        " public_test_cases (inputs and outputs), or test with entry_point and prompt"
    )


def _humaneval(row: Mapping[str, Any]) -> CodeTask:
    if not row.get("entry_point"):
        raise ValueError(f"column 'test' needs a column 'entry_point'; the row has {sorted(row)}")
    name, prompt = row["entry_point"], row.get("prompt") or ""
    # A prompt in Python defines the helpers that some tests call; a prompt in words defines
    # nothing.
    return CodeTask(
        prompt,
        (name,),
        prompt if _is_python(prompt) else "",
        (f"{row['test']}\n\ncheck({name})\n",),
    )


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _mbpp(row: Mapping[str, Any]) -> CodeTask:
    setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""])
    tests = tuple(row["test_list"])
    try:
        functions = _free_names(setup, "\n".join(tests))
    except SyntaxError as error:
        raise ValueError(f"test_list={list(tests)!r:.200} is not Python: {error}") from error
    return CodeTask("", functions, setup, tests)


def _free_names(setup: str, tests: str) -> tuple[str, ...]:
    """Return names that only the candidate can define: not tests, setup or Python."""
    trees = [ast.parse(setup), ast.parse(tests)]
    defined = set(vars(builtins))
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            defined.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
    used = {node.id for node in ast.walk(trees[1]) if isinstance(node, ast.Name)}
    return tuple(sorted(used - defined))


def _livecodebench(row: Mapping[str, Any]) -> CodeTask:
    listed = [
        *_test_cases(row["public_test_cases"]),
        *_test_cases(row.get("private_test_cases") or "[]"),
    ]
    metadata = row.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    name = metadata.get("func_name")
    prompt = row.get("starter_code") or ""
    if not name:
        pairs = [(case["input"], case["output"]) for case in listed]
        if other := [pair for pair in pairs if not all(isinstance(text, str) for text in pair)]:
            raise ValueError(
                f"the test case {other[0]!r:.200} of a program needs texts as input and output;"
                ' write them as texts, or name a function in metadata ({"func_name": ...})'
            )
        return CodeTask(prompt, cases=tuple(pairs))
    pairs = [
        (tuple(map(json.loads, case["input"].splitlines())), json.loads(case["output"]))
        for case in listed
    ]
    return CodeTask(prompt, (name,), cases=tuple(pairs))


def _test_cases(text: Any) -> list[dict[str, str]]:
    """Read the published column: a list, its JSON, or base64 text.

    The base64 text is zlib data of a pickled string of JSON.

    Source: https://github.com/LiveCodeBench/LiveCodeBench, which unpickles it. Here the one string
    is read without unpickling.
    """
    if isinstance(text, list):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        pickled = zlib.decompress(base64.b64decode(text))
        [content] = [value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str)]
        return json.loads(content)
    except (ValueError, zlib.error) as error:
        raise ValueError(
            f"test cases {text!r:.100} are neither JSON nor LiveCodeBench's packed form: {error}"
        ) from error


_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
# A base model continues after the function with other code. So its text is cut at the first line
# that starts at the margin with anything but a closing bracket.
_NEXT_THING = re.compile(r"\n(?=[^\s)\]}])")
_EXTRACTORS = ("auto", "fenced", "continuation", "text")


@dataclass(frozen=True)
class CodeExtractor:
    """Finds the code in a completion.

    Args:
        kind: fenced (the last block between lines of three backticks; it may lack its end) |
            continuation (the prompt's code goes on in the completion, up to the next line at the
            margin) | text (all of it) | auto (fenced if there is a block, else continuation if the
            text begins indented and there is a prompt, else text).

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> CodeExtractor()("    return x\\nprint(1)", "def f(x):\\n")
        'def f(x):\\n    return x'
    """

    kind: str = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        if self.kind not in _EXTRACTORS:
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {list(_EXTRACTORS)}")

    def __call__(self, text: str, prompt: str = "") -> str | None:
        """Return the code; None where there is none.

        Args:
            text: the completion.
            prompt: source text that it continues, if it does.
        """
        if not text.strip():
            return None
        found = self._fenced(text) if self.kind in ("auto", "fenced") else None
        if found is None and self.kind != "fenced":
            indented = text.lstrip("\n").startswith((" ", "\t"))
            continues = self.kind == "continuation" or (
                self.kind == "auto" and bool(prompt) and indented
            )
            found = prompt + _NEXT_THING.split(text, maxsplit=1)[0] if continues else text
        return found if found is not None and found.strip() else None

    @staticmethod
    def _fenced(text: str) -> str | None:
        blocks = _FENCE.findall(text)
        return blocks[-1] if blocks else None
