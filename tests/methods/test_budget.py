"""A budget is kept within a point, whatever the method, the run and the losses; by steps and by the clock, too."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits

from lightning_prune import (
    IES,
    RS2,
    UCB,
    AlignPrune,
    BatchLossScore,
    Budget,
    DivBS,
    EpsilonGreedy,
    ImportanceSampling,
    InfoBatch,
    OrderDP,
    Pruner,
    PruningCallback,
    RandomPruning,
    RePB,
    RHOLoss,
    Selection,
    SelectiveBackprop,
    SeTa,
    schedules,
)
from lightning_prune.core import clock
from lightning_prune.core.cost import Goal, Spent, pace_of
from lightning_prune.core.moment import Moment
from lightning_prune.core.outlook import Outlook
from lightning_prune.core.ratio import UnreachableError
from lightning_prune.core.search import nearest
from lightning_prune.core.shape import EpochShape
from lightning_prune.scoring import StaticPruning
from lightning_prune.testing import processes
from lightning_prune.testing.simulation import Script, end_of, simulate
from tests.contract import FIXTURES
from tests.helpers import Model, make_loader, make_trainer, registry_of
from tests.resume_check import check_resume

NUM_SAMPLES, EPOCHS, BATCH_SIZE = 400, 10, 100
SCRIPT = Script.make(NUM_SAMPLES, EPOCHS)


@functools.cache
def digits():
    """What 400 of scikit-learn's digits show while a layer of 32 units learns them, in each epoch."""
    data = load_digits(return_X_y=True)
    images, targets = torch.tensor(data[0][:NUM_SAMPLES]).float() / 16, torch.tensor(data[1][:NUM_SAMPLES])
    generator = torch.Generator().manual_seed(0)
    first = (torch.randn(64, 32, generator=generator) / 8).requires_grad_()
    last = (torch.randn(32, 10, generator=generator) / 6).requires_grad_()
    optimizer = torch.optim.SGD([first, last], lr=0.1, momentum=0.9)
    epochs = []
    for _ in range(EPOCHS):
        for ids in torch.randperm(NUM_SAMPLES, generator=generator).split(40):
            optimizer.zero_grad()
            F.cross_entropy((images[ids] @ first).relu() @ last, targets[ids]).backward()
            optimizer.step()
        with torch.no_grad():
            features = (images @ first).relu()
            logits = features @ last
        epochs.append((F.cross_entropy(logits, targets, reduction="none"), logits, features))
    losses, logits, features = (torch.stack(values) for values in zip(*epochs, strict=True))
    return Script(losses, logits, features, targets)


POINT = 0.01
BASES = {
    "RandomPruning": RandomPruning,
    "RS2": RS2,
    "OrderDP": OrderDP,
    "InfoBatch": lambda: InfoBatch(anneal_ratio=1.0),
    "InfoBatch, coins": lambda: InfoBatch(mode="bernoulli"),
    "SeTa": SeTa,
    "SeTa, narrow": lambda: SeTa(window_scale=0.6),
    "RePB": RePB,
    "RePB, importance": lambda: RePB(rule="importance"),
    "EpsilonGreedy": lambda: EpsilonGreedy(every_n_epochs=4),
    "UCB": UCB,
    "ImportanceSampling": ImportanceSampling,
    "SelectiveBackprop": lambda: SelectiveBackprop(start=0.1, end=1.0, interrupt=4),
    "StaticPruning": lambda: StaticPruning(torch.arange(float(NUM_SAMPLES))),
    "AlignPrune": lambda: AlignPrune(OrderDP(), window=4, min_observed=2),
    "BatchLossScore": lambda: BatchLossScore(SeTa()),
}


@pytest.fixture(scope="module", autouse=True)
def _irreducible_losses(tmp_path_factory):
    path = tmp_path_factory.mktemp("losses") / "irreducible.npy"
    import numpy as np

    np.save(path, np.zeros(NUM_SAMPLES, dtype=np.float32))
    BASES["RHOLoss"] = lambda: RHOLoss(irreducible_losses=path)


def run(budget, script=SCRIPT, batch_size=BATCH_SIZE, **kwargs):
    """Return what a simulated run saved."""
    *_, table = simulate(budget, script, 0, batch_size, **kwargs)
    return table.saved_fraction


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("save", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("name", [*BASES, "RHOLoss"])
def test_every_method_within_a_point(name, save):
    """On digits; or the share that losses allow, of which the run warns as soon as they are known."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = run(Budget(BASES[name](), save=save), digits())
    if (name.split(",")[0], save) != ("InfoBatch", 0.6):  # after the first epoch, 56 % lie below the mean loss
        assert found == pytest.approx(save, abs=POINT)
        return
    assert any("cannot be kept" in str(warning.message) for warning in told)
    assert 0.4 < found < 0.59
    (missed,) = (str(warning.message) for warning in told if "was missed" in str(warning.message))
    assert f"ends with {found:.3f}" in missed


@pytest.mark.parametrize("save", [0.2, 0.4, 0.6])
def test_divbs_within_a_point(save):
    """On the first 60 of the digits: it looks at the gradients of each batch's pairs."""
    whole = digits()
    few = Script(whole.losses[:4, :60], whole.logits[:4, :60], whole.features[:4, :60], whole.targets[:60])
    assert run(Budget(DivBS(), save=save), few, 15) == pytest.approx(save, abs=POINT)


@pytest.mark.parametrize("name", ["RandomPruning", "InfoBatch", "SeTa", "RePB", "EpsilonGreedy", "StaticPruning"])
@pytest.mark.parametrize(
    "changes",
    [{"drop_last": True, "batch_size": 36}, {"max_epochs": None, "max_steps": 36}, {"max_steps": 25}],
    ids=["drop_last", "max_steps", "either"],
)
@pytest.mark.filterwarnings("ignore:Budget.save=0.35. was missed")
def test_dropped_batches_and_steps_that_end_the_run(name, changes):
    save = 0.35
    chooses_once = name == "StaticPruning" and "drop_last" in changes  # and so whole batches, or not
    bound = 36 / NUM_SAMPLES / 2 if chooses_once else POINT
    assert run(Budget(BASES[name](), save=save), **changes) == pytest.approx(save, abs=bound)


@settings(max_examples=10, deadline=None)
@example(base="SeTa", epochs=6, save=0.5, warmup=0, anneal=1.0, drift=0.0, seed=0)  # its window alone leaves out more
@given(
    base=st.sampled_from(["InfoBatch", "SeTa", "OrderDP", "RePB", "BatchLossScore"]),
    epochs=st.integers(6, 20),
    save=st.floats(0.05, 0.5),
    warmup=st.integers(0, 2),
    anneal=st.floats(0.7, 1.0),
    drift=st.floats(-2, 2),
    seed=st.integers(0, 1000),
)
def test_whatever_the_epochs_the_annealing_and_the_losses(base, epochs, save, warmup, anneal, drift, seed):
    """Losses whose skew changes over the run, and so what a method can leave out: within a point, or it is said."""
    generator = torch.Generator().manual_seed(seed)
    script = Script.make(300, epochs)
    skew = torch.linspace(1, 1 + abs(drift), epochs) if drift > 0 else torch.linspace(1 + abs(drift), 1, epochs)
    losses = (torch.randn(300, generator=generator)[None] * skew[:, None]).exp()
    script = Script(losses, script.logits, script.features, script.targets)
    make = {
        "InfoBatch": lambda: InfoBatch(anneal_ratio=anneal),
        "SeTa": lambda: SeTa(anneal_ratio=anneal),
        "OrderDP": OrderDP,
        "RePB": RePB,
        "BatchLossScore": lambda: BatchLossScore(InfoBatch(anneal_ratio=anneal)),
    }
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = run(Budget(make[base](), save=save, warmup_epochs=warmup), script, 60)
        except UnreachableError:
            assert save > 0.9 * (1 - max(1, warmup) / epochs) * 0.6
            return
    if any("cannot be kept" in str(warning.message) for warning in told):
        assert base in ("InfoBatch", "BatchLossScore")  # the others can always leave out more
        assert found <= save + POINT
    else:
        assert found == pytest.approx(save, abs=POINT)


@pytest.mark.parametrize("name", ["InfoBatch", "SeTa", "RePB"])
def test_real_runs(name):
    torch.manual_seed(0)
    trainer = make_trainer(Budget(BASES[name](), save=0.4, seed=0), max_epochs=EPOCHS)
    trainer.fit(Model(), make_loader(NUM_SAMPLES, 32))
    registry = registry_of(trainer)
    assert registry.saved_fraction == pytest.approx(0.4, abs=POINT)
    assert float(trainer.callback_metrics["prune/saved_fraction"]) == pytest.approx(registry.saved_fraction)
    assert 0 <= float(trainer.callback_metrics["prune/budget_share"]) <= 1


@pytest.mark.parametrize("limit", [0.5, 7], ids=str)
def test_limits_count(limit):
    trainer = make_trainer(Budget(RandomPruning(), save=0.3), max_epochs=8, limit_train_batches=limit)
    trainer.fit(Model(), make_loader(NUM_SAMPLES, 32))
    assert registry_of(trainer).saved_fraction == pytest.approx(0.3, abs=POINT)


def test_a_sampler_of_the_users_own():
    """Draws with repeats, of which the selection is no even part: what it leaves out is learnt as the run goes on."""
    from torch.utils.data import DataLoader, WeightedRandomSampler

    from tests.helpers import make_dataset

    sampler = WeightedRandomSampler(torch.linspace(0.1, 1, NUM_SAMPLES), 600)
    trainer = make_trainer(Budget(OrderDP(), save=0.4, seed=0), max_epochs=16)
    trainer.fit(Model(), DataLoader(make_dataset(NUM_SAMPLES), 32, sampler=sampler))
    assert registry_of(trainer).saved_fraction == pytest.approx(0.4, abs=POINT)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "make", [RandomPruning, RePB, lambda: InfoBatch(anneal_ratio=1.0)], ids=["Random", "RePB", "InfoBatch"]
)
def test_steps(make, accumulate):
    steps = 92 // accumulate
    trainer = make_trainer(Budget(make(), steps=steps, seed=0), max_epochs=EPOCHS, accumulate_grad_batches=accumulate)
    trainer.fit(Model(), make_loader(NUM_SAMPLES, 32))  # 13 batches an epoch
    assert steps - EPOCHS // 3 <= trainer.global_step <= steps + 1


class Watch(Callback):
    """Moves a clock: by the samples of each step, and for each validation and start."""

    def __init__(self, monkeypatch, per_sample=1.0, per_epoch=0.0, slower_from=99, start=0.0):
        self.time = 1000.0
        self.per_sample, self.per_epoch, self.slower_from, self.start = per_sample, per_epoch, slower_from, start
        monkeypatch.setattr(clock, "now", lambda: self.time)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        slower = 1.5 if trainer.current_epoch >= self.slower_from else 1.0
        self.time += self.per_sample * slower * registry_of(trainer).running.step_length
        if trainer.global_step == 1:
            self.time += self.start

    def on_train_epoch_start(self, trainer, pl_module):
        self.time += self.per_epoch


@pytest.mark.parametrize(
    ("watch", "hours", "epochs"),
    [
        ({}, 0.7, EPOCHS),
        ({"per_epoch": 80.0}, 0.8, EPOCHS),
        ({"per_epoch": 20.0, "start": 500.0}, 0.9, 12),
        ({"slower_from": 5}, 0.8, EPOCHS),
    ],
    ids=["even", "overhead", "slow start", "slower"],
)
def test_hours(monkeypatch, watch, hours, epochs):
    """Within two hundredths, with validation, a slow start, and a machine that becomes slower."""
    watch = Watch(monkeypatch, **watch)
    trainer = make_trainer(Budget(RandomPruning(), hours=hours, seed=0), watch, max_epochs=epochs)
    trainer.fit(Model(), make_loader(NUM_SAMPLES, 32))
    assert (watch.time - 1000) / 3600 == pytest.approx(hours, rel=0.02)
    assert float(trainer.callback_metrics["prune/budget_hours"]) == pytest.approx((watch.time - 1000) / 3600, rel=1e-4)


def test_hours_for_a_method_that_picks_in_batches(monkeypatch):
    """The pass that chooses takes its time whatever is left out."""
    watch = Watch(monkeypatch, per_sample=0.7, per_epoch=0.3 * NUM_SAMPLES)
    budget = Budget(SelectiveBackprop(start=0.0, end=1.0, interrupt=0), hours=0.75)
    make_trainer(budget, watch, max_epochs=EPOCHS).fit(Model(), make_loader(NUM_SAMPLES, 32))
    assert (watch.time - 1000) / 3600 == pytest.approx(0.75, rel=0.02)


def test_time_to_spare_leaves_nothing_out(monkeypatch):
    watch = Watch(monkeypatch)
    trainer = make_trainer(Budget(RandomPruning(), hours=5.0), watch, max_epochs=4)
    trainer.fit(Model(), make_loader(NUM_SAMPLES, 32))
    assert registry_of(trainer).saved_fraction == 0


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_hours_go_on_after_a_resume(monkeypatch, tmp_path):
    """In the middle of an epoch: its time so far counts, and that in between does not. Over is said at once."""

    def fit(*callbacks, hours=0.7, ckpt_path=None):
        watch = Watch(monkeypatch)
        options = {"max_epochs": EPOCHS, "enable_checkpointing": bool(callbacks)}
        trainer = make_trainer(Budget(RandomPruning(), hours=hours, seed=0), watch, *callbacks, **options)
        trainer.fit(Model(), make_loader(NUM_SAMPLES, 32), ckpt_path=ckpt_path)
        return trainer, watch

    fit(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=50, save_top_k=-1))
    path = tmp_path / "step=50.ckpt"
    trainer, _ = fit(ckpt_path=path)
    assert float(trainer.callback_metrics["prune/budget_hours"]) == pytest.approx(0.7, rel=0.02)
    over = r"`hours` that RandomPruning can reach in this run, at least .*got 0.2. The run had taken 0.37.* Give more"
    with pytest.raises(UnreachableError, match=over):
        fit(hours=0.2, ckpt_path=path)


def test_hours_that_the_first_epoch_has_used_up(monkeypatch):
    """Said after it, with what to do; the run goes on as short as it can."""
    watch = Watch(monkeypatch)  # 400 s an epoch
    trainer = make_trainer(Budget(RandomPruning(), hours=0.1), watch, max_epochs=4)
    with (
        pytest.warns(UserWarning, match=r"after epoch 0, RandomPruning can reach at least about 0.114.*max_time"),
        pytest.warns(UserWarning, match=r"Budget\(hours=0.1\) was missed: the run ends with 0.114 hours"),
    ):
        trainer.fit(Model(), make_loader(NUM_SAMPLES, 32))
    assert registry_of(trainer).counts.sum() == NUM_SAMPLES + 3 * 4


def test_resume_of_what_is_set_an_epoch_ahead(tmp_path):
    """By probabilities; the contract has the other ways."""
    check_resume(lambda: Budget(RePB(), save=0.3, seed=1), tmp_path)


@pytest.mark.ddp
def test_two_processes_go_by_the_first_one_s_clock(tmp_path, monkeypatch):
    processes.skip_without_fork()

    def rank_run(rank):
        watch = Watch(pytest.MonkeyPatch(), per_sample=1.0 if rank == 0 else 7.0)
        budget = Budget(InfoBatch(anneal_ratio=1.0), hours=0.35, seed=0)
        options = {"devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()]}
        trainer = make_trainer(budget, watch, max_epochs=EPOCHS, **options)
        trainer.fit(Model(), make_loader(NUM_SAMPLES, 16))
        registry = registry_of(trainer)
        found = {"saved": registry.saved_fraction, "counts": registry.counts, "time": watch.time}
        torch.save(found, tmp_path / f"{rank}.pt")

    processes.run_ranks(rank_run, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["saved"] == second["saved"] > 0.2
    assert torch.equal(first["counts"], second["counts"])
    assert (first["time"] - 1000) / 3600 == pytest.approx(0.35, rel=0.02)


def test_pruner_is_the_trainer():
    trainer, model = make_trainer(Budget(InfoBatch(anneal_ratio=1.0), save=0.3, seed=0), max_epochs=5), Model()
    trainer.fit(model, make_loader(NUM_SAMPLES, 32))
    pruner = Pruner(Budget(InfoBatch(anneal_ratio=1.0), save=0.3, seed=0), max_epochs=5)
    other = Model()
    optimizer = other.configure_optimizers()
    loader = pruner.attach(make_loader(NUM_SAMPLES, 32))
    for _ in pruner.epochs():
        for batch in loader:
            optimizer.zero_grad()
            pruner.weighted_loss(other.losses(batch)).backward()
            optimizer.step()
    assert pruner.saved_fraction == registry_of(trainer).saved_fraction == pytest.approx(0.3, abs=POINT)
    assert torch.equal(pruner.registry.counts, registry_of(trainer).counts)
    assert pruner.metrics["prune/budget_share"] == pytest.approx(float(trainer.callback_metrics["prune/budget_share"]))


def test_the_same_selection_as_the_base_at_that_ratio():
    """What is drawn, and the base itself, are as without the budget."""
    base = InfoBatch(prune_ratio=0.123, anneal_ratio=1.0)
    budget, plain = Budget(RandomPruning(), save=0.25, seed=0), RandomPruning(0.25, seed=0)
    assert torch.equal(end_of(budget, SCRIPT, 0).counts, end_of(plain, SCRIPT, 0).counts)
    run(Budget(base, save=0.4, warmup_epochs=2, seed=5))
    assert (base.prune_ratio, base.warmup_epochs, base.seed) == (0.123, 0, None)


def test_the_base_s_hooks_are_called():
    """AlignPrune takes its reference in hooks of Lightning's."""
    torch.manual_seed(0)
    trainer = make_trainer(
        Budget(AlignPrune(OrderDP(), reference="val_loss", window=3, min_observed=2), save=0.2, seed=0),
        max_epochs=8,
        limit_val_batches=1.0,
    )
    trainer.fit(Model(), make_loader(NUM_SAMPLES, 32), make_loader(32, 32))
    assert registry_of(trainer).state["align_reference"].isfinite().all()
    assert registry_of(trainer).saved_fraction == pytest.approx(0.2, abs=POINT)


class Third(PruningCallback):
    """A method of somebody else's, whose ratio leaves out the square of what it says."""

    def __init__(self, prune_ratio: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.prune_ratio = prune_ratio

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(round(registry.num_samples * (1 - self.prune_ratio**2))))


class Deaf(Third):
    """One that takes a ratio and does not heed it."""

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(round(registry.num_samples * 0.9)))


def test_a_method_of_somebody_else():
    assert run(Budget(Third(), save=0.55)) == pytest.approx(0.55, abs=POINT)
    with (
        pytest.warns(UserWarning, match=r"Budget\(save=0.4\) was missed: the run ends with 0.100"),
        pytest.warns(
            UserWarning,
            match=r"cannot be kept as things are: after epoch 0, Deaf can reach at most about 0.100. The run",
        ),
    ):
        run(Budget(Deaf(), save=0.4))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Budget(RandomPruning()), "exactly one of `save`, `hours` and `steps`, but got none"),
        (lambda: Budget(RandomPruning(), save=0.4, steps=3), "exactly one of .*, but got {'save': 0.4, 'steps': 3}"),
        (lambda: Budget(RandomPruning(), save=1.0), r"`save` to be a number in \[0, 1\), but got 1.0"),
        (lambda: Budget(RandomPruning(), save="some"), "`save` to be a number"),
        (lambda: Budget(RandomPruning(), hours=0), "`hours` to be a number > 0, but got 0"),
        (lambda: Budget(RandomPruning(), steps=0), "`steps` to be an int >= 1, but got 0"),
        (
            lambda: Budget(IES(), save=0.4),
            "a `base` with a ratio, such as InfoBatch.* got IES.*: none of its arguments",
        ),
        (lambda: Budget("InfoBatch", save=0.4), r"as in `Budget\(base=InfoBatch\(\)\)`, but got 'InfoBatch'"),
        (lambda: Budget(Budget(RandomPruning(), save=0.4), save=0.4), "that Budget can wrap.*goes around all others"),
        (
            lambda: AlignPrune(Budget(InfoBatch(), save=0.4)),
            "that AlignPrune can wrap, but got Budget.*goes around all",
        ),
        (lambda: Budget(InfoBatch(schedules.Linear(0, 0.5)), save=0.4), "Leave out either the schedule or the budget"),
        (lambda: Budget(StaticPruning(FIXTURES / "scores.npz"), hours=1), "`save` or `steps` for StaticPruning, which"),
        (lambda: Budget(DivBS(), steps=10), "`save` or `hours` for DivBS, which makes batches smaller"),
    ],
)
def test_wrong_arguments(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


@pytest.mark.parametrize(
    ("budget", "limits", "error", "match"),
    [
        (
            Budget(SelectiveBackprop(), save=0.4),
            {"max_epochs": 10},
            UnreachableError,
            r"`save` that SelectiveBackprop can reach in this run, at most 0.180, but got 0.4. It is active from",
        ),
        (Budget(RePB(), save=0.9), {"max_epochs": 5}, UnreachableError, r"at most 0.760, but got 0.9. Its first epoch"),
        (Budget(UCB(), save=0.5, warmup_epochs=3), {"max_epochs": 5}, UnreachableError, r"at most 0.396, but got 0.5"),
        (Budget(RePB(), steps=12), {"max_epochs": 5}, UnreachableError, r"`steps` that RePB.* at least 14, but got 12"),
        (Budget(RandomPruning(), save=0.4), {"max_epochs": -1}, MisconfigurationException, "a run limited by"),
        (Budget(RandomPruning(), hours=1), {"max_steps": 9}, MisconfigurationException, "and without `max_steps`"),
    ],
    ids=["active", "first epoch", "warm-up", "steps", "endless", "hours of steps"],
)
def test_what_cannot_be_is_refused_before_the_first_step(budget, limits, error, match):
    model = Model()
    with pytest.raises(error, match=match):
        make_trainer(budget, **{"max_epochs": 5, **limits}).fit(model, make_loader())
    assert model.seen == []


def test_more_steps_than_there_are_is_said():
    with pytest.warns(UserWarning, match=r"Budget\(steps=1000\) leaves nothing out: the full run takes 30 steps"):
        make_trainer(Budget(RandomPruning(), steps=1000), max_epochs=3).fit(Model(), make_loader())


@pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse
def test_yaml(tmp_path, monkeypatch):
    from lightning_prune.cli import PruneCLI

    base = {"class_path": "AlignPrune", "init_args": {"base": {"class_path": "OrderDP"}, "window": 2}}
    trainer = {
        "callbacks": [{"class_path": "Budget", "init_args": {"base": base, "save": 0.3}}],
        "logger": False,
        "max_epochs": 4,
        "accelerator": "cpu",
        "enable_checkpointing": False,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"class_path": "tests.helpers.ModelWithData"}, "trainer": trainer}))
    cli = PruneCLI(args=["fit", "--config", str(path)], save_config_callback=None)
    assert registry_of(cli.trainer).saved_fraction == pytest.approx(0.3, abs=POINT)


# The rules, by themselves.


def test_shapes_are_those_of_the_loader():
    for drop_last in (False, True):
        for limit in (1.0, 0.5, 3):
            shape = EpochShape(50, 50, 8, world_size=1, drop_last=drop_last, limit=limit)
            for k in {*range(1, 51)} - {9, 17, 25, 33, 41}:  # where a batch of one takes a sample from that before
                batches = k // 8 if drop_last and k >= 8 else -(-k // 8)
                batches = int(batches * limit) if isinstance(limit, float) else min(limit, batches)
                assert shape.batches(k) == batches
                assert shape.trained(k) == min(k, batches * 8)
            for trained in range(1, 51):
                best = min(abs(shape.trained(k) - trained) for k in range(1, 51))
                assert abs(shape.trained(shape.selected_for(trained)) - trained) == best


def test_a_share_is_spread_over_the_epochs_that_are_left():
    def share(save, now, later, **moment):
        outlook = Outlook(Moment(2, 10), 100, 10, lambda m: float(m.epoch < 8), now, later)
        spent = Spent(trained=180, full=200)
        return outlook.share(lambda rest: Goal("save", save).is_met(spent, rest))

    assert share(0.32, (0, 0.9), [(0, 0.9)]) == pytest.approx(0.5)  # 20 saved, 300 to save in 6 epochs
    assert share(0.62, (0, 0.5), [(0, 0.9)]) == pytest.approx(1.0)  # 50 now and 450 later are not 600
    assert share(0.50, (0, 0.2), [(0, 0.95)]) == pytest.approx(0.92)  # 20 now, 460 later
    assert share(0.32, (0, 0.9), [(0, 0.9), (0.8, 0.95)]) == pytest.approx((3 - 2.5 * 0.8) / (1 + 2.5))
    assert share(0.10, (0.5, 0.9), [(0.3, 0.9)]) == 0.0  # later ones save more than is left: this one is full
    assert share(0.02, (0.0, 0.9), [(0, 0.9)]) == 0.0  # all is saved


def test_the_pace():
    assert pace_of([]) is None
    assert pace_of([(10.0, 100.0)]) == (0.0, 0.1)
    assert pace_of([(10.0, 100.0), (10.0, 100.0)]) == (0.0, pytest.approx(0.1))
    assert pace_of([(30.0, 100.0), (20.0, 50.0), (24.0, 70.0)]) == (pytest.approx(10.0), pytest.approx(0.2))
    assert pace_of([(10.0, 100.0), (2.0, 50.0)]) == (0.0, pytest.approx(5 / 68.75))  # nothing takes less than none
    assert pace_of([(10.0, 100.0), (12.0, 50.0)]) == (0.0, pytest.approx(11.25 / 68.75))  # nor less for more


@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("target", [5, 200, 640, 999])
def test_the_search(power, target):
    trials = []

    def select(drop):
        trials.append(drop)
        return Selection(torch.arange(round(1000 - 990 * drop**power)))

    assert abs(len(nearest(select, target, most=1.0, guess=0.5)) - max(10, target)) <= 2
    assert len(trials) <= 15


def test_the_search_gives_the_nearest_of_steps():
    found = nearest(lambda drop: Selection(torch.arange(100 - 30 * round(drop * 3))), 60, most=0.9, guess=0.1)
    assert len(found) == 70
