"""Pages that scripts write are up to date, and the site builds without a broken link."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import api_page
import pytest
import settings_page

import rlif_lightning
from harness.cases import check_each, from_root
from harness.files import known_to_git

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("script", [settings_page, api_page], ids=["settings", "api"])
def test_the_page_is_up_to_date(script):
    page = script.PAGE.read_text()
    assert script.written(page) == page, f"run scripts/{script.__name__}.py --write"


def test_every_setting_is_listed_with_a_meaning():
    open_ended = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    for cls in settings_page.classes():
        described = set().union(*(settings_page.meanings(each) for each in cls.__mro__))
        parameters = inspect.signature(cls).parameters.values()
        # A class without settings of its own has `*args, **kwargs`.
        named = {each.name for each in parameters if each.kind not in open_ended}
        assert named <= described, f"{cls.__name__}: {named - described}"


def test_types_defaults_and_meanings_are_read():
    rows = {name: row for name, *row in settings_page.settings(rlif_lightning.KLCov)}
    assert rows["weight"][:2] == ["float", "0.05"]
    assert rows["pick"][2].startswith("positive | top: ")
    assert "clip_low" not in rows  # ClippedObjective's: listed there
    assert next(iter(settings_page.settings(rlif_lightning.ClippedObjective)))[0] == "clip_low"
    listed = settings_page.classes()
    assert {rlif_lightning.LoRA, rlif_lightning.Gate} <= listed.keys()
    assert rlif_lightning.VLLMServerEngine in listed  # below a base that is not public
    section = settings_page.section(rlif_lightning.VLLMServerEngine)
    assert section.count("| `max_ratio` |") == section.count("| `server` |") == 1


CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def test_links_between_files_lead_somewhere():
    def check(page):
        links = LINK.findall(CODE.sub("", page.read_text()))
        own = [link for link in links if "://" not in link and not link.startswith("mailto:")]
        assert not [link for link in own if not (page.parent / link).exists()]

    check_each(check, known_to_git(".md"), from_root)


@pytest.mark.full  # links: above
@pytest.mark.parametrize(("broken", "wrong"), [(False, ""), (True, "no-such-page.md")])
def test_the_site_builds(tmp_path, broken, wrong):
    """Strictly, offline, from a copy of the pages; a link that leads nowhere is an error."""
    for path in known_to_git("", "--cached", "--others", "--exclude-standard"):
        copied = tmp_path / "copy" / from_root(path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    if broken:
        page = tmp_path / "copy" / "docs" / "faq.md"
        text = page.read_text()
        page.unlink()
        page.write_text(text + f"\n[nowhere]({wrong})\n")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    environment = os.environ | {"HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        command, cwd=tmp_path / "copy", env=environment, capture_output=True, text=True
    )
    assert (done.returncode != 0) is broken, done.stderr
    assert wrong in done.stderr
    if not broken:
        page = (tmp_path / "site" / "index.html").read_text()
        assert "rlif-lightning" in page
        assert (tmp_path / "site" / "repository" / "configs" / "index.html").is_file()
