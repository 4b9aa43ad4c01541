"""What a report says, as one plain dict: made once, and rendered as HTML, Markdown or JSON.

Its JSON schema lies beside this file, in ``summary.schema.json``.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_prune.core.rng import make_generator, permutation
from lightning_prune.report.disagreement import compare_runs
from lightning_prune.report.images import MOST_BYTES
from lightning_prune.report.numbers import ranked, short
from lightning_prune.report.record import RunRecord

SCHEMA_VERSION = 1

MOST_ROWS = 50_000
"""Samples whose numbers are in a summary, over all its runs; of more, as many drawn at random."""

MOST_DRAWN = 2_500
"""Samples that are drawn on the map, and seen; over all runs of a summary."""

SHOWN = 24
"""Samples in each part of the gallery."""

_FEWEST_EXPECTED = 10
"""Sample-steps expected of a class before it can be called starved: of fewer, half may be missing by chance."""

_PERCENTILES = ("p5", "p25", "p50", "p75", "p95")

GALLERY = {
    "suspicious": (
        "Most suspicious labels",
        "Highest score of the callback that looks for wrong labels.",
    ),
    "hardest": ("Hardest", "Highest mean loss over the epochs in which the sample was trained."),
    "easiest": ("Easiest", "Lowest mean loss over the epochs in which the sample was trained."),
    "forgotten": (
        "Most often forgotten",
        "Loss went from below the epoch's mean to above it, from one time that the sample was trained to the next.",
    ),
}
_BY_LOSS = (
    "Mean loss far above that of the given class (in units of the class's middle spread). LabelIssues() beside the "
    "report would say more, and suggest labels."
)

Array = np.ndarray[Any, np.dtype[Any]]


def summarize(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what there is to say of one run, or of several on the same dataset.

    Args:
        records: The runs.

    Returns:
        Plain values only, as ``summary.schema.json`` describes them; losses are rounded to four digits.

    Raises:
        ValueError: If there is no run, or the runs are of datasets of different lengths.
    """
    check_same_dataset(records)
    share = len(records)
    runs = [_summarize_run(record, MOST_ROWS // share, MOST_DRAWN // share) for record in records]
    _name_apart(runs)
    comparison = compare_runs(records, [run["name"] for run in runs], SHOWN) if share > 1 else None
    asked = [i for run in runs for part in run["gallery"].values() for i in part["ids"]]
    asked = [*(comparison["ids"] if comparison else []), *asked, *(i for run in runs for i in run["drawn"])]
    return {
        "schema": SCHEMA_VERSION,
        "version": sys.modules[__name__.partition(".")[0]].__version__,
        "date": max(record.meta["date"] for record in records),
        "dataset": records[0].meta["dataset"],
        "num_samples": records[0].num_samples,
        "runs": runs,
        "comparison": comparison,
        "looks": _looks(records, dict.fromkeys(asked)),
    }


def check_same_dataset(records: Sequence[RunRecord]) -> None:
    """Raise ValueError unless there are runs, and their datasets are equally long."""
    if not records:
        raise ValueError("Expected at least one run to report on, but got none.")
    lengths = {record.num_samples for record in records}
    if len(lengths) > 1:
        said = "; ".join(f"{_label(record)} has {record.num_samples:,} samples" for record in records)
        raise ValueError(
            f"Expected runs on the same training dataset, since samples are compared by their ids, but {said}. "
            "Make a report of each group."
        )


def _label(record: RunRecord) -> str:
    return f"'{record.meta.get('folder', record.meta['name'])}'"


def _name_apart(runs: list[dict[str, Any]]) -> None:
    """Give runs of the same method and folder name different names."""
    for key in ("description", "name"):
        names = [run["name"] for run in runs]
        if len(set(names)) == len(names):
            return
        for run in runs:
            if names.count(run["name"]) > 1 and run[key] not in run["name"]:
                run["name"] = f"{run['name']}: {run[key]}"
    for i, run in enumerate(runs):
        if any(other["name"] == run["name"] for other in runs[:i]):
            run["name"] = f"{run['name']} ({i + 1})"


def _summarize_run(record: RunRecord, most_rows: int, most_drawn: int) -> dict[str, Any]:
    meta, gallery = record.meta, _gallery(record)
    seen = _seen(record, gallery, most_drawn)
    classes = _classes(record)
    run = {
        "name": meta["name"],
        "method": meta["method"],
        "description": meta["description"],
        "arguments": meta["arguments"],
        "metric": _metric(meta),
        "metrics": {name: short(value) for name, value in meta["metrics"].items()},
        "saved": _saved(meta),
        "epochs": [{key: short(value) for key, value in epoch.items()} for epoch in meta["epochs"]],
        "classes": classes,
        "usage": _usage(record),
        "samples": _rows(record, _chosen_rows(record.num_samples, most_rows, seen)),
        "drawn": seen.tolist(),
        "course": _course(record, seen),
        "gallery": gallery,
    }
    return {**run, "warnings": _warnings(run), "notes": _notes(record, run)}


def _metric(meta: dict[str, Any]) -> dict[str, Any] | None:
    if meta["metric"] is None:
        return None
    curve = [[int(epoch), short(value)] for epoch, value in meta["metric_curve"]]
    return {"name": meta["metric"], "value": short(meta["metrics"][meta["metric"]]), "curve": curve}


def _saved(meta: dict[str, Any]) -> dict[str, Any]:
    """Return what was saved; in time, if a step that was left out would have taken as long as those that were not."""
    trained, full = meta["trained_steps"], meta["full_steps"]
    seconds = sum(epoch["seconds"] for epoch in meta["epochs"])
    return {
        "fraction": short(1 - trained / full if full else 0.0),
        "trained_steps": trained,
        "full_steps": full,
        "seconds": short(seconds),
        "seconds_saved": short(seconds * (full - trained) / trained if trained else 0.0),
    }


def _usage(record: RunRecord) -> dict[str, Any]:
    times, num_epochs = record.columns["times"], len(record.meta["epochs"])
    counts = np.bincount(np.minimum(times, num_epochs), minlength=num_epochs + 1)
    width = -(-(num_epochs + 1) // 41)
    bars = [
        {
            "from": start,
            "to": min(start + width, num_epochs + 1) - 1,
            "samples": int(counts[start : start + width].sum()),
        }
        for start in range(0, num_epochs + 1, width)
    ]
    return {
        "bars": bars,
        "mean": short(float(times.mean())),
        "never": int((times == 0).sum()),
        "only_first": int((record.columns["last_epoch"] == 0).sum()) if num_epochs > 1 else 0,
    }


def _pruned(record: RunRecord) -> Array:
    """Return the positions of the epochs that left something out."""
    return np.flatnonzero([epoch["kept"] < 1 for epoch in record.meta["epochs"]])


def _class_shares(record: RunRecord) -> tuple[Array, Array, float] | None:
    """Return each class's size, its kept share in the epochs that left something out, and that of all samples."""
    if record.class_kept is None or "given" not in record.columns:
        return None
    sizes = np.bincount(record.columns["given"], minlength=record.class_kept.shape[1])
    pruned = _pruned(record)
    pruned = pruned if len(pruned) else np.arange(len(record.class_kept))
    kept = record.class_kept[pruned].sum(0) / np.maximum(sizes, 1) / len(pruned)
    return sizes, np.where(sizes > 0, kept, np.nan), float(record.class_kept[pruned].sum() / sizes.sum() / len(pruned))


def _starved(record: RunRecord) -> list[int]:
    found = _class_shares(record)
    if found is None or not len(_pruned(record)):
        return []
    sizes, kept, average = found
    expected = average * sizes * len(_pruned(record))
    return [int(c) for c in np.flatnonzero((kept < average / 2) & (expected >= _FEWEST_EXPECTED))]


def starved_classes(record: RunRecord) -> list[tuple[str, float]]:
    """Return the classes kept under half of the average share, with their share of it, in epochs that prune."""
    found = _class_shares(record)
    if found is None:
        return []
    _, kept, average = found
    return [(class_name(record, c), float(kept[c] / average)) for c in _starved(record)]


def class_name(record: RunRecord, label: int) -> str:
    """Return the name of a class, or its id."""
    names = record.meta["class_names"]
    return names[label] if names and 0 <= label < len(names) else str(label)


def _classes(record: RunRecord) -> dict[str, Any] | None:
    found = _class_shares(record)
    if found is None:
        return None
    sizes, kept, average = found
    by_epoch = record.class_kept / np.maximum(sizes, 1)
    return {
        "names": [class_name(record, c) for c in range(len(sizes))],
        "sizes": sizes.tolist(),
        "kept": short(kept),
        "average": short(average),
        "starved": _starved(record),
        "by_epoch": [short(row) for row in by_epoch] if by_epoch.size <= 20_000 else None,
    }


def _gallery(record: RunRecord) -> dict[str, dict[str, Any]]:
    columns = record.columns
    mean, forgotten = columns["mean"].astype(np.float64), columns["forgotten"].astype(np.float64)
    values = {"hardest": mean, "easiest": -mean, "forgotten": np.where(forgotten > 0, forgotten, np.nan)}
    text = dict(GALLERY)
    if "suspicion" in columns:
        values = {"suspicious": columns["suspicion"].astype(np.float64), **values}
    elif record.meta["has_classes"]:
        values = {"suspicious": _above_class(mean, columns["given"]), **values}
        text["suspicious"] = (GALLERY["suspicious"][0], _BY_LOSS)
    return {
        name: {"title": text[name][0], "why": text[name][1], "ids": ranked(value, SHOWN).tolist()}
        for name, value in values.items()
    }


def _above_class(mean: Array, given: Array) -> Array:
    """Return how far each mean loss lies above the middle of its class, in units of the class's middle spread."""
    score = np.full(len(mean), np.nan)
    for label in np.unique(given[np.isfinite(mean)]):
        members = np.flatnonzero((given == label) & np.isfinite(mean))
        low, middle, high = np.percentile(mean[members], (25, 50, 75))
        score[members] = (mean[members] - middle) / max(high - low, 1e-6 + 1e-3 * abs(middle))
    return score


def to_be_seen(record: RunRecord) -> list[int]:
    """Return the ids of the samples that a report of this run shows, first those of its gallery."""
    return [int(i) for i in _seen(record, _gallery(record), MOST_DRAWN)]


def _seen(record: RunRecord, gallery: dict[str, dict[str, Any]], most: int) -> Array:
    first = list(dict.fromkeys(i for part in gallery.values() for i in part["ids"]))
    drawn = _drawn(record.num_samples, most)
    rest = drawn[~np.isin(drawn, first)][: max(0, most - len(first))]
    return np.concatenate([np.array(first, dtype=np.int64), rest])


def _drawn(num_samples: int, most: int) -> Array:
    """Return ids drawn at random, the same ones for every run on as many samples."""
    order: Array = permutation(num_samples, make_generator(num_samples, 0, "report/drawn")).numpy()
    return order[:most].astype(np.int64)


def _chosen_rows(num_samples: int, most: int, seen: Array) -> Array:
    if num_samples <= most:
        return np.arange(num_samples)
    drawn = _drawn(num_samples, most)
    return np.sort(np.concatenate([seen, drawn[~np.isin(drawn, seen)][: most - len(seen)]]))


def _rows(record: RunRecord, ids: Array) -> dict[str, Any]:
    """Return what the table shows, column by column."""
    columns = record.columns
    rows: dict[str, Any] = {"id": ids.tolist()}
    for name in ("mean", "spread", "last", "suspicion"):
        if name in columns:
            rows[name] = short(columns[name][ids])
    for name in ("times", "forgotten", "given", "suggested"):
        if name in columns:
            values = columns[name][ids]
            rows[name] = values.tolist() if values.dtype.kind in "iu" else short(values)
    return rows


def _course(record: RunRecord, ids: Array) -> dict[str, Any]:
    """Return the losses of samples in the course of the run, by id; of those that were followed."""
    num_epochs = len(record.meta["epochs"])
    slots = min(len(record.course), -(-num_epochs // record.meta["span"]))
    if record.followed is not None:
        ids = ids[np.isin(ids, record.followed)]
    places = ids if record.followed is None else np.searchsorted(record.followed, ids)
    losses = record.course[:slots, places].T
    return {"span": record.meta["span"], "losses": {int(i): short(row) for i, row in zip(ids, losses, strict=True)}}


def _warnings(run: dict[str, Any]) -> list[str]:
    warnings, classes = [], run["classes"]
    if classes and classes["starved"]:
        shares = [f"{classes['names'][c]} ({classes['kept'][c] / classes['average']:.2f})" for c in classes["starved"]]
        warnings.append(
            f"Starved: {', '.join(shares[:10])}{', ...' if len(shares) > 10 else ''} kept under half of the average "
            f"share, {100 * classes['average']:.1f} %, of the epochs that left samples out."
        )
    if run["method"] is not None and run["saved"]["trained_steps"] == run["saved"]["full_steps"]:
        warnings.append("Nothing was left out in this run.")
    return warnings


def _notes(record: RunRecord, run: dict[str, Any]) -> list[str]:
    notes, num_rows = [], len(run["samples"]["id"])
    if num_rows < record.num_samples:
        notes.append(
            f"Of {record.num_samples:,} samples, the table has {num_rows:,}: those of the gallery, and others drawn at "
            "random. The gallery, the classes and the counts are of all samples."
        )
    if record.followed is not None:
        notes.append(f"The course of the losses was kept of {len(record.followed):,} samples, most drawn at random.")
    first = record.meta["epochs"][0]["epoch"]
    if first > 0:
        notes.append(f"The report took part from epoch {first} on; what was before is not in it.")
    if not record.meta["has_classes"]:
        notes.append("No class ids were found in the dataset: `PruningReport(targets=...)` names them.")
    if not np.isfinite(record.columns["mean"]).any():
        notes.append("The run recorded no losses: `weighted_loss` of `WeightedLossMixin` records them.")
    return notes


def _looks(records: Sequence[RunRecord], ids: dict[int, None]) -> dict[str, dict[int, str]]:
    pictures, texts, spent = dict[int, str](), dict[int, str](), 0
    for i in ids:
        for record in records:
            picture, text = record.looks.pictures.get(i), record.looks.texts.get(i)
            if picture is not None and spent + len(picture) <= MOST_BYTES:
                spent += len(picture)
                pictures[i] = f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
            if text is not None:
                texts[i] = text
            if picture is not None or text is not None:
                break
    return {"pictures": pictures, "texts": texts}
