"""Run some of the fast tests with another Python, or with the oldest supported dependencies.

``python scripts/check_versions.py FOLDER --python python3.13`` makes an environment in FOLDER with
that Python and the versions of constraints.txt, ``--oldest`` one with the lower bounds of `MAIN` in
pyproject.toml. FOLDER may be used again. Each environment takes a few GB where pip has no CPU build
of torch, so this is no part of `make test-all`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAIN = ("torch", "lightning", "transformers", "datasets", "jsonargparse")
TOOLS = ("pytest>=8", "hypothesis>=6")
# Each of the five has its use here: tensors and autograd, the trainer, models and tokenizers, data,
# and the command line.
TESTS = (
    "test_losses", "test_update", "test_python_use", "test_policy", "test_native", "test_sources",
    "test_local_files", "test_former_names", "test_setting_types",
)  # fmt: skip
VERSIONS = """
import sys
from importlib.metadata import version
print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in sys.argv[1:]))
"""


def lower_bounds() -> dict[str, str]:
    """Return the oldest supported version of each of `MAIN`, as pyproject.toml has it.

    Raises:
        ValueError: one has no lower bound; names it.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in project["dependencies"]:
        matched = re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", requirement)
        if matched and matched[1] in MAIN:
            found[matched[1]] = matched[2]
    if missing := set(MAIN) - set(found):
        raise ValueError(f"pyproject.toml has no lower bound of {sorted(missing)}")
    return found


def main() -> int:
    """Make the environment, and return the exit status of the tests in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the environment")
    parser.add_argument("--python", default=sys.executable, help="the interpreter it is made with")
    parser.add_argument("--oldest", action="store_true", help="lower bounds, not constraints.txt")
    parser.add_argument(
        "--torch", help="with --oldest: this version of it, such as one with a CPU build"
    )
    given = parser.parse_args()
    if given.torch and not given.oldest:
        parser.error("--torch needs --oldest: constraints.txt names the version of torch otherwise")
    python = given.folder / "bin" / "python"
    if not python.exists():
        subprocess.run([given.python, "-m", "venv", given.folder], check=True)
    oldest = lower_bounds() | ({"torch": given.torch} if given.torch else {})
    pinned = [f"{name}=={version}" for name, version in oldest.items()]
    versions = pinned if given.oldest else ["--constraint", ROOT / "constraints.txt"]
    install = [python, "-m", "pip", "install", "-q", *versions, *TOOLS, "--editable", ROOT]
    subprocess.run([*map(str, install)], check=True)
    subprocess.run([python, "-c", VERSIONS, *MAIN], check=True)
    files = [ROOT / "tests" / f"{name}.py" for name in TESTS]
    # Another version may deprecate what ours does not: that is no fault.
    options = ["-q", "-W", "default", "-m", "not slow and not full"]
    tests = [python, "-m", "pytest", *options, *files]
    return subprocess.run([*map(str, tests)], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
