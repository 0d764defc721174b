"""Model folders of unknown origin: what is wrong in one is told in a line, and nothing is drawn at
random unseen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.runs import fit
from rlif_lightning.data.prompts import LocalFiles, PromptData
from rlif_lightning.data.tokenizer import MAX_CHARACTERS, load_tokenizer, prompt_encoder
from rlif_lightning.model.loading import Policy, load_pretrained, resolve_model
from rlif_lightning.parallel.partial_loading import empty_model

SOURCE = Path(resolve_model("rlif-arithmetic"))
QUERY = "model.layers.0.self_attn.q_proj.weight"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the embedded model."""
    shutil.copytree(SOURCE, tmp_path / "model")
    return tmp_path / "model"


def write_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = {
        name: value.clone() for name, value in load_file(SOURCE / "model.safetensors").items()
    }
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rules = json.loads((SOURCE / "tokenizer.json").read_text())
    change(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules))


def test_a_tensor_of_another_shape_is_named(folder):
    write_weights(folder, lambda weights: weights.update({QUERY: torch.zeros(3, 5)}))
    with pytest.raises(
        ValueError, match=rf"{QUERY}' has the shape \[3, 5\] in its file.* \[128, 128\]"
    ):
        load_pretrained(Policy(str(folder)))


def test_a_tensor_that_is_missing_is_not_drawn_at_random(folder):
    write_weights(folder, lambda weights: weights.pop(QUERY))
    with pytest.raises(ValueError, match=rf"no tensor '{QUERY}'.*at random"):
        load_pretrained(Policy(str(folder)))


def test_a_tensor_under_another_name_is_missing(folder):
    write_weights(folder, lambda weights: weights.update({f"x.{QUERY}": weights.pop(QUERY)}))
    with pytest.raises(ValueError, match=rf"no tensor '{QUERY}'"):
        load_pretrained(Policy(str(folder)))


@pytest.mark.slow
def test_all_is_told_in_one_line_by_the_command_line(folder, tmp_path, capfd):
    write_weights(folder, lambda weights: weights.update({QUERY: torch.zeros(3, 5)}))
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "runs", f"--model.policy.name={folder}")
    assert stopped.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert QUERY in line


BROKEN = {
    "cut weights": ("model.safetensors", (SOURCE / "model.safetensors").read_bytes()[:1000]),
    "no safetensors": ("model.safetensors", b"\xff" * 1000),
    "an empty file": ("model.safetensors", b""),
    "a header that claims 2^62 bytes": ("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    "half a config": ("config.json", b"{"),
    "a deep config": ("config.json", DEEP.encode()),
    "a list for a config": ("config.json", b"[]"),
    "a text for a number": (
        "config.json",
        json.dumps(
            json.loads((SOURCE / "config.json").read_text()) | {"hidden_size": "a lot"}
        ).encode(),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("load", [load_pretrained, empty_model])
def test_a_broken_file_names_the_folder(folder, name, load):
    file, content = BROKEN[name]
    (folder / file).write_bytes(content)
    if load is empty_model and file == "model.safetensors":
        pytest.skip("it reads no weights")
    with pytest.raises(ValueError, match=r"policy.name=.*model'") as raised:
        load(Policy(str(folder)))
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000, '{"a": 1}', "", "\0", "null"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_names_the_folder(folder, file, content):
    (folder / file).write_text(content)
    if file == "tokenizer_config.json" and content == '{"a": 1}':
        pytest.skip("a setting that nothing reads")
    with pytest.raises(ValueError, match=r"tokenizer=.*no tokenizer can be loaded"):
        load_tokenizer(str(folder), None, False)


def test_an_expression_that_backtracks_for_ever_ends_and_names_the_text(folder):
    """The tokenizers library gives up; what it raises is no ``Exception``."""
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+b"},
        "behavior": "Isolated",
        "invert": False,
    }
    write_tokenizer(folder, lambda rules: rules.update(pre_tokenizer=split))
    encode = prompt_encoder(load_tokenizer(str(folder), None, False), chat=False)
    assert len(encode(["3+4="])[0])
    with pytest.raises(ValueError, match=r"cannot encode the text 'aaaaaaaaaa.*retry-limit"):
        encode(["3+4=", "a" * 40 + "c"])


def rows(folder: Path, **columns: str) -> str:
    """A file of eight problems, of which the sixth has these columns."""
    problems: list[dict[str, str]] = [
        {"question": f"{n}+{n + 1}=", "answer": str(2 * n + 1)} for n in range(1, 9)
    ]
    problems[5] |= columns
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    given = {"class_path": "LocalFiles", "init_args": {"train": str(path), "validation": str(path)}}
    return f"--data.source={json.dumps(given)}"


LONG = "3+4 " * 2_500_000
MEGABYTE = LONG[:1_000_000]  # tokenized and written down, ten of them take 4 seconds


def data(row: str, **settings: Any) -> PromptData:
    source = json.loads(row.partition("=")[2])["init_args"]
    return PromptData(LocalFiles(**source), str(SOURCE), prompts_per_rollout=4, **settings)


def test_a_row_of_ten_megabytes_is_refused_by_its_number(tmp_path):
    told = (
        r"row 5 of the train split makes a prompt of 10000000 characters \(at most"
        rf" {MAX_CHARACTERS}\)"
    )
    with pytest.raises(ValueError, match=told):
        data(rows(tmp_path, question=LONG)).setup("fit")


def test_a_row_of_ten_megabytes_is_left_out_where_long_ones_are(tmp_path):
    given = data(rows(tmp_path, question=LONG), max_prompt_tokens=16, overlong="filter")
    given.setup("fit")
    split = given.split("train")
    assert split is not None
    assert list(split.rows) == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.slow
def test_megabytes_elsewhere_in_a_row_do_no_harm(tmp_path):
    row = rows(tmp_path, **{"answer": MEGABYTE, "other": MEGABYTE, "k" * 1_000_000: "x"})
    fit(tmp_path / "runs", row, "--trainer.limit_train_batches=1")
