"""What every tracker keeps, whatever it scores, as a class of tests."""

from __future__ import annotations

import copy
import pickle
from abc import ABC
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.scoring.recorder import ScoreRecorder
from lightning_prune.scoring.trackers.tracker import Tracker
from lightning_prune.testing import processes
from lightning_prune.testing.task import LIGHTNING_S_ADVICE, WeightedModel, make_loader, make_trainer

BATCH_SIZE = 7
ROUNDING: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}

Visits = Callable[[int, Tensor], Tensor]
"""Changes the sample ids of a batch of an epoch."""


class TrackerContract(ABC):
    """The tests of one tracker; derive a class from it and set :attr:`tracker`.

    Attributes:
        tracker: Makes the tracker under test. The number of samples may be left out.
        num_samples: Length of the data set.
        num_classes: Classes that the logits have.
        num_epochs: Epochs of the training that is scored; enough for every sample to have a score.

    Example:
        >>> from lightning_prune.scoring import EL2N
        >>> class TestEL2N(TrackerContract):
        ...     tracker = staticmethod(lambda: EL2N(num_epochs=8))
    """

    tracker: Callable[[], Tracker]
    num_samples: int = 31
    num_classes: int = 4
    num_epochs: int = 12

    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.filterwarnings(text) for text in LIGHTNING_S_ADVICE]

    def test_scores_are_float32_by_sample(self) -> None:
        """One for each sample, and which end of it is kept."""
        tracker = self._make()
        scores = self._run(tracker)
        assert scores.shape == (self.num_samples,)
        assert scores.dtype == torch.float32
        assert not scores.isnan().any()
        assert tracker.keep in {"high", "low"}

    def test_low_precision_inputs_are_scored_in_float32(self) -> None:
        """In bfloat16, and with other integers as targets."""
        tracker = self._make()
        for epoch in range(self.num_epochs):
            inputs = self._inputs(epoch)
            low = {name: value.bfloat16() for name, value in inputs.items() if name != "targets"}
            tracker.update(self._ids, targets=inputs["targets"].int(), **low)
            tracker.end_epoch()
        assert tracker.compute().dtype == torch.float32

    @pytest.mark.parametrize("batch_size", [1, 16, None], ids=str)
    def test_batch_size_and_order_do_not_matter(self, batch_size: int | None) -> None:
        """One sample, some, or all in a batch, in another order."""
        scores = self._run(self._make(), batch_size or self.num_samples)
        torch.testing.assert_close(scores, self._run(self._make()), **ROUNDING)

    def test_permuting_ids_permutes_scores(self) -> None:
        """A score goes by what its sample shows, not by where in the data set it is."""
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(1))
        plain, permuted = self._make(), self._make()
        for epoch in range(self.num_epochs):
            plain.update(self._ids, **self._inputs(epoch))
            permuted.update(order, **self._inputs(epoch))
            plain.end_epoch()
            permuted.end_epoch()
        assert torch.equal(permuted.compute()[order], plain.compute())

    def test_a_sample_counts_once_per_epoch(self) -> None:
        """By its first visit: neither the copies of a batch that is padded nor later batches change anything."""
        expected = self._run(self._make())
        assert torch.equal(self._run(self._make(), extra=lambda _, ids: torch.cat([ids, ids[:2], ids[:1]])), expected)
        tracker = self._make()
        for epoch, batches in self._batches():
            for ids in batches:
                self._visit(tracker, epoch, ids)
                self._visit(tracker, self._another(epoch), ids[:2])  # what they would show in another epoch
            tracker.end_epoch()
        assert torch.equal(tracker.compute(), expected)

    def test_the_first_of_two_copies_in_a_batch_counts(self) -> None:
        """Also where they show something else."""
        single, double = self._make(), self._make()
        for epoch in range(self.num_epochs):
            one, other = self._inputs(epoch), self._inputs(self._another(epoch))
            single.update(self._ids, **one)
            double.update(self._ids.repeat(2), **{name: torch.cat([one[name], other[name]]) for name in one})
            single.end_epoch()
            double.end_epoch()
        assert torch.equal(single.compute(), double.compute())

    def test_missing_samples_are_not_invented(self) -> None:
        """A sample that is never visited has no score; the others have."""
        absent = {(epoch, 3) for epoch in range(self.num_epochs)}
        assert self._run(self._make(), skip=absent).isnan().nonzero().flatten().tolist() == [3]

    def test_nan_visits_are_no_visits(self) -> None:
        """A visit that shows NaN is as if the sample had not been in the batch."""
        expected = self._run(self._make(), skip={(2, 5)})
        tracker = self._make()
        for epoch in range(self.num_epochs):
            inputs = {name: value.clone() for name, value in self._inputs(epoch).items()}
            for name, value in inputs.items():
                if epoch == 2 and name != "targets":
                    value[5] = torch.nan
            tracker.update(self._ids, **inputs)
            tracker.end_epoch()
        torch.testing.assert_close(tracker.compute(), expected, **ROUNDING)

    def test_missing_inputs_are_named(self) -> None:
        """The message says which, and how to pass it."""
        tracker = self._make()
        for name in tracker.needs:
            rest = {other: value for other, value in self._inputs(0).items() if other != name}
            with pytest.raises(ValueError, match=rf"Expected `{name}` for .*but got None. Pass .*{name}=\.\.\."):
                tracker.update(self._ids, **rest)

    def test_nothing_recorded_is_no_score(self) -> None:
        """The message says how many epochs it takes."""
        with pytest.raises(ValueError, match="Expected at least .* recorded epochs"):
            self._make().compute()

    def test_an_empty_batch_is_nothing(self) -> None:
        """It allocates no state."""
        tracker = self._make()
        self._visit(tracker, 0, self._ids[:0])
        assert not tracker.state

    def test_state_round_trip_in_the_middle_of_an_epoch(self) -> None:
        """What has seen half an epoch, saved and loaded by another, goes on as if nothing had been."""
        expected, first, second = self._run(self._make()), self._make(), self.tracker()
        tracker = first
        for epoch, batches in self._batches():
            for step, ids in enumerate(batches):
                self._visit(tracker, epoch, ids)
                if (epoch, step) == (self.num_epochs // 2, 2):
                    second.load_state_dict(first.state_dict())
                    tracker = second
                    self._visit(tracker, 0, ids[:3])  # a padded copy right after the restart
            tracker.end_epoch()
        assert torch.equal(second.compute(), expected)

    def test_state_is_plain(self, tmp_path: Path) -> None:
        """It loads with `weights_only=True`."""
        tracker, loaded = self._make(), self._make()
        self._run(tracker)
        torch.save(tracker.state_dict(), tmp_path / "state.pt")
        loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(loaded.compute(), tracker.compute())

    def test_copies_and_reset(self) -> None:
        """Copies and pickles score alike; what is reset has forgotten everything."""
        tracker = self._make()
        expected = self._run(tracker)
        for copied in (copy.deepcopy(tracker), pickle.loads(pickle.dumps(tracker))):
            assert torch.equal(copied.compute(), expected)
            copied.reset()
            assert copied.epoch == 0
            assert not copied.state
            assert torch.equal(self._run(copied), expected)

    def test_repr(self) -> None:
        """The text names the class and its arguments."""
        tracker = self.tracker()
        assert repr(tracker).startswith(f"{type(tracker).__name__}(")
        assert repr(tracker) == repr(self.tracker())

    def test_inputs_are_not_changed(self) -> None:
        """Nor are scores that were handed out part of the state."""
        tracker = self._make()
        for epoch in range(self.num_epochs):
            inputs, expected = self._inputs(epoch), self._inputs(epoch)
            tracker.update(self._ids, **inputs)
            tracker.end_epoch()
            for name, value in inputs.items():
                assert torch.equal(value, expected[name]), f"`{name}` was changed"
        scores = tracker.compute()
        before = scores.clone()
        scores.zero_()
        assert torch.equal(tracker.compute(), before)

    def test_updates_never_wait_for_the_device(self) -> None:
        """No value is read, no shape depends on one, and nothing is moved to the host."""
        tracker, training = self._make(), list(self._batches())
        with NoSync(), NoMove():  # type: ignore[no-untyped-call]  # in torch
            for epoch, batches in training:
                for ids in batches:
                    self._visit(tracker, epoch, ids)
                tracker.end_epoch()

    def test_global_random_numbers_are_left_alone(self) -> None:
        """A score draws nothing."""
        before = torch.get_rng_state()
        self._run(self._make())
        assert torch.equal(torch.get_rng_state(), before)

    def test_recorded_in_a_training(self, tmp_path: Path) -> None:
        """Beside a fit, also when that is resumed in the middle of an epoch: the same scores."""
        whole = self._record(tmp_path)
        assert not whole.isnan().any()
        assert torch.equal(self._record(tmp_path, resume=True), whole)

    def test_two_processes(self, tmp_path: Path) -> None:
        """Two gloo processes have the scores of one, also when they are resumed in the middle of an epoch."""
        processes.skip_without_fork()
        processes.run_ranks(self._rank, tmp_path, folder=tmp_path)
        whole = self._record(tmp_path / "single")
        for path in sorted(tmp_path.glob("*.pt")):
            assert torch.equal(torch.load(path, weights_only=True), whole), path.stem

    def _rank(self, rank: int, folder: Path) -> None:
        """Record in one of two processes, and go on from the middle."""
        options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()]}
        torch.save(self._record(folder, **options), folder / f"whole.{rank}.pt")
        torch.save(self._record(folder, resume=True, **options), folder / f"resumed.{rank}.pt")

    def _record(self, folder: Path, *, resume: bool = False, devices: int = 1, **options: Any) -> Tensor:
        """Return the scores of a fit, which writes a checkpoint in its middle, or is resumed from there."""
        steps = -(-self.num_samples // (devices * BATCH_SIZE))
        middle = steps * (self.num_epochs // 2) + 2
        recorder = ScoreRecorder(self.tracker())
        checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=middle)
        callbacks = [recorder] if resume else [recorder, checkpoint]
        options = {"devices": devices, "max_epochs": self.num_epochs, "enable_checkpointing": not resume, **options}
        ckpt_path = folder / f"step={middle}.ckpt" if resume else None
        loader = make_loader(self.num_samples, BATCH_SIZE)
        make_trainer(*callbacks, **options).fit(_Shows(self), loader, ckpt_path=ckpt_path)
        return recorder.trackers[0].compute()

    @property
    def _ids(self) -> Tensor:
        return torch.arange(self.num_samples)

    def _make(self) -> Tracker:
        """Return a tracker that knows the length of the data set."""
        tracker = self.tracker()
        tracker.num_samples = self.num_samples
        return tracker

    def _another(self, epoch: int) -> int:
        return (epoch + 1) % self.num_epochs

    def _inputs(self, epoch: int) -> dict[str, Tensor]:
        """Return what all samples show in an epoch."""
        n, generator = self.num_samples, torch.Generator().manual_seed(epoch)
        return {
            "losses": torch.rand(n, generator=generator),
            "logits": 3 * torch.randn(n, self.num_classes, generator=generator),
            "targets": torch.randint(self.num_classes, (n,), generator=torch.Generator().manual_seed(7)),
            "features": torch.randn(n, 3, generator=generator),
        }

    def _visit(self, tracker: Tracker, epoch: int, ids: Tensor) -> None:
        tracker.update(ids, **{name: value[ids] for name, value in self._inputs(epoch).items()})

    def _batches(
        self,
        batch_size: int = BATCH_SIZE,
        skip: Collection[tuple[int, int]] = (),
    ) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield the batches of each epoch, in a fresh order; visits (epoch, id) in ``skip`` are missed."""
        generator = torch.Generator().manual_seed(batch_size)
        for epoch in range(self.num_epochs):
            order = torch.randperm(self.num_samples, generator=generator).tolist()
            yield epoch, torch.split(torch.tensor([i for i in order if (epoch, i) not in skip]), batch_size)

    def _run(
        self,
        tracker: Tracker,
        batch_size: int = BATCH_SIZE,
        *,
        extra: Visits = lambda _, ids: ids,
        skip: Collection[tuple[int, int]] = (),
    ) -> Tensor:
        """Have a tracker see the whole training; ``extra`` changes batches. Return the scores."""
        for epoch, batches in self._batches(batch_size, skip):
            for ids in batches:
                self._visit(tracker, epoch, extra(epoch, ids))
            tracker.end_epoch()
        return tracker.compute()


@final
class _Shows(WeightedModel):
    """Hands on what the contract's samples show, whatever was learnt."""

    def __init__(self, contract: TrackerContract) -> None:
        super().__init__()
        self.contract = contract

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted loss of the script."""
        inputs: dict[str, Any] = self.contract._inputs(self.current_epoch)
        inputs = {name: value[batch[2]] for name, value in inputs.items()}
        return self.weighted_loss(inputs.pop("losses") + 0 * self.losses(batch), **inputs)


@final
class NoSync(TorchDispatchMode):  # type: ignore[no-untyped-call]  # in torch
    """Refuses what would make the host wait for a GPU: reading a value, and shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that is not refused."""
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}, f"`{name}` waits"
        if name in {"index", "index_put", "index_put_"}:
            assert all(index is None or index.dtype == torch.int64 for index in args[1]), "a mask as index waits"
        return func(*args, **(kwargs or {}))


@final
class NoMove(TorchFunctionMode):
    """Refuses what would move values from a GPU to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function that is not refused."""
        name = getattr(func, "__name__", "")
        assert name not in {"cpu", "numpy", "tolist", "item"}, f"`{name}` waits"
        if name == "to":
            where = [arg for arg in (*args[1:], *(kwargs or {}).values()) if isinstance(arg, str)]
            assert "cpu" not in where, '`to("cpu")` waits'
        return func(*args, **(kwargs or {}))
