"""Measure a new GPU in ten minutes; ``scripts/first_gpu.sh`` runs each section in a process.

python scripts/first_gpu SECTION ... --out runs/first_gpu  # each as DIR/SECTION.json
python scripts/first_gpu page --out runs/first_gpu         # all as first_gpu.json and text
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers


def machine(_: Path) -> dict[str, Any]:
    """Return cards, driver and versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )[:-1]
    except (OSError, subprocess.CalledProcessError) as error:
        cards = [str(error)]
    return {
        "cards": cards,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _decode(shape: str, _: Path) -> dict[str, Any]:
    import decode

    return decode.decode(shape)


def sections() -> dict[str, Any]:
    """Return name and function of each section; the first ones say the most."""
    import fits
    import graphs
    import passes
    import shapes
    import whole_runs

    return {
        "machine": machine,
        "equal": passes.equal,
        "quickstart": whole_runs.quickstart,
        "fits": fits.fits,
        "graph-runs": fits.graph_runs,
        **{f"decode-{shape}": partial(_decode, shape) for shape in ("embedded", *shapes.SHAPES)},
        "graphs": graphs.graphs,
        "kernels": passes.kernels,
        "resume": whole_runs.resume,
        "deterministic": whole_runs.deterministic,
        **{f"steps-{shape}": partial(passes.steps, shape) for shape in passes.STEPS},
        "ranks": whole_runs.ranks,
        "vllm": whole_runs.vllm,
    }


def lines(value: Any, depth: int = 0) -> list[str]:
    """Yield nested figures as indented text."""
    if not isinstance(value, dict):
        return [f"{'  ' * depth}{value}"]
    found = []
    for key, inner in value.items():
        if isinstance(inner, dict) and any(isinstance(each, dict) for each in inner.values()):
            found += [f"{'  ' * depth}{key}:", *lines(inner, depth + 1)]
        elif isinstance(inner, dict):
            found.append(
                f"{'  ' * depth}{key}: "
                + ", ".join(f"{name} {each}" for name, each in inner.items())
            )
        else:
            found.append(f"{'  ' * depth}{key}: {inner}")
    return found


def page(out: Path) -> str:
    """Return everything that was measured as text, and write it as one JSON file."""
    order = [name for name in sections() if (out / f"{name}.json").exists()]
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in order}
    (out / "first_gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return "\n".join(lines(found))


def measure(name: str, out: Path) -> None:
    """Write a section's figures, or its error, to a file."""
    started = time.perf_counter()
    (work := out / name).mkdir(exist_ok=True)
    try:
        found = sections()[name](work)
    except Exception as error:  # the other sections still tell something
        found = {
            "error": f"{type(error).__name__}: {error}",
            "at": traceback.format_exc().splitlines()[-6:],
        }
        traceback.print_exc()
    found["section took seconds"] = round(time.perf_counter() - started, 1)
    (out / f"{name}.json").write_text(json.dumps(found) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=[*sections(), "page"], metavar="SECTION")
    parser.add_argument("--out", type=Path, default=Path("runs/first_gpu"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    for name in given.sections:
        if name == "page":
            print(page(given.out))
        else:
            measure(name, given.out)


if __name__ == "__main__":
    main()
