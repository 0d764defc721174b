"""Starts the tests of ``tests/device_twin`` in a pytest of their own: a process that installed the
twin keeps it.

``command_lines`` stands for the tests of other files that run there again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.files import ROOT
from harness.processes import environment

FOLDER = ROOT / "tests" / "device_twin"
FULL = {
    "command_lines",  # test_fits.py has whole runs of the same parts
    "test_deep_budgets",  # test_budgets.py counts what each layer adds to a few
}
# Files with tests that are marked full: they are asked for again where those are to run.
WITH_MORE = ("test_decode_step", "test_fits", "test_heads", "test_update_budget")
ON_THE_DEVICE = {
    "test_run": (
        "a_head_of_weight_zero_is_measured_and_changes_nothing",
        "bf16_mixed_sees_each_update",
        "checkpoints_load_without_running_code",
        "lora_trains_adapters_only_with_itself_as_reference",
        "reference_model_starts_at_kl_zero_and_stays_out_of_checkpoints",
        "resume_in_the_middle_of_an_epoch_is_the_uninterrupted_run",
        "same_seed_twice_gives_identical_metrics_and_parameters",
        "training_changes_the_parameters",
    ),
    "test_configs": (
        "gold_overlay_trains_on_gold_answers_alone",
        "paper_configs_train_a_stand_in",
        "quickstart_trains",
        "smollm2_config_trains_a_stand_in",
    ),
}


def files() -> list:
    """One parameter for each file."""
    found = [*sorted(FOLDER.glob("test_*.py")), FOLDER / "command_lines.py"]
    marks = {path: pytest.mark.full if path.stem in FULL else pytest.mark.slow for path in found}
    made = [
        pytest.param(path, id=path.stem.removeprefix("test_"), marks=marks[path]) for path in found
    ]
    for path in (FOLDER / f"{stem}.py" for stem in WITH_MORE):
        name = f"{path.stem.removeprefix('test_')}, every one"
        made.append(pytest.param(path, id=name, marks=pytest.mark.full))
    return made


def asked_for(path: Path) -> list[str]:
    """What pytest is asked for."""
    if path.stem.startswith("test_"):
        return [str(path)]
    return [
        f"tests/{file}.py::test_{name}" for file, names in ON_THE_DEVICE.items() for name in names
    ]


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> dict[str, list[str]]:
    """One run of all files that were asked for: the name of each that ran a test, and what failed
    in it.
    """
    from device_twin.backend import missing  # imports a good part of PyTorch, installs nothing

    reason = missing()
    if reason and os.environ.get("DEVICE_TWIN") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    ours = [item for item in request.session.items if item.fspath == __file__]
    asked = dict.fromkeys(name for item in ours for name in asked_for(item.callspec.params["file"]))
    is_full = any(item.get_closest_marker("full") for item in ours)
    report = tmp_path_factory.mktemp("device_twin") / "report.xml"
    options = [
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-p",
        "device_twin.command_lines",
        "--show-capture=no",
        f"--junitxml={report}",
        *([] if is_full else ["-m", "not full"]),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *asked],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
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
    stems = [file.stem] if file.stem.startswith("test_") else list(ON_THE_DEVICE)
    assert set(stems) <= outcomes.keys(), "some had no test that ran"
    failed = [each for stem in stems for each in outcomes[stem]]
    if failed:
        command = " ".join(
            ["PYTHONPATH=tests python -m pytest -p device_twin.command_lines", *asked_for(file)]
        )
        pytest.fail(
            "\n\n".join([f"{len(failed)} failed; to run them alone: {command}", *failed]),
            pytrace=False,
        )
