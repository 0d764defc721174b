"""Pictures of a run report in a browser: as wide as a laptop's window, and as a telephone's.

    python scripts/browser_pictures.py OUT              # of the run in docs/results/run
    python scripts/browser_pictures.py OUT --report runs/version_0/report.html

It needs a Chromium (Debian: ``apt-get install chromium``). The pictures are for eyes: no test
compares them, and none is in the repository.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.image import imread, imsave

from callbacks.report.callback import write_report
from callbacks.report.read import read_run

RUN = Path(__file__).resolve().parent.parent / "docs" / "results" / "run"
WIDTHS = (1280, 390)
HEIGHT = 4000
LEAST = 600  # pixels: Chromium makes no narrower window, so a narrow page stands in a frame
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browser() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def take(program: str, report: Path, width: int, out: Path) -> None:
    """Write a picture of a page.

    Args:
        program: a Chromium.
        report: the page.
        width: pixels of the page.
        out: the PNG file.

    Raises:
        CalledProcessError: the browser fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        style = f"width:{width}px;height:{HEIGHT}px;border:0"
        frame.write_text(
            f'<body style="margin:0"><iframe src="{report.resolve().as_uri()}" style="{style}">'
        )
        shot = Path(folder) / "shot.png"
        given = [f"--user-data-dir={folder}/user", f"--screenshot={shot}"]
        given += [f"--window-size={max(width, LEAST)},{HEIGHT}", frame.as_uri()]
        subprocess.run([program, *OPTIONS, *given], check=True, capture_output=True, timeout=300)
        imsave(out, imread(shot)[:, :width])


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: there is no browser.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--report", type=Path, help="a report.html (default: of docs/results/run)")
    given = parser.parse_args()
    program = browser()
    if program is None:
        sys.exit(f"no browser: install one of {', '.join(PROGRAMS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.report is None:
        write_report([read_run(RUN, "quickstart")], given.out / "report.html", "quickstart")
    for width in WIDTHS:
        out = given.out / f"report-{width}.png"
        take(program, given.report or given.out / "report.html", width, out)
        print(out)


if __name__ == "__main__":
    main()
