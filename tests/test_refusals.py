"""What cannot work says so before the first step, and says what to write instead."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from lightning_prune import InfoBatch, PruningCallback, RandomPruning, ScoreRegistry, Selection
from lightning_prune.core.sampler import PlanBatchSampler
from tests.helpers import Keep, Model, PlainModel, make_dataset, make_loader, make_trainer


class Stream(IterableDataset):
    def __iter__(self):
        return iter(make_dataset())


class Indexed(Stream):
    """As those of streaming libraries, which can be read by index, too."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return make_dataset()[i]


class Endless(RandomSampler):
    def __iter__(self):
        while True:
            yield from range(40)


class Keys(SequentialSampler):
    def __iter__(self):
        return iter("abcdefgh")


data = make_dataset()
LOADERS = {
    "iterable": (lambda: DataLoader(Stream(), 4), "IterableDataset `Stream`"),
    "iterable by index": (
        lambda: DataLoader(Indexed(), 4),
        "which yields.*so read it by index: derive `class MapStyle",
    ),
    "no_batches": (lambda: DataLoader(data, batch_size=None), "batch_size=None"),
    "endless": (
        lambda: DataLoader(data, 4, sampler=Endless(data)),
        "Expected `Endless` to come to an end in",
    ),
    "keys": (lambda: DataLoader(data, 4, sampler=Keys(data)), r"Expected `Keys` to yield positions.*yielded 'a'"),
    "beyond": (lambda: DataLoader(data, 4, sampler=[3, 40]), r"Expected `list` to yield ids in \[0, 40\).*\[3, 40\]"),
    "list": (lambda: [1, 2, 3], "Expected a `torch.utils.data.DataLoader`"),
    "dict": (lambda: {"a": make_loader(), "b": make_loader()}, r"ScoreRegistry\(loader=...\).*\['a', 'b'\]"),
    "two": (lambda: [make_loader(), make_loader()], r"ScoreRegistry\(loader=...\).*\[0, 1\]"),
    "empty": (lambda: DataLoader(Subset(data, []), 4), "at least one sample"),
}
if "in_order" in DataLoader.__init__.__code__.co_varnames:
    LOADERS["in_order"] = (lambda: make_loader(num_workers=2, in_order=False), "in_order=True")


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name):
    make, match = LOADERS[name]
    model, trainer = Model(), make_trainer(InfoBatch())
    with pytest.raises(MisconfigurationException, match=match):
        trainer.fit(model, make())
    assert not model.seen


@pytest.mark.parametrize("key", ["c", 5])
def test_unknown_loader_key(key):
    with pytest.raises(MisconfigurationException, match=r"one of the train DataLoaders \['a', 'b'\], but got"):
        make_trainer(ScoreRegistry(loader=key), InfoBatch()).fit(Model(), {"a": make_loader(), "b": make_loader()})


def test_processes_that_do_not_exchange_tensors_as_ours():
    """A stand-in by name: the real one needs torch_xla."""

    class XLAStrategy(SingleDeviceStrategy):
        pass

    with pytest.raises(MisconfigurationException, match="by `torch.distributed`, but got `XLAStrategy`.*one TPU core"):
        make_trainer(InfoBatch(), strategy=XLAStrategy("cpu")).fit(Model(), make_loader())


def test_two_methods():
    with pytest.raises(MisconfigurationException, match="Expected one pruning method, but got 2"):
        make_trainer(InfoBatch(), RandomPruning()).fit(Model(), make_loader())


def test_two_registries():
    with pytest.raises((MisconfigurationException, RuntimeError), match="ScoreRegistry"):
        make_trainer(ScoreRegistry(), ScoreRegistry(), InfoBatch()).fit(Model(), make_loader())


def test_module_without_the_mixin():
    with pytest.raises(MisconfigurationException, match=r"class PlainModel\(WeightedLossMixin, LightningModule\)"):
        make_trainer(InfoBatch()).fit(PlainModel(), make_loader())


def test_replaced_loader():
    class Replaces(InfoBatch):
        def on_fit_start(self, trainer, pl_module):
            trainer.fit_loop.setup_data()
            trainer.fit_loop._combined_loader.flattened = [make_loader()]

    with pytest.raises(MisconfigurationException, match="something replaced it"):
        make_trainer(Replaces()).fit(Model(), make_loader())


@pytest.mark.parametrize(
    ("selection", "error", "match"),
    [
        (lambda: Selection(torch.tensor([], dtype=torch.long)), ValueError, "at least one sample"),
        (lambda: Selection(torch.tensor([1, 40])), ValueError, r"ids in \[0, 40\)"),
        (lambda: Selection(torch.tensor([-1, 3])), ValueError, r"got ids in \[-1, 3\]"),
        (lambda: Selection(torch.tensor([3, 3])), ValueError, "at most once, but 1 of 2 ids are repeats"),
        (lambda: Selection(torch.tensor([3]), torch.tensor([float("nan")])), ValueError, "finite weights"),
        (lambda: Selection(torch.tensor([3]), torch.tensor([-1.0])), ValueError, "finite weights"),
        (lambda: torch.tensor([3]), TypeError, "`Bad.select` to return a Selection, but got Tensor"),
        (lambda: Selection(torch.tensor([1.0])), TypeError, "int64 tensor, but got torch.float32"),
        (lambda: Selection(torch.tensor([[1]])), ValueError, r"shape \(k,\)"),
        (lambda: Selection(torch.tensor([1]), torch.ones(2)), ValueError, "shape of `indices`"),
        (lambda: Selection(torch.tensor([1]), torch.tensor([1])), TypeError, "floating-point tensor"),
    ],
)
def test_selections_of_authors(selection, error, match):
    class Bad(PruningCallback):
        def select(self, registry, epoch, generator):
            return selection()

    with pytest.raises(error, match=match):
        make_trainer(Bad()).fit(Model(), make_loader())


def test_method_without_select():
    with pytest.raises(NotImplementedError, match="PruningCallback must override `select"):
        make_trainer(PruningCallback()).fit(Model(), make_loader())


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"seed": -1}, ValueError, "`seed` to be an int >= 0, but got -1"),
        ({"seed": 1.5}, TypeError, "`seed` to be an int >= 0, but got 1.5"),
        ({"warmup_epochs": -1}, ValueError, "`warmup_epochs` to be an int >= 0"),
        ({"warmup_epochs": True}, TypeError, "`warmup_epochs` to be an int"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [InfoBatch, RandomPruning])
def test_shared_arguments(method, kwargs, error, match):
    with pytest.raises(error, match=match):
        method(**kwargs)


def test_overridden_iter_is_warned_about():
    class Skips(DataLoader):
        def __iter__(self):
            return super().__iter__()

    with pytest.warns(UserWarning, match="`Skips` overrides `__iter__`"):
        make_trainer(InfoBatch()).fit(Model(), Skips(data, 4, shuffle=True))


def test_a_refused_fit_can_be_mended():
    """After each refusal the trainer is as it was: the same callbacks work with another loader."""
    trainer, model = make_trainer(InfoBatch()), Model()
    with pytest.raises(MisconfigurationException):
        trainer.fit(model, DataLoader(Stream(), 4))
    assert type(trainer.fit_loop._data_source).__name__ == "_DataLoaderSource"
    trainer.fit(model, make_loader())
    assert model.epoch_batches(1) == [10]


def test_a_refusal_leaves_the_loader_classes_as_they_were():
    """Lightning patches them while it asks for loaders, and would leave that after an exception."""
    before = [dict(vars(cls)) for cls in (DataLoader, BatchSampler, PlanBatchSampler)]
    for _ in range(2):
        with pytest.raises(MisconfigurationException):
            make_trainer(InfoBatch()).fit(Model(), DataLoader(make_dataset(), batch_size=None))
    assert [dict(vars(cls)) for cls in (DataLoader, BatchSampler, PlanBatchSampler)] == before


def test_plain_samplers_are_fine():
    for sampler in (SequentialSampler(data), RandomSampler(data)):
        make_trainer(Keep(0.5), max_epochs=1).fit(Model(), DataLoader(data, 4, sampler=sampler))
    loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 4, True))
    make_trainer(Keep(0.5), max_epochs=1).fit(Model(), loader)
