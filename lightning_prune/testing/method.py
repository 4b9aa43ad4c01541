"""What every pruning method keeps, whatever it selects by, as a class of tests."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import pickle
import random
import time
from abc import ABC
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_prune.core.checkpoint import STATE_VERSION
from lightning_prune.core.rng import make_generator
from lightning_prune.testing import processes
from lightning_prune.testing.simulation import Script, assert_same_law, end_of, simulate
from lightning_prune.testing.task import (
    BATCH_SIZE,
    LIGHTNING_S_ADVICE,
    NUM_SAMPLES,
    Model,
    Outcome,
    PlainModel,
    Remember,
    ScriptedModel,
    TaskModel,
    ToldModel,
    WeightedModel,
    assert_resumed,
    assert_same_state,
    equal,
    make_loader,
    make_trainer,
    one_cycle,
)
from lightning_prune.trainer.callback import PruningCallback
from lightning_prune.trainer.private import get_callbacks
from lightning_prune.trainer.registry import ScoreRegistry

EPOCHS = 5
RUNS = 50
"""Simulated runs of either side of a statistical comparison."""


class MethodContract(ABC):
    """The tests of one method; derive a class from it and set :attr:`method`.

    Every test makes methods of its own and compares runs on a tiny task: bit for bit where a run must be another's
    equal, by a bound of five standard errors, with fixed seeds, where draws may differ. Set a test that cannot hold to
    None, with the reason beside it.

    Attributes:
        method: Makes the method under test, with settings that prune within five epochs of ``num_samples``.
        neutral: Makes it so that it leaves nothing out and weighs nothing. None: it cannot be said.
        prunes: Whether it leaves samples out within five epochs.
        by_batch: Whether what it knows of a sample depends on which samples share its batch: two processes then do not
            select what one does. Methods that pick within batches need not say so.
        bound_to_data: Whether it holds values of given samples, from a file for example: it is not asked to run on a
            permuted data set, or on a shorter one.
        columns_by_position: Columns of its own whose values may depend on where in the data set a sample is.
        num_samples: Length of the data set.
        config: ``class_path`` and ``init_args`` of a yaml file that says what ``method`` makes. None: what the class
            and its arguments say, if they are plain values and the class can be imported.
        kills: How often the run that is killed is killed.

    Example:
        >>> import lightning_prune
        >>> class TestInfoBatch(MethodContract):
        ...     method = staticmethod(lambda: lightning_prune.InfoBatch(0.5))
        ...     neutral = staticmethod(lambda: lightning_prune.InfoBatch(0.0))
    """

    method: Callable[[], PruningCallback]
    neutral: Callable[[], PruningCallback] | None = None
    prunes: bool = True
    by_batch: bool = False
    bound_to_data: bool = False
    columns_by_position: tuple[str, ...] = ()
    num_samples: int = NUM_SAMPLES
    config: dict[str, Any] | None = None
    kills: int = 1

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.filterwarnings(text) for text in LIGHTNING_S_ADVICE]

    @pytest.fixture(autouse=True)
    def _no_global_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A seed that another test's `seed_everything` left in the environment is not this test's."""
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def test_it_prunes(self) -> None:
        """It leaves something out, and what is logged as saved is what was not trained; else no test says much."""
        if not self.prunes:
            pytest.skip("`prunes = False`")
        trainer, model = self._fit(self.method())
        trained = [len(model.epoch_ids(epoch)) for epoch in range(EPOCHS)]
        n = self.num_samples
        assert min(trained) < n, "nothing was left out in five epochs"
        assert ScoreRegistry.of(trainer).saved_fraction == pytest.approx(1 - sum(trained) / (EPOCHS * n))
        assert trainer.callback_metrics["prune/kept_fraction"] == pytest.approx(trained[-1] / n)

    def test_nothing_to_prune_is_the_run_without_it(self) -> None:
        """Weights, order and random numbers, bit for bit, with dropout."""
        if self.neutral is None:
            pytest.skip("no `neutral`")
        assert _in_order(Model(dropout=0.3), self.num_samples, self.neutral()) == _plain(self.num_samples, dropout=0.3)

    def test_global_random_numbers_are_left_alone(self) -> None:
        """Of torch, NumPy and Python; draws come from the generator that the method is handed."""
        run, plain = _in_order(Model(), self.num_samples, self.method()), _plain(self.num_samples)
        assert run["random"] == plain["random"]

    def test_warmup_epochs_train_on_everything(self) -> None:
        """As many as the argument says."""
        _, model = self._fit(remake(self.method(), warmup_epochs=2), batch_size=2 * BATCH_SIZE)
        for epoch in range(2):
            assert sorted(model.epoch_ids(epoch)) == list(range(self.num_samples))

    def test_same_seed_same_run(self) -> None:
        """The method can be used again in a new Trainer, and copied or pickled before or after a run."""
        method = self.method()
        copied = copy.deepcopy(pickle.loads(pickle.dumps(method)))
        trainer, model = self._fit(method, batch_size=2 * BATCH_SIZE)
        first = Outcome.of(trainer, model)
        for same in (copied, copy.deepcopy(method), method):
            again = Outcome.of(*self._fit(same, batch_size=2 * BATCH_SIZE))
            assert first.seen == again.seen
            assert_same_state(first, again)
        registry = pickle.loads(pickle.dumps(ScoreRegistry.of(trainer)))
        assert torch.equal(registry.counts, ScoreRegistry.of(trainer).counts)

    def test_fit_again_goes_on(self) -> None:
        """The same Trainer with more epochs goes on from the state it has."""
        trainer, model = self._fit(self.method(), max_epochs=2, batch_size=2 * BATCH_SIZE)
        counts = ScoreRegistry.of(trainer).counts.sum()
        trainer.fit_loop.max_epochs = EPOCHS
        trainer.fit(model, make_loader(self.num_samples, 2 * BATCH_SIZE))
        registry = ScoreRegistry.of(trainer)
        assert registry.epoch == EPOCHS
        assert registry.counts.sum() > counts
        assert {epoch for epoch, _ in model.seen} == set(range(EPOCHS))
        trained = sum(len(ids) for _, ids in model.seen)
        assert registry.saved_fraction == pytest.approx(1 - trained / (EPOCHS * self.num_samples))

    def test_resume(self, tmp_path: Path) -> None:
        """From the ends, middles and last batches of epochs, with dropout and a schedule, bit for bit."""

        def fit(ckpt_path: Path | None = None) -> Outcome:
            torch.manual_seed(9)
            torch.rand(3 if ckpt_path else 1)  # a resumed process has another random state: ours must be restored
            model = Model(one_cycle, dropout=0.4)
            writers = [] if ckpt_path else checkpointing(tmp_path)
            options: dict[str, Any] = {"logger": Remember(), "enable_checkpointing": bool(writers)}
            return Outcome.of(*self._fit(self.method(), *writers, model=model, ckpt_path=ckpt_path, **options))

        whole = fit()
        for path in checkpoint_choices(tmp_path):
            assert_resumed(whole, fit(path))

    def test_kill(self, tmp_path: Path) -> None:
        """A process killed (SIGKILL) at a random moment and resumed ends as if left alone."""
        processes.skip_without_fork()

        def train(folder: Path, marker: Path | None) -> Outcome:
            checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
            callbacks = [self.method(), checkpoint, *([] if marker is None else [WaitInLastEpoch(marker)])]
            torch.manual_seed(4)
            return Outcome.of(
                *self._fit(
                    *callbacks,
                    model=Model(dropout=0.3),
                    max_epochs=2 + 4 * self.kills,
                    enable_checkpointing=True,
                    ckpt_path=processes.newest_checkpoint(folder),
                )
            )

        whole = train(tmp_path / "whole", None)
        (tmp_path / "killed").mkdir()
        killed = processes.kill_and_resume(train, tmp_path / "killed", self.kills)
        assert len(killed.seen) < len(whole.seen)
        assert_resumed(whole, killed)

    def test_two_processes(self, tmp_path: Path) -> None:
        """Two gloo processes agree, share the selection out, select what one process does, and resume exactly."""
        processes.skip_without_fork()
        processes.run_ranks(self._rank, tmp_path, folder=tmp_path)

        def load(name: str) -> tuple[Outcome, Outcome]:
            first, second = (torch.load(tmp_path / f"{name}.{rank}.pt", weights_only=False) for rank in (0, 1))
            return first, second

        for name in ("scripted", "whole"):
            self._check_ranks(*load(name))
        self._check_shards(*load("scripted"))
        if not self._is_by_batch:
            self._check_against_one_process(*load("scripted"))
        for point in ("middle", "last_batch"):
            for whole, resumed in zip(load("whole"), load(point), strict=True):
                assert_resumed(whole, resumed)

    def _rank(self, rank: int, folder: Path) -> None:
        """Train on scripted losses, on real ones, and from checkpoints of that; save each outcome."""

        def fit(name: str, model: WeightedModel, ckpt_path: Path | None = None, **kwargs: Any) -> Outcome:
            checkpoint = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=1, save_top_k=-1)
            trainer = make_trainer(
                ScoreRegistry(debug_sync=True),  # else ranks that select differently may wait for each other
                self.method(),
                *([checkpoint] if name == "whole" else []),
                devices=2,
                strategy="ddp",
                plugins=[LightningEnvironment()],
                enable_checkpointing=name == "whole",
                **kwargs,
            )
            torch.manual_seed(rank + (0 if ckpt_path is None else 20))
            trainer.fit(model, make_loader(self.num_samples), ckpt_path=ckpt_path)
            outcome = Outcome.of(trainer, model)
            torch.save(outcome, folder / f"{name}.{rank}.pt")
            return outcome

        fit("scripted", ScriptedModel(self.num_samples), max_epochs=EPOCHS)
        whole = fit("whole", Model(dropout=0.2), max_epochs=3)
        ends = [sum(epoch <= last for epoch, _ in whole.seen) for last in range(3)]  # steps at the ends of epochs
        for name, step in (("middle", (ends[1] + ends[2]) // 2), ("last_batch", ends[1])):
            fit(name, Model(dropout=0.2), folder / "whole" / f"step={step}.ckpt", max_epochs=3)

    def _check_ranks(self, first: Outcome, second: Outcome) -> None:
        """Assert that ranks train the same number of samples in each step, and have the same state."""
        assert [(epoch, len(ids)) for epoch, ids in first.seen] == [(epoch, len(ids)) for epoch, ids in second.seen]
        assert_same_state(first, second)

    def _check_shards(self, first: Outcome, second: Outcome) -> None:
        """Assert that shards are disjoint up to padding; together they are the selection, or a part of it."""
        picks = self.method().picks_in_batch
        for epoch, (indices, _) in enumerate(first.selections):
            assert torch.equal(indices, second.selections[epoch][0])
            one, other, selected = set(first.ids(epoch)), set(second.ids(epoch)), set(indices.tolist())
            assert one | other <= selected if picks else one | other == selected
            assert len(one & other) <= len(indices) % 2

    def _check_against_one_process(self, first: Outcome, second: Outcome) -> None:
        """Assert that one process with batches of twice the size does the same, given the same losses."""
        model = ScriptedModel(self.num_samples)
        single = Outcome.of(*self._fit(self.method(), model=model, batch_size=2 * BATCH_SIZE))
        for (ids, weights), (other_ids, other_weights) in zip(single.selections, first.selections, strict=True):
            assert torch.equal(ids, other_ids)
            assert equal(weights, other_weights)
        for name, values in single.table.items():
            assert equal(values, first.table[name]), name
        assert len(single.seen) == len(first.seen) == len(second.seen)
        epochs = [epoch for epoch, _ in single.seen]
        for i, ((epoch, seen), (_, own), (_, others)) in enumerate(
            zip(single.seen, first.seen, second.seen, strict=True)
        ):
            last = epochs[i + 2 : i + 3] != [epoch]  # so that no rank trains a batch of one, the last two may share
            assert last or set(seen) == set(own + others)
            assert set(first.ids(epoch)) | set(second.ids(epoch)) == set(single.ids(epoch))
        assert single.saved == first.saved

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
    @pytest.mark.parametrize("where", ["one", "half", "all"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_broken_losses(self, bad: float, where: Literal["one", "half", "all"]) -> None:
        """Losses of some samples that are never finite are counted, the run goes on, and no finite loss is lost."""
        broken = self._where(where)
        trainer, model = self._fit(
            remake(self.method(), warmup_epochs=1),
            model=ToldModel(bad, broken),
            batch_size=2 * BATCH_SIZE,
            logger=(logger := Remember()),
        )
        assert logger.lines[0][1]["prune/nonfinite"] == broken.sum()
        assert bool(model.layer.weight.isfinite().all())
        assert bool(ScoreRegistry.of(trainer).losses[~broken].isfinite().all())
        assert all(model.epoch_ids(epoch) for epoch in range(EPOCHS))

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_a_broken_loss_drops_no_sample_for_good(self) -> None:
        """Whom the method trains after the first epoch, it also trains after a first loss of NaN or infinity."""
        script, broken = Script.make(self.num_samples), self._where("half")
        bad = script.first_losses(torch.where(torch.arange(self.num_samples) % 4 == 0, torch.nan, torch.inf), broken)

        def trained(script: Script) -> Tensor:
            found = torch.zeros(self.num_samples, dtype=torch.bool)
            for seed in range(RUNS // 2):
                method = self._simulated(seed)
                method.warmup_epochs = max(1, method.warmup_epochs)  # so that every first loss is recorded
                found |= end_of(method, script, seed).trained_later > 0
            return found

        lost = trained(script) & ~trained(bad) & broken
        assert not lost.any(), f"never trained again: {lost.nonzero().flatten().tolist()}"

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_equal_losses(self) -> None:
        """A run whose losses are all the same goes on."""
        trainer, model = self._fit(self.method(), model=ToldModel(0.7, self._where("all")), batch_size=2 * BATCH_SIZE)
        losses = ScoreRegistry.of(trainer).losses
        assert set(losses[losses.isfinite()].tolist()) == {torch.tensor(0.7).item()}
        assert all(model.epoch_ids(epoch) for epoch in range(EPOCHS))

    @pytest.mark.parametrize("num_samples", [1, 3])
    def test_tiny_data_sets(self, num_samples: int) -> None:
        """One sample, and fewer than a batch."""
        if self.bound_to_data:
            pytest.skip("`bound_to_data = True`")
        model = Model()
        make_trainer(self.method(), max_epochs=4).fit(model, make_loader(num_samples))
        assert all(model.epoch_ids(epoch) for epoch in range(4))
        assert bool(model.layer.weight.isfinite().all())

    def test_selecting_changes_nothing(self) -> None:
        """A selection is valid, and a function of state, epoch and generator: asked for twice, it is the same."""
        method = self._simulated()
        for table in simulate(method, Script.make(self.num_samples), seed=1):
            if table.epoch == EPOCHS:
                break
            before = copy.deepcopy(table.state_columns())
            first, second = (method.select(table, table.epoch, make_generator(1, table.epoch, "select")) for _ in "12")
            first.check(self.num_samples)
            assert torch.equal(first.indices, second.indices)
            assert equal(first.weights, second.weights)
            for part, values in table.state_columns().items():
                one, other = ({"": v} if not isinstance(v, dict) else v for v in (values, before[part]))
                assert one.keys() == other.keys()
                for name, value in one.items():
                    same = equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
                    assert same, f"`select` changed {name or part}"

    def test_permuting_the_samples(self) -> None:
        """What it knows and whom it trains goes by what samples show, not by where in the data set they are.

        In simulated runs with seeds of their own, on a data set and on a permuted one, all per-sample facts (how often
        and with which weight a sample was trained, losses, counts, columns) have the same mean: up to rounding where
        nothing is drawn, within five standard errors else.
        """
        if self.bound_to_data:
            pytest.skip("`bound_to_data = True`")
        script = Script.make(self.num_samples)
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(3))
        permuted = script.permute(order)
        first = [end_of(self._simulated(seed), script, seed).facts() for seed in range(RUNS)]
        second = [end_of(self._simulated(seed), permuted, seed).facts() for seed in range(RUNS, 2 * RUNS)]
        assert_same_law(first, second, order, leave_out=self.columns_by_position)

    def test_state_is_plain(self) -> None:
        """What goes into a checkpoint loads with `weights_only=True`."""
        trainer, _ = self._fit(self.method(), max_epochs=2)
        buffer = io.BytesIO()
        torch.save(ScoreRegistry.of(trainer).state_dict(), buffer)
        buffer.seek(0)
        assert torch.load(buffer, weights_only=True)["version"] == STATE_VERSION

    def test_repr(self) -> None:
        """The text names the class and is the same for the same arguments, which are attributes of their names."""
        method = self.method()
        assert repr(method).startswith(f"{type(method).__name__}(")
        assert repr(method) == repr(self.method()) == repr(remake(method))

    @pytest.mark.parametrize(
        ("argument", "value"), [("seed", -1), ("seed", 1.5), ("warmup_epochs", -1), ("warmup_epochs", True)], ids=str
    )
    def test_shared_arguments_are_checked(self, argument: str, value: Any) -> None:
        """It takes `seed` and `warmup_epochs`, and hands them to the base class."""
        with pytest.raises((TypeError, ValueError), match=f"Expected `{argument}` to be an int"):
            remake(self.method(), **{argument: value})

    @pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse
    def test_from_yaml(self, tmp_path: Path) -> None:
        """What the yaml file says is what Python builds, and what a saved configuration says again."""
        from lightning_prune.cli import PruneCLI

        method = self.method()
        config = self.config or config_of(method)
        trainer = {"callbacks": [config], "logger": False, "accelerator": "cpu", "enable_checkpointing": False}
        model = {"class_path": "lightning_prune.testing.task.Model"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model, "trainer": trainer}))
        cli = PruneCLI(args=["--config", str(tmp_path / "config.yaml")], run=False, save_config_callback=None)
        (built,) = (c for c in get_callbacks(cli.trainer) if type(c) is type(method))
        assert repr(built) == repr(method)
        assert built.seed == method.seed
        saved = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))["trainer"]["callbacks"][0]["init_args"]
        plain = {name: value for name, value in config["init_args"].items() if not isinstance(value, dict)}
        assert saved.items() >= plain.items()

    def _fit(
        self,
        *callbacks: L.Callback,
        model: WeightedModel | None = None,
        ckpt_path: Path | None = None,
        batch_size: int = BATCH_SIZE,
        **kwargs: Any,
    ) -> tuple[L.Trainer, WeightedModel]:
        """Train five epochs; return the trainer and the model."""
        trainer = make_trainer(*callbacks, **{"max_epochs": EPOCHS, **kwargs})
        if model is None:
            torch.manual_seed(2)
            model = Model()
        trainer.fit(model, make_loader(self.num_samples, batch_size), ckpt_path=ckpt_path)
        return trainer, model

    def _simulated(self, seed: int | None = None) -> PruningCallback:
        """Return a method to be run without a Trainer; skip the test if it needs one."""
        method = self.method()
        if (why := method.trainer_only()) is not None:
            pytest.skip(f"it needs a Trainer: {why}")
        if seed is not None:
            method.seed = seed
        return method

    def _where(self, which: Literal["one", "half", "all"]) -> Tensor:
        """Return a mask of samples."""
        ids = torch.arange(self.num_samples)
        return {"one": ids == self.num_samples // 5, "half": ids % 2 == 0, "all": ids >= 0}[which]

    @property
    def _is_by_batch(self) -> bool:
        return self.by_batch or self.method().picks_in_batch


def _in_order(model: TaskModel, num_samples: int, *callbacks: L.Callback) -> dict[str, Any]:
    """Train without shuffling; return what was trained, the weights, and the random numbers' states after it."""
    torch.manual_seed(7)
    np.random.seed(7)  # as the user would
    random.seed(7)
    loader = make_loader(num_samples, 2 * BATCH_SIZE, shuffle=False)
    make_trainer(*callbacks, max_epochs=EPOCHS).fit(model, loader)
    numpy_state: Any = np.random.get_state()
    states = (torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate())
    return {"seen": model.seen, "weights": model.layer.weight.tolist(), "random": states}


@cache
def _plain(num_samples: int, dropout: float = 0.0) -> dict[str, Any]:
    """Return what comes of training without a method, for all methods."""
    return _in_order(PlainModel(dropout=dropout), num_samples)


@final
class WaitInLastEpoch(L.Callback):
    """Makes a file in the last epoch, and waits to be killed.

    Args:
        marker: The file.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Wait, if it is the last epoch."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.marker.touch()
            time.sleep(processes.PATIENCE)


def remake(method: PruningCallback, **changes: Any) -> PruningCallback:
    """Construct a method anew from its attributes, which are named as the arguments are, with some changed."""
    return type(method)(**{**arguments_of(method), **changes})


def arguments_of(method: PruningCallback) -> dict[str, Any]:
    """Return the constructor's arguments, as far as they are attributes."""
    parameters = inspect.signature(type(method)).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):  # handed on to the base class
        names += ["seed", "warmup_epochs", "scale_lr_schedule"]
    return {name: getattr(method, name) for name in names if hasattr(method, name)}


def config_of(method: PruningCallback) -> dict[str, Any]:
    """Return class path and arguments as a yaml file would hold them; skip the test where it cannot."""
    cls = type(method)
    values = arguments_of(method)
    try:
        found = getattr(importlib.import_module(cls.__module__), cls.__qualname__, None)
    except ModuleNotFoundError:
        found = None
    if found is not cls:
        pytest.skip(f"{cls.__qualname__} cannot be imported from {cls.__module__!r}; set `config`")
    if not all(isinstance(value, bool | int | float | str | None) for value in values.values()):
        pytest.skip("not all arguments are plain values; set `config`")
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": values}


@final
class SomeSteps(ModelCheckpoint):
    """Writes checkpoints after the second, a middle and the last batch of each epoch: those after others say no more.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "{epoch}-{step}", every_n_train_steps=1, save_top_k=-1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write one, if it is one of these batches; the middle one is even, where gradients accumulate over two."""
        if batch_idx in (1, int(trainer.num_training_batches) // 2 | 1) or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def checkpointing(folder: Path) -> list[ModelCheckpoint]:
    """Return callbacks that write a checkpoint after some steps of each epoch, and at its end."""
    return [
        SomeSteps(folder / "step"),
        ModelCheckpoint(folder / "end", "{epoch}-{step}", save_on_train_epoch_end=True, save_top_k=-1),
    ]


def checkpoint_choices(folder: Path) -> list[Path]:
    """Return checkpoints of middles, ends and last batches of the epochs of a run of five."""
    ends = sorted(folder.glob("end/*.ckpt"), key=step_of)
    steps = sorted(folder.glob("step/*.ckpt"), key=step_of)
    last = [path for path in steps if step_of(path) in {step_of(end) for end in ends}]
    middle = [path for path in steps if path not in last]
    return [middle[len(middle) // 2], ends[3], last[2], ends[0], middle[1], last[0], last[3]]


def step_of(path: Path) -> int:
    """Return the step that a checkpoint of :func:`checkpointing` was written after."""
    return int(path.stem.split("step=")[1].split("-")[0])
