"""Every example in a docstring of the library is what Python prints."""

from __future__ import annotations

import doctest
import importlib

import pytest

from harness.files import CALLBACKS, LIBRARY, module_of

WITH_EXAMPLES = [module_of(path) for path in [*LIBRARY, *CALLBACKS] if ">>> " in path.read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
