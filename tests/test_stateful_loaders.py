"""Loaders that can go on in mid-epoch by themselves: the plan says where, and nothing is left out twice."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from lightning_prune import InfoBatch, Pruner, ScoreRegistry
from tests.helpers import Keep, Model, PlainModel, make_dataset, make_trainer, registry_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create the checkpoint",
    "ignore:`Resumable` overrides `__iter__`",
    "ignore:Pruning saves no steps",
    "ignore:.set_vital. is deprecated",  # torchdata, under new versions of torch
)


class Resumable(DataLoader):
    """Goes on after the batches that it has yielded; Lightning's interface, in the fewest lines."""

    done = skip = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.skip = state["done"]

    def __iter__(self):
        skip, self.skip, self.done = self.skip, 0, 0
        for batch in super().__iter__():
            self.done += 1
            if self.done > skip:
                yield batch


def resumable(num=40, **kwargs):
    return Resumable(make_dataset(num), 4, **{"shuffle": True, **kwargs})


def stateful(num=40, **kwargs):
    """torchdata's own."""
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    return loader(make_dataset(num), 4, **{"shuffle": True, **kwargs})


MAKERS = {"own": resumable, "torchdata": stateful}


def fit(model, data, *callbacks, ckpt_path=None, **kwargs):
    trainer = make_trainer(*callbacks, **{"max_epochs": 3, **kwargs})
    torch.manual_seed(0)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer, model


def every_step(folder):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kwargs", [{}, {"shuffle": False}], ids=["shuffled", "in order"])
@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_left_out_twice(name, kwargs, workers, tmp_path):
    """In each epoch: after its first batches, before its last one, and after that."""

    def make():
        return MAKERS[name](**kwargs, num_workers=workers)

    trainer, model = fit(Model(), make(), InfoBatch(), every_step(tmp_path), enable_checkpointing=True)
    whole = registry_of(trainer).to_dict()
    lengths = model.epoch_batches(3)
    assert lengths[0] == 10
    steps = [3, 9, 10, 12, 10 + lengths[1], len(model.seen) - 2] if workers == 0 else [3, 12]
    for step in steps:
        resumed, again = fit(Model(), make(), InfoBatch(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert again.seen == model.seen[step:], step
        for column, values in registry_of(resumed).to_dict().items():
            assert torch.equal(values.nan_to_num(-1), whole[column].nan_to_num(-1)), (step, column)
        for i, loss in again.true_losses.items():
            assert float(registry_of(resumed).losses[i]) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_the_users_loader_is_left_alone(name, tmp_path):
    _, model = fit(Model(), MAKERS[name](), InfoBatch(), every_step(tmp_path), enable_checkpointing=True)
    loader = MAKERS[name]()
    before = {key: value for key, value in vars(loader).items() if key != "_iterator"}
    fit(Model(), loader, InfoBatch(), ckpt_path=tmp_path / "step=3.ckpt")
    assert {key: value for key, value in vars(loader).items() if key != "_iterator"} == before
    loader.load_state_dict(loader.state_dict())  # a position of the user's own counts no more
    _, again = fit(Model(), loader, InfoBatch())
    assert again.seen == model.seen


class Pair(Model):
    """Trains the one, and keeps what the other yields."""

    def __init__(self):
        super().__init__()
        self.other: list[list[int]] = []

    def losses(self, batch):
        self.other.append(batch["other"][2].tolist())
        return super().losses(batch["main"])


@pytest.mark.parametrize("name", MAKERS)
def test_another_loader_goes_on_where_it_was(name, tmp_path):
    """Lightning's own doing: that ours is iterated anew must not undo it."""

    def make():
        loaders = {"main": MAKERS[name](), "other": MAKERS[name](52, shuffle=False)}
        return CombinedLoader(loaders, "max_size_cycle")

    callbacks = [ScoreRegistry("main"), Keep(1.0, 0.5)]
    _, model = fit(Pair(), make(), *callbacks, every_step(tmp_path), enable_checkpointing=True, max_epochs=2)
    assert len(model.other) == 26
    for step in (3, 11, 16):
        _, again = fit(
            Pair(),
            make(),
            ScoreRegistry("main"),
            Keep(1.0, 0.5),
            ckpt_path=tmp_path / f"step={step}.ckpt",
            max_epochs=2,
        )
        assert again.seen == model.seen[step:], step
        assert again.other == model.other[step:], step


def test_a_run_goes_on_without_us(tmp_path):
    """What is saved as the loader's position is what its own class saves."""
    fit(Model(), resumable(shuffle=False), Keep(1.0), every_step(tmp_path), enable_checkpointing=True)
    _, after = fit(PlainModel(), resumable(shuffle=False), ckpt_path=tmp_path / "step=3.ckpt", max_epochs=1)
    assert [i for _, ids in after.seen for i in ids] == list(range(12, 40))


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_goes_on_with_us(name, tmp_path):
    """The rest of an epoch that was none of ours leaves out as many batches as were trained."""
    make = MAKERS[name]
    fit(PlainModel(), make(shuffle=False), every_step(tmp_path), enable_checkpointing=True)
    with pytest.warns(UserWarning, match="written in the middle of epoch 0 of a run without"):
        _, after = fit(Model(), make(shuffle=False), Keep(0.5), ckpt_path=tmp_path / "step=3.ckpt")
    assert [i for epoch, ids in after.seen if epoch == 0 for i in ids] == list(range(12, 40))
    assert after.epoch_batches(3)[1:] == [5, 5]


@pytest.mark.parametrize("name", MAKERS)
def test_in_a_loop(name):
    """The pruner's state has the position, and the loader's own is not asked."""

    def run(state=None, stop=None):
        torch.manual_seed(0)
        pruner, seen = Pruner(Keep(1.0, 0.5), max_epochs=2, seed=0), []
        loader = pruner.attach(MAKERS[name]())
        if state is not None:
            pruner.load_state_dict(state[0])
            loader.load_state_dict(state[1])
        for _ in pruner.epochs():
            for _, _, ids in loader:
                seen.append(ids.tolist())
                pruner.weighted_loss(ids.float())
                if len(seen) == stop:
                    return pruner.state_dict(), loader.state_dict(), seen
        return seen

    whole = run()
    state = run(stop=3)
    assert run(state) == whole[3:]


def test_torchdatas_loader_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`StatefulDataLoader`")
        _, model = fit(Model(), stateful(), InfoBatch())
    assert len(model.epoch_ids(0)) == 40
