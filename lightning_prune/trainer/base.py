"""What all callbacks of this package share: they need a Trainer, and say so elsewhere."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

AS_IS: dict[str, Any] = {"sync_dist": True, "rank_zero_only": True}
"""How to log a value that is the same on every rank: Lightning then neither reduces it nor warns that it is not."""


class TrainerCallback(Callback, ABC):
    """Base class of this package's callbacks, which refuses to be used without a Trainer."""

    takes_new_samples: bool = True
    """Whether samples may be appended to the dataset in a run: not where what it knows of each was given beforehand."""

    @property
    def leaves(self) -> Sequence[str]:
        """What the run has left behind, in words, for the last lines of ``fit``."""
        return ()

    def on_after_setup(self, fabric: Any, module: Any) -> None:
        """Refuse Fabric, which calls this hook in its ``setup``; else its loop would train on everything, silently.

        Raises:
            MisconfigurationException: Always; the message says what to use.
        """
        name = type(self).__name__
        raise MisconfigurationException(
            f"Expected a `lightning.pytorch.Trainer` to call {name}, but got Fabric, in whose loops a callback cannot "
            "shorten the epochs. Leave it out of `Fabric(callbacks=...)` and use "
            "`pruner = lightning_prune.Pruner(method, max_epochs=...)`: iterate over `pruner.attach(loader)` in "
            "`for epoch in pruner.epochs()`, and take the loss from `pruner.weighted_loss(losses)`."
        )
