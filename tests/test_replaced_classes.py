"""An advantage or objective that replaces another one on the command line has its own defaults."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import yaml

from rlif_lightning import GSPO, ReinforcePlusPlus, cli

QUICKSTART = "--config=configs/quickstart.yaml"


def printed(capsys, *arguments: str) -> dict:
    with pytest.raises(SystemExit):
        cli.main(["fit", *arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)["model"]


@pytest.mark.parametrize("config", [[], [QUICKSTART]])
def test_another_class_has_its_own_defaults(capsys, config):
    """KLCov clips at 0.2 over tokens, and GDPO does not normalise over the batch."""
    given = ["--model.objective=GSPO", "--model.advantage=ReinforcePlusPlus"]
    model = printed(capsys, *config, *given)
    assert model["objective"]["init_args"] == asdict(GSPO())
    assert model["advantage"]["init_args"] == asdict(ReinforcePlusPlus())


def test_what_was_given_to_the_class_before_is_kept(capsys):
    given = ["--model.objective.aggregation=constant", "--model.objective=GSPO"]
    found = printed(capsys, QUICKSTART, *given)["objective"]["init_args"]
    assert found == asdict(replace(GSPO(), aggregation="constant"))


def test_an_overlay_that_names_a_class_has_its_own_defaults(capsys, tmp_path):
    overlay = tmp_path / "gspo.yaml"
    overlay.write_text("model:\n  objective: GSPO\n  advantage: {class_path: ReinforcePlusPlus}\n")
    model = printed(capsys, QUICKSTART, f"--config={overlay}")
    assert model["objective"]["init_args"] == asdict(GSPO())
    assert model["advantage"]["init_args"] == asdict(ReinforcePlusPlus())
