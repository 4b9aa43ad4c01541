"""A state that is loaded while a run goes on, and runs that are joined on the way."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint

from lightning_prune import InfoBatch, RandomPruning, ScoreRegistry
from lightning_prune.analysis import PruningMonitor
from lightning_prune.scoring import ScoreRecorder
from lightning_prune.testing.task import one_cycle
from tests import contract
from tests.helpers import Keep, Model, PlainModel, Remember, make_loader, make_trainer, registry_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
SEARCHES = pytest.mark.filterwarnings("ignore")


class RatesAt(LearningRateFinder):
    """Searches at the start of given epochs, or at any other moment."""

    def __init__(self, *epochs, hook="on_train_epoch_start"):
        super().__init__(num_training_steps=7, update_attr=False)
        self.epochs, self.hook, self.found = epochs, hook, []

    def on_fit_start(self, *args):
        pass

    def search(self, trainer, pl_module):
        if trainer.current_epoch in self.epochs:
            self.lr_find(trainer, pl_module)
            self.found.append(self.optimal_lr.results["lr"])

    def on_train_epoch_start(self, trainer, pl_module):
        if self.hook == "on_train_epoch_start":
            self.search(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.hook == "on_train_epoch_end":
            self.search(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.hook == "on_train_batch_end" and batch_idx == 2:
            self.search(trainer, pl_module)


class SizesAt(BatchSizeFinder):
    def __init__(self, *epochs):
        super().__init__(steps_per_trial=2, max_trials=2, init_val=4)
        self.epochs = epochs

    def on_fit_start(self, *args):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in self.epochs:
            self.scale_batch_size(trainer, pl_module)


class Searched(Model):
    """Notes what the run trains, not what a search does; brings its loader."""

    def __init__(self, schedule=None, **loader):
        super().__init__(schedule)
        self.lr, self.batch_size, self.loader = 0.1, 5, loader

    def train_dataloader(self):
        return make_loader(batch_size=self.batch_size, **self.loader)

    def val_dataloader(self):
        return make_loader(8)

    @property
    def is_searched(self):
        return self._pruning_step is None or not self._pruning_step.active

    def losses(self, batch):
        seen, true = list(self.seen), dict(self.true_losses)
        losses = super().losses(batch)
        if self.is_searched:
            self.seen, self.true_losses = seen, true
        return losses

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        if self.is_searched:
            del self.lrs[-1]


def fit(tmp_path, method, *finders, schedule=None, loader=None, **kwargs):
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(
        method, PruningMonitor(), *finders, checkpoint, enable_checkpointing=True, default_root_dir=tmp_path, **kwargs
    )
    model = Searched(schedule, **(loader or {}))
    trainer.fit(model)
    return trainer, model


def tables_of(tmp_path):
    paths = sorted(tmp_path.glob("*.ckpt"))
    return [torch.load(path, weights_only=False)["callbacks"]["ScoreRegistry"] for path in paths]


KINDS = {
    "keep": (lambda: Keep(0.5, 1.0, 0.75, weight=1.5), {}),
    "schedule": (lambda: InfoBatch(seed=0, anneal_ratio=1), {"schedule": one_cycle}),
    "workers": (lambda: RandomPruning(seed=0, prune_ratio=0.6), {"loader": {"num_workers": 1}}),
    "limited": (lambda: contract.make("AlignPrune"), {"limit_train_batches": 6}),
}


@pytest.fixture(scope="module", params=KINDS)
def without_a_search(request, tmp_path_factory):
    """A kind's method and arguments, and a run of it: its trainer, its model, and its checkpoints' tables."""
    method, kwargs = KINDS[request.param]
    folder = tmp_path_factory.mktemp("plain")
    return method, kwargs, *fit(folder, method(), **kwargs), tables_of(folder)


@SEARCHES
@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end"])
@pytest.mark.parametrize("epochs", [(0,), (1,), (0, 2)], ids=str)
def test_a_search_for_a_rate_leaves_no_trace(tmp_path, without_a_search, epochs, hook):
    """The run, and each of its checkpoints, are those without the search, bit for bit."""
    method, kwargs, plain, model, plain_tables = without_a_search
    finder = RatesAt(*epochs, hook=hook)
    searched, other = fit(tmp_path / "searched", method(), finder, **kwargs)
    assert len(finder.found) == len(epochs)
    assert hook == "on_train_epoch_end" or 0 not in epochs or finder.found[0]  # later Lightning may find no batch
    for rates in finder.found:  # not spread over the shorter epochs
        expected = [1e-8, *(1e-8 ** (1 - i / 7) for i in range(2, 8))]
        assert rates == pytest.approx(expected[: len(rates)], rel=1e-3)
    assert other.seen == model.seen
    assert other.lrs == model.lrs
    assert torch.equal(other.layer.weight, model.layer.weight)
    assert registry_of(searched).saved_fraction == registry_of(plain).saved_fraction
    tables = zip(plain_tables, tables_of(tmp_path / "searched"), strict=True)
    for epoch, (one, two) in enumerate(tables):
        assert one["epoch"] == two["epoch"] == epoch + 1
        for name in ("losses", "counts"):
            assert torch.equal(one[name].nan_to_num(-1), two[name].nan_to_num(-1))


@SEARCHES
def test_a_run_with_a_search_can_be_resumed(tmp_path):
    method = lambda: InfoBatch(seed=0, anneal_ratio=1)  # noqa: E731
    fit(tmp_path / "a", method(), RatesAt(0, 1), max_epochs=3)
    trainer, model = make_trainer(method(), max_epochs=4), Searched()
    trainer.fit(model, ckpt_path=tmp_path / "a" / "epoch=2.ckpt")
    assert {epoch for epoch, _ in model.seen} == {3}
    assert 0 < sum(len(ids) for _, ids in model.seen) < 40
    assert registry_of(trainer).epoch == 4


@SEARCHES
@pytest.mark.parametrize("loader", [{}, {"num_workers": 1}], ids=["plain", "workers"])
def test_a_search_for_a_batch_size(tmp_path, loader):
    trainer, model = fit(tmp_path, Keep(0.5, 1.0, 0.75), SizesAt(0), loader=loader, max_epochs=3)
    registry, size = registry_of(trainer), model.batch_size
    assert size > 5
    lengths = [20, 40, 30]
    assert [len(model.epoch_ids(e)) for e in range(3)] == lengths
    assert model.epoch_batches(3) == [-(-n // size) for n in lengths]
    assert all(registry.losses[i].item() == pytest.approx(loss) for i, loss in model.true_losses.items())
    assert registry.counts.sum() == 90
    assert registry.saved_fraction == pytest.approx(1 - 90 / 120)
    assert tables_of(tmp_path)[-1]["epoch"] == 3


@SEARCHES
def test_a_search_for_a_batch_size_after_which_lightning_trains_nothing(tmp_path):
    with pytest.raises(MisconfigurationException, match="epoch 1 to be trained, but Lightning drew no batch of it"):
        fit(tmp_path, Keep(0.5, 1.0, 0.75), SizesAt(1), max_epochs=3)


@SEARCHES
def test_a_search_in_the_middle_of_an_epoch_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="3 batches of epoch 1 are trained.*in `on_train_epoch_start`"):
        fit(tmp_path, Keep(1.0, 0.5), RatesAt(1, hook="on_train_batch_end"))


@SEARCHES
def test_a_state_of_the_middle_of_an_epoch_is_refused(tmp_path):
    class Back(ModelCheckpoint):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                path = next(tmp_path.glob("*step=3.ckpt"))
                registry_of(trainer).load_state_dict(torch.load(path)["callbacks"]["ScoreRegistry"])

    saver = Back(tmp_path, "{epoch}-{step}", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(MisconfigurationException, match="the state is of the middle of epoch 0"):
        make_trainer(Keep(1.0, 0.5), saver, enable_checkpointing=True).fit(Model(), make_loader())


def test_going_back_to_an_earlier_epoch(tmp_path):
    """As a callback does that finds the run diverged: what was recorded since is forgotten."""

    class Back(ModelCheckpoint):
        def __init__(self, hook):
            super().__init__(tmp_path / hook, every_n_epochs=1, filename="{epoch}", save_top_k=-1)
            self.hook = hook

        def go_back(self, trainer):
            state = torch.load(tmp_path / self.hook / "epoch=0.ckpt")["callbacks"]["ScoreRegistry"]
            registry_of(trainer).load_state_dict(state)

        def on_train_epoch_start(self, trainer, pl_module):
            if self.hook == "start" and trainer.current_epoch == 2:
                self.go_back(trainer)

        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            if self.hook == "end" and trainer.current_epoch == 1:
                self.go_back(trainer)

    for hook in ("start", "end"):
        trainer, model = make_trainer(Keep(1.0, 0.5, 0.25), Back(hook), enable_checkpointing=True), Model()
        trainer.fit(model, make_loader())
        assert model.epoch_batches(4) == [10, 5, 3, 10]
        assert registry_of(trainer).counts.sum() == 40 + 10 + 40
        assert registry_of(trainer).epoch == 4


@SEARCHES
def test_a_search_before_the_second_fit_of_a_registry(tmp_path):
    """What an earlier fit left is no state to go back to."""
    registry = ScoreRegistry()
    for finder in ([], [LearningRateFinder(num_training_steps=5)]):
        trainer = make_trainer(registry, Keep(1.0, 0.5), *finder, max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(Searched())
        assert registry.counts.tolist() == [1] * 40


@SEARCHES
def test_scores_recorded_around_a_search(tmp_path):
    found = []
    for finder in ([], [RatesAt(1)]):
        recorder = ScoreRecorder(["EL2N"])
        make_trainer(recorder, *finder, default_root_dir=tmp_path).fit(Searched())
        found.append(recorder.trackers[0].compute())
    assert torch.equal(*found)


# Runs that are joined in mid-epoch


def written_without_us(folder, step, **kwargs):
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=step, save_top_k=-1)
    make_trainer(saver, enable_checkpointing=True, max_epochs=2, **kwargs).fit(PlainModel(), make_loader())
    return folder / f"step={step}.ckpt"


@pytest.mark.parametrize("case", ["Keep", "InfoBatch", "RePB", "RandomPruning"])
def test_a_run_joined_in_the_middle_of_an_epoch(case, tmp_path):
    path = written_without_us(tmp_path, 13)
    registry, monitor, recorder = ScoreRegistry(), PruningMonitor(), ScoreRecorder(["EL2N"])
    saver = ModelCheckpoint(tmp_path / "rest", "{step}", every_n_train_steps=15, save_top_k=-1)
    trainer, model = (
        make_trainer(
            registry, contract.make(case), monitor, saver, enable_checkpointing=True, max_epochs=5, logger=Remember()
        ),
        Model(),
    )
    with pytest.warns(UserWarning, match="middle of epoch 1 of a run without.*take part from epoch 2 on"):
        trainer.fit(model, make_loader(), ckpt_path=path)
    assert model.epoch_batches(2) == [0, 7]  # as Lightning goes on in an epoch
    late = {i for epoch, ids in model.seen if epoch > 1 for i in ids}
    assert all(registry.losses[i].item() == pytest.approx(model.true_losses[i]) for i in late)
    assert registry.counts.sum() == sum(len(ids) for epoch, ids in model.seen if epoch > 1)
    assert [line["epoch"] for line in monitor.history] == [2, 3, 4]
    assert recorder is not None
    weights = registry.selection.weights
    assert weights is None or weights.max() <= 3

    resumed, again = make_trainer(contract.make(case), max_epochs=5), Model()
    with pytest.warns(UserWarning, match="take part from epoch 2 on"):
        resumed.fit(again, make_loader(), ckpt_path=tmp_path / "rest" / "step=15.ckpt")
    assert again.epoch_batches(2) == [0, 5]
    assert [ids for epoch, ids in again.seen if epoch == 2] == [ids for epoch, ids in model.seen if epoch == 2]


@pytest.mark.parametrize("case", ["Keep", "InfoBatch", "RandomPruning"])
def test_a_run_joined_on_the_last_batch_of_an_epoch(case, tmp_path):
    path = written_without_us(tmp_path, 10)
    trainer, model = make_trainer(contract.make(case), max_epochs=4), Model()
    trainer.fit(model, make_loader(), ckpt_path=path)
    registry = registry_of(trainer)
    assert model.epoch_batches(1) == [0]
    assert registry.counts.sum() == len(model.seen and sum((ids for _, ids in model.seen), []))  # noqa: RUF017
    assert registry.epoch == 4


def test_scores_of_a_run_joined_in_the_middle_of_an_epoch(tmp_path):
    path = written_without_us(tmp_path, 13)
    recorder = ScoreRecorder(["EL2N"])
    with pytest.warns(UserWarning, match="take part from epoch 2 on"):
        make_trainer(recorder, max_epochs=4).fit(Model(), make_loader(), ckpt_path=path)
    assert recorder.trackers[0].compute().isfinite().all()
