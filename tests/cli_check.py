"""One short check that a method trains from yaml, by its short class name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import yaml

from lightning_prune.cli import main

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "examples" / "digits" / "infobatch.yaml"


def check_yaml(monkeypatch: Any, folder: Path, name: str, arguments: dict[str, Any], **trainer: Any) -> None:
    """Run two epochs of the digits example with another method."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(folder)
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"] |= {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, **trainer}
    config["trainer"]["callbacks"] = [{"class_path": name, "init_args": arguments}]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between Lightning's CLI and jsonargparse
        main(["fit", "--config", str(path)])
