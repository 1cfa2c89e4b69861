"""A hook of the documentation's site: pages that live elsewhere in the repository, and links that hold in both."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CARD = "src/sfumato/assets/pocket"
# A file of the repository → its address on the site. Those of docs/ keep theirs.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "examples": "examples.md",
    f"{CARD}/README.md": "pocket/index.md",
    f"{CARD}/LICENSES.md": "pocket/licenses.md",
    f"{CARD}/curves.png": "pocket/curves.png",
}
SOURCES = {place: source for source, place in PLACES.items()}
LINK = re.compile(r"(?<=\]\()(?!<?https?:|mailto:|#)<?(?P<path>[^)#\s>]+)(?P<rest>[^)>]*)>?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PLACES`, and one of the scripts in examples/."""
    for source, place in PLACES.items():
        path = ROOT / source
        content = _examples(path) if path.is_dir() else path.read_bytes()
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links, which are written for the repository, at the pages of the site."""
    place = page.file.src_uri
    source = SOURCES.get(place, f"docs/{place}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        if target not in PLACES and not target.startswith("docs/"):
            return link[0]  # mkdocs says that there is no such page
        there = PLACES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(there, posixpath.dirname(place) or ".") + link["rest"]

    return LINK.sub(moved, markdown)


def _examples(folder: Path) -> str:
    scripts = sorted(folder.glob("*.py"))
    parts = [f"## {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n" for path in scripts]
    return "# Examples\n\nEach is a whole program; the test suite runs them.\n\n" + "\n".join(parts)
