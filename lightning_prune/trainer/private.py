"""The only file that touches private API of Lightning and torch: loader installation and epoch lengths.

Written against Lightning 2.4 to 2.6 and torch 2.4 to 2.15. What is private here: ``fit_loop._data_source``,
``._combined_loader``, ``._data_fetcher``, ``.max_batches``, ``trainer.val_check_batch``, ``CombinedLoader._mode``,
``DataLoader._iterator`` and the guard on setting a loader's samplers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.wrappers import _FabricDataLoader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler, RecordingBatchSampler


def get_callbacks(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return callbacks


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Replace the trainer's list of callbacks."""
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def check_trainer(trainer: Trainer) -> None:
    """Raise MisconfigurationException for a Trainer that pruning cannot work with."""
    loop = trainer.fit_loop
    needed = ("_data_source", "_combined_loader", "_data_fetcher", "max_batches")
    if missing := [name for name in needed if not hasattr(loop, name)]:
        raise MisconfigurationException(
            f"Expected a version of Lightning whose fit loop has {missing}, but got {lightning.__version__}. "
            "Install one that lightning-prune was tested with: `pip install 'lightning>=2.4,<2.7'`."
        )
    if overfit := trainer.overfit_batches:  # type: ignore[attr-defined]  # set by a connector
        raise MisconfigurationException(
            f"Expected `overfit_batches=0` with pruning, but got {overfit}: Lightning would replace the sampler and "
            "pruning would silently stop. Use `limit_train_batches` instead."
        )
    _check_strategy(trainer.strategy, trainer.world_size)


def _check_strategy(strategy: Strategy, world_size: int) -> None:
    """Refuse strategies whose processes do not each train batches of their own, or cannot exchange tensors."""
    name = type(strategy).__name__
    if any(base.__name__ == "XLAStrategy" for base in type(strategy).__mro__):
        raise MisconfigurationException(
            f"Expected processes that exchange tensors by `torch.distributed`, but got `{name}`, whose do not. "
            "Use one TPU core, or DDP on GPUs or CPUs."
        )
    if isinstance(strategy, ParallelStrategy):
        shares = strategy.distributed_sampler_kwargs.get("num_replicas", world_size)
        if shares != world_size:
            raise MisconfigurationException(
                f"Expected each of the {world_size} processes to train batches of its own, but `{name}` has them "
                f"share {shares} part(s) of the data. Use DDP, or FSDP over all devices."
            )


@final
class _PlannedSource(_DataLoaderSource):
    """Stands in for a fit loop's data source and passes what it returns through ``transform``."""

    def __init__(self, source: _DataLoaderSource, transform: Callable[[Any], Any]) -> None:
        self.source = source
        self.transform = transform
        self.name = source.name

    @property
    def instance(self) -> Any:
        return self.source.instance

    @instance.setter
    def instance(self, value: Any) -> None:
        self.source.instance = value

    def dataloader(self) -> Any:
        try:
            return self.transform(self.source.dataloader())
        except BaseException:
            _restore_loader_classes()
            raise


def _restore_loader_classes() -> None:
    """Undo what Lightning patches in these classes while it asks for loaders, and leaves there after an exception."""
    classes: list[type] = [DataLoader, BatchSampler]
    for cls in classes:
        children: list[type] = type.__subclasses__(cls)
        classes += [child for child in children if child not in classes]
        for name in ("__setattr__", "__delattr__", "__init__"):
            if (before := cls.__dict__.get(f"__old{name}")) is not None:
                setattr(cls, name, before)
                delattr(cls, f"__old{name}")


def install_source(trainer: Trainer, transform: Callable[[Any], Any]) -> None:
    """Pass every train loader that the fit loop requests through ``transform``; undone by :func:`uninstall_source`."""
    uninstall_source(trainer)
    loop = trainer.fit_loop
    loop._data_source = _PlannedSource(loop._data_source, transform)


def uninstall_source(trainer: Trainer) -> None:
    """Give the fit loop its own data source back."""
    loop = trainer.fit_loop
    if isinstance(loop._data_source, _PlannedSource):
        loop._data_source = loop._data_source.source


def choose_loader(loaders: Any, key: str | int | None) -> tuple[CombinedLoader, int]:
    """Return the loaders as a `CombinedLoader` of our own and the position of the one to prune among its leaves.

    Raises:
        MisconfigurationException: If there is no such loader, or several and ``key`` is None.
    """
    combined = copy.copy(loaders) if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "max_size_cycle")
    leaves, tree = combined.flattened, combined.iterables
    if key is None:
        positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, DataLoader)]
        if len(positions) > 1:
            keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            raise MisconfigurationException(
                f"Expected one train DataLoader, but got {len(positions)}, and which one to prune is not said. "
                f"Add `ScoreRegistry(loader=...)` with one of {keys} to the Trainer's callbacks."
            )
    else:
        try:
            chosen = tree[key]
        except (KeyError, IndexError, TypeError):
            keys = list(tree) if isinstance(tree, dict) else list(range(len(leaves)))
            raise MisconfigurationException(
                f"Expected `ScoreRegistry(loader=...)` to name one of the train DataLoaders {keys}, but got {key!r}."
            ) from None
        positions = [i for i, leaf in enumerate(leaves) if leaf is chosen and isinstance(leaf, DataLoader)]
    if not positions:
        got = type(loaders if key is None else tree[key]).__name__
        raise MisconfigurationException(
            f"Expected a `torch.utils.data.DataLoader` to prune, but got {got}. "
            "Wrap the dataset: `DataLoader(dataset, batch_size=..., shuffle=True)`."
        )
    return combined, positions[0]


def check_loader(loader: DataLoader[Any]) -> bool:
    """Return whether the loader shuffles.

    Raises:
        MisconfigurationException: If pruning cannot work with this loader; the message says what to write instead.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise MisconfigurationException(
            f"Expected a map-style dataset, but got the IterableDataset `{type(loader.dataset).__name__}`: "
            "its samples have no index that could be left out. Give the dataset `__getitem__` and `__len__`."
        )
    if loader.batch_sampler is None:
        raise MisconfigurationException(
            "Expected a DataLoader that forms batches, but got `batch_size=None`. "
            "Set `batch_size` and let the collate function see a list of samples."
        )
    if not getattr(loader, "in_order", True):
        raise MisconfigurationException(
            "Expected a DataLoader with `in_order=True`, but got `in_order=False`: "
            "batches in another order would be credited to the wrong samples."
        )
    if not hasattr(loader.batch_sampler, "sampler"):
        raise MisconfigurationException(
            f"Expected a batch sampler with a `.sampler` that can be replaced, but "
            f"`{type(loader.batch_sampler).__name__}` has none. Derive it from "
            "`torch.utils.data.BatchSampler`, or set `batch_size` and `shuffle` instead."
        )
    if len(loader.dataset) == 0:  # type: ignore[arg-type]
        raise MisconfigurationException("Expected a training dataset of at least one sample, but it is empty.")
    return _shuffles(loader)


def _shuffles(loader: DataLoader[Any]) -> bool:
    sampler = getattr(loader.batch_sampler, "sampler", None)
    total = len(loader.dataset)  # type: ignore[arg-type]
    if type(sampler) is SequentialSampler:
        return False
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == total:
        return True
    if isinstance(sampler, DistributedSampler):
        return bool(sampler.shuffle)
    raise MisconfigurationException(
        f"Expected a DataLoader that visits its whole dataset, shuffled or in order, but its sampler is a "
        f"`{type(sampler).__name__}`, whose choice or weighting of samples would be lost. Use `shuffle=True`; "
        "for a fixed subset wrap the dataset in `torch.utils.data.Subset`."
    )


@final
class PlannedLoader:
    """A user's loader and a shallow copy of it that draws from a plan; the user's is not modified.

    A copy, not a re-instantiation: it works for every subclass of `DataLoader`, whatever its ``__init__`` takes.

    Args:
        original: The user's loader.
        sampler: Yields the plan.
    """

    def __init__(self, original: DataLoader[Any], sampler: PlanSampler) -> None:
        self.original = original
        self.sampler = sampler
        self.num_samples = sampler.total
        self.batch_sampler = _plan_batches(original.batch_sampler, sampler)
        self.planned = copy.copy(original)
        values = {"_iterator": None, "batch_sampler": self.batch_sampler, "sampler": sampler}
        for name, value in values.items():
            object.__setattr__(self.planned, name, value)  # DataLoader forbids to set samplers
        if type(original).__iter__ is not DataLoader.__iter__:
            rank_zero_warn(
                f"`{type(original).__name__}` overrides `__iter__`. If it drops or reorders batches, losses are "
                "credited to the wrong samples: then return the dataset indices with each batch and pass them, "
                "`self.weighted_loss(losses, indices=indices)`."
            )

    def is_used_by(self, trainer: Trainer) -> bool:
        """Return whether the fit loop really draws from this loader."""
        combined = trainer.fit_loop._combined_loader
        return combined is not None and any(leaf is self.planned for leaf in combined.flattened)

    def restore(self, trainer: Trainer) -> None:
        """Stop the copy's workers and give the fit loop the user's loader back."""
        iterator = self.planned._iterator
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        object.__setattr__(self.planned, "_iterator", None)
        combined = trainer.fit_loop._combined_loader
        if combined is not None:
            leaves = [self.original if leaf is self.planned else leaf for leaf in combined.flattened]
            combined.flattened = leaves


def _plan_batches(inner: Any, sampler: PlanSampler) -> PlanBatchSampler | RecordingBatchSampler:
    if type(inner) is BatchSampler:
        return PlanBatchSampler(sampler, inner.batch_size, inner.drop_last)
    own = copy.copy(inner)
    own.sampler = sampler
    return RecordingBatchSampler(own)


def limit_batches(num_batches: int | float, limit: int | float) -> int | float:
    """Return how many of ``num_batches`` are run under ``Trainer(limit_train_batches=limit)``."""
    if isinstance(limit, int):
        return min(num_batches, limit)
    return num_batches if limit == 1.0 else max(1, int(num_batches * limit))


def will_iterate(trainer: Trainer) -> bool:
    """Return whether Lightning makes a fresh iterator right after ``on_train_epoch_start`` of the coming epoch."""
    loop = trainer.fit_loop
    resuming = getattr(loop, "is_resuming", False)
    return trainer.current_epoch > 0 and not resuming and not loop.epoch_loop.restarting


def set_epoch_length(trainer: Trainer) -> int:
    """Make the fit loop follow the loader's present length; return the number of batches.

    Without this, short epochs skip validation, and no later epoch is longer than the first.
    """
    loop = trainer.fit_loop
    combined = loop._combined_loader
    assert combined is not None  # noqa: S101  (narrowing: the loop has set up its data)
    lengths = [len(leaf) if hasattr(leaf, "__len__") else float("inf") for leaf in combined.flattened]
    limits = [limit_batches(length, trainer.limit_train_batches) for length in lengths]
    combined.limits = limits
    num_batches = int(min(limits) if combined._mode == "min_size" else max(limits))
    set_max_batches(trainer, num_batches)
    return num_batches


def set_max_batches(trainer: Trainer, num_batches: int) -> None:
    """Set ``trainer.num_training_batches`` and when validation is due in an epoch of that many batches."""
    trainer.fit_loop.max_batches = num_batches
    if trainer.val_check_batch is None:  # validation by wall time
        return
    interval = trainer.val_check_interval
    if isinstance(interval, float):
        trainer.val_check_batch = max(1, int(num_batches * interval))
    elif trainer.check_val_every_n_epoch is not None:
        trainer.val_check_batch = min(interval, num_batches)


def start_epoch_progress(trainer: Trainer) -> None:
    """Count an epoch as started that Lightning enters without its start hooks, after a checkpoint of a last batch.

    Otherwise a checkpoint written in that epoch says that none is running, and a resume from it begins the epoch anew.
    """
    progress = trainer.fit_loop.epoch_progress
    progress.increment_ready()
    progress.increment_started()


def finish_batch_progress(trainer: Trainer, batches_done: int) -> None:
    """Count the batch in whose end hook a checkpoint was written as done; Lightning before 2.5.1 would repeat it."""
    loop = trainer.fit_loop.epoch_loop
    current = loop.batch_progress.current
    if not hasattr(loop, "restarted_on_train_batch_end") and current.completed < batches_done == current.ready:
        loop.batch_progress.increment_completed()
        if not loop._should_accumulate():
            loop._batches_that_stepped += 1  # which loggers show as the step


def iterate(trainer: Trainer, *, keep_rng: bool) -> None:
    """Make a fresh iterator over the loaders, for a plan that the live one was not made with.

    Args:
        trainer: The trainer.
        keep_rng: Give back the number that torch draws from the global generator for the workers' seed, where an
            unpruned run would not have drawn it.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None  # noqa: S101  (narrowing: the loop has set up its data)
    with torch.random.fork_rng(devices=[], enabled=keep_rng):
        iter(fetcher)


def subset_loader(original: DataLoader[Any], indices: list[int]) -> DataLoader[Any]:
    """Return a loader of these samples, in this order, that fetches and collates as the user's loader does."""
    return DataLoader(
        original.dataset,
        batch_size=getattr(original.batch_sampler, "batch_size", None) or 64,
        sampler=indices,
        num_workers=original.num_workers,
        collate_fn=original.collate_fn,
        pin_memory=original.pin_memory,
        timeout=original.timeout,
        worker_init_fn=original.worker_init_fn,
        multiprocessing_context=original.multiprocessing_context,
    )


def unwrap_loader(loader: Any) -> tuple[Any, torch.device | None]:
    """Return the loader inside one that ``fabric.setup_dataloaders`` returned, and where that moves its batches."""
    if isinstance(loader, _FabricDataLoader):
        return loader._dataloader, loader.device
    return loader, None


def batch_loss(trainer: Trainer, outputs: Any) -> torch.Tensor | None:
    """Return the scalar loss that ``training_step`` returned, which Lightning has divided by the accumulation."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else None
    if not isinstance(loss, torch.Tensor):
        return None
    return loss * (trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1)


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Move a batch to the device through the user's transfer hooks, as the fit loop does."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def to_module(module: LightningModule, batch: Any) -> Any:
    """Move a batch to the device of a module, in a fit or not, through the user's transfer hooks."""
    return module._apply_batch_transfer_handler(module._on_before_batch_transfer(batch))


def forward_context(trainer: Trainer) -> AbstractContextManager[Any]:
    """Return the precision plugin's context for a forward pass."""
    return trainer.precision_plugin.forward_context()
