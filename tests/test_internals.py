"""The private names of Lightning and Transformers that we use: written down, and there in the
installed versions.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import lightning.pytorch
import pytest
import transformers

from harness.cases import check_each, from_root
from harness.files import CALLBACKS, LIBRARY, ROOT, module_of
from rlif_lightning.model import transformers_internals
from rlif_lightning.running import lightning_internals
from rlif_lightning.running.lightning_internals import OVERRIDDEN, READ_IN

FILES = [
    path for path in [*LIBRARY, *CALLBACKS] if path.stem != "__main__"
]  # that one runs when it is imported
PRIVATE = re.compile(r"\b_[a-z]\w*")
KNOWN = [(owner, name) for owner, names in OVERRIDDEN.items() for name in names]


def class_of(dotted: str) -> type:
    module, name = dotted.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def ours(path: Path) -> list[type]:
    """The classes of a file of ours that have one of Lightning's above them."""
    module = importlib.import_module(module_of(path))
    classes = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
    ]
    return [
        kind
        for kind in classes
        if any(base.__module__.startswith("lightning") for base in kind.__mro__)
    ]


def own_names(kind: type) -> set[str]:
    """Private methods that a class defines, and private attributes of ``self`` and ``super()`` that
    it uses.
    """
    nodes = list(ast.walk(ast.parse(inspect.getsource(kind))))
    used = [
        n
        for n in nodes
        if isinstance(n, ast.Attribute)
        and PRIVATE.fullmatch(n.attr)
        and ast.unparse(n.value) in ("self", "cls", "super()")
    ]
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef)} | {n.attr for n in used}
    return {name for name in names if PRIVATE.fullmatch(name)}


def test_the_pinned_version_is_the_one_that_was_read():
    assert lightning.pytorch.__version__ == READ_IN, (
        "read the private names again, then raise READ_IN"
    )
    assert f"lightning=={READ_IN}\n" in (ROOT / "constraints.txt").read_text()


TRANSFORMERS = {
    "_attn_implementation": "configuration_utils",
    "_supports_attention_backend": "modeling_utils",
    "_no_split_modules": "modeling_utils",
    "_is_hf_initialized": "initialization",
    "_raise_exceptions_for_missing_entries": "utils.hub",
}


def identifiers(path: Path) -> set[str]:
    """Names of attributes and arguments in a file, and its strings that could name an attribute;
    none where no name of Transformers is in the text.
    """
    text = path.read_text()
    if not any(name in text for name in TRANSFORMERS):
        return set()
    nodes = list(ast.walk(ast.parse(text)))
    strings = {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return (
        strings
        | attributes
        | {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    )


def test_transformers_has_what_is_reached():
    assert transformers.__version__ == transformers_internals.READ_IN, (
        "read the names again, then raise READ_IN"
    )
    for name, module in TRANSFORMERS.items():
        source = inspect.getsource(importlib.import_module(f"transformers.{module}"))
        assert re.search(rf"\b{name}\b", source), f"transformers.{module} has no {name} any more"


def test_transformers_private_names_are_reached_in_one_file():
    here = Path(transformers_internals.__file__)
    assert {name for name in identifiers(here) if PRIVATE.fullmatch(name)} == set(TRANSFORMERS)
    assert not {
        path.name: found
        for path in FILES
        if path != here and (found := identifiers(path) & set(TRANSFORMERS))
    }


@pytest.mark.parametrize(("owner", "name"), KNOWN)
def test_lightning_has_what_is_written_down(owner, name):
    assert name in PRIVATE.findall(inspect.getsource(class_of(owner)))


def test_lightning_has_what_the_functions_reach():
    assert "_num_ready_batches_reached" in vars(lightning_internals.TrainingEpochLoop)


def test_what_is_used_is_written_down():
    """Also a private name of ours that is one of Lightning's by chance, which would take
    its place.
    """

    def check(path):
        for kind in ours(path):
            bases = [base for base in kind.__mro__ if base.__module__.startswith("lightning")]
            theirs = {
                name: base for base in bases for name in PRIVATE.findall(inspect.getsource(base))
            }
            known = {name for owner, name in KNOWN if issubclass(kind, class_of(owner))}
            assert not {name: theirs[name] for name in own_names(kind) & theirs.keys() - known}

    check_each(check, FILES, from_root)


def test_what_is_no_override_is_reached_in_one_file():
    def check(path):
        text = path.read_text()
        is_there = re.search(
            r"\b(trainer|loop|epoch_loop|strategy)\s*\._|\blightning\b.*import", text
        )
        if path == Path(lightning_internals.__file__) or not is_there:
            return
        tree = ast.parse(text)
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imports = [(node.module or "", alias.name) for node in froms for alias in node.names]
        assert not [
            name
            for module, name in imports
            if module.startswith("lightning") and name.startswith("_")
        ]
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        reached = [ast.unparse(node) for node in attributes if re.fullmatch(PRIVATE, node.attr)]
        assert not [
            name for name in reached if re.search(r"\b(trainer|loop|epoch_loop|strategy)\._", name)
        ]

    check_each(check, FILES, from_root)
