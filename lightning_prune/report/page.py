"""A summary as one HTML file that needs no network."""

from __future__ import annotations

import base64
import functools
import json
import re
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import vl_convert
from markupsafe import Markup

from lightning_prune.report import charts
from lightning_prune.report.words import duration, number, percent

_TYPES = {"mean": "<f2", "spread": "<f2", "last": "<f2", "suspicion": "<f2"}
_MOST_HALF = 65_504.0


def render_page(summary: dict[str, Any]) -> str:
    """Return a summary as a page: HTML, with the scripts, the data and the thumbnails in it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=False, undefined=jinja2.StrictUndefined)
    environment.filters |= {"percent": percent, "number": number, "duration": duration}
    per_run = [_charts_of(run) for run in summary["runs"]]
    shared = {} if summary["comparison"] is None else _shared_charts(summary)
    data = {
        "runs": [
            _data_of(run, summary["num_samples"], charts) for run, charts in zip(summary["runs"], per_run, strict=True)
        ],
        "charts": {name: _compiled(spec) for name, spec in shared.items()},
        "comparison": summary["comparison"],
        "looks": summary["looks"],
    }
    template = environment.from_string(_read("page.html.j2"))
    return template.render(
        s=summary,
        charts=per_run,
        shared=shared,
        css=_script(_read("page.css")),
        js=_script(_read("page.js")),
        bundle=_script(f"(function(){{{vega_bundle()}}})();"),
        data=_json(data),
    )


@functools.cache
def vega_bundle() -> str:
    """Return the script of Vega-Embed and of all that it needs, which defines ``window.vegaEmbed``; takes seconds."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> Markup:
    """Mark code for a script or style element, which no text in it may end."""
    return Markup(re.sub(r"<(?=/(?:script|style)|!--)", r"\\x3c", text, flags=re.IGNORECASE))  # noqa: S704  (made safe here)


def _json(value: Any) -> Markup:
    """Mark JSON for a script element, which no text in it may end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  (made safe here)


def _charts_of(run: dict[str, Any]) -> dict[str, charts.Spec]:
    epochs, classes = run["epochs"], run["classes"]
    specs = {
        "kept": charts.kept(epochs),
        "usage": charts.usage(run["usage"]["bars"]),
        "losses": charts.losses(epochs),
        "map": charts.sample_map(),
        "courses": charts.courses(epochs),
    }
    if classes is not None:
        specs["class_shares"] = charts.class_shares(classes)
        if classes["by_epoch"] is not None and len(classes["names"]) <= 40 and len(epochs) > 1:
            specs["class_epochs"] = charts.class_epochs(classes, epochs)
    return specs


def _shared_charts(summary: dict[str, Any]) -> dict[str, charts.Spec]:
    runs = summary["runs"]
    specs = {
        "runs_kept": charts.runs_kept(runs),
        "differences": charts.differences(summary["comparison"]["differences"]),
    }
    metric = charts.runs_metric(runs)
    return specs if metric is None else {**specs, "runs_metric": metric}


def _compiled(spec: charts.Spec) -> dict[str, Any]:
    compiled: dict[str, Any] = vl_convert.vegalite_to_vega(spec)
    return compiled


def _data_of(run: dict[str, Any], num_samples: int, specs: dict[str, charts.Spec]) -> dict[str, Any]:
    """Return what the page's script needs of a run; columns of numbers are packed."""
    samples, length = run["samples"], len(run["samples"]["id"])
    columns = {name: _packed(name, values) for name, values in samples.items() if name != "id"}
    if length < num_samples:
        columns["id"] = _packed("id", samples["id"])
    return {
        "name": run["name"],
        "length": length,
        "columns": columns,
        "classNames": run["classes"]["names"] if run["classes"] else None,
        "drawn": run["drawn"],
        "epochs": [epoch["epoch"] for epoch in run["epochs"]],
        "course": run["course"],
        "gallery": {name: part["ids"] for name, part in run["gallery"].items()},
        "charts": {name: _compiled(spec) for name, spec in specs.items()},
    }


def _packed(name: str, values: list[Any]) -> dict[str, str]:
    """Return a column as base64 of numbers: half precision for losses, the smallest integers that hold the others."""
    if name in _TYPES or any(isinstance(value, float) or value is None for value in values):
        array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        array = np.clip(array, -_MOST_HALF, _MOST_HALF).astype("<f2")
        return {"type": "f2", "data": base64.b64encode(array.tobytes()).decode()}
    whole = np.array(values, dtype=np.int64)
    low, high = (int(whole.min()), int(whole.max())) if len(whole) else (0, 0)
    kind = next(k for k in ("u1", "i2", "i4", "f8") if k == "f8" or _holds(k, low, high))
    return {"type": kind, "data": base64.b64encode(whole.astype(f"<{kind}").tobytes()).decode()}


def _holds(kind: str, low: int, high: int) -> bool:
    bounds = np.iinfo(kind)
    return bool(bounds.min <= low and high <= bounds.max)
