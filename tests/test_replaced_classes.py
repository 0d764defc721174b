"""An advantage or objective that replaces another one on the command line has its own defaults."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import yaml

from rlif_lightning import CISPO, DPPO, GMPO, GSPO, Clipped, ReinforcePlusPlus, cli

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


@pytest.mark.parametrize("kind", [GSPO, CISPO, GMPO, DPPO])
def test_a_bound_that_means_something_else_is_not_kept(capsys, kind):
    """Each of these declares the bounds for itself: of another ratio, of its logarithm, of a
    divergence.
    """
    given = ["--model.objective.clip_low=0.1", f"--model.objective={kind.__name__}"]
    with pytest.warns(UserWarning, match=f"clip_low=0.1 was given to KLCov; {kind.__name__} has"):
        model = printed(capsys, QUICKSTART, *given)
    assert model["objective"]["init_args"] == asdict(kind())


def test_a_bound_with_one_meaning_is_kept(capsys):
    given = ["--model.objective.clip_low=0.1", "--model.objective=Clipped"]
    model = printed(capsys, QUICKSTART, *given)
    assert model["objective"]["init_args"] == asdict(Clipped(clip_low=0.1))
