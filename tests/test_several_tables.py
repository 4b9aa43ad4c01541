"""Several train loaders that are pruned, each by a copy of the method and with a table of its own."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader

from lightning_prune import (
    IES,
    BatchLossScore,
    DivBS,
    EpsilonGreedy,
    InfoBatch,
    OrderDP,
    RandomPruning,
    RePB,
    ScoreRegistry,
    SeTa,
)
from lightning_prune.analysis import PruningMonitor
from lightning_prune.testing.processes import run_ranks, skip_without_fork
from tests.helpers import Keep, Model, PlainModel, make_loader, make_trainer, registry_of
from tests.streams import make_stream

NAMES = ["labelled", "unlabelled"]
SIZES = {"labelled": 24, "unlabelled": 40}
EPOCHS = 4
pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint", "ignore:Checkpoint dir")


class Semi(Model):
    """Trains on both, and notes what of each; the losses of each depend on the sample and the epoch."""

    def __init__(self, names=tuple(NAMES), told=True):
        super().__init__()
        self.names, self.told = names, told
        self.trained = {name: [] for name in names}
        self.truth = {name: {} for name in names}
        self.selected = {name: [] for name in names}

    def training_step(self, batch, batch_idx):
        total = 0
        for position, name in enumerate(self.names):
            part = batch[name]
            if part is None:
                continue
            x, y, index = part
            self.epoch_losses = torch.rand(
                100, generator=torch.Generator().manual_seed(100 * position + self.current_epoch)
            )
            logits = self.layer(x)
            losses = torch.nn.functional.cross_entropy(logits, y, reduction="none") * 0 + self.epoch_losses[index]
            self.trained[name].append((self.current_epoch, index.tolist()))
            self.truth[name] |= dict(zip(index.tolist(), losses.tolist(), strict=True))
            total = total + self.weighted_loss(losses, **({"loader": name} if self.told else {}))
        return total

    def on_train_epoch_start(self):
        if self.trainer.callbacks:
            for name, table in registry_of(self.trainer).tables.items():
                self.selected[name].append(table.selection)


def loaders(mode="max_size_cycle", **kwargs):
    return CombinedLoader({name: make_loader(size, **kwargs) for name, size in SIZES.items()}, mode)


def fit(method, combined=None, model=None, loader=NAMES, ckpt_path=None, callbacks=(), **kwargs):
    model = Semi() if model is None else model
    registry = ScoreRegistry(loader=list(loader) if isinstance(loader, list) else loader)
    trainer = make_trainer(registry, method, *callbacks, **{"max_epochs": EPOCHS, **kwargs})
    torch.manual_seed(0)
    trainer.fit(model, loaders() if combined is None else combined, ckpt_path=ckpt_path)
    return trainer, model


def ids_of(model, name, epoch):
    return [i for e, ids in model.trained[name] if e == epoch for i in ids]


def check(trainer, model):
    tables = registry_of(trainer).tables
    for name, table in tables.items():
        assert table.num_samples == SIZES[name]
        for epoch, selection in enumerate(model.selected[name]):
            assert set(ids_of(model, name, epoch)) <= set(selection.indices.tolist())
        for i, loss in model.truth[name].items():
            assert float(table.losses[i]) == pytest.approx(loss, rel=1e-6)
        assert table.counts.sum() == sum(len(selection) for selection in model.selected[name])


METHODS = {
    "InfoBatch": lambda: InfoBatch(0.5),
    "Keep": lambda: Keep(1.0, 0.3, 0.75, weight=1.5),
    "RePB": lambda: RePB(0.5),
    "OrderDP": OrderDP,
    "SeTa": lambda: SeTa(window_scale=0.6),
    "EpsilonGreedy": lambda: EpsilonGreedy(every_n_epochs=2),
}


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
@pytest.mark.parametrize("name", METHODS)
def test_each_has_its_own_table_and_selection(name, mode):
    trainer, model = fit(METHODS[name](), loaders(mode))
    check(trainer, model)
    full_model = Semi()
    make_trainer().fit(full_model, loaders(mode))
    ours, full = ({n: sum(len(ids) for _, ids in m.trained[n]) for n in NAMES} for m in (model, full_model))
    registry = registry_of(trainer)
    for n in NAMES:
        assert registry.tables[n].saved_fraction == pytest.approx(1 - ours[n] / full[n])
        assert float(trainer.callback_metrics[f"prune/saved_fraction/{n}"]) == pytest.approx(1 - ours[n] / full[n])
    assert registry.saved_fraction == pytest.approx(1 - sum(ours.values()) / sum(full.values()))
    assert f"prune/kept_fraction/{NAMES[1]}" in trainer.callback_metrics
    assert "_pruning_step" not in model.__dict__


@pytest.mark.parametrize("name", ["InfoBatch", "SeTa", "EpsilonGreedy"])
def test_the_first_one_is_pruned_as_if_it_was_alone(name):
    class Alone(Semi):
        def on_train_epoch_start(self):
            self.selected["labelled"].append(registry_of(self.trainer).selection)

    _, both = fit(METHODS[name](), loaders("min_size"))
    _, alone = fit(METHODS[name](), loaders("min_size"), model=Alone(), loader="labelled")
    for ours, theirs in zip(both.selected["labelled"], alone.selected["labelled"], strict=True):
        assert torch.equal(ours.indices, theirs.indices)
    assert [ids_of(both, "labelled", e) for e in (0, 1)] == [ids_of(alone, "labelled", e) for e in (0, 1)]


def test_loaders_of_one_length_are_not_shuffled_alike():
    same = CombinedLoader({name: make_loader(40) for name in NAMES}, "min_size")
    _, model = fit(InfoBatch(0.5), same)
    assert ids_of(model, "labelled", 0) != ids_of(model, "unlabelled", 0)


def test_a_third_loader_is_left_alone():
    class Three(Semi):
        def training_step(self, batch, batch_idx):
            other = self.weighted_loss(self.losses(batch["other"]), loader="other")
            return super().training_step(batch, batch_idx) + other

    parts = {**{name: make_loader(size) for name, size in SIZES.items()}, "other": make_loader(40)}
    with pytest.warns(UserWarning, match="train DataLoader 'unlabelled' has 10 batches, but 'other' has 10 batches"):
        trainer, model = fit(Keep(0.5, weight=2.0), CombinedLoader(parts, "max_size_cycle"), model=Three())
    check(trainer, model)
    assert trainer.global_step == EPOCHS * 10


def test_positions_in_a_list():
    class Listed(Semi):
        def training_step(self, batch, batch_idx):
            return super().training_step(dict(enumerate(batch)), batch_idx)

    trainer, _ = fit(Keep(0.5), [make_loader(24), make_loader(40)], model=Listed(names=(0, 1)), loader=[0, 1])
    assert [table.num_samples for table in registry_of(trainer).tables.values()] == [24, 40]
    assert trainer.global_step == EPOCHS * 5


def test_a_call_says_which_loader_it_means():
    with pytest.raises(ValueError, match=r"got no `loader`.*loader=\.\.\.\)` with one of \['labelled', 'unlabelled'\]"):
        fit(InfoBatch(), model=Semi(told=False))

    class Forgets(Semi):
        def training_step(self, batch, batch_idx):
            return super().training_step({**batch, "unlabelled": None}, batch_idx)

    with pytest.raises(RuntimeError, match=r"weighted_loss\(losses, loader='unlabelled'\)`, but it never did"):
        fit(InfoBatch(), model=Forgets())
    model = Semi()  # without a run it is a plain mean
    assert float(model.weighted_loss(torch.tensor([1.0, 2.0]), loader="labelled")) == 1.5


def test_validation_needs_no_loader():
    class Validates(Semi):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.weighted_loss(torch.ones(4)))

    trainer = make_trainer(ScoreRegistry(loader=NAMES), InfoBatch())
    trainer.fit(Validates(), loaders(), make_loader(8))
    assert trainer.callback_metrics["val_loss"] == 1.0


def test_of_one_pruned_loader_only_its_own_losses_are_recorded():
    """The module that names its loaders works with one of them pruned, too."""
    longer = CombinedLoader({"labelled": make_loader(60), "unlabelled": make_loader(40)}, "min_size")
    trainer, model = fit(Keep(0.5, weight=2.0), longer, loader="unlabelled")
    registry = registry_of(trainer)
    assert registry.num_samples == 40
    for i, loss in model.truth["unlabelled"].items():
        assert float(registry.losses[i]) == pytest.approx(loss, rel=1e-6)


REFUSED = {
    "picks": (lambda: DivBS(0.5), {}, "DivBS takes batches apart"),
    "refreshes": (IES, {}, "IES asks for the losses of skipped samples"),
    "reloads": (InfoBatch, {"reload_dataloaders_every_n_epochs": 1}, "but got `reload_dataloaders_every_n_epochs`"),
    "monitor": (InfoBatch, {"callbacks": [PruningMonitor()]}, "but got PruningMonitor. Leave it out"),
    "stream": (
        InfoBatch,
        {"combined": CombinedLoader({"labelled": make_loader(), "unlabelled": make_stream()}, "min_size")},
        "'unlabelled' has the stream `Stream`",
    ),
    "unknown": (InfoBatch, {"loader": ["labelled", "other"]}, r"one of the train DataLoaders.*but got 'other'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    method, kwargs, match = REFUSED[name]
    with pytest.raises(MisconfigurationException, match=match):
        fit(method(), **kwargs)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names(names):
    with pytest.raises(ValueError, match="to list the loaders to prune"):
        ScoreRegistry(loader=names)
    with pytest.raises(ValueError, match=r"registry.tables\[name\].save\(path\)"):
        ScoreRegistry(loader=NAMES, save_to="table.npz")


def test_a_module_without_the_mixin():
    class Plain(PlainModel):
        def training_step(self, batch, batch_idx):
            return sum(self.losses(part).mean() for part in batch.values())

    trainer, _ = fit(RandomPruning(0.5), model=Plain())
    assert registry_of(trainer).saved_fraction == 0.5
    with pytest.raises(MisconfigurationException, match="BatchLossScore goes by the loss of a batch, which is of all"):
        fit(BatchLossScore(SeTa()), model=Plain())


def every_step(folder):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def facts(trainer, model):
    found = {f"{n}.{key}": v for n, t in registry_of(trainer).tables.items() for key, v in t.to_dict().items()}
    return found | {f"weights.{key}": value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["InfoBatch", "RePB"])
@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size"])
def test_resume_is_exact(name, mode, tmp_path):
    """At every kind of moment: within an epoch, on its last batch, and at its end."""
    ends = ModelCheckpoint(tmp_path, "end-{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    kwargs = {"enable_checkpointing": True, "callbacks": [every_step(tmp_path), ends]}
    trainer, whole = fit(METHODS[name](), loaders(mode), **kwargs)
    expected, last, saved = facts(trainer, whole), trainer.global_step, registry_of(trainer).saved_fraction
    first = sum(epoch == 0 for epoch, _ in whole.trained["labelled"])
    points = [f"step={step}" for step in (2, first, first + 2)] + ["end-epoch=1"]
    for point in points:
        trainer, resumed = fit(METHODS[name](), loaders(mode), ckpt_path=tmp_path / f"{point}.ckpt")
        assert trainer.global_step == last
        for n in NAMES:
            count = len(resumed.trained[n])
            assert resumed.trained[n] == whole.trained[n][-count:], point
        for key, value in facts(trainer, resumed).items():
            assert torch.equal(value.nan_to_num(-1), expected[key].nan_to_num(-1)), (point, key)
        assert registry_of(trainer).saved_fraction == saved


def test_a_checkpoint_of_other_loaders_is_refused(tmp_path):
    end = ModelCheckpoint(tmp_path, "several", save_on_train_epoch_end=True)
    fit(InfoBatch(), callbacks=[end], enable_checkpointing=True, max_epochs=1)
    with pytest.raises(
        MisconfigurationException, match=r"of the loaders \['unlabelled', 'labelled'\], but it is of the"
    ):
        fit(InfoBatch(), loader=NAMES[::-1], ckpt_path=tmp_path / "several.ckpt")
    with pytest.raises(MisconfigurationException, match=r"state of one loader, but the checkpoint.*\['labelled', 'unl"):
        fit(InfoBatch(), loaders("min_size"), loader="labelled", ckpt_path=tmp_path / "several.ckpt")
    end = ModelCheckpoint(tmp_path, "one", save_on_train_epoch_end=True)
    kwargs = {"callbacks": [end], "enable_checkpointing": True, "max_epochs": 1}
    fit(InfoBatch(), loaders("min_size"), loader="labelled", **kwargs)
    with pytest.raises(MisconfigurationException, match="but it is of one loader"):
        fit(InfoBatch(), ckpt_path=tmp_path / "one.ckpt")


def run_rank(rank, folder):
    trainer, model = fit(InfoBatch(0.5), loaders(batch_size=2), strategy="ddp", devices=2)
    torch.save({**facts(trainer, model), "saved": registry_of(trainer).saved_fraction}, folder / f"{rank}.pt")


@pytest.mark.ddp
def test_two_processes_train_as_one(tmp_path):
    skip_without_fork()
    run_ranks(run_rank, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    trainer, model = fit(InfoBatch(0.5))
    for key, value in facts(trainer, model).items():
        assert torch.equal(first[key].nan_to_num(-1), second[key].nan_to_num(-1)), key
        assert torch.allclose(first[key].nan_to_num(-1).float(), value.nan_to_num(-1).float(), rtol=1e-4, atol=1e-5), (
            key
        )
    assert first["saved"] == second["saved"]


def test_a_second_fit_goes_on():
    registry = ScoreRegistry(loader=NAMES)
    trainer, model = make_trainer(registry, InfoBatch(0.5), max_epochs=2), Semi()
    trainer.fit(model, loaders())
    before = {name: table.counts.clone() for name, table in registry.tables.items()}
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, loaders())
    for name, counts in before.items():
        assert bool((registry.tables[name].counts >= counts).all())
        assert int(registry.tables[name].counts.max()) == 4
    assert type(trainer.train_dataloader["labelled"].batch_sampler).__name__ == "BatchSampler"


def test_from_yaml():
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    for given in (NAMES, [0, 1], "labelled", 1):
        callback = {"class_path": "lightning_prune.ScoreRegistry", "init_args": {"loader": given}}
        parsed = parser.parse_object({"trainer": {"callbacks": [callback]}})
        registry = parser.instantiate_classes(parsed).trainer.callbacks[0]
        assert registry.loader == given
        assert list(registry.tables) == (given if isinstance(given, list) else [])
