"""Per-sample state in files that each process writes its own part of, and that any number of processes can read."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lightning_prune.core.part import Part

_PIECE = 1 << 24
"""Samples written as one tensor, at most: who reads a part reads the pieces that it overlaps."""


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what torch says where a process is alone, as here it may well be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def write_part(folder: Path, state: dict[str, Any], part: Part) -> dict[str, Any]:
    """Write what grows with the samples, by `torch.distributed.checkpoint`, and return the rest; collective.

    Args:
        folder: Where to, on a file system that all processes see.
        state: This process's state of a run, of its part of the samples.
        part: Which part that is.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # half a second
    from torch.distributed.checkpoint.state_dict_saver import save

    grown = {"losses": state["losses"], "counts": state["counts"]}
    grown |= {f"columns/{name}": values for name, values in state["columns"].items()}
    buffer = io.BytesIO()
    torch.save(state["ranks"][0], buffer)
    pieces = {f"ranks/{part.rank}": torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)}
    for name, values in grown.items():
        for start in range(part.start, part.stop, _PIECE):
            piece = slice(start - part.start, min(start + _PIECE, part.stop) - part.start)
            pieces[f"{name}/{start}"] = values[..., piece].contiguous()
    with _quietly():
        save(pieces, storage_writer=FileSystemWriter(folder), no_dist=part.world_size == 1)
    return {name: value for name, value in state.items() if name not in ("losses", "counts", "columns", "ranks")}


def read_part(folder: Path, rest: dict[str, Any], part: Part) -> dict[str, Any]:
    """Return a process's state of a run, of its part of the samples, whatever parts were written.

    Args:
        folder: What :func:`write_part` wrote.
        rest: What it returned.
        part: Which part to read.
    """
    files = _Files(folder)

    def own(name: str) -> Tensor:
        starts = sorted(int(key.rpartition("/")[2]) for key in files.written if key.rpartition("/")[0] == name)
        some = []
        for start, stop in zip(starts, [*starts[1:], part.total], strict=True):
            if start < part.stop and stop > part.start:
                piece = files.read(f"{name}/{start}")
                some.append(piece[..., max(0, part.start - start) : part.stop - start].clone())
        dtype = torch.promote_types(some[0].dtype, some[-1].dtype)
        return torch.cat([piece.to(dtype) for piece in some], dim=-1)

    columns = {name.partition("/")[2] for name in (key.rpartition("/")[0] for key in files.written) if "/" in name}
    return {
        **rest,
        "losses": own("losses"),
        "counts": own("counts"),
        "columns": {name: own(f"columns/{name}") for name in sorted(columns)},
        "ranks": Ranks(files),
    }


@final
class _Files:
    """What :func:`write_part` wrote."""

    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        self.folder = folder
        self.written: dict[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata

    def read(self, key: str) -> Tensor:
        """Return a tensor."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        about = self.written[key]
        found = {key: torch.empty(about.size, dtype=about.properties.dtype)}
        with _quietly():
            load(found, storage_reader=FileSystemReader(self.folder), no_dist=True)
        return found[key]


@final
class Ranks(Sequence[dict[str, Any]]):
    """What each process alone knew, read when it is asked for: of an open epoch it is much, and one is held at a time.

    Args:
        files: Where it is read from.
    """

    def __init__(self, files: _Files) -> None:
        self.files = files
        self._held: tuple[int, dict[str, Any]] | None = None

    def __len__(self) -> int:
        return sum(key.startswith("ranks/") for key in self.files.written)

    def __getitem__(self, rank: Any) -> Any:
        if not 0 <= rank < len(self):
            raise IndexError(rank)
        if self._held is None or self._held[0] != rank:
            self._held = None
            buffer = io.BytesIO(self.files.read(f"ranks/{rank}").numpy().tobytes())
            self._held = (rank, torch.load(buffer, weights_only=True))
        return self._held[1]
