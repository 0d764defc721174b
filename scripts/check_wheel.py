"""Build wheel and sdist, install the wheel into an environment of its own, and use it there.

``python scripts/check_wheel.py OUT``: OUT gets the two files and the environment. pip fetches the
build backend. The environment sees the packages of the one that runs this script, but for this
library: what is imported there is the wheel's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USES = """
import callbacks, rlif_lightning, sys
from rlif_lightning.model.loading import EMBEDDED_MODELS
places = [callbacks.__file__, rlif_lightning.__file__, *map(str, EMBEDDED_MODELS.values())]
assert all(place.startswith(sys.prefix) for place in places), places
assert all((path / "model.safetensors").is_file() for path in EMBEDDED_MODELS.values())
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command without this repository on the import path, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(out: Path) -> None:
    """Build, install and use.

    Raises:
        SystemExit: a step fails; with what it printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    build = out / "build"
    venv.create(build, with_pip=True)
    run(build / "bin" / "pip", "install", "-q", "build", "hatchling")
    run(build / "bin" / "python", "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    clean = out / "clean"
    venv.create(clean, with_pip=True)
    run(clean / "bin" / "pip", "install", "-q", "--no-deps", wheel)
    packages = next((clean / "lib").glob("python*/site-packages"))
    # The wheel's own folder comes first, so the libraries of this environment stand behind it.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    run(clean / "bin" / "python", "-c", USES, cwd=out)
    answer = run(clean / "bin" / "rlif", "generate", "rlif-arithmetic", "1+2=", cwd=out)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = {"LICENSE", "configs/quickstart.yaml", "tests/conftest.py"} - names
    if missing or not answer.strip():
        raise SystemExit(f"{sdist}: {missing} are missing; the script answered {answer!r}")
    print(f"{wheel.name} and {sdist.name} are whole; 1+2= was answered with {answer.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
