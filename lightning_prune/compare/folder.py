"""A comparison's folder: of one training, and for one command at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from filelock import FileLock, Timeout

from lightning_prune.compare.methods import RefusedError
from lightning_prune.core.export import atomic_write

_LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder; the system frees it when the command ends, however it ends.

    Raises:
        RefusedError: If it cannot be written, holds files of something else, or another command holds it.
    """
    try:
        others = folder.is_dir() and [path for path in folder.iterdir() if path.name != _LOCK]
        if others and not (folder / "config.yaml").exists():
            raise RefusedError(
                f"Expected `--output` to be a new folder or one of `compare`, but '{folder}' holds other files."
            )
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RefusedError(
            f"Expected `--output` to be a folder that no other command uses, but one is running in '{folder}'. "
            "Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise RefusedError(
            f"Expected `--output` to be a folder that can be written, but got '{folder}': {error}."
        ) from error
    try:
        yield
    finally:
        lock.release()


def bind(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder one of this training, or go on in it if it is, or has no results yet.

    Raises:
        RefusedError: If it is one of another training; what differs is named.
    """
    path = folder / "config.yaml"
    if not any(folder.glob("runs/*/result.json")):
        with atomic_write(path) as file:
            file.write(yaml.safe_dump(config, sort_keys=False).encode())
        return
    there, here = flat(yaml.safe_load(path.read_text())), flat(config)
    different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if different:
        refuse(folder, "training", [(key, there.get(key), here.get(key)) for key in different])


def refuse(folder: Path, what: str, differences: list[tuple[str, Any, Any]]) -> NoReturn:
    """Say in what a folder's training or methods are others.

    Args:
        folder: The folder.
        what: ``"training"`` or ``"methods"``.
        differences: Of each: its name, what it is there, and here.

    Raises:
        RefusedError: Always.
    """
    shown = "; ".join(f"{key} is {old!r} there and {new!r} here" for key, old, new in differences[:5])
    more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
    raise RefusedError(
        f"Expected `--output` to name a new folder, or one with runs of the same {what}, but those in '{folder}' "
        f"differ: {shown}{more}. Choose another folder, or delete this one."
    )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by dotted names.

    Example:
        >>> flat({"a": {"b": 1}, "c": [2]})
        {'a.b': 1, 'c.0': 2}
    """
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    leaves: dict[str, Any] = {}
    for key, value in items:
        nested = isinstance(value, dict | list) and value
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves
