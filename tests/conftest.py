"""Shared fixtures: offline, one thread, and tiny models of every supported architecture made on the
spot.
"""

from __future__ import annotations

import gc
import logging
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from weakref import WeakKeyDictionary

import hypothesis
import pytest

pytest.register_assert_rewrite("harness")  # before the first import from it

# PyTorch and our own modules are imported by test files and fixtures alone: the process that
# only starts others (xdist) needs none of them.

# Continuous integration draws the same examples each time; `make test-fast` draws the first of
# them, and a person may ask for more. A busy machine is no fault, however slow it is.
PATIENT = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=50, **PATIENT)
hypothesis.settings.register_profile("quick", derandomize=True, max_examples=20, **PATIENT)
hypothesis.settings.register_profile("thorough", max_examples=500, **PATIENT)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish(session):
    """Compute with one thread, and leave what the imports made out of each garbage collection."""
    if session.items:
        import torch

        torch.set_num_threads(1)
        gc.freeze()
        gc.set_threshold(10_000)  # of 700 objects: a twentieth of the time
        # Lightning keeps its messages from caplog where no handler was there when it was imported.
        logging.getLogger("lightning.pytorch").propagate = True


@pytest.fixture(scope="session", autouse=True)
def plain_text():
    """What is printed is read as text, whatever the environment asks for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # rich would write escape sequences
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_parser():
    """Build each parser once: runs differ in what it parses, not in the parser."""
    cli = sys.modules.get("rlif_lightning.cli")
    if cli is None:  # no test that was collected needs it
        yield
        return
    from jsonargparse import _core, _subcommands

    prepare, kept = cli.RLIFCLI._prepare_subcommand_parser, {}

    def prepared(self, trainer_class, subcommand, **given):
        key = type(self), self._model_class, self.parser_class, trainer_class, subcommand
        if key not in kept:
            parser = prepare(self, trainer_class, subcommand, **given)
            kept[key] = parser, self._subcommand_method_arguments[subcommand]
        parser, self._subcommand_method_arguments[subcommand] = kept[key]
        return parser

    set_up, whole = cli.RLIFCLI.setup_parser, {}

    def setup_parser(self, add_subcommands, main, sub):
        """As above, for what is built without a subcommand (``run=False``)."""
        if add_subcommands:
            return set_up(self, add_subcommands, main, sub)
        defaults = {k: v for k, v in self.trainer_defaults.items() if k != "callbacks"}
        key = type(self), self._model_class, self.trainer_class, self.parser_class
        key = *key, self._datamodule_class, repr((self.seed_everything_default, defaults, main))
        if key not in whole:
            set_up(self, add_subcommands, main, sub)
            whole[key] = self.parser
        self.parser = whole[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.RLIFCLI, "_prepare_subcommand_parser", prepared)
        patch.setattr(cli.RLIFCLI, "setup_parser", setup_parser)
        found = remembered(_subcommands.find_action_and_subcommand)
        for module in (_core, _subcommands):
            patch.setattr(module, "find_action_and_subcommand", found)
        yield


def remembered(find):
    """As ``find``, which looks through all options of a parser for each name, thousands of times
    a run; each parser's answers are kept until it gets another option.
    """
    kept = WeakKeyDictionary()

    def found(parser, name, exclude=None):
        answers, key = kept.setdefault(parser, {}), (len(parser._actions), name, exclude)
        if key not in answers:
            answers[key] = find(parser, name, exclude=exclude)
        return answers[key]

    return found


@pytest.fixture(scope="session", autouse=True)
def one_self_check():
    """Compare the embedded model with itself once for each way to load it; it stays as it is."""
    strategies = sys.modules.get("rlif_lightning.running.strategies")
    if strategies is None:
        yield
        return
    from rlif_lightning.model.loading import resolve_model

    check, passed = strategies.check_weights, set()
    own = {"rlif-arithmetic", resolve_model("rlif-arithmetic")}

    def check_weights(policy, settings):
        if settings.name not in own or repr(settings) not in passed:
            check(policy, settings)
            passed.add(repr(settings))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies, "check_weights", check_weights)
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> dict[str, Path]:
    """Architecture -> folder of a random tiny model with the embedded model's tokenizer."""
    import torch
    from transformers import AutoTokenizer

    from harness.models import ARCHITECTURES, make_model
    from rlif_lightning.model.loading import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    folders = {}
    for architecture in ARCHITECTURES:
        torch.manual_seed(0)
        model = make_model(architecture, len(tokenizer))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # so that logits are far from uniform
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        folders[architecture] = tmp_path_factory.mktemp(architecture)
        model.save_pretrained(folders[architecture])
        tokenizer.save_pretrained(folders[architecture])
    return folders


@pytest.fixture(scope="session")
def long_run(tmp_path_factory):
    """A run of four rollouts that nothing breaks off: its parameters and its folder, which only
    tests read.
    """
    from harness.runs import FOUR, fit, parameters

    folder = tmp_path_factory.mktemp("long_run")
    return parameters(fit(folder, *FOUR)), folder


def pytest_collection_modifyitems(items):
    """Files with tests that take long come first, so that two processes end at about the
    same time.
    """
    long = {item.path for item in items if {"slow", "full"} & {m.name for m in item.iter_markers()}}
    items.sort(key=lambda item: item.path not in long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """With ``CPU_SECONDS=FILE``, write each test's seconds of processor (with its children) and
    clock.
    """
    path = os.environ.get("CPU_SECONDS")
    if not path:
        return (yield)
    before = os.times()
    result = yield
    after = os.times()
    spent, passed = sum(after[:4]) - sum(before[:4]), after.elapsed - before.elapsed
    with Path(path).open("a") as file:  # one short line: several processes may append
        file.write(f"{spent:.2f} {passed:.2f} {item.nodeid}\n")
    return result
