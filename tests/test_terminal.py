"""What a terminal shows of a run: a header, one line of progress, and no noise from below."""

from __future__ import annotations

import io
import logging
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch.trainer as lightning_trainer
import lightning.pytorch.trainer.connectors.logger_connector as lightning_logging
import pytest

from harness.command_line import base
from harness.runs import ONE, TINY, fit
from rlif_lightning import cli
from rlif_lightning.running.planned import planned_rollouts
from rlif_lightning.running.progress import RolloutBar, progress_line
from rlif_lightning.running.quiet import (
    ADVERTISEMENTS,
    EXPECTED_WARNINGS,
    is_no_advertisement,
    silence,
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, Path]:
    import contextlib

    folder, out = tmp_path_factory.mktemp("run"), io.StringIO()
    arguments = base("--compare", "progress_bar")
    with contextlib.redirect_stdout(out):
        cli.main(["fit", *arguments, f"--trainer.default_root_dir={folder}"])
    return out.getvalue(), folder


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # latin-1, and the C locale's
def test_a_character_that_a_log_cannot_hold_does_not_end_a_run(monkeypatch, errors):
    """The bar's blocks did, after the first rollout."""
    held = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(held, "ascii", errors))
        silence()
        print("rollout 1/2 ███", flush=True)
        assert held.getvalue() == b"rollout 1/2 ???\n"


def test_the_header_says_what_is_trained(shown):
    text, folder = shown
    header = text.splitlines()[:7]
    assert header == [
        "training rlif-arithmetic (442 k parameters, float32)",
        "  device    cpu, 32-true",
        "  data      ArithmeticProblems: 16 train, 8 validation problems",
        "  rewards   0.5 x vote (ClusterVote) + 0.5 x certainty (MeanLogprob)",
        "  rollouts  2 of 8 prompts x 4 completions of up to 48 tokens",
        "  updates   4 a rollout by KLCov, learning rate 0.0001 (constant)",
        f"  run       {folder}/version_0",
    ]


def test_the_header_says_where_an_evaluation_draws_otherwise(tmp_path, capsys):
    """What a config leaves out of `evaluation.sampling` is not as in training."""
    own = ["--model.evaluation.sampling.temperature=0.6", "--model.sampling.stop=['#']"]
    fit(tmp_path, *TINY, *ONE, *own)
    [line] = [it for it in capsys.readouterr().out.splitlines() if it.startswith("  evaluated")]
    assert line.startswith("  evaluated with max_new_tokens 128 (training: 8), stop [] (training:")


def test_a_file_gets_a_line_for_each_tenth_of_the_rollouts(shown):
    lines = [line for line in shown[0].splitlines() if line.startswith("rollout ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    for name in ("vote", "entropy", "length"):
        assert all(re.search(rf"  {name} -?\d", line) for line in lines)
    assert "\r" not in shown[0]
    assert max(map(len, lines)) < 80


@pytest.mark.slow
def test_the_header_of_a_resumed_run_counts_the_rollouts_before(tmp_path, capsys):
    fit(tmp_path, *TINY, *ONE, "--trainer.max_epochs=1")
    fit(tmp_path, *TINY, *ONE, "--trainer.max_epochs=2", "--ckpt_path=auto")
    assert "rollouts  2 (1 are done) of 4 prompts" in capsys.readouterr().out


@pytest.mark.parametrize("planned", [None, 7, 40, 1000])
@pytest.mark.parametrize("value", [0.0, -0.371234, 1234567.0])
@pytest.mark.parametrize("seconds", [0.001, 33.0, 4000.0])
def test_the_line_fits_and_is_full_at_the_end_alone(planned, value, seconds):
    shown = {name: float(value) for name in ("certainty", "entropy", "length")}
    for done in range(0, (planned or 9) + 1, max((planned or 9) // 9, 1)):
        for width in (79, 159):
            line = progress_line(done, planned, seconds, shown, width)
            assert len(line) <= width
            assert ("██████" in line) == (done == planned)
    assert all(name in line for name in shown)  # at 160 columns all three are there


def planned(batches, steps=4, **settings):
    usual = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 1.0, "fast_dev_run": False}
    trainer = SimpleNamespace(**usual | settings)
    return planned_rollouts(
        trainer, SimpleNamespace(plan=SimpleNamespace(num_updates=steps)), batches
    )


def test_planned_rollouts_by_hand():
    assert planned(10) == 10
    assert planned(10, max_epochs=3) == 30
    assert planned(10, max_epochs=3, limit_train_batches=4) == 12
    assert planned(10, max_epochs=3, limit_train_batches=0.5) == 15
    assert planned(10, max_epochs=None, max_steps=6) == 2  # 4 steps a rollout: the second is cut
    assert planned(10, max_epochs=1, max_steps=1000) == 10
    assert planned(10, max_epochs=-1) is None
    assert planned(10, fast_dev_run=2) == 2


def test_lightning_still_says_what_is_silenced():
    """A message that Lightning words anew would be heard again."""
    sources = [
        Path(lightning_trainer.__file__).parent / "setup.py",
        Path(lightning_logging.__file__).parent / "result.py",
        Path(lightning_logging.__file__).parent / "logger_connector.py",
    ]
    said = "\n".join(path.read_text() for path in sources)
    for words in ("💡 Tip: For seamless cloud", "TPU available: {", "GPU available: {"):
        assert words in said
    assert (
        "It is recommended to use `self.log({result_metric.meta.name!r}, ..., sync_dist=True)`"
        in said
    )
    example = "It is recommended to use `self.log('vote', ..., sync_dist=True)` when logging on"
    assert any(re.match(pattern, example) for pattern in EXPECTED_WARNINGS)
    heard = [logging.makeLogRecord({"msg": text + " more"}) for text in (*ADVERTISEMENTS, "GPU")]
    assert [is_no_advertisement(record) for record in heard] == [False] * len(ADVERTISEMENTS) + [
        True
    ]


@pytest.mark.slow
def test_another_bar_takes_the_place_of_ours(tmp_path):
    bar = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    run = cli.main(
        [
            "fit",
            *base("progress_bar"),
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_steps=4",
            bar,
        ]
    )
    assert not any(isinstance(each, RolloutBar) for each in run.trainer.callbacks)
    assert math.isfinite(float(run.trainer.callback_metrics["policy/entropy"]))
