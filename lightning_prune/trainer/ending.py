"""What a run says of itself: to its loggers when it begins, and in three lines when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor

from lightning_prune.core.method import Method
from lightning_prune.core.table import SampleTable

_MOST_NODES = 100_000


def log_arguments(loggers: Sequence[Logger], method: Method) -> None:
    """Log a method and its arguments as hyper-parameters, beside those of the module."""
    values: dict[str, Any] = {f"prune/{name}": value for name, value in method.arguments().items()}
    values = {"prune/method": type(method).__name__, **values}
    for logger in loggers:
        known = getattr(logger, "hparams", None)  # some loggers write only what they are given last
        logger.log_hyperparams({**known, **values} if isinstance(known, dict) else values)


def idleness(method: Method, max_epochs: int | None) -> str | None:
    """Return what to warn of where a method will leave nothing out in so many epochs; None: it may leave out some."""
    if max_epochs is None or max_epochs < 1 or method.prunable(max_epochs) > 0:
        return None
    return (
        f"{method!r} will leave nothing out in the {max_epochs} epoch{'s' if max_epochs > 1 else ''} of this run: each "
        "is part of its warm-up, comes before it knows the samples, or is kept full at the end. Train for more epochs, "
        "or change its arguments."
    )


def closing_lines(
    table: SampleTable, method: Method | None, seconds: float, seconds_saved: float, leaves: Sequence[str]
) -> list[str]:
    """Return what a run says at its end: the method, what was saved, and what it has left behind.

    Args:
        table: The per-sample state.
        method: The method, or None.
        seconds: Of training, without validation.
        seconds_saved: As if what was left out had taken as long as the rest.
        leaves: What there is to look at, in words.
    """
    saved = table.full_steps - table.trained_steps
    return [
        "Full data: no pruning method." if method is None else f"{method!r}",
        f"Saved {100 * table.saved_fraction:.1f} % of the sample-steps ({saved:,} of {table.full_steps:,}), about "
        f"{in_time(seconds_saved)} of {in_time(seconds + seconds_saved)} of training.",
        f"See {', '.join(leaves)}."
        if leaves
        else "For a page on this run add `PruningReport()` to the callbacks; for a table of each sample's losses and "
        "counts, `ScoreRegistry(save_to='samples.npz')`.",
    ]


def in_time(seconds: float) -> str:
    """Return seconds in the unit that suits them.

    Example:
        >>> [in_time(seconds) for seconds in (0.25, 75, 5000, 200_000)]
        ['0.2 s', '1.2 min', '1.4 h', '2.3 d']
    """
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def is_made_of(loss: Tensor, part: Tensor) -> bool:
    """Return whether the graph of a loss leads to a part of it; True where that cannot be told.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> part = (3 * x).mean()
        >>> is_made_of(part / 4 + x.sum(), part), is_made_of(x.mean(), part)
        (True, False)
    """
    if loss is part or part.grad_fn is None or loss.grad_fn is None:
        return True
    seen: set[Any] = {loss.grad_fn}
    waiting: list[Any] = [loss.grad_fn]
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop(0)
        if node is part.grad_fn:
            return True
        new = {inner for inner, _ in node.next_functions if inner is not None} - seen
        seen |= new
        waiting.extend(new)
    return len(seen) >= _MOST_NODES


OTHER_LOSS = (
    "`training_step` calls `self.weighted_loss(losses)`, but trains on another loss: what the samples that were left "
    "out would have added is not made up for. Return what `weighted_loss` returns, alone or with other terms added."
)
"""What to warn of where the loss that is trained is not made of the weighted one."""


def swapped(name: str) -> str:
    """Return what to warn of where the mixin stands behind `LightningModule`."""
    return (
        f"`{name}` has `WeightedLossMixin` behind `LightningModule` in its bases, whose methods then hide the mixin's: "
        "learning-rate schedules would not follow the shorter epochs. Swap the order: "
        f"`class {name}(WeightedLossMixin, LightningModule)`."
    )
