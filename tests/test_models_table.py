"""docs/models.md says what scripts/check_models.py finds, for every causal-LM type of the installed
transformers.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import transformers

from harness.children import in_child

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "check_models.py"
PAGE = (ROOT / "docs" / "models.md").read_text()
SAMPLE = ("llama", "roberta", "lfm2", "rwkv")  # some of each kind


def check(*types: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--check", *types]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600)


def test_the_page_is_of_the_installed_version():
    assert f"transformers {transformers.__version__}:" in PAGE, (
        "run scripts/check_models.py --write"
    )


@pytest.mark.full  # test_architectures.py and test_self_check.py know the types
def test_some_types_are_what_the_page_says(tmp_path):
    def command() -> None:
        warnings.simplefilter("ignore")
        sys.argv[1:] = ["--check", *SAMPLE]
        runpy.run_path(str(SCRIPT), run_name="__main__")

    code, printed = in_child(command, tmp_path)
    assert code == 0, printed


@pytest.mark.slow
def test_a_wrong_verdict_is_seen(tmp_path):
    """Of a page where a refused type is said to work."""
    for folder in ("scripts", "docs"):
        (tmp_path / folder).mkdir()
    script = tmp_path / "scripts" / "check_models.py"
    for path in (script, script.with_name("page_tables.py")):
        path.write_text((ROOT / "scripts" / path.name).read_text())
    [line] = [line for line in PAGE.splitlines() if line.startswith("| rwkv |")]
    assert "| refused | refused |" in line
    wrong = line.replace("| refused | refused |", "| prompts shared | own code |")
    (tmp_path / "docs" / "models.md").write_text(PAGE.replace(line, wrong))
    command = [sys.executable, str(script), "--check", "rwkv"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert found.returncode == 1
    assert (
        "docs/models.md has ['rwkv', 'RwkvForCausalLM', 'prompts shared', 'own code']"
        in found.stdout
    )


@pytest.mark.full  # about two minutes on one core; some of each kind are above
def test_every_type_is_what_the_page_says():
    found = check()
    assert found.returncode == 0, found.stdout + found.stderr
