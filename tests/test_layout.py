"""The house rules, by syntax tree: imports run one way, files and functions stay small, pure files stay pure."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from rlif_lightning.module import RLIFModule
from rlif_lightning.prompts import PromptData

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "rlif_lightning").rglob("*.py"))
CALLBACKS = sorted((ROOT / "callbacks").rglob("*.py"))
SCRIPTS = [path for folder in ("examples", "scripts", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]
EVERYTHING = [*LIBRARY, *CALLBACKS, *SCRIPTS]
PURE = ["masked", "packing", "advantages", "losses", "rewards.functional", "rollout.sampling", "logits", "bootstrap"]
# In the order of one training step: a file may import those before it, never those after.
ORDER = [
    "batch",
    "ranks",
    "masked",
    "heap",
    "sources",
    "benchmarks",
    "loaders",
    "prompt_format",
    "prompts",
    "packing",
    "rewards.functional",
    "rollout.sampling",
    "logits",
    "attention",
    "policy",
    "split_linear",
    "weights",
    "tensor_parallel",
    "sharding",
    "rollout.base",
    "rollout.rescoring",
    "rollout.weights",
    "rollout.vllm_worker",
    "rollout.vllm_local",
    "rollout.vllm_server",
    "rollout.vllm",
    "rollout.kv_memory",
    "rollout.decoders",
    "rollout.native",
    "sandbox.literals",
    "sandbox.channel",
    "sandbox.seccomp",
    "sandbox.lockdown",
    "sandbox.candidate",
    "sandbox.judge",
    "sandbox.start",
    "sandbox.isolation",
    "sandbox.pool",
    "sandbox",
    "code_tasks",
    "code_inputs",
    "math_process",
    "answers",
    "rewards.base",
    "rewards.internal",
    "rewards.voting",
    "rewards.controls",
    "rewards.code",
    "rewards",
    "advantages",
    "scoring",
    "losses",
    "objectives",
    "token_budget",
    "update",
    "optimizer",
    "checkpoint_files",
    "shard_files",
    "strategy",
    "records",
    "bootstrap",
    "metrics",
    "checkers",
    "evaluation_report",
    "evaluation",
    "module",
    "folders",
    "csv_log",
    "stopping",
    "checkpoints",
    "evaluation_files",
    "prediction_files",
    "preflight",
    "trainer",
    "cli",
]


def name_of(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT / "rlif_lightning").with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def code_lines(node: ast.FunctionDef, source: list[str]) -> int:
    """Lines of a function's body that are neither blank, comment nor docstring."""
    docstring = ast.get_docstring(node, clean=False)
    first = node.body[1] if docstring and len(node.body) > 1 else node.body[0]
    lines = source[first.lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    source = text.splitlines()
    limit = 250 if path.name == "module.py" else 300
    assert len(source) <= limit, f"{len(source)} lines"
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: code_lines(node, source) for node in functions if code_lines(node, source) > 40}
    assert not long


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_imports_run_along_the_flow(path):
    name = name_of(path)
    if name in ("", "__init__", "__main__", "rollout"):
        return
    assert name in ORDER, f"{name}: give the new file its place in ORDER and in docs/architecture.md"
    ours = {
        m.removeprefix("rlif_lightning").removeprefix(".") for m in imported(path) if m.startswith("rlif_lightning")
    }
    later = [other for other in ours - {""} if ORDER.index(other) >= ORDER.index(name)]
    assert not later
    if name != "cli":
        assert not [m for m in imported(path) if m.split(".")[0] == "callbacks"]


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_torch_and_numpy_only(name):
    path = ROOT / "rlif_lightning" / (name.replace(".", "/") + ".py")
    allowed = {"torch", "numpy", "math", "abc", "dataclasses", "collections", "__future__", "rlif_lightning", "string"}
    allowed |= {"typing"}
    assert not {module.split(".")[0] for module in imported(path)} - allowed
    assert not re.search(r"torch\.(rand|randn|multinomial|bernoulli|manual_seed)|\bopen\(|print\(", path.read_text())


def test_settings_stay_few():
    own = [inspect.signature(kind.__init__).parameters for kind in (RLIFModule, PromptData)]
    assert sum(len(parameters) - 1 for parameters in own) <= 60


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    names = {re.split(r"[\[<>=]", dependency)[0].lower().replace("_", "-") for dependency in wanted}
    assert not names - pinned - {"rlif-lightning"}


def test_importing_the_library_runs_nothing():
    tree = ast.parse((ROOT / "rlif_lightning" / "__init__.py").read_text())
    assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in tree.body)
