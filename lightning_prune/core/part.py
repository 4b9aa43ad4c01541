"""What part of the per-sample state a process keeps, and the few things that the processes ask of one another.

A rule that is handed a `Part` is written once: where a process keeps everything, nothing is asked of anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_prune.core.arrays import count_true, kth_lowest

_MOST_CHUNK = 1 << 16
_LEAST_CHUNKS = 8
_MANY = 1 << 20


def chunk_size(total: int) -> int:
    """Return how many neighbours are added up at once where ``total`` values are summed: a power of two.

    Parts begin and end between chunks, so that sums have the same rounding errors however many processes share them. Of
    a million values there are 8 chunks or more, which is as many processes as may share so few; then there are 64.

    Example:
        >>> chunk_size(100), chunk_size(1000), chunk_size(10**6), chunk_size(10**9)
        (8, 64, 65536, 65536)
    """
    chunks = _LEAST_CHUNKS if total < _MANY else 8 * _LEAST_CHUNKS
    return min(_MOST_CHUNK, 1 << max(0, (total // chunks).bit_length() - 1))


@final
@dataclass(frozen=True)
class Part:
    """A run of neighbours of a vector that several processes keep together, one run each, in the order of the ranks.

    What communicates is collective: each process calls it, in the same order.

    Args:
        start: Position in the whole of the first element that this process keeps.
        stop: Position after the last one.
        total: Length of the whole.
        rank: This process.
        world_size: Number of processes; 1: nothing is sent.
        device: Where what is sent lives.

    Example:
        >>> part = Part.whole(5)
        >>> len(part), part.sum(3), part.any(False)
        (5, 3, False)
    """

    start: int
    stop: int
    total: int
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"

    @classmethod
    def whole(cls, total: int) -> Part:
        """Return that of a process which keeps everything, be it alone or as every other does."""
        return cls(0, total, total)

    @classmethod
    def of(cls, total: int, rank: int, world_size: int, device: torch.device | str = "cpu") -> Part:
        """Return that of one of ``world_size`` processes which share ``total`` elements evenly, up to a chunk.

        Raises:
            ValueError: If there are not enough elements for so many processes.

        Example:
            >>> [(part.start, part.stop) for part in (Part.of(1000, rank, 3) for rank in range(3))]
            [(0, 320), (320, 640), (640, 1000)]
        """
        chunk = chunk_size(total)
        num = -(-total // chunk)
        if num < world_size:
            raise ValueError(
                f"Expected at most {num} processes to share the state of {total} samples, but got {world_size}. So few "
                "samples need no `ScoreRegistry(sharded=True)`: leave it out."
            )
        start, stop = (min(total, chunk * (r * num // world_size)) for r in (rank, rank + 1))
        return cls(start, stop, total, rank, world_size, device)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def starts(self) -> list[int]:
        """Where the part of each process starts, of parts that :meth:`of` made."""
        return [Part.of(self.total, rank, self.world_size).start for rank in range(self.world_size)]

    def to(self, device: torch.device | str) -> Part:
        """Return this part with what it sends on another device."""
        return replace(self, device=device)

    def visits(self, length: int, rank: int | None = None) -> int:
        """Return how many of ``length`` positions a process visits: ``rank, rank + world_size, ...``; None: this one.

        Example:
            >>> part = Part.of(1000, 0, 3)
            >>> [part.visits(7, rank) for rank in range(3)]
            [3, 2, 2]
        """
        return max(0, -(-(length - (self.rank if rank is None else rank)) // self.world_size))

    def own(self, values: Tensor) -> Tensor:
        """Return what this process keeps of ``values`` ``(..., total)``; ``(..., len(self))`` are that already."""
        return values if values.shape[-1] == len(self) else values[..., self.start : self.stop]

    # What the processes ask of one another

    def add_up(self, values: Tensor) -> Tensor:
        """Add to ``values`` ``(...)``, in place, those of the other processes, and return them; collective."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return the ``values`` ``(...)`` of each process ``(world_size, ...)``, which are of one shape; collective."""
        if self.world_size == 1:
            return values[None]
        everyone = values.new_empty(self.world_size, *values.shape)
        dist.all_gather_into_tensor(everyone.view(-1), values.contiguous().view(-1))
        return everyone

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send each process its run of ``rows``, and return what is received, in the order of the ranks; collective.

        Args:
            rows: What is sent ``(m, ...)``, in the order of the ranks.
            sent: How many rows each process gets; they add up to m.
            received: How many rows each process sends.
        """
        if self.world_size == 1:
            return rows
        came = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(came, rows.contiguous(), list(received), list(sent))
        return came

    # Made of these

    def sum(self, number: int) -> int:
        """Return the sum of the processes' numbers; collective."""
        if self.world_size == 1:
            return number
        return int(self.add_up(torch.tensor(number, dtype=torch.int64, device=self.device)))

    def any(self, flag: bool) -> bool:
        """Return whether the flag of any process is set; collective."""
        return self.sum(int(flag)) > 0

    def count(self, mask: Tensor) -> int:
        """Return how many elements of the whole of a mask are True, given this process's part; collective."""
        return self.sum(count_true(mask))

    def narrow(self, number: int) -> Part:
        """Return the part of what is left of the elements, of which this process has ``number``; collective."""
        if self.world_size == 1:
            return Part.whole(number)
        numbers = self.gather(torch.tensor(number, dtype=torch.int64, device=self.device)).tolist()
        start = sum(numbers[: self.rank])
        return replace(self, start=start, stop=start + number, total=sum(numbers))

    def joined(self, values: Tensor, start: int, total: int) -> Tensor:
        """Return the whole ``(total,)`` of what this process has ``values`` ``(m,)`` of, from ``start``; collective."""
        if self.world_size == 1:
            return values
        return self.add_up(values.new_zeros(total).index_add_(0, _range(start, values), values))

    def sketch(self, values: Tensor, most: int) -> Tensor:
        """Return at most so many of the values of all ``(total,)``, evenly spaced; all, where there are no more.

        Collective. A process that has everything returns it, however much that is.

        Args:
            values: What this process has of them ``(len(self),)``.
            most: Number of values.
        """
        if self.world_size == 1:
            return values
        stride = -(-self.total // most)
        start = -(-self.start // stride)
        return self.joined(values[start * stride - self.start :: stride], start, -(-self.total // stride))

    def kth_lowest(self, values: Tensor, k: int) -> Tensor:
        """Return the k-th lowest, from 1, of the whole of which this process has ``values`` ``(m,)``; collective.

        Exactly, by the digits of their bit patterns: how many begin with each of 65,536 digits, and how many of those
        that begin as the sought one end with each. Two sums of half a megabyte, and no value is sent.

        Args:
            values: float32, without NaN.
            k: In [1, length of the whole].
        """
        if self.world_size == 1:
            return kth_lowest(values, k)
        bits = values.contiguous().view(torch.int32)
        keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the values
        high, before = self._digit_of((keys >> 16) + 0x8000, k)
        low, _ = self._digit_of(keys[keys >> 16 == high - 0x8000] & 0xFFFF, k - before)
        key = torch.tensor((high - 0x8000 << 16) + low, dtype=torch.int32, device=values.device)
        return (key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32)

    def _digit_of(self, digits: Tensor, k: int) -> tuple[int, int]:
        """Return the k-th lowest of the whole of digits ``(m,)`` in [0, 65536), and how many are lower."""
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=self.device)
        for some in torch.split(digits, 1 << 20):  # which are counted as int64
            counts += torch.bincount(some, minlength=1 << 16)
        sums = self.add_up(counts).cumsum(0)
        digit = int(torch.searchsorted(sums, k))
        return digit, int(sums[digit] - counts[digit])


def _range(start: int, values: Tensor) -> Tensor:
    return torch.arange(start, start + len(values), device=values.device)


@final
class Route:
    """Brings rows to the processes that they are for.

    Args:
        part: Who takes part.
        targets: Rank ``(m,)``, uint8 or int16, that each row is for. Collective.
    """

    def __init__(self, part: Part, targets: Tensor) -> None:
        self.part = part
        self.order = targets.argsort(stable=True)
        sent = torch.bincount(targets, minlength=part.world_size)
        self.sent: list[int] = sent.tolist()
        self.received: list[int] = part.exchange(
            sent.to(part.device), [1] * part.world_size, [1] * part.world_size
        ).tolist()

    def bring(self, rows: Tensor) -> Tensor:
        """Return the rows that are for this process, given those ``(m, ...)`` that it has; collective."""
        return self.part.exchange(rows.index_select(0, self.order), self.sent, self.received)
