"""Links of the repository's pages, as links of the site.

The pages are written for a reader of the repository: they link to scripts, to folders, to files outside of ``docs``.
A tutorial's script leads to its rendered page; any other file can be downloaded; a folder leads to its README.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_TUTORIAL = re.compile(r"examples/tutorials/(plot_\w+)\.py$")
_INCLUDED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site that show files beside ``docs``."""


def site_target(docs: Path, page: Path, target: str) -> str:
    """Return where a page's relative link leads to on the site."""
    path = Path(os.path.normpath(page.parent / target))
    path = path / "README.md" if path.is_dir() else path
    if tutorial := _TUTORIAL.search(path.as_posix()):
        path = docs / "tutorials" / f"{tutorial[1]}.rst"
    elif path.parent.name == "tutorials" and path.name == "README.md":
        path = docs / "tutorials" / "index.rst"
    elif path.parent == docs.parent and path.name in _INCLUDED:
        path = docs / _INCLUDED[path.name]
    inside = docs in path.parents or path.suffix != ".md"
    return ("" if inside else "path:") + os.path.relpath(path, page.parent)


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite a page's links to what is not a page."""
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md":
        docs = Path(app.srcdir)
        source[0] = _LINK.sub(lambda found: _rewritten(docs, page, found), source[0])


def _rewritten(docs: Path, page: Path, found: re.Match[str]) -> str:
    """Return a link's new target; a file to download has no headings."""
    target = site_target(docs, page, found["path"])
    return target if target.startswith("path:") else target + (found["anchor"] or "")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
