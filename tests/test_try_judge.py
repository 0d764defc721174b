"""The script that asks a judge over HTTP: against a loopback server, and once for real where
Transformers' own server is installed and the small model is there.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import try_judge

from benchmarks.ranks import free_port
from harness.files import ROOT
from harness.judge_server import judge_server

MODEL = ROOT / "models" / "smollm2-135m"
SERVES = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai"))


def test_scores_of_a_judge_that_knows(capsys):
    """It says 5 where the response has the reference's last number, and fails in one question."""

    def knows(body):
        text = body["messages"][0]["content"]
        response = text.partition("<response>")[2].partition("</response>")[0]
        if "may be 5" in response:
            return 400, {"error": {"message": "no"}}, {}
        right = text.partition("<reference>")[2].partition("</reference>")[0].split()[-1]
        return f"Score: {5 if right in response else 1}"

    with judge_server() as server:
        server.usual = knows
        assert try_judge.main([f"--url={server.url}", "--model=m"]) == 1
        printed = capsys.readouterr().out
        assert "endpoint: 1 of 8 without a score, right above wrong in 3 of 3 pairs" in printed
        assert "400: no" in printed
        assert "rule: 0 of 8 without a score, right above wrong in 3 of 4 pairs" in printed
        server.usual = lambda body: "Score: 3"
        assert try_judge.main([f"--url={server.url}", "--model=m"]) == 0


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Transformers' own server with this model."""
    port = free_port()
    command = "from transformers.cli.transformers import main; main()"
    given = ["serve", str(model), "--host=127.0.0.1", f"--port={port}", "--device=cpu"]
    process = subprocess.Popen([sys.executable, "-c", command, *given])
    try:
        for _ in range(240):
            try:
                httpx2.get(f"http://127.0.0.1:{port}/health", timeout=1.0)
                break
            except httpx2.HTTPError:
                assert process.poll() is None
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(
    not (SERVES and MODEL.exists()), reason="needs transformers[serving] and scripts/get_smollm2.py"
)
def test_a_served_model_replies_to_every_question(capsys):
    with served(MODEL) as url:
        given = [f"--url={url}", f"--model={MODEL}", "--max_new_tokens=30", "--max_concurrent=2"]
        assert try_judge.main(given) == 0
    assert "8 calls" in capsys.readouterr().out
