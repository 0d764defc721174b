"""Every setting that a page writes, ``--model.x=...`` or YAML, is one the command line knows.

Values and configs are parsed by the command line's own parser; nothing is built or trained.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator

import pytest

from harness.cases import check_each, from_root
from harness.files import ROOT
from rlif_lightning import cli
from rlif_lightning.data.prompts import PromptData
from rlif_lightning.module import RLIFModule
from rlif_lightning.running.parsing import RENAMED
from rlif_lightning.trainer import RLIFTrainer

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "callbacks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "configs").rglob("*.md")),
]
SUBCOMMANDS = ("fit", "validate", "test", "predict", "preflight")
OURS = re.compile(r"--(model|data|trainer|predictions)\.[\w.]+")
# Words that stand for any other.
ANY = re.compile(r"_X\.yaml|NAME|HEAD|SETTING|VALUE|\.\.\.$|\+=$|\$seed")
THEIR_CONFIG = ("CONFIG", "my.yaml")
# What an option needs beside it, where the page says so in its text.
BASES = {
    "--trainer.strategy.": ["--config=configs/strategy/fsdp2.yaml"],
    "--model.objective.positive_weight": ["--model.objective=examples.my_objective.WReinforce"],
    "--model.evaluation.checker.": ["--model.evaluation.checker=CodeChecker"],
    "--data.source.init_args.name": ["--config=configs/benchmarks/gsm8k.yaml"],
}
# Settings had these names once.
FORMER = [f"--{name}" if "." not in name else name for name in RENAMED]
GONE = re.compile(
    rf"({'|'.join(map(re.escape, FORMER))})\b"
    r"|evaluation\.(extractor|gold_extractor|equivalence)\b"
)


class Parsed(Exception):
    """The parser is built."""


class OnlyParser(cli.RLIFCLI):
    def parse_arguments(self, parser, args):
        raise Parsed


@pytest.fixture(scope="module")
def parsers():
    built = OnlyParser.__new__(OnlyParser)
    with contextlib.suppress(Parsed):
        built.__init__(
            RLIFModule, PromptData, trainer_class=RLIFTrainer, auto_configure_optimizers=False
        )
    return built._subcommand_parsers


def pieces(text: str) -> Iterator[str]:
    """Lines of fenced blocks, continued ones joined, and the spans in backquotes."""
    for fence in re.findall(r"```\w*\n(.*?)```", text, re.S):
        yield from re.sub(r"\\\n\s*", " ", fence).splitlines()
    for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)):
        yield span.replace("\n", " ")


def arguments(piece: str) -> list[str] | None:
    """The command line of a piece: a subcommand, a config and the options; None where it has no
    setting, or names a class that only the reader has.
    """
    if not re.search(rf"{OURS.pattern}|--config configs/", piece) or re.search(
        r"=my_\w+\.|head: my_\w+\.", piece
    ):
        return None
    words = shlex.split(piece.replace("--config ...", "").split("  #")[0])
    start = words.index("--") + 1 if "--" in words else 0
    subcommand = next((word for word in words if word in SUBCOMMANDS), "fit")
    first = next(i for i, word in enumerate(words) if i >= start and word.startswith("--"))
    if "torchrun" in words:
        first = next(i for i, word in enumerate(words) if word in SUBCOMMANDS) + 1
    options = [word for word in words[first:] if word != "..."]
    options = ["configs/quickstart.yaml" if word in THEIR_CONFIG else word for word in options]
    if any(ANY.search(word) for word in options):
        options = [word for word in options if OURS.match(word) and not ANY.search(word)]
    before = [more for name, needed in BASES.items() if name in piece for more in needed]
    return [subcommand, "--config=configs/quickstart.yaml", *before, *options]


def commands(text: str) -> Iterator[list[str]]:
    """What a page says to run, and a run with each of its YAML blocks as an overlay."""
    yield from (found for piece in pieces(text) if (found := arguments(piece)))
    for block in re.findall(r"```yaml\n(.*?)```", text, re.S):
        if "my_package" not in block:
            yield ["fit", "--config=configs/quickstart.yaml", "--config", block]


COMMANDS = {
    f"{page.relative_to(ROOT)}-{i}": command
    for page in PAGES
    for i, command in enumerate(commands(page.read_text()))
}
OVERLAYS = [
    path for name in ("objectives", "related") for path in (ROOT / "configs" / name).iterdir()
]
for overlay in sorted(OVERLAYS):
    large = overlay.with_stem(overlay.stem.removesuffix("_cpu"))
    given = [f"--config={path.relative_to(ROOT)}" for path in dict.fromkeys((large, overlay))]
    COMMANDS[str(overlay.relative_to(ROOT))] = ["fit", "--config=configs/quickstart.yaml", *given]


FIRST = ("README.md", "CONTRIBUTING.md", "configs/objectives/", "configs/related/")


@pytest.mark.parametrize(
    "first", [True, pytest.param(False, marks=pytest.mark.full)], ids=["first", "others"]
)
def test_the_command_line_knows_every_setting(parsers, monkeypatch, first):
    """On the first pages and in the overlays; and in all other places."""
    monkeypatch.chdir(ROOT)

    def check(command: tuple[str, ...]) -> None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsers[command[0]].parse_args(list(command[1:]))
        except SystemExit:
            raise AssertionError(said.getvalue()[-600:]) from None

    places = {  # each of them once
        tuple(command): place
        for place, command in COMMANDS.items()
        if place.startswith(FIRST) is first
    }
    check_each(check, places, lambda command: f"{places[command]}: {' '.join(command)}")


def test_a_setting_that_does_not_exist_is_found(parsers, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = arguments("... --model.learning_rate=0.1")
    with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        parsers[command[0]].parse_args(command[1:])
    assert len(COMMANDS) > 100  # the search finds what the pages write


def test_no_page_has_a_former_name():
    def check(page):
        assert not [found[0] for found in GONE.finditer(page.read_text())]

    check_each(check, PAGES, from_root)
