"""Loaders that draw from a stream: what they need to be pruned, and how ranks take as many steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune.core.method import Method
from lightning_prune.core.pruned_stream import pruned_streams
from lightning_prune.core.stream import Stream
from lightning_prune.trainer import private
from lightning_prune.trainer.mixin import WeightedLossMixin


def is_stream(loader: Any) -> bool:
    """Return whether a loader draws from a stream: its samples come in an order of the dataset's own."""
    return not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)


@final
class StreamLoader:
    """A user's loader that draws from a stream, and a shallow copy of it that the fit loop is given.

    Args:
        original: The user's loader.
        num_samples: Number of samples of the whole stream; None: it is not known.
        method: The pruning method, if there is one.
        seed: Seed of the run.
        rank: This process's rank.
        world_size: Number of ranks.
        repeats: Whether a sample may come more than once in an epoch.

    Attributes:
        dataset: The user's stream; of a loader that tells none, the loader.
        planned: What the fit loop draws from.
        batch_sampler: What the session plans.
        keeps_position: Whether the loader can go on in the middle of an epoch, by ``load_state_dict``.
        states: Positions of all train loaders that a checkpoint holds.

    Raises:
        MisconfigurationException: If the method cannot work with a stream; the message says what to write.
    """

    def __init__(
        self,
        original: Any,
        *,
        num_samples: int | None,
        method: Method | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: bool = False,
    ) -> None:
        _check(original, num_samples, method)
        self.original = original
        self.dataset: Any = getattr(original, "dataset", original)
        self.num_samples = num_samples or 0
        self.states: list[dict[str, Any]] = []
        self.keeps_position = callable(getattr(original, "load_state_dict", None))
        self.filters = pruned_streams(getattr(original, "dataset", original)) if num_samples else []
        for part in self.filters:
            part.follow(self.num_samples, getattr(original, "num_workers", 0))
        picks = method is not None and method.picks_in_batch and not method.picks_by_ids
        told = method is not None and not method.needs_mixin and not method.weighs_losses and bool(self.filters)
        size = getattr(original, "batch_size", None)
        self.batch_sampler = Stream(
            self.num_samples,
            batch_size=size if isinstance(size, int) else None,
            seed=seed,
            rank=rank,
            world_size=world_size,
            filters=self.filters,
            needs_ids=not (picks or told),
            repeats=repeats,
        )
        self._copy = private.own_copy(original) if isinstance(original, DataLoader) else original
        self.planned = self._copy
        if world_size > 1:
            private.seed_workers(self._copy, rank)
            self.planned = TogetherLoader(self._copy)

    def check_module(self, pl_module: LightningModule, method: Method | None) -> None:
        """Refuse a module that cannot leave out samples by their weight, where the dataset does not drop them.

        Raises:
            MisconfigurationException: If it is one; the message says what to write.
        """
        picks = method is None or method.picks_in_batch
        if self.filters or picks or isinstance(pl_module, WeightedLossMixin):
            return
        raise MisconfigurationException(
            f"Expected a module with `WeightedLossMixin`, since samples of a stream are left out by a weight of 0, but "
            f"`{type(pl_module).__name__}` does not have it. Drop them within the dataset: "
            "`lightning_prune.data.PrunedStream(dataset, key=...)`."
        )

    def is_used_by(self, trainer: Trainer) -> bool:
        """Return whether the fit loop really draws from this loader."""
        return private.draws_from(trainer, self.planned)

    def skip(self, batches: int) -> None:
        """Do nothing: a stream goes on by a position of its own, or begins again."""

    def restore(self, trainer: Trainer) -> None:
        """Let everything pass, and give the fit loop the user's loader back."""
        private.give_back(trainer, self.planned, self.original)
        if self._copy is not self.original:
            private.stop_workers(self._copy)
        for part in self.filters:
            part.release()


@final
class TogetherLoader:
    """Yields a loader's batches for as long as every rank has one, so that all take as many steps.

    Each rank knows one batch ahead whether it has another, and tells the others while the step before it runs.
    What a rank has left over is not trained.

    Args:
        loader: This rank's loader.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._group: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        if self._group is None:  # beside the one on the devices, which steps would have to wait for
            self._group = torch.distributed.new_group(backend="gloo")
        batches = iter(self._loader)
        end = object()
        following = next(batches, end)
        told = self._tell(following is not end)
        while True:
            batch, (all_have, work) = following, told
            work.wait()
            if int(all_have) == 0:
                return
            following = next(batches, end)
            told = self._tell(following is not end)
            yield batch

    def _tell(self, has_batch: bool) -> tuple[Tensor, Any]:
        """Begin to find out whether every rank has a batch; return where that will be, and what to wait for."""
        flag = torch.tensor(int(has_batch), dtype=torch.int32)
        return flag, torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, self._group, async_op=True)


def _check(loader: Any, num_samples: int | None, method: Method | None) -> None:
    """Refuse what cannot work with a stream."""
    name, method_name = type(getattr(loader, "dataset", loader)).__name__, type(method).__name__
    if method is not None and method.refreshes_losses:
        raise MisconfigurationException(
            f"Expected a map-style dataset, since {method_name} asks for the losses of skipped samples, but got the "
            f"IterableDataset `{name}`, from which single samples cannot be read. Use another method."
        )
    if num_samples is not None or (method is not None and method.picks_in_batch and not method.picks_by_ids):
        return
    dataset = getattr(loader, "dataset", loader)
    by_index = ""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        by_index = (
            " It has `__getitem__` and `__len__`, so read it by index: derive `class MapStyle(torch.utils.data."
            "Dataset)`, whose two methods call these, and give the loader `MapStyle(dataset)` with `shuffle=True`."
        )
    raise MisconfigurationException(
        f"Expected a map-style dataset, or the number of samples of the IterableDataset `{name}`, which yields them in "
        "an order of its own, but got neither. Add `ScoreRegistry(num_samples=N)` to the Trainer's callbacks, let the "
        "stream yield an id in [0, N) with each sample, and write `self.weighted_loss(losses, indices=ids)`. "
        "`lightning_prune.data.PrunedStream(dataset, key=...)` then drops what is not selected before it is decoded; "
        f"else it is trained with weight 0.{by_index or ' Or give the dataset `__getitem__` and `__len__`.'}"
    )
