"""Every spelling of trainer.precision that Lightning knows works here or is refused by name, in one
line.
"""

from __future__ import annotations

from typing import get_args

import pytest
from lightning.fabric.plugins.precision.bitsandbytes import BitsandbytesPrecision
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.trainer.connectors.accelerator_connector import _PRECISION_INPUT

from harness.command_line import base, build, refused
from harness.runs import BASE
from rlif_lightning.running.setup_checks import check_precision, check_precision_plugin
from rlif_lightning.trainer import RLIFTrainer

WORK = {None: "32-true", 32: "32-true", "32": "32-true", "32-true": "32-true"}
WORK |= {"bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed"}
BY_DTYPE = {
    "16-true": "float16",
    "bf16-true": "bfloat16",
    "64-true": "float64",
    "64": "float64",
    64: "float64",
}
SCALED = (16, "16", "16-mixed")
OTHERS = ("transformer-engine", "transformer-engine-float16")
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def test_every_spelling_of_lightning_is_tested_here():
    known = {spelling for kind in get_args(_PRECISION_INPUT) for spelling in get_args(kind)}
    assert known == {*WORK, *BY_DTYPE, *SCALED, *OTHERS} - {None}


@pytest.mark.filterwarnings("ignore:.*is supported for historical reasons")
@pytest.mark.parametrize("spelling", WORK)
def test_what_works_is_taken(spelling):
    trainer = RLIFTrainer(precision=spelling, accelerator="cpu", **QUIET)
    assert trainer.precision == WORK[spelling]
    check_precision_plugin(trainer.precision_plugin)


@pytest.mark.parametrize("spelling", BY_DTYPE)
def test_a_precision_of_the_weights_is_the_policys_setting(spelling):
    dtype = BY_DTYPE[spelling]
    with pytest.raises(
        ValueError,
        match=rf"^trainer.precision={spelling} .*set model.policy.dtype={dtype} .*32-true",
    ):
        RLIFTrainer(precision=spelling, accelerator="cpu", **QUIET)


@pytest.mark.parametrize("spelling", SCALED)
def test_loss_scaling_is_refused_before_lightning_replaces_it(spelling):
    with pytest.raises(
        ValueError, match=rf"^trainer.precision={spelling} .*loss scaling.*on a CPU .*bf16-mixed"
    ):
        RLIFTrainer(precision=spelling, accelerator="cpu", **QUIET)


@pytest.mark.parametrize("spelling", [*OTHERS, "nf4", "fp8"])
def test_other_kinds_are_refused_by_name(spelling):
    with pytest.raises(
        ValueError,
        match=rf"^trainer.precision={spelling} is not supported; use one of 32-true, bf16-",
    ):
        check_precision(spelling)


@pytest.mark.parametrize(
    ("command", "spelling"),
    [
        ("fit", "16"),
        ("validate", "64"),
        ("fit", "bf16-true"),
        ("validate", "transformer-engine"),
    ],
)
def test_the_command_line_says_it_in_one_line(capsys, tmp_path, command, spelling):
    kept = BASE if command == "fit" else base("--compare", "limit_train")
    arguments = [*kept, f"--trainer.default_root_dir={tmp_path}", f"--trainer.precision={spelling}"]
    assert f"trainer.precision={spelling} " in refused(capsys, command, *arguments)


PLUGINS = {
    "half": (
        lambda: HalfPrecision("bf16-true"),
        "trainer.precision=bf16-true .*model.policy.dtype=bfloat16",
    ),
    "double": (DoublePrecision, "trainer.precision=64-true .*model.policy.dtype=float64"),
    "scaled": (
        lambda: MixedPrecision("16-mixed", "cpu"),
        "trainer.precision=16-mixed .*loss scaling",
    ),
    "quantised": (
        lambda: object.__new__(BitsandbytesPrecision),  # building it needs a package and a GPU
        "trainer.plugins=BitsandbytesPrecision is not supported; use trainer.precision, one of"
        " 32-true, bf16-mixed",
    ),
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_plugin_is_held_to_the_same(kind):
    plugin, message = PLUGINS[kind]
    with pytest.raises(ValueError, match=message):
        check_precision_plugin(plugin())
    check_precision_plugin(Precision())
    check_precision_plugin(MixedPrecision("bf16-mixed", "cpu"))


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_lightnings_own_trainer_is_held_to_the_same(tmp_path, stage):
    """As in a script, where nobody has called our trainer: in setup, before any model is loaded."""
    run = build([*base("--compare"), f"--trainer.default_root_dir={tmp_path}"])
    trainer = Trainer(precision="bf16-true", accelerator="cpu", max_epochs=1, **QUIET)
    with pytest.raises(
        ValueError, match=r"trainer.precision=bf16-true .*model.policy.dtype=bfloat16"
    ):
        getattr(trainer, stage)(run.model, datamodule=run.datamodule)
    assert run.model.policy is None
