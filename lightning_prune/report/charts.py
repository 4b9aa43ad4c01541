"""The charts of a report, by Vega-Altair. Colours are CSS variables, so that the page's light and dark both hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

HEIGHT = 240
SERIES = tuple(f"var(--series-{i})" for i in range(1, 9))
"""Okabe and Ito's colours, which colour-blind readers can tell apart; defined in ``page.css``."""

_ACCENT, _SECOND, _WARN, _QUIET = "var(--series-1)", "var(--series-2)", "var(--warn)", "var(--quiet)"
_BAND: dict[str, Any] = {"labelAngle": 0, "labelOverlap": "parity", "labelSeparation": 5}
_STEPS = [f"var(--step-{i})" for i in range(7)]
_MOST_CLASSES = 40

Spec = dict[str, Any]


def finish(chart: Any, height: int = HEIGHT, description: str = "") -> Spec:
    """Return a chart as a Vega-Lite specification of the report's looks."""
    font = "system-ui, sans-serif"
    axis = {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFont": font,
        "titleFont": font,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
    }
    legend = {
        "labelColor": "var(--ink)",
        "titleColor": "var(--muted)",
        "labelFont": font,
        "titleFont": font,
        "titleFontWeight": "normal",
        "orient": "top",
        "symbolStrokeWidth": 2,
    }
    config = {"background": None, "view": {"stroke": None}, "axis": axis, "legend": legend, "font": font}
    chart = chart.properties(width=600, height=height, description=description)
    spec: Spec = chart.to_dict()
    return {**spec, "config": config, "autosize": {"type": "fit-x", "contains": "padding"}}


def _data(rows: Sequence[dict[str, Any]]) -> Any:
    return alt.InlineData(values=list(rows))


def _epoch_axis() -> Any:
    return alt.X("epoch:Q").title("epoch").axis(format="d", tickMinStep=1, grid=False).scale(nice=False)


def _share_axis(name: str, title: str) -> Any:
    return alt.Y(f"{name}:Q").title(title).axis(format=".0%", tickCount=5).scale(domain=[0, 1])


def _loss(channel: Any, title: str) -> Any:
    """Return the channel of a loss: even steps near 0, a logarithm above; losses may be 0, or negative."""
    sizes = [size * scale for scale in (0.01, 0.1, 1, 10, 100, 1000) for size in (1, 3)]
    ticks = [*(-size for size in reversed(sizes)), 0, *sizes]
    channel = channel.title(title).scale(type="symlog", constant=0.03, nice=False)
    return channel.axis(values=ticks, format="~g", labelOverlap="greedy", labelSeparation=4)


def kept(epochs: Sequence[dict[str, Any]]) -> Spec:
    """Return the share kept in each epoch, and what is saved so far."""
    rows = [{"epoch": e["epoch"], "share": e[k], "what": w} for e in epochs for k, w in _KEPT]
    base = alt.Chart(_data(rows)).encode(x=_epoch_axis())
    colour = alt.Color("what:N").title(None).scale(domain=[what for _, what in _KEPT], range=[_ACCENT, _SECOND])
    tooltip = [alt.Tooltip("epoch:Q"), alt.Tooltip("what:N", title=" "), alt.Tooltip("share:Q", format=".1%")]
    bars = (
        base.transform_filter(f"datum.what === '{_KEPT[0][1]}'")
        .mark_bar(width={"band": 0.75}, cornerRadiusEnd=2, opacity=0.6)
        .encode(x=alt.X("epoch:O").title("epoch").axis(**_BAND),
                y=_share_axis("share", "share of a full epoch"), color=colour, tooltip=tooltip)
    )  # fmt: skip
    line = (
        base.transform_filter(f"datum.what === '{_KEPT[1][1]}'")
        .mark_line(point={"size": 20}, strokeWidth=2.5)
        .encode(x=alt.X("epoch:O"), y="share:Q", color=colour, tooltip=tooltip)
    )
    return finish(bars + line, description="Share of the samples kept in each epoch, and share saved so far")


_KEPT = (("kept", "kept in the epoch"), ("saved", "saved so far"))


def class_shares(classes: dict[str, Any]) -> Spec:
    """Return the kept share of each class, lowest first; of many classes, the ones with the least."""
    order = sorted(range(len(classes["names"])), key=lambda c: (classes["kept"][c] is None, classes["kept"][c] or 0.0))
    rows = [
        {
            "name": classes["names"][c],
            "kept": classes["kept"][c],
            "samples": classes["sizes"][c],
            "starved": c in classes["starved"],
        }
        for c in order[:_MOST_CLASSES]
        if classes["kept"][c] is not None
    ]
    bars = (
        alt.Chart(_data(rows))
        .mark_bar(height={"band": 0.7}, cornerRadiusEnd=2)
        .encode(
            x=alt.X("kept:Q").title("kept in the epochs that left samples out").axis(format=".0%", tickCount=5)
            .scale(domain=[0, 1]),
            y=alt.Y("name:N").title(None).sort(None).axis(labelLimit=110),
            color=alt.condition("datum.starved", alt.value(_WARN), alt.value(_ACCENT)),
            tooltip=["name:N", alt.Tooltip("kept:Q", format=".1%"), "samples:Q"],
        )
    )  # fmt: skip
    marks = [
        {"at": classes["average"], "what": "average"},
        {"at": classes["average"] / 2, "what": "half of it"},
    ]
    rules = (
        alt.Chart(_data(marks))
        .mark_rule(strokeWidth=1.5, strokeDash=[4, 3], color="var(--ink)")
        .encode(x="at:Q", tooltip=["what:N", alt.Tooltip("at:Q", format=".1%")])
    )
    return finish(bars + rules, 24 * len(rows) + 10, "Kept share of each class, with the average and half of it")


def class_epochs(classes: dict[str, Any], epochs: Sequence[dict[str, Any]]) -> Spec:
    """Return the kept share of each class in each epoch."""
    rows = [
        {"epoch": epoch["epoch"], "name": classes["names"][c], "kept": share}
        for epoch, shares in zip(epochs, classes["by_epoch"], strict=True)
        for c, share in enumerate(shares)
        if classes["sizes"][c]
    ]
    colour = alt.Color("kept:Q").title("kept").scale(
        type="threshold", domain=[0.1, 0.25, 0.4, 0.55, 0.7, 0.9], range=_STEPS
    ).legend(format=".0%", direction="horizontal", gradientLength=200)  # fmt: skip
    chart = (
        alt.Chart(_data(rows))
        .mark_rect()
        .encode(
            x=alt.X("epoch:O").title("epoch").axis(**_BAND),
            y=alt.Y("name:N").title(None).sort(None).axis(labelLimit=110),
            color=colour,
            tooltip=["epoch:O", "name:N", alt.Tooltip("kept:Q", format=".1%")],
        )
    )
    return finish(chart, 18 * len({row["name"] for row in rows}) + 10, "Kept share of each class in each epoch")


def usage(bars: Sequence[dict[str, Any]]) -> Spec:
    """Return how many samples were trained how often."""
    rows = [
        {"times": str(b["from"]) if b["from"] == b["to"] else f"{b['from']}-{b['to']}", "samples": b["samples"]}
        for b in bars
    ]
    chart = (
        alt.Chart(_data(rows))
        .mark_bar(width={"band": 0.85}, cornerRadiusEnd=2, color=_ACCENT)
        .encode(
            x=alt.X("times:O").sort(None).title("epochs in which a sample was trained")
            .axis(**_BAND),
            y=alt.Y("samples:Q").title("samples").axis(tickCount=5),
            tooltip=["times:O", alt.Tooltip("samples:Q", format=",")],
        )
    )  # fmt: skip
    return finish(chart, description="Number of samples by the number of epochs in which they were trained")


def losses(epochs: Sequence[dict[str, Any]]) -> Spec:
    """Return percentiles of the samples' last losses after each epoch."""
    names = ("p5", "p25", "p50", "p75", "p95")
    rows = [{"epoch": e["epoch"], **{n: e[f"loss_{n}"] for n in names}} for e in epochs]
    base = alt.Chart(_data(rows)).encode(
        x=_epoch_axis(),
        tooltip=["epoch:Q", *(alt.Tooltip(f"{n}:Q", format=".3g", title=f"{n[1:]} %") for n in names)],
    )
    outer = base.mark_area(opacity=0.18, color=_ACCENT).encode(y=_loss(alt.Y("p5:Q"), "loss"), y2="p95:Q")
    inner = base.mark_area(opacity=0.35, color=_ACCENT).encode(y="p25:Q", y2="p75:Q")
    middle = base.mark_line(color=_ACCENT, strokeWidth=2.5, point={"size": 20, "color": _ACCENT}).encode(y="p50:Q")
    return finish(outer + inner + middle, description="Percentiles of the samples' losses over the epochs")


def sample_map() -> Spec:
    """Return mean loss against spread, to be brushed; the page hands in the samples as data ``samples``."""
    brush = alt.selection_interval(name="brush", encodings=["x", "y"], mark=alt.BrushConfig(
        fill="var(--ink)", fillOpacity=0.08, stroke="var(--ink)"))  # fmt: skip
    colour = alt.Color("group:N").title(None).scale(
        domain=["sample", "chosen"], range=[_ACCENT, "var(--series-3)"]).legend(None)  # fmt: skip
    points = (
        alt.Chart(alt.NamedData(name="samples"))
        .mark_circle(size=26)
        .encode(
            x=_loss(alt.X("mean:Q"), "mean loss"),
            y=_loss(alt.Y("spread:Q"), "spread of the loss (standard deviation)"),
            color=colour,
            opacity=alt.condition(brush, alt.value(0.75), alt.value(0.15)),
            tooltip=alt.Tooltip("id:Q"),
        )
        .add_params(brush)
    )  # fmt: skip
    return finish(points, 380, "Map of samples: mean loss against the spread of the loss")


def courses(epochs: Sequence[dict[str, Any]]) -> Spec:
    """Return losses of chosen samples over the epochs, with all samples' as reference; data ``chosen`` come later."""
    rows = [{"epoch": e["epoch"], "p25": e["loss_p25"], "p50": e["loss_p50"], "p75": e["loss_p75"]} for e in epochs]
    base = alt.Chart(_data(rows)).encode(x=_epoch_axis())
    band = base.mark_area(opacity=0.25, color=_QUIET).encode(y=_loss(alt.Y("p25:Q"), "loss"), y2="p75:Q")
    middle = base.mark_line(color=_QUIET, strokeWidth=2, strokeDash=[5, 3]).encode(y="p50:Q")
    lines = (
        alt.Chart(alt.NamedData(name="chosen"))
        .mark_line(strokeWidth=2, point={"size": 24})
        .encode(
            x="epoch:Q",
            y="loss:Q",
            color=alt.Color("sample:N").title("sample").scale(range=list(SERIES)).legend(columns=4, symbolLimit=8),
            tooltip=["sample:N", "epoch:Q", alt.Tooltip("loss:Q", format=".3g")],
        )
    )
    return finish(band + middle + lines, 280, "Losses of chosen samples over the epochs")


def runs_kept(runs: Sequence[dict[str, Any]]) -> Spec:
    """Return the share kept in each epoch, run by run."""
    rows = [{"epoch": e["epoch"], "kept": e["kept"], "run": run["name"]} for run in runs for e in run["epochs"]]
    return _by_run(rows, runs, _share_axis("kept", "kept in the epoch"), "Share kept in each epoch, run by run")


def runs_metric(runs: Sequence[dict[str, Any]]) -> Spec | None:
    """Return the metric over the epochs, run by run; None where they have none in common, or one point."""
    names = {run["metric"]["name"] if run["metric"] else None for run in runs}
    if len(names) > 1 or None in names:
        return None
    name = names.pop()
    rows = [
        {"epoch": epoch, "value": value, "run": run["name"]} for run in runs for epoch, value in run["metric"]["curve"]
    ]
    if len({row["epoch"] for row in rows}) < 2:
        return None
    axis = alt.Y("value:Q").title(name).scale(zero=False)
    return _by_run(rows, runs, axis, f"{name} over the epochs, run by run")


def _by_run(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], y: Any, description: str) -> Spec:
    names = [run["name"] for run in runs]
    chart = (
        alt.Chart(_data(rows))
        .mark_line(strokeWidth=2.5, point={"size": 24})
        .encode(
            x=_epoch_axis(),
            y=y,
            color=alt.Color("run:N").title(None).scale(domain=names, range=list(SERIES)).legend(columns=2),
            tooltip=["run:N", "epoch:Q", alt.Tooltip(str(y.shorthand), format=".4g")],
        )
    )
    return finish(chart, description=description)


def differences(counts: Sequence[int]) -> Spec:
    """Return how many samples the runs trained how differently."""
    width = 100 / len(counts)
    rows = [{"difference": f"{i * width:.0f}-{(i + 1) * width:.0f} %", "samples": n} for i, n in enumerate(counts)]
    title = "difference in share of epochs"
    chart = (
        alt.Chart(_data(rows))
        .mark_bar(width={"band": 0.85}, cornerRadiusEnd=2, color=_ACCENT)
        .encode(
            x=alt.X("difference:O").sort(None).title(title).axis(**_BAND),
            y=alt.Y("samples:Q").title("samples").axis(tickCount=5),
            tooltip=["difference:O", alt.Tooltip("samples:Q", format=",")],
        )
    )
    return finish(chart, description="Number of samples by how differently the runs trained them")
