"""The command line builds the parser of the subcommand that it names, and no other."""

import sys

import pytest

from rlif_lightning import cli
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.module import RLIFModule
from rlif_lightning.running.parsing import Parser
from rlif_lightning.trainer import RLIFTrainer


class Parsed(Exception):
    """The parser is built."""


class OnlyParser(cli.RLIFCLI):
    built: tuple[str, ...] = ()

    def parse_arguments(self, parser, args):
        OnlyParser.built = tuple(self._subcommand_parsers)
        raise Parsed


def built(args: list[str] | None) -> tuple[str, ...]:
    with pytest.raises(Parsed):
        OnlyParser(
            RLIFModule, PromptData, args=args, trainer_class=RLIFTrainer, parser_class=Parser
        )
    return OnlyParser.built


def test_a_named_subcommand_has_the_only_parser(monkeypatch):
    assert built(["fit", "--config=configs/quickstart.yaml"]) == ("fit",)
    monkeypatch.setattr(sys, "argv", ["rlif", "preflight"])
    assert built(None) == ("preflight",)


def test_all_are_built_where_none_is_named_first():
    assert built(["--help"]) == ("fit", "validate", "test", "predict", "preflight")
