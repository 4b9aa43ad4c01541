"""Writing tables of per-sample values to files, whole or not at all."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` once everything is written.

    A full disk, an exception or a kill while writing leaves an old file at ``path`` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # not `mkstemp`: others may read the file
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: Path, *, what: str) -> None:
    """Raise OSError unless a file can be written at ``path``; folders on the way are made.

    Args:
        path: The file.
        what: What it is to hold, for the message.
    """
    hint = f"Name another path for the {what}."
    if path.is_dir():
        raise IsADirectoryError(
            f"Expected the path of the {what} to be that of a file, but '{path}' is a folder. {hint}"
        )
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"Expected to be able to write '{path}', but got: {reason}. {hint}") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def check_new(path: Path, argument: str, *, overwrite: bool, what: str) -> None:
    """Raise OSError unless a command can write a file at ``path``, and may: one that is there already it keeps.

    Args:
        path: The file.
        argument: The command's argument that names it, for the message.
        overwrite: Whether one that is there already may be replaced.
        what: What it is to hold, for the message.
    """
    if path.is_file() and not overwrite:
        raise FileExistsError(
            f"Expected `{argument}` to name a new file, but '{path}' is there already. Name another one, or give "
            "`--overwrite=true` to replace it."
        )
    check_writable(path, what=what)


def check_table_path(
    path: str | os.PathLike[str], suffixes: Sequence[str] = (".npz", ".parquet"), *, default: str = ""
) -> Path:
    """Return the path of a table to be written, with the suffix ``default`` where it has none.

    Raises:
        ValueError: If the suffix is none of these.
        ModuleNotFoundError: If it is ``.parquet`` and pyarrow is not installed.
    """
    path = Path(path)
    path = path if path.suffix or not default else path.with_suffix(default)
    if path.suffix not in suffixes:
        listed = f"{', '.join(f'`{suffix}`' for suffix in suffixes[:-1])} or `{suffixes[-1]}`"
        raise ValueError(f"Expected a path that ends in {listed}, but got '{path}'.")
    if path.suffix == ".parquet":
        import_pyarrow()
    return path


def import_pyarrow() -> Any:
    """Return pyarrow, with its ``parquet``, or say how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected pyarrow to write Parquet, but it is not installed. Run "
            "`pip install 'lightning-prune[export]'`, or save to a path that ends in `.npz`."
        ) from error
    return pyarrow


def save_table(table: dict[str, Tensor], path: Path) -> None:
    """Write columns as ``.npz`` or, with pyarrow, ``.parquet``; a column ``(slots, n)`` becomes ``slots`` of Parquet's.

    Raises:
        ValueError: If the suffix is neither.
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
    """
    path = check_table_path(path)
    arrays = {name: values.numpy() for name, values in table.items()}
    if path.suffix == ".npz":
        with atomic_write(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return
    pyarrow = import_pyarrow()
    flat = {name: values for name, values in arrays.items() if values.ndim == 1}
    for name, values in arrays.items():
        flat |= {f"{name}_{slot}": row for slot, row in enumerate(values)} if values.ndim > 1 else {}
    with atomic_write(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(flat), file)


def save_rows(columns: Mapping[str, Tensor | Sequence[str]], path: Path) -> Path:
    """Write columns of numbers or text ``(n,)`` as ``.csv`` or, with pyarrow, ``.parquet``, in their order of rows.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is neither.
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
    """
    check_table_path(path, (".csv", ".parquet"))
    if path.suffix == ".parquet":
        pyarrow = import_pyarrow()
        arrays = {n: values.numpy() if isinstance(values, Tensor) else list(values) for n, values in columns.items()}
        with atomic_write(path) as file:
            pyarrow.parquet.write_table(pyarrow.table(arrays), file)
        return path
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*map(_cells, columns.values()), strict=True))
        text.flush()
        text.detach()
    return path


def _cells(values: Tensor | Sequence[str]) -> Sequence[Any]:
    if not isinstance(values, Tensor):
        return values
    return [f"{value:.6g}" for value in values.tolist()] if values.is_floating_point() else values.tolist()
