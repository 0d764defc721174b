"""A config file says nothing in vain: what would be lost is refused by file, setting and remedy."""

from __future__ import annotations

import pytest

from harness.command_line import base, refused
from rlif_lightning import cli
from rlif_lightning.running.config_files import check_config

LOST = {
    "# model: {}\n": "has no settings (None): write them as GROUP:",
    "just a text\n": "has no settings ('just a text')",
    "data:\n  # group_size: 4\nmodel: {}\n": "there is nothing below `data:`; take that line out",
    "model:\n\tsampling: {}\n": "cannot be read: while scanning for the next token",
    "model: {}\nmodel: {}\n": "cannot be read: 'model' is given twice, in lines 1 and 2",
    "model: {group_size: 8}\n": "model.group_size is read from data.group_size; set that",
    "data.tokenizer: gpt2\n": "data.tokenizer is read from model.policy.name; set that",
    "data: {seed: 3}\n": "data.seed is read from seed_everything; set that, and take data.seed out",
    "model: {rewards: {vote: {head: ClusterVote}, certainty: {weight: 0.2}}}\n": (
        "model.rewards.certainty has no head. A file's rewards take the place of all that files"
        " before it name: write every reward whole, or change one setting by"
        " --model.rewards.certainty.weight=0.2"
    ),
}


@pytest.mark.parametrize(("said", "message"), LOST.items())
def test_what_would_be_lost_is_refused(tmp_path, said, message):
    path = tmp_path / "mine.yaml"
    path.write_text(said)
    with pytest.raises(ValueError, match=r"mine\.yaml") as info:
        check_config(path)
    assert message in str(info.value)


def test_what_has_an_effect_is_taken(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "trainer: {max_epochs: 1}\ndata: {group_size: 4}\n"
        "model: {rewards: {a: ClusterVote, b: {class_path: MeanLogprob}, c: {head: Random}}}\n"
    )
    check_config(path)


def test_the_command_line_checks_its_files(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {rewards: {certainty: {weight: 0.2}}}\n")
    line = refused(capsys, "fit", *base(), f"--config={path}")
    assert line.startswith(f"error: {path}: model.rewards.certainty has no head")


def test_a_saved_config_can_be_used_again(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", *base(), "--print_config"])
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    check_config(path)
