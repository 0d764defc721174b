"""What a release is checked with: other versions of dependencies, and a report in a browser."""

from __future__ import annotations

from importlib.metadata import version

import browser_pictures
import check_versions
import pytest
from matplotlib.image import imread
from packaging.version import Version

from callbacks.report.callback import write_report
from callbacks.report.read import read_run
from harness.files import ROOT


def test_oldest_versions_are_those_of_the_project():
    oldest = check_versions.lower_bounds()
    assert set(oldest) == set(check_versions.MAIN)
    for name, bound in oldest.items():
        assert Version(bound) <= Version(version(name))
    assert all((ROOT / "tests" / f"{name}.py").exists() for name in check_versions.TESTS)


def test_a_version_of_torch_that_would_have_no_effect_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["check_versions.py", "nowhere", "--torch=2.8.0"])
    with pytest.raises(SystemExit):
        check_versions.main()
    assert "--torch needs --oldest" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("width", browser_pictures.WIDTHS)
def test_a_report_fits_the_width_of_a_browser(tmp_path, width):
    """The page is white to the right of what it shows, and not blank."""
    program = browser_pictures.browser()
    if program is None:
        pytest.skip(f"none of {', '.join(browser_pictures.PROGRAMS)} is installed")
    write_report([read_run(browser_pictures.RUN, "quickstart")], tmp_path / "report.html", "run")
    browser_pictures.take(program, tmp_path / "report.html", width, tmp_path / "shot.png")
    picture = imread(tmp_path / "shot.png")[:, :, :3]
    assert picture.shape[1] == width
    assert picture[:, -8:].min() > 0.99  # nothing is cut off at the edge
    assert picture.min() < 0.2
