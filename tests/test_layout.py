"""The house rules, by syntax tree: imports run one way between rooms, files and functions stay
small and documented.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

import rlif_lightning
from harness.cases import check_each, from_root
from harness.files import EVERYTHING, LIBRARY, PACKAGE, ROOT, SCRIPTS, module_of, names_of
from rlif_lightning.learning.updater import Updater

# The rooms in the order of the data flow: a file may import its own room and those before it, never
# a later one.
ROOMS = [
    "setting_types",
    "records",
    "metric_names",
    "sampling",
    "masked",
    "whole_files",
    "processes",
    "data",
    "model",
    "parallel",
    "sandbox",
    "answers",
    "environments",
    "rollout",
    "judges",
    "rewards",
    "learning",
    "running",
    "evaluation",
    "module",
    "trainer",
    "cli",
    "__main__",
]
MAX_DEPTH = 12  # files that import each other in a row
MAX_ROOT_FILES = 10
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_LINE = 320, 40, 7, 100  # constructors: any parameters
PRAGMA = re.compile(r"  # (pyright|type|noqa|fmt)\b.*")
PURE = [
    "bootstrap",
    "advantages",
    "functional",
    "head",
    "losses",
    "masked",
    "packing",
    "sampling",
    "token_stats",
]


def room_of(module: str) -> str:
    """The room of a module; empty for the package itself."""
    return [*module.split("."), ""][1]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file, for all tests of this file."""
    return ast.parse(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def _trees_are_let_go():
    """They are hundreds of thousands of objects, which each garbage collection would visit."""
    yield
    tree_of.cache_clear()


@functools.cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file but for type checkers alone."""
    tree = tree_of(path)
    unread = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    return {name for node in ast.walk(tree) if id(node) not in unread for name in names_of(node)}


DISTRIBUTIONS = functools.cache(importlib.metadata.packages_distributions)
MODULES = {module_of(path): path for path in LIBRARY}


@functools.cache
def imports(module: str) -> set[str]:
    """The modules of ours that one of them imports."""
    return imported(MODULES[module]) & set(MODULES) - {PACKAGE}


@functools.cache
def longest_chain(module: str) -> tuple[str, ...]:
    """The longest chain of files that import each other, ending with this one."""
    chains = [longest_chain(other) for other in imports(module)]
    return (*max(chains, key=len, default=()), module)


def code_lines(node: ast.FunctionDef, source: list[str]) -> int:
    """Lines of a function with its signature that are neither blank, comment nor docstring."""
    docstring = ast.get_docstring(node, clean=False)
    body = node.body[1:] if docstring else node.body
    lines = source[node.lineno - 1 : node.body[0].lineno - 1]
    lines += source[body[0].lineno - 1 : node.end_lineno] if body else []
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def parameters(node: ast.FunctionDef) -> int:
    """The parameters of a function, without those that stand for the object or the class."""
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(it.arg not in ("self", "cls") for it in found)


def test_lines_stay_short():
    def check(path):
        lines = [PRAGMA.sub("", line) for line in path.read_text().splitlines()]
        assert not [number for number, line in enumerate(lines, 1) if len(line) > MAX_LINE]

    check_each(check, EVERYTHING, from_root)


def test_every_room_stands_in_the_order():
    rooms = {room_of(module) for module in MODULES} - {""}
    assert rooms == set(ROOMS), "give a new room its place in ROOMS and in docs/architecture.md"


def test_imports_run_one_way_between_rooms():
    def check(module):
        if module == PACKAGE:
            return
        rank = ROOMS.index(room_of(module))
        assert not [other for other in imports(module) if ROOMS.index(room_of(other)) > rank]
        if room_of(module) != "cli":
            assert not [
                other for other in imported(MODULES[module]) if other.split(".")[0] == "callbacks"
            ]

    check_each(check, sorted(MODULES))


def test_files_of_a_room_import_each_other_without_a_circle():
    for module in MODULES:  # a circle would recurse for ever
        longest_chain(module)


def test_a_chain_of_imports_is_short():
    longest = max((longest_chain(module) for module in MODULES), key=len)
    assert len(longest) <= MAX_DEPTH, " -> ".join(longest)


def test_few_files_stand_at_the_root():
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= MAX_ROOT_FILES


def test_files_and_functions_stay_small():
    def check(path):
        source = path.read_text().splitlines()
        assert len(source) <= MAX_FILE, f"{len(source)} lines"
        functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]
        long = {node.name: code_lines(node, source) for node in functions}
        assert not {name: lines for name, lines in long.items() if lines > MAX_FUNCTION}
        taken = {node.name: parameters(node) for node in functions if node.name != "__init__"}
        assert not {name: number for name, number in taken.items() if number > MAX_PARAMETERS}

    check_each(check, EVERYTHING, from_root)


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_torch_and_numpy_only(name):
    path = next(path for path in LIBRARY if path.stem == name)
    allowed = {
        "torch",
        "numpy",
        "math",
        "abc",
        "dataclasses",
        "collections",
        "__future__",
        PACKAGE,
        "string",
        "typing",
    }
    assert not {module.split(".")[0] for module in imported(path)} - allowed
    assert not re.search(
        r"torch\.(rand|randn|multinomial|bernoulli|manual_seed)|\bopen\(|print\(", path.read_text()
    )


def test_local_reductions_know_no_other_process():
    assert not {"torch.distributed", "lightning"} & imported(MODULES[f"{PACKAGE}.masked"])
    assert not imports(f"{PACKAGE}.masked")


def test_public_things_have_docstrings():
    def check(path):
        tree = tree_of(path)
        assert ast.get_docstring(tree)
        kinds = (ast.FunctionDef, ast.ClassDef)
        public = [
            node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")
        ]
        assert not [node.name for node in public if not ast.get_docstring(node)]

    check_each(check, EVERYTHING, from_root)


def distribution(requirement: str) -> str:
    """The normalised name in a requirement such as ``PyYAML>=6``."""
    return re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")


@functools.cache
def declared(*extras: str) -> set[str]:
    """The distributions that pyproject.toml asks for, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(d for name in extras for d in project["optional-dependencies"][name]),
    ]
    return {distribution(dependency) for dependency in wanted}


OTHERS = {
    "trl_step.py": {"trl"},
    "multi_turn_trl.py": {"trl"},
    "compare_objectives.py": {"verl"},
    "compare_trl.py": {"accelerate", "trl"},
    "play_textworld.py": {"textworld"},
}  # whom these compare with
EXTRAS = ("lora", "qlora", "gguf", "reasoning", "textarena", "vllm")


def test_every_dependency_is_pinned():
    pinned = {distribution(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not declared(*EXTRAS, "dev", "docs") - pinned - {"rlif-lightning"}


def test_every_import_is_declared():
    """By what this machine's packages say which of them has a module; the name of the module where
    none has it.

    Scripts and benchmarks are run from a checkout, and may need what developers have.
    ``benchmarks/trl_step.py`` is run in an environment of its own, into which its user installs
    TRL.
    """

    def check(path):
        siblings = {other.stem for other in path.parent.glob("*.py")} | {
            "rlif_lightning",
            "callbacks",
            "benchmarks",
        }
        names = (
            {module.split(".")[0] for module in imported(path)} - sys.stdlib_module_names - siblings
        )
        known = DISTRIBUTIONS()
        needed = {distribution(known.get(name, [name])[0]) for name in names}
        allowed = declared(*EXTRAS, *(["dev", "docs"] if path in SCRIPTS else []))
        assert not needed - allowed - OTHERS.get(path.name, set())

    check_each(check, EVERYTHING, from_root)


def test_nothing_is_there_for_tests_alone():
    """A second way to compute something belongs into ``tests/restatement.py``."""
    words = Counter(word for path in EVERYTHING for word in re.findall(r"\w+", path.read_text()))
    kinds = (ast.FunctionDef, ast.ClassDef)
    defined = [
        node.name for path in LIBRARY for node in tree_of(path).body if isinstance(node, kinds)
    ]
    assert not [name for name in defined if words[name] == 1 and not name.startswith("_")]


def test_nothing_that_is_shipped_knows_the_device_twin():
    for path in EVERYTHING:
        assert not {"device_twin", "tests"} & {name.split(".")[0] for name in imported(path)}, (
            path.name
        )


def test_importing_the_library_imports_nothing_heavy(tmp_path):
    """The best of three counts, behind a first one that writes the bytecode."""
    code = (
        "import sys, time; start = time.process_time(); import rlif_lightning; spent ="
        " time.process_time() - start;"
        "print(spent, *sorted(name for name in sys.modules if name.split('.')[0] in ('torch',"
        " 'lightning', 'numpy')))"
    )
    own = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    given = {"cwd": ROOT, "env": os.environ | own, "text": True, "check": True}
    printed = [
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, **given).stdout
        for _ in range(4)
    ]
    spent, *heavy = zip(*map(str.split, printed), strict=True)
    assert not heavy
    assert min(map(float, spent[1:])) < 0.1


def test_public_names_are_what_they_say():
    for name, module in rlif_lightning._MODULES.items():
        value = getattr(rlif_lightning, name)
        assert value.__name__ == name
        assert value.__module__ == f"{PACKAGE}.{module}"
    assert set(rlif_lightning.__all__) <= set(dir(rlif_lightning))
    with pytest.raises(AttributeError, match="no attribute 'Rewards'"):
        _ = rlif_lightning.Rewards


def test_editors_and_run_time_know_the_same_names():
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.name: node.module for node in block.body for alias in node.names}
    assert shown == {
        name: f"{PACKAGE}.{module}" for name, module in rlif_lightning._MODULES.items()
    }


def test_architecture_names_every_file():
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = [path for path in LIBRARY if path.stem not in ("__init__", "__main__")]
    assert not [path.name for path in files if not re.search(rf"\b{path.stem}\b", page)]


def test_an_updater_stays_small():
    assert len(fields(Updater)) <= MAX_PARAMETERS
