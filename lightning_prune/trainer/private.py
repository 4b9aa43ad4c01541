"""The only file that touches private API of Lightning and torch: loader installation and epoch lengths.

Written against Lightning 2.4 to 2.6 and torch 2.4 to 2.15. What is private here: ``fit_loop._data_source``,
``._combined_loader``, ``._data_fetcher``, ``.max_batches``, ``trainer.val_check_batch``, ``CombinedLoader._mode``,
``DataLoader._iterator`` and the guard on setting a loader's samplers.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, final

import lightning
import torch
from lightning.fabric.utilities.data import _auto_add_worker_init_fn, sized_len
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

from lightning_prune.core.draw import Draw
from lightning_prune.core.rng import isolated_rng
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler

_USUAL_BATCH_SIZE = 64
"""Of a forward pass over samples whose loader tells no batch size."""


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
    _check_strategy(trainer.strategy, trainer.world_size)


def overfits(trainer: Trainer) -> int | float:
    """Return how many batches, or which share of them, ``Trainer(overfit_batches=...)`` trains; 0: it is not set."""
    overfit: int | float = trainer.overfit_batches  # type: ignore[attr-defined]  # set by a connector
    return overfit


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
                f"share {shares} part(s) of the data. Use DDP, or let FSDP split the model over all of them: "
                f"`ModelParallelStrategy(data_parallel_size={world_size}, tensor_parallel_size=1)`."
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


def choose_loader(loaders: Any, key: str | int | None, *, streams: bool = False) -> tuple[CombinedLoader, int]:
    """Return the loaders as a `CombinedLoader` of our own and the position of the one to prune among its leaves.

    Args:
        loaders: What the user gave.
        key: Name or position of the loader; None: there is one.
        streams: Take anything that can be iterated over where there is no DataLoader, but one such.

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
                f"Expected one train DataLoader, but got {len(positions)}. Say which one to prune: "
                f"add `ScoreRegistry(loader=...)` with one of {keys} to the Trainer's callbacks."
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
    if not positions and streams and len(leaves) == 1:
        positions = [0]
    if not positions:
        got = type(loaders if key is None else tree[key]).__name__
        raise MisconfigurationException(
            f"Expected a `torch.utils.data.DataLoader` to prune, but got {got}. "
            "Wrap the dataset: `DataLoader(dataset, batch_size=..., shuffle=True)`."
        )
    return combined, positions[0]


def begins_again(combined: CombinedLoader) -> bool:
    """Return whether a loader that ends before the epoch does begins again; else its batch is None from then on."""
    return combined._mode != "max_size"


def names_of(combined: CombinedLoader) -> list[str]:
    """Return what `ScoreRegistry(loader=...)` calls the leaves: keys of a dict, else positions."""
    leaves, tree = combined.flattened, combined.iterables
    keys = list(tree) if isinstance(tree, dict) and len(tree) == len(leaves) else range(len(leaves))
    return [repr(key) for key in keys]


def warn_unless_they_end_epochs(trainer: Trainer, planned: list[Any]) -> None:
    """Warn if none of the pruned loaders says when an epoch ends, so that no steps are saved; in ``on_train_start``."""
    combined = trainer.fit_loop._combined_loader
    assert combined is not None  # noqa: S101  (narrowing: the loop has set up its data)
    limits, mode = _limits_of(trainer, combined), combined._mode
    pruned = [any(leaf is one for one in planned) for leaf in combined.flattened]
    others = [(limit, i) for i, limit in enumerate(limits) if not pruned[i]]
    if not others:
        return
    own, position = (min if mode == "min_size" else max)((limit, i) for i, limit in enumerate(limits) if pruned[i])
    limit, i = min(others) if mode == "min_size" else max(others)
    name, other = (names_of(combined)[j] for j in (position, i))
    length = "no end" if limit == float("inf") else f"{limit} batches"
    if mode == "max_size_cycle" and limit >= own:
        rank_zero_warn(
            f"Pruning saves no steps: the pruned train DataLoader {name} has {own} batches, but {other} has {length}, "
            f'and with `mode="max_size_cycle"` (Lightning\'s default) {name} begins again until that ends. Let epochs '
            f'end with {name}, `CombinedLoader(loaders, "min_size")`'
            + (f", or prune the longest, `ScoreRegistry(loader={other})`." if limit != float("inf") else ".")
        )
    elif mode == "min_size" and limit < own:
        rank_zero_warn(
            f"Pruning saves no steps while more than {limit} batches are selected: the pruned train DataLoader {name} "
            f'has {own} batches, but with `mode="min_size"` an epoch ends with {other} ({length}), and what is left of '
            f"the selection is not trained. Prune the shortest, `ScoreRegistry(loader={other})`, or make it longer."
        )


def check_loader(loader: DataLoader[Any]) -> None:
    """Refuse a loader whose samples have no index, or come in another order than they are drawn in.

    Raises:
        MisconfigurationException: If pruning cannot work with this loader; the message says what to write instead.
    """
    if isinstance(loader.dataset, IterableDataset):
        way_out = "Give the dataset `__getitem__` and `__len__`, or use a Trainer, which prunes streams, too."
        if hasattr(loader.dataset, "__getitem__") and hasattr(loader.dataset, "__len__"):
            way_out = (
                "It has `__getitem__` and `__len__`, so read it by index: derive `class MapStyle(torch.utils.data."
                "Dataset)`, whose two methods call these, and give the loader `MapStyle(dataset)` with `shuffle=True`."
            )
        raise MisconfigurationException(
            f"Expected a map-style dataset, but got the IterableDataset `{type(loader.dataset).__name__}`, which "
            f"yields samples in an order of its own: they have no index that could be left out. {way_out}"
        )
    if loader.batch_sampler is None and not hasattr(loader.sampler, "batch_size"):
        raise MisconfigurationException(
            "Expected a DataLoader that forms batches, but got `batch_size=None`. "
            "Set `batch_size` and let the collate function see a list of samples, or keep `batch_size=None` and give "
            "it `sampler=BatchSampler(...)`."
        )
    if not getattr(loader, "in_order", True):
        raise MisconfigurationException(
            "Expected a DataLoader with `in_order=True`, but got `in_order=False`: "
            "batches in another order would be credited to the wrong samples."
        )
    if len(loader.dataset) == 0:  # type: ignore[arg-type]
        raise MisconfigurationException("Expected a training dataset of at least one sample, but it is empty.")


def check_sharding(trainer: Trainer, loader: DataLoader[Any]) -> None:
    """Refuse, in a run of several processes, a loader in which each process reads data of its own; collective.

    Where Lightning was told not to shard, and the loader does not either, ranks compare their first and last sample.

    Raises:
        MisconfigurationException: If they are not the same.
    """
    shards = trainer._accelerator_connector.use_distributed_sampler
    sampler = getattr(_batches_of(loader), "sampler", None)
    if trainer.world_size == 1 or shards or isinstance(sampler, DistributedSampler):
        return
    data: Any = loader.dataset
    with isolated_rng(0):  # random transforms draw the same on each rank
        own = _as_text([len(data), data[0], data[len(data) - 1]])
    everyone = [""] * trainer.world_size
    torch.distributed.all_gather_object(everyone, own)
    if len(set(everyone)) > 1:
        raise MisconfigurationException(
            f"Expected a loader of the whole dataset, the same on each of the {trainer.world_size} processes, but with "
            "`use_distributed_sampler=False` each reads data of its own: ids of one would be taken for those of "
            "another. Give each process the whole dataset: pruning shards it."
        )


def _as_text(value: Any) -> str:
    """Return what a sample holds, so that equal ones of two processes have equal texts."""
    if isinstance(value, torch.Tensor):
        return str(value.tolist())
    if isinstance(value, dict):
        return str({key: _as_text(part) for key, part in value.items()})
    return str([_as_text(part) for part in value]) if isinstance(value, (list, tuple)) else repr(value)


def _batches_of(loader: DataLoader[Any]) -> Any:
    """Return what a loader draws its batches from; with ``batch_size=None`` that is its sampler."""
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def plan_sampler(sampler: Any, num_samples: int, *, seed: int, rank: int, world_size: int) -> PlanSampler:
    """Return a sampler of plans in place of a user's: it shuffles, goes in order, or follows what the user's draws.

    Raises:
        MisconfigurationException: If it is a sharding sampler of the user's own, in a run of several processes.
    """
    shuffle, draw = False, None
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == num_samples:
        shuffle = True
    elif type(sampler) is DistributedSampler:
        shuffle = bool(sampler.shuffle)
    elif type(sampler) is not SequentialSampler:
        if isinstance(sampler, DistributedSampler) and (world_size > 1 or sampler.num_replicas > 1):
            raise MisconfigurationException(
                f"Expected a sampler of the whole dataset, whose draw is then shared among {world_size} processes, but "
                f"got `{type(sampler).__name__}`, which shards by itself. Give the loader the sampler that it shards "
                "(for Fabric: `setup_dataloaders(loader, use_distributed_sampler=False)`)."
            )
        draw = Draw(sampler, num_samples)
    return PlanSampler(
        num_samples, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size, draw=draw, original=sampler
    )


def plan_batches(inner: Any, num_samples: int, *, seed: int, rank: int, world_size: int) -> PlanBatchSampler:
    """Return a batch sampler of plans in place of a user's.

    A plain `BatchSampler` is one that cuts what its sampler yields. Any other is asked for its batches; if it reads a
    ``sampler``, that yields what is selected, so that the batches are made of it.

    Raises:
        MisconfigurationException: If a sampler in it cannot be followed.
    """
    ours = partial(plan_sampler, num_samples=num_samples, seed=seed)
    if type(inner) is BatchSampler:
        sampler = ours(inner.sampler, rank=rank, world_size=world_size)
        return PlanBatchSampler(sampler, inner.batch_size, inner.drop_last, original=inner)
    draw = Draw(inner, num_samples)
    own = getattr(inner, "sampler", None)
    if own is not None:
        with contextlib.suppress(AttributeError):  # a property
            draw.source.sampler = ours(own, rank=0, world_size=1)
    sampler = PlanSampler(num_samples, shuffle=False, seed=seed, rank=rank, world_size=world_size, original=own)
    size, drop_last = getattr(inner, "batch_size", None), bool(getattr(inner, "drop_last", False))
    return PlanBatchSampler(sampler, size if isinstance(size, int) else None, drop_last, draw=draw, original=inner)


_NO_POSITION: dict[str, Any] = {"next_iter_state": None, "_initial_iter_for_state_dict": False}
"""Where torchdata's `StatefulDataLoader` keeps a position to go on from, and what says that there is none."""


def _load_no_position(state_dict: dict[str, Any]) -> None:
    """Stand in for the ``load_state_dict`` of a loader that would leave out again what the plan has left out."""


@final
class PlannedLoader:
    """A user's loader and a shallow copy of it that draws from a plan; the user's is not modified.

    A copy, not a re-instantiation: it works for every subclass of `DataLoader`, whatever its ``__init__`` takes.

    Args:
        original: The user's loader.
        seed: Seed of the order.
        rank: This process's rank.
        world_size: Number of ranks.

    Attributes:
        dataset: The user's dataset.
        keeps_position: Whether the user's loader can go on in the middle of an epoch, by ``load_state_dict``.
        states: Positions of all train loaders that a checkpoint holds; those of others than this one count.

    Raises:
        MisconfigurationException: If pruning cannot work with this loader; the message says what to write instead.
    """

    def __init__(self, original: DataLoader[Any], *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        check_loader(original)
        self.original = original
        self.dataset: Any = original.dataset
        self.states: list[dict[str, Any]] = []
        self.num_samples = len(original.dataset)  # type: ignore[arg-type]
        self.batch_sampler = plan_batches(
            _batches_of(original), self.num_samples, seed=seed, rank=rank, world_size=world_size
        )
        self.batch_sampler.loader_name = type(original).__name__
        self.planned = own_copy(original)
        values: dict[str, Any] = {}
        if original.batch_sampler is None:
            values = {"sampler": self.batch_sampler}
        else:
            values = {"sampler": self.batch_sampler.sampler, "batch_sampler": self.batch_sampler}
        self.keeps_position = callable(getattr(original, "load_state_dict", None))
        if self.keeps_position:  # the plan alone says where to go on
            values |= {"load_state_dict": _load_no_position}
            values |= {name: value for name, value in _NO_POSITION.items() if hasattr(original, name)}
        for name, value in values.items():
            object.__setattr__(self.planned, name, value)  # DataLoader forbids to set samplers
        iterates = type(original).__iter__
        if iterates is not DataLoader.__iter__ and not iterates.__module__.startswith("torchdata."):
            rank_zero_warn(
                f"`{type(original).__name__}` overrides `__iter__`. If it drops or reorders batches, losses are "
                "credited to the wrong samples: then return the dataset indices with each batch and pass them, "
                "`self.weighted_loss(losses, indices=indices)`."
            )

    def skip(self, batches: int) -> None:
        """Have the next iterator go on after ``batches`` batches of an epoch that is not planned."""
        length = len(self.batch_sampler)
        self.batch_sampler.skip = batches % length if self.batch_sampler.begins_again else min(batches, length)

    def is_used_by(self, trainer: Trainer) -> bool:
        """Return whether the fit loop really draws from this loader."""
        return draws_from(trainer, self.planned)

    def restore(self, trainer: Trainer) -> None:
        """Stop the copy's workers and give the fit loop the user's loader back."""
        stop_workers(self.planned)
        give_back(trainer, self.planned, self.original)


def own_copy(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a shallow copy of a loader, which starts workers of its own."""
    planned = copy.copy(loader)
    object.__setattr__(planned, "_iterator", None)
    return planned


def stop_workers(loader: DataLoader[Any]) -> None:
    """Stop the workers of a loader."""
    iterator = loader._iterator
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    object.__setattr__(loader, "_iterator", None)


def seed_workers(loader: Any, rank: int) -> None:
    """Have a loader's workers seeded as Lightning does with one that it is given itself."""
    _auto_add_worker_init_fn(loader, rank)


def draws_from(trainer: Trainer, loader: Any) -> bool:
    """Return whether the fit loop draws from a loader."""
    combined = trainer.fit_loop._combined_loader
    return combined is not None and any(leaf is loader for leaf in combined.flattened)


def give_back(trainer: Trainer, planned: Any, original: Any) -> None:
    """Put a user's loader in the place of ours in the fit loop."""
    combined = trainer.fit_loop._combined_loader
    if combined is not None:
        combined.flattened = [original if leaf is planned else leaf for leaf in combined.flattened]


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


def resumes_in_epoch(trainer: Trainer) -> bool:
    """Return whether Lightning goes on in an epoch, whose start hooks it does not call; in ``on_train_start``."""
    loop = trainer.fit_loop
    if hasattr(loop, "restarted_mid_epoch"):
        return bool(loop.restarted_mid_epoch)
    return bool(loop.restarting) and 0 < loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches


def resumes_on_last_batch(trainer: Trainer) -> bool:
    """Return whether the epoch in which Lightning goes on has no batch left, so that it enters the next one."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.ready == progress.processed)


def set_epoch_length(trainer: Trainer) -> int | float:
    """Make the fit loop follow the loader's present length; return the number of batches.

    Without this, short epochs skip validation, and no later epoch is longer than the first.
    """
    loop = trainer.fit_loop
    combined = loop._combined_loader
    assert combined is not None  # noqa: S101  (narrowing: the loop has set up its data)
    limits = combined.limits = _limits_of(trainer, combined)
    num_batches = min(limits) if combined._mode == "min_size" else max(limits)
    set_max_batches(trainer, num_batches)
    return num_batches


def _limits_of(trainer: Trainer, combined: CombinedLoader) -> list[int | float]:
    """Return how many batches of each loader an epoch has at most."""
    lengths = [sized_len(leaf) for leaf in combined.flattened]
    return [limit_batches(float("inf") if n is None else n, trainer.limit_train_batches) for n in lengths]


def set_max_batches(trainer: Trainer, num_batches: int | float) -> None:
    """Set ``trainer.num_training_batches`` and when validation is due in an epoch of that many batches."""
    trainer.fit_loop.max_batches = num_batches
    if trainer.val_check_batch is None or num_batches == float("inf"):  # by wall time; by steps, or never
        return
    interval = trainer.val_check_interval
    if isinstance(interval, float):
        trainer.val_check_batch = max(1, int(num_batches * interval))
    elif trainer.check_val_every_n_epoch is not None:
        trainer.val_check_batch = min(interval, num_batches)


def reloads(trainer: Trainer) -> bool:
    """Return whether the loop requests its loaders again in the course of a run."""
    every: int = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]  # set by a connector
    return every > 0


def reload_if_due(trainer: Trainer) -> None:
    """Have the loop request its loaders anew where ``reload_dataloaders_every_n_epochs`` says so."""
    trainer.fit_loop.setup_data()


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


def loader_states(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the positions of train loaders from a checkpoint, which the fit loop is about to load and to forget."""
    return list(getattr(trainer.fit_loop, "_combined_loader_states_to_load", []))


def iterate(trainer: Trainer, *, keep_rng: bool, states: list[dict[str, Any]] | None = None) -> None:
    """Make a fresh iterator over the loaders, for a plan that the live one was not made with.

    Args:
        trainer: The trainer.
        keep_rng: Give back the number that torch draws from the global generator for the workers' seed, where an
            unpruned run would not have drawn it.
        states: Positions that the loaders are to go on from; the live iterator has used them up.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None  # noqa: S101  (narrowing: the loop has set up its data)
    if states:
        fetcher.combined_loader._load_state_dicts(states)
    with torch.random.fork_rng(devices=[], enabled=keep_rng):
        iter(fetcher)


def subset_loader(original: DataLoader[Any], indices: list[int]) -> DataLoader[Any]:
    """Return a loader of these samples, in this order, that fetches and collates as the user's loader does."""
    size = getattr(_batches_of(original), "batch_size", None)
    size = size if isinstance(size, int) else _USUAL_BATCH_SIZE
    by_batch = original.batch_sampler is None  # the dataset is asked for whole batches
    return DataLoader(
        original.dataset,
        batch_size=None if by_batch else size,
        sampler=[indices[i : i + size] for i in range(0, len(indices), size)] if by_batch else indices,
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
