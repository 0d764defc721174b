"""Settings of earlier versions, and a fork of nothing, are refused with what to write instead."""

from __future__ import annotations

import pytest

from harness.command_line import base, refused

RENAMED = {
    "--model.learning_rate=1e-5": "model.learning_rate is model.optimizer.lr now",
    "--model.lr_schedule=cosine": "model.lr_schedule is model.schedule.name now",
    "--model.max_grad_norm=1": "model.max_grad_norm is model.update.max_grad_norm now",
    "--data.chat=true": "data.chat is data.format.chat now",
    "--data.prompts_per_step=4": "data.prompts_per_step is data.prompts_per_rollout now",
    "--optimizer.lr=1e-5": "optimizer is model.optimizer now",
}


@pytest.mark.parametrize(("argument", "hint"), RENAMED.items())
def test_a_former_name_is_refused_with_the_present_one(capsys, argument, hint):
    error = refused(capsys, "fit", *base(), argument)
    assert error == f"error: unrecognized arguments: {argument}; {hint}"


def test_former_names_in_a_file_are_refused_with_the_present_ones(capsys, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("model: {updates_per_rollout: 2}")
    error = refused(capsys, "fit", *base(), f"--config={path}")
    assert "option 'model.updates_per_rollout'; model.updates_per_rollout is" in error
    assert error.endswith("is model.update.updates_per_rollout now")


@pytest.mark.parametrize("argument", ["--model.update.foo=1", "--model.optimizer.foo=1"])
def test_a_name_that_never_was_has_no_hint(capsys, argument):
    assert " now" not in refused(capsys, "fit", *base(), argument)


@pytest.mark.parametrize("given", ["", "last", "configs"])
def test_a_fork_of_no_checkpoint_is_refused_with_the_remedy(capsys, tmp_path, given):
    root = f"--trainer.default_root_dir={tmp_path}"
    error = refused(capsys, "fit", *base(), root, f"--fork_from={given}")
    assert error.startswith("error: fork_from=")
    assert "give the path of a checkpoint, a file or a folder of shards" in error
