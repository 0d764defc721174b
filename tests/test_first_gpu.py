"""The script for a new GPU, as far as a machine without one can tell: its parts exist, and a
failure ends no page.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from harness.children import in_child

ROOT = Path(__file__).parent.parent


def script(*arguments: str, out: Path) -> str:
    """``python scripts/first_gpu``, where no GPU is seen."""

    def command() -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.chdir(ROOT)
        sys.argv[1:] = [*arguments, "--out", str(out)]
        runpy.run_path("scripts/first_gpu", run_name="__main__")

    code, printed = in_child(command, out)
    assert code == 0, printed
    return printed


def test_the_shell_script_runs_every_section(monkeypatch):
    folder = ROOT / "scripts" / "first_gpu"
    monkeypatch.syspath_prepend(str(folder))
    names = list(runpy.run_path(str(folder / "__main__.py"), run_name="first_gpu")["sections"]())
    text = (ROOT / "scripts" / "first_gpu.sh").read_text()
    loop = text[text.index("${@:-") + 5 : text.index("}; do")]
    assert loop.replace("\\", " ").split() == names


def test_a_section_that_fails_leaves_its_error_on_the_page(tmp_path):
    page = script("machine", "decode-tiny28", "page", out=tmp_path)
    assert "torch" in json.loads((tmp_path / "machine.json").read_text())
    assert "native: error" in page
    assert json.loads((tmp_path / "first_gpu.json").read_text()).keys() == {
        "machine",
        "decode-tiny28",
    }
