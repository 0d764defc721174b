"""``--help`` begins with ours, lists choices as choices, and marks what a run refuses."""

from __future__ import annotations

import pytest

from harness.command_line import base, refused
from rlif_lightning import cli
from rlif_lightning.running.help_page import REFUSED

VALUES = {"gradient_clip_algorithm": "norm"}


def printed(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as info:
        cli.main([*arguments, "--help"])
    assert info.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_fit_begins_with_ours(capsys):
    text = printed(capsys, "fit")
    assert text.startswith("usage: rlif fit [--config FILE ...] [--GROUP.NAME VALUE ...]\n\nTrain")
    places = [text.index(f"  {name} ") for name in ("--model.rewards", "--data.source")]
    assert places == sorted(places)
    assert max(places) < text.index("  --trainer.devices ")
    assert "--model.policy.dtype {float32,bfloat16,float16,float64,auto}" in text
    assert "--model.update.old_logprobs {sampler,rescored}" in text
    marked = text.count("REFUSED by a run")
    assert marked == len(REFUSED)


def test_the_help_of_all_says_what_the_program_does(capsys):
    text = " ".join(printed(capsys).split())
    assert text.startswith("usage: rlif [-c CONFIG] {fit,validate,test,predict,preflight}")
    assert "without labels" in text


@pytest.mark.parametrize("option", REFUSED)
def test_what_is_marked_as_refused_is_refused(capsys, tmp_path, option):
    value = VALUES.get(option.rpartition(".")[2], "2")
    where = f"--trainer.default_root_dir={tmp_path}"
    assert option in refused(capsys, "fit", *base(), where, f"--{option}={value}")
