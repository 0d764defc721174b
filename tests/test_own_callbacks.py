"""The README's callback, in the three places that it names, through the real command line in a
folder of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.runs import BASE

ROOT = Path(__file__).parents[1]
README = (ROOT / "callbacks" / "README.md").read_text()
SOURCE = next(
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "class LengthStop" in block
)


def run(folder: Path, name: str, shortest: float) -> str:
    """Start `python -m rlif_lightning` in ``folder`` as a user would; what it prints."""
    arguments = [argument for argument in BASE if not argument.startswith("--config")]
    command = [sys.executable, "-m", "rlif_lightning", "fit", "--config=run.yaml", *arguments]
    command += [f"--trainer.callbacks+={name}", f"--trainer.callbacks.shortest={shortest}"]
    # The repository stands for the installed package; a callback is found from the current folder
    # alone.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    (folder / "run.yaml").write_text((ROOT / "configs" / "quickstart.yaml").read_text())
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # three processes that import everything
@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param("length_stop.py", "length_stop.LengthStop", marks=pytest.mark.full),
        pytest.param(
            "my_package/__init__.py my_package/watch.py",
            "my_package.watch.LengthStop",
            marks=pytest.mark.full,
        ),
        pytest.param(
            "callbacks/length_stop.py",
            "callbacks.length_stop.LengthStop",
            marks=pytest.mark.full,
        ),
        # A package of the user's own with the name of ours.
        ("callbacks/__init__.py callbacks/length_stop.py", "callbacks.length_stop.LengthStop"),
    ],
)
def test_a_users_callback_is_found_and_works(tmp_path, path, name):
    assert f"`{name}`" in README
    *others, file = (tmp_path / each for each in path.split())
    file.parent.mkdir(exist_ok=True)
    for other in others:
        other.touch()
    file.write_text(SOURCE)
    assert re.search(r"rollout 1: \d+\.\d tokens, stopping", run(tmp_path, name, shortest=100))


def test_the_readme_names_every_callback_and_its_settings():
    import inspect

    import callbacks

    for name in callbacks.__all__:
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        for setting in list(inspect.signature(getattr(callbacks, name).__init__).parameters)[1:]:
            assert f"`{setting}`" in row, (name, setting)


def test_the_readme_is_fifteen_lines():
    assert len([line for line in SOURCE.splitlines() if line.strip()]) <= 15
