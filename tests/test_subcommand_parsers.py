"""The command line builds the parser of the subcommand that it names, and no other."""

from __future__ import annotations

import sys

import pytest

from harness.runs import BASE
from rlif_lightning import cli
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.module import RLIFModule
from rlif_lightning.running.parsing import Parser
from rlif_lightning.trainer import RLIFTrainer


class Parsed(Exception):
    """The parser is built."""


class OnlyParser(cli.RLIFCLI):
    last: OnlyParser

    def parse_arguments(self, parser, args):
        OnlyParser.last = self
        raise Parsed


def built(args: list[str] | None) -> tuple[str, ...]:
    with pytest.raises(Parsed):
        OnlyParser(
            RLIFModule, PromptData, args=args, trainer_class=RLIFTrainer, parser_class=Parser
        )
    return tuple(OnlyParser.last._subcommand_parsers)


def test_a_named_subcommand_has_the_only_parser(monkeypatch):
    assert built(["fit", "--config=configs/quickstart.yaml"]) == ("fit",)
    monkeypatch.setattr(sys, "argv", ["rlif", "preflight"])
    assert built(None) == ("preflight",)


@pytest.mark.slow
def test_all_are_built_where_none_is_named_first():
    assert built(["--help"]) == ("fit", "validate", "test", "predict", "preflight")


def test_the_subcommands_parser_finds_what_the_whole_one_does():
    words = ["fit", *BASE, "--model.objective=KLCov", "--trainer.callbacks+=EntropyMonitor"]
    built(words)
    run = OnlyParser.last
    cli.RLIFCLI.parse_arguments(run, run.parser, words)
    whole = run.parser.parse_args(words)
    assert whole.subcommand == run.config.subcommand == "fit"
    assert run.config.fit == whole.fit
    assert run.config.fit.model.objective.class_path.endswith("KLCov")
