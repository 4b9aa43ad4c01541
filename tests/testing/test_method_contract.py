"""The contract of methods lets a sound one pass, and catches each way of breaking it."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from lightning_prune import PruningCallback, Selection
from lightning_prune.testing import MethodContract
from lightning_prune.testing.task import LIGHTNING_S_ADVICE

IGNORED = [*LIGHTNING_S_ADVICE, "ignore:.*losses were NaN or infinite"]
pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


class Half(PruningCallback):
    """Sound: keeps a random half, of which the harder is the likelier."""

    def __init__(self, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def keys(self, registry, generator):
        draws = torch.rand(registry.num_samples, generator=generator)
        return draws * registry.scores.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp(1e-3, 1e3)

    def select(self, registry, epoch, generator):
        keys = self.keys(registry, generator)
        return Selection(keys.topk(max(1, round(self.share * len(keys)))).indices.sort().values)


class TestHalf(MethodContract):
    method = staticmethod(lambda: Half(seed=3))
    neutral = staticmethod(lambda: Half(1.0))


class KeepsAll(Half):
    def select(self, registry, epoch, generator):
        return Selection.all(registry.num_samples)


class TorchDraws(Half):
    def keys(self, registry, generator):
        return torch.rand(registry.num_samples)


class NumpyDraws(Half):
    def keys(self, registry, generator):
        np.random.rand()
        return super().keys(registry, generator)


class PythonDraws(Half):
    def keys(self, registry, generator):
        random.random()
        return super().keys(registry, generator)


class Entropy(Half):
    """Draws from the system's entropy."""

    def keys(self, registry, generator):
        generator.manual_seed(int.from_bytes(os.urandom(4), "little"))
        return super().keys(registry, generator)


class CountsItself(Half):
    """Keeps in the callback how many epochs were recorded: neither a second run nor a resumed one can know."""

    recorded = 0

    def on_epoch_recorded(self, registry, record):
        self.recorded += 1

    def keys(self, registry, generator):
        return super().keys(registry, generator.manual_seed(self.recorded))


class RemembersIds(CountsItself):
    """The same, but starts anew with each run: only a resume shows it."""

    def setup_columns(self, registry):
        self.recorded = 0


class ByWorldSize(Half):
    def select(self, registry, epoch, generator):
        selection = super().select(registry, epoch, generator)
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        return Selection(selection.indices[1:]) if several else selection


class ByRank(Half):
    def keys(self, registry, generator):
        if torch.distributed.is_initialized():
            generator.manual_seed(torch.distributed.get_rank())
        return super().keys(registry, generator)


class DropsBroken(Half):
    """Never comes back to a sample whose loss was not finite; a sample not yet seen is none of them."""

    def keys(self, registry, generator):
        keys = super().keys(registry, generator)
        return torch.where(~registry.scores.isfinite() & (registry.counts > 0), -1.0, keys)


class NothingAboveTheMean(Half):
    """Selects nobody where all losses are equal."""

    def select(self, registry, epoch, generator):
        scores = registry.scores.nan_to_num(nan=1e9)
        return Selection((scores > scores.mean()).nonzero().flatten()) if epoch else Selection.all(len(scores))


class OneLess(Half):
    """Wants at least two samples."""

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(registry.num_samples - 1))


class ChangesItsColumn(Half):
    def setup_columns(self, registry):
        registry.add_column("asked")

    def select(self, registry, epoch, generator):
        registry.column("asked").add_(1)
        return super().select(registry, epoch, generator)


class NegativeWeights(Half):
    def select(self, registry, epoch, generator):
        selection = super().select(registry, epoch, generator)
        return Selection(selection.indices, -torch.ones(len(selection)))


class FirstHalf(Half):
    """Deterministic, and goes by position."""

    def keys(self, registry, generator):
        return -torch.arange(float(registry.num_samples))


class FavoursTheFirst(Half):
    """Random, and the first half of the data set is the likelier."""

    def keys(self, registry, generator):
        first = torch.arange(registry.num_samples) < registry.num_samples // 2
        return torch.rand(registry.num_samples, generator=generator) + 0.5 * first


class NoWarmup(PruningCallback):
    """Keeps the shared arguments for itself."""

    def __init__(self, seed=None, warmup_epochs=0):
        super().__init__()
        self.seed = seed

    def select(self, registry, epoch, generator):
        return Selection(torch.arange(registry.num_samples // 2))


class HidesItsShare(Half):
    """Its argument is no attribute."""

    def __init__(self, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self.share, self._share = 0.25, share

    def __repr__(self):
        return f"HidesItsShare({self._share}, {self.share})" if self._share == 0.5 else object.__repr__(self)


class Unpicklable(Half):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rule = lambda: None


BROKEN = [
    (KeepsAll, "it_prunes"),
    (Half, "nothing_to_prune_is_the_run_without_it"),  # as its own neutral
    (TorchDraws, "global_random_numbers_are_left_alone"),
    (NumpyDraws, "global_random_numbers_are_left_alone"),
    (PythonDraws, "global_random_numbers_are_left_alone"),
    (Entropy, "same_seed_same_run"),
    (CountsItself, "same_seed_same_run"),
    (RemembersIds, "two_processes"),
    (ByWorldSize, "two_processes"),
    (ByRank, "two_processes"),
    (DropsBroken, "a_broken_loss_drops_no_sample_for_good"),
    (ChangesItsColumn, "selecting_changes_nothing"),
    (Entropy, "selecting_changes_nothing"),
    (FirstHalf, "permuting_the_samples"),
    (FavoursTheFirst, "permuting_the_samples"),
    (NoWarmup, "warmup_epochs_train_on_everything"),
    (HidesItsShare, "repr"),
]


def contract_of(method, **settings):
    return type(
        "Broken", (MethodContract,), {"method": staticmethod(method), "neutral": staticmethod(method), **settings}
    )()


def check(contract, name, tmp_path, *arguments):
    folder = {"tmp_path": tmp_path} if name in {"resume", "kill", "two_processes", "from_yaml"} else {}
    getattr(contract, f"test_{name}")(*arguments, **folder)


@pytest.mark.parametrize(("method", "name"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_method_is_caught(method, name, tmp_path):
    with pytest.raises(AssertionError):
        check(contract_of(method), name, tmp_path)


@pytest.mark.parametrize(
    ("method", "name", "arguments", "error"),
    [
        (CountsItself, "resume", (), "derive the selection of epoch"),
        (RemembersIds, "resume", (), "derive the selection of epoch"),
        (RemembersIds, "kill", (), "derive the selection of epoch"),
        (NegativeWeights, "selecting_changes_nothing", (), "Expected finite weights"),
        (NothingAboveTheMean, "equal_losses", (), "at least one sample"),
        (OneLess, "tiny_data_sets", (1,), "at least one sample"),
        (Unpicklable, "same_seed_same_run", (), "pickle"),
        (NoWarmup, "shared_arguments_are_checked", ("warmup_epochs", -1), "DID NOT RAISE"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_method_ends_in_an_error(method, name, arguments, error, tmp_path):
    with pytest.raises((Exception, pytest.fail.Exception), match=error):
        check(contract_of(method), name, tmp_path, *arguments)


def test_what_cannot_hold_is_skipped_or_left_out(tmp_path):
    for name, settings in (
        ("it_prunes", {"prunes": False}),
        ("nothing_to_prune_is_the_run_without_it", {"neutral": None}),
        ("permuting_the_samples", {"bound_to_data": True}),
    ):
        with pytest.raises(pytest.skip.Exception):
            check(contract_of(KeepsAll, **settings), name, tmp_path)

    class Local(Half):
        pass

    with pytest.raises(pytest.skip.Exception, match="cannot be imported"):
        check(contract_of(Local), "from_yaml", tmp_path)

    class Hooked(Half):
        def on_train_epoch_end(self, trainer, pl_module):
            pass

    with pytest.raises(pytest.skip.Exception, match="on_train_epoch_end"):
        check(contract_of(Hooked), "permuting_the_samples", tmp_path)


def test_by_batch_leaves_out_the_comparison_with_one_process(tmp_path):
    check(contract_of(ByWorldSize, by_batch=True), "two_processes", tmp_path)


def test_another_length_of_the_data_set(tmp_path):
    contract = contract_of(Half, num_samples=33, neutral=staticmethod(lambda: Half(1.0)))
    for name in ("it_prunes", "nothing_to_prune_is_the_run_without_it", "resume", "kill", "two_processes"):
        (tmp_path / name).mkdir()
        check(contract, name, tmp_path / name)
