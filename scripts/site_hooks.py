"""mkdocs hooks: the site includes the README, and the repository's files that pages link to.

Pages of ``docs/`` link to the rest of the repository by relative paths, as they are read there.
Here each linked file outside ``docs/`` becomes a page of the site under ``repository/``: Markdown
as it is, other files as text, folders as lists. A link to a file that does not exist stays as it
is, and ``mkdocs build --strict`` fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
FENCES = re.compile(r"(^```.*?^```$)", re.M | re.S)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml"}


def target_of(page: Path, link: str) -> Path | None:
    """Return the file or folder of the repository that a link means; None for any other link."""
    target = Path(os.path.normpath(page.parent / link))
    return target if target.is_relative_to(ROOT) and target.exists() else None


def address_of(path: Path) -> str:
    """Return the path of a file in the site's sources."""
    if path in (ROOT / "README.md", DOCS):
        return "index.md"
    if path.is_relative_to(DOCS) and not path.is_dir():
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"repository/{name}" if path.suffix == ".md" else f"repository/{name}.md"


def rewritten(text: str, page: Path) -> str:
    """Return a page's text with links to the repository's files as links inside the site."""

    def moved(match: re.Match[str]) -> str:
        target = target_of(page, match[2])
        if target is None:
            return match[0]
        start = Path(address_of(page)).parent
        return f"{match[1]}{os.path.relpath(address_of(target), start)}{match[3] or ''}"

    parts = FENCES.split(text)  # every second part is a code block
    return "".join(part if n % 2 else LINK.sub(moved, part) for n, part in enumerate(parts))


def shown(path: Path) -> str:
    """Return what a page of the site says of a file: its text, or the names in a folder."""
    if path.suffix == ".md":
        return rewritten(path.read_text(), path)
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        names = sorted(each.name for each in path.iterdir() if not each.name.startswith(("_", ".")))
        return title + "".join(f"- `{name}`\n" for name in names)
    return f"{title}````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n````\n"


def linked(page: Path) -> set[Path]:
    """Return what a page links to in the repository."""
    text = "".join(FENCES.split(page.read_text())[::2])
    found = {target_of(page, match[2]) for match in LINK.finditer(text)}
    return {path for path in found if path is not None}


def on_files(files: Files, config: Any) -> Files:
    """Add the README and, page by page, what is linked to outside ``docs/``."""
    waiting = [ROOT / "README.md", *DOCS.glob("*.md")]
    seen: set[Path] = set()
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        if address_of(page).startswith(("index", "repository")):
            files.append(File.generated(config, address_of(page), content=shown(page)))
        if page.suffix == ".md":
            waiting += linked(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Move the links of a page of ``docs/``; those of other pages are moved already."""
    path = DOCS / page.file.src_uri
    return rewritten(markdown, path) if path.is_file() else markdown
