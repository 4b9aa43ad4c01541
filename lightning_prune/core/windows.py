"""Rules that judge samples window by window, on all windows of an epoch at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.arrays import to_host

_CHUNK = 1 << 16
"""Samples judged at a time: their temporaries stay in the cache."""

Judge = Callable[[Tensor, Tensor | None], Tensor]


def window_runs(window_ids: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return an order ``(m,)`` in which windows are contiguous (None: they are), and their lengths ``(w,)``.

    Example:
        >>> window_runs(torch.tensor([5, 5, 7]))
        (None, tensor([2, 1]))
    """
    order = None
    if bool((window_ids[1:] < window_ids[:-1]).any()):
        order = window_ids.argsort(stable=True)
        window_ids = window_ids.index_select(0, order)
    return order, torch.unique_consecutive(window_ids, return_counts=True)[1]


def judge_windows(scores: Tensor, lengths: Tensor, judge: Judge, dtype: torch.dtype) -> Tensor:
    """Return what ``judge`` says of each score ``(m,)``, on the CPU: in a fixed order, so that all devices agree.

    Args:
        scores: Scores ``(m,)`` on the CPU, window after window.
        lengths: Lengths ``(w,)`` of the windows, adding up to m.
        judge: Function of the scores of some windows ``(v, l)``, and of which elements count (None: all; others are
            padding); returns ``(v, l)``.
        dtype: Type of the result.
    """
    out = torch.empty(len(scores), dtype=dtype)
    starts = lengths.cumsum(0) - lengths
    for windows in _alike(lengths):
        size = int(lengths[windows].max())
        first = int(starts[windows][0])
        count = windows.stop - windows.start if isinstance(windows, slice) else len(windows)
        if isinstance(windows, slice) and int(lengths[windows].min()) == size:
            span = slice(first, first + count * size)
            out[span] = judge(scores[span].view(count, size), None).view(-1)
            continue
        column = torch.arange(size)
        inside = column < lengths[windows][:, None]
        positions = (starts[windows][:, None] + column)[inside]
        rows = torch.zeros(count, size, dtype=scores.dtype)
        rows[inside] = scores[positions]
        out[positions] = judge(rows, inside)[inside].to(dtype)
    return out


class Windows(ABC):
    """Samples of an epoch in the windows of steps in which they were trained."""

    @abstractmethod
    def judged(self, judge: Judge, dtype: torch.dtype) -> Tensor:
        """Return what a rule says of each sample ``(m,)``, on the CPU; collective where processes share the state.

        Args:
            judge: The rule, as :func:`judge_windows` takes it.
            dtype: What it returns.
        """


@final
class WholeWindows(Windows):
    """Those of a process that knows all samples.

    Args:
        scores: Scores ``(m,)``, window after window.
        lengths: Lengths ``(w,)`` of the windows.
    """

    def __init__(self, scores: Tensor, lengths: Tensor) -> None:
        self._copied = to_host(scores)  # while the host goes on
        self.lengths = lengths

    def judged(self, judge: Judge, dtype: torch.dtype) -> Tensor:
        """Return what a rule says of each sample ``(m,)``, on the CPU."""
        return judge_windows(self._copied()[0], self.lengths, judge, dtype)


def _alike(lengths: Tensor) -> Iterator[slice | Tensor]:
    """Yield groups of windows of about one length, so that little is padding; slices where they are neighbours."""
    classes = lengths.double().log2().ceil()
    for size in sorted(set(classes.tolist())):
        members = (classes == size).nonzero().squeeze(1)
        step = max(1, _CHUNK >> int(size))
        for part in members.split(step):
            first, last = int(part[0]), int(part[-1])
            yield slice(first, last + 1) if last - first + 1 == len(part) else part
