"""Subcommands other than ``fit``, built runs, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.runs import BASE
from rlif_lightning import cli
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.module import RLIFModule


def base(*without: str) -> list[str]:
    return [argument for argument in BASE if not any(part in argument for part in without)]


def refused(capsys, *arguments: str) -> str:
    """What is printed on a mistake: exit code 2, no traceback."""
    with pytest.raises(SystemExit) as info:
        cli.main(list(arguments))
    assert info.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return next(line for line in reversed(printed.splitlines()) if "error" in line.lower())


def evaluate(command: str, folder: Path, *arguments: str) -> cli.RLIFCLI:
    return cli.main(
        [command, *base("--compare"), f"--trainer.default_root_dir={folder}", *arguments]
    )


# Lightning asks for precision plugins by the device it finds; a test machine may have none but the
# CPU.
ON_CPU = ["--trainer.accelerator=cpu"]


def build(arguments: list[str]) -> cli.RLIFCLI:
    """Parse and construct, without running anything."""
    defaults = {"callbacks": []}
    return cli.RLIFCLI(
        RLIFModule,
        PromptData,
        args=arguments,
        run=False,
        seed_everything_default=0,
        trainer_defaults=defaults,
    )
