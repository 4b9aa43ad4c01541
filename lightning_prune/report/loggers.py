"""What the trainer's loggers get of a report: the summary, and the gallery where they can show it.

The kept curve they have already: ``prune/kept_fraction`` is logged each epoch.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image, ImageDraw

from lightning_prune.core.export import atomic_write
from lightning_prune.report.markdown import render_markdown
from lightning_prune.report.record import RunRecord

_CELL, _TITLE, _COLUMNS = 72, 14, 8
_BULKY = ("samples", "drawn", "course")


def hand_to(logger: Logger, summary: dict[str, Any], record: RunRecord, page: Path, step: int) -> None:
    """Hand a report to a logger, if it is one that can take it; what the logger raises becomes a warning.

    Args:
        logger: The logger.
        summary: The summary of one run.
        record: The run, whose thumbnails are shown.
        page: The written report.
        step: The trainer's step.
    """
    sheets = gallery_sheets(summary, record)
    try:
        if isinstance(logger, CSVLogger):
            with atomic_write(Path(logger.log_dir) / "prune_summary.json") as file:
                file.write(_brief(summary).encode())
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(logger.experiment, summary, sheets, step)
        elif isinstance(logger, MLFlowLogger):
            _to_mlflow(logger.experiment, str(logger.run_id), summary, sheets, page)
        elif isinstance(logger, WandbLogger):
            _to_wandb(logger.experiment, summary, sheets, page)
    except Exception as error:  # a server that is away must not lose the run
        rank_zero_warn(f"Could not hand the report to {type(logger).__name__}: {error}. It is in '{page}'.")


def _brief(summary: dict[str, Any]) -> str:
    """Return a summary as JSON, without what there is of single samples."""
    runs = [{name: value for name, value in run.items() if name not in _BULKY} for run in summary["runs"]]
    whole = {name: value for name, value in summary.items() if name != "looks"}
    return json.dumps({**whole, "runs": runs}, indent=1, allow_nan=False)


def _to_tensorboard(writer: Any, summary: dict[str, Any], sheets: dict[str, Image.Image], step: int) -> None:
    writer.add_text("prune/report", render_markdown(summary), step)
    for name, sheet in sheets.items():
        writer.add_image(f"prune/gallery/{name}", np.asarray(sheet), step, dataformats="HWC")


def _to_mlflow(client: Any, run_id: str, summary: dict[str, Any], sheets: dict[str, Image.Image], page: Path) -> None:
    client.log_artifact(run_id, str(page))
    client.log_text(run_id, _brief(summary), "prune_summary.json")
    client.log_text(run_id, render_markdown(summary), "prune_report.md")
    for name, sheet in sheets.items():
        client.log_image(run_id, sheet, artifact_file=f"prune_gallery_{name}.png")


def _to_wandb(run: Any, summary: dict[str, Any], sheets: dict[str, Image.Image], page: Path) -> None:
    import wandb

    saved = summary["runs"][0]["saved"]
    run.summary.update({f"prune/{name}": value for name, value in saved.items()})
    shown: dict[str, Any] = {f"prune/gallery/{name}": wandb.Image(sheet) for name, sheet in sheets.items()}
    if page.suffix == ".html":
        shown["prune/report"] = wandb.Html(page.read_text(encoding="utf-8"))
    if shown:
        run.log(shown)


def gallery_sheets(summary: dict[str, Any], record: RunRecord) -> dict[str, Image.Image]:
    """Return one picture for each part of the gallery whose samples have thumbnails, with their ids."""
    sheets = {}
    for name, part in summary["runs"][0]["gallery"].items():
        seen = [(i, record.looks.pictures[i]) for i in part["ids"] if i in record.looks.pictures]
        if seen:
            sheets[name] = _sheet(seen)
    return sheets


def _sheet(seen: list[tuple[int, bytes]]) -> Image.Image:
    rows = -(-len(seen) // _COLUMNS)
    sheet = Image.new("RGB", (_CELL * min(_COLUMNS, len(seen)), (_CELL + _TITLE) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (sample, data) in enumerate(seen):
        row, column = divmod(place, _COLUMNS)
        x, y = column * _CELL, row * (_CELL + _TITLE)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        scale = (_CELL - 4) / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (x + 2, y + 2))
        draw.text((x + 3, y + _CELL - 1), f"#{sample}", fill="black")
    return sheet
