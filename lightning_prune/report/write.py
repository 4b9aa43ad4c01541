"""From runs to a file: the page, its Markdown, or its JSON, by the suffix."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_prune.core.export import atomic_write, check_writable
from lightning_prune.report.markdown import render_markdown
from lightning_prune.report.record import RunRecord
from lightning_prune.report.summary import summarize

Run = RunRecord | str | PathLike[str]
_SUFFIXES = (".html", ".md", ".json")


def write_report(runs: Run | Sequence[Run], path: str | PathLike[str] = "report.html") -> Path:
    """Write a report of one run, or of several on the same dataset, and return its path.

    Args:
        runs: Log folders of runs that had `PruningReport` among their callbacks, the files that it left, or records.
        path: File to write, whole or not at all, by its suffix: ``.html``, ``.md``, or ``.json``.

    Raises:
        FileNotFoundError: If a folder holds no per-sample history; the message says what to add to the callbacks.
        ModuleNotFoundError: If the page is to be HTML and the extra ``report`` is not installed.
        OSError: If the path cannot be written.
        ValueError: If the suffix is another one, or the runs are of datasets of different lengths.
    """
    path = check_path(path)
    check_writable(path, what="report")
    given = [runs] if isinstance(runs, RunRecord | str | PathLike) else list(runs)
    records = [run if isinstance(run, RunRecord) else RunRecord.load(run) for run in given]
    text = render(summarize(records), path.suffix)
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def render(summary: dict[str, Any], suffix: str = ".html") -> str:
    """Return a summary as text: a page (``.html``), ``.md``, or ``.json``."""
    if suffix == ".json":
        return json.dumps(summary, indent=None, allow_nan=False)
    if suffix == ".md":
        return render_markdown(summary)
    from lightning_prune.report.page import render_page

    return render_page(summary)


def check_path(path: str | PathLike[str]) -> Path:
    """Return the path of a report to be written.

    Raises:
        ModuleNotFoundError: If it is of a page and the extra ``report`` is not installed.
        ValueError: If the suffix is not one of a report's.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"Expected the path of a report to end in one of {list(_SUFFIXES)}, but got '{path}'.")
    if path.suffix == ".html":
        missing = [name for name in ("altair", "vl_convert", "jinja2") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(
                f"Expected {', '.join(missing)} to draw the report, but not installed here. Run "
                "`pip install 'lightning-prune[report]'`, or name a path that ends in `.md` or `.json`."
            )
    return path
