"""Starts the tests of ``tests/device_twin`` in a pytest of their own: a process that installed the twin keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "device_twin"
QUICK = {"test_backend"}  # the others take over ten seconds


def files() -> list:
    """One parameter for each file."""
    found = sorted(FOLDER.glob("test_*.py"))
    marks = {path: () if path.stem in QUICK else (pytest.mark.slow,) for path in found}
    return [
        pytest.param(path, id=path.stem.removeprefix("test_"), marks=marks[path]) for path in found
    ]


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> dict[str, list[str]]:
    """One run of all files that were asked for: the name of each that ran a test, and what failed in it."""
    from device_twin.backend import missing  # imports a good part of PyTorch, installs nothing

    reason = missing()
    if reason and os.environ.get("DEVICE_TWIN") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    asked = [
        str(item.callspec.params["file"])
        for item in request.session.items
        if item.fspath == __file__
    ]
    report = tmp_path_factory.mktemp("device_twin") / "report.xml"
    options = [
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "--show-capture=no",
        f"--junitxml={report}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *asked], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):  # it did not get as far as its tests
        pytest.fail(
            f"pytest ended with {done.returncode}:\n{done.stdout}\n{done.stderr}", pytrace=False
        )
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iterfind(".//testcase"):
        if case.find("skipped") is not None:
            continue
        failed = found.setdefault(case.attrib["classname"].rpartition(".")[2], [])
        failed += [
            f"{case.attrib['name']}\n{fault.text}"
            for kind in ("failure", "error")
            for fault in case.iter(kind)
        ]
    return found


@pytest.mark.parametrize("file", files())
def test_on_the_device_twin(file, outcomes):
    assert file.stem in outcomes, "none of its tests ran"
    failed = outcomes[file.stem]
    if failed:
        command = f"python -m pytest {file.relative_to(ROOT)}"
        pytest.fail(
            "\n\n".join([f"{len(failed)} failed; to run them alone: {command}", *failed]),
            pytrace=False,
        )
