"""The committed experiments are commands that `compare` accepts, and RePB's ablations leave out what they say."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from examples.experiments.analysis import surrogate, table, unbiasedness
from examples.experiments.data import NoisyDigits
from examples.experiments.hard_and_noisy import WINDOW, alignment, curves, groups_of
from examples.experiments.repb_ablation import RePBWithoutResampling, RePBWithoutRescaling
from examples.experiments.run import EXPERIMENTS
from lightning_prune import PruningMonitor, RePB
from lightning_prune.compare.main import _methods, _ratio, make_parser
from tests.helpers import Model, make_loader, make_trainer

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_arguments_are_accepted(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for _, command in EXPERIMENTS[name]:
        config = [] if "--config" in command else ["--config", "examples/experiments/digits.yaml"]
        options, rest = make_parser().parse_known_args([*config, *command])
        assert all(Path(path).exists() for path in options.config)
        assert [method for text in options.methods for method in _methods(text)]
        assert all(0 < _ratio(text) < 1 for text in options.prune_ratios)
        assert all(argument.startswith(("--data.", "--optimizer")) for argument in rest)


def run(method):
    monitor, weights = PruningMonitor(), []

    class Watched(Model):
        def on_train_epoch_start(self):
            registry = next(c for c in self.trainer.callbacks if hasattr(c, "selection"))
            weights.append((set(registry.selection.indices.tolist()), registry.selection.weights))

    torch.manual_seed(0)
    make_trainer(method, monitor, max_epochs=8).fit(Watched(), make_loader(200, 20))
    return weights


def test_without_resampling_nobody_returns():
    epochs = [ids for ids, _ in run(RePBWithoutResampling(0.7, seed=0))]
    assert all(later <= earlier for earlier, later in itertools.pairwise(epochs))
    assert len(epochs[-1]) < len(epochs[0])
    returned = [ids for ids, _ in run(RePB(0.7, seed=0))]
    assert not all(later <= earlier for earlier, later in itertools.pairwise(returned))


def test_without_rescaling_all_weigh_one():
    assert all(weights is None for _, weights in run(RePBWithoutRescaling(0.7, seed=0)))
    assert any(weights is not None and float(weights.max()) > 1 for _, weights in run(RePB(0.7, seed=0)))


def test_noisy_digits_know_their_noise():
    data = NoisyDigits("symmetric", 0.4)
    data.setup("fit")
    clean = NoisyDigits("symmetric", 0.0)
    clean.setup("fit")
    labels, truth = data.train.tensors[1], clean.train.tensors[1]
    assert torch.equal(data.train.flipped, labels != truth)
    assert float(data.train.flipped.double().mean()) == pytest.approx(0.4, abs=1e-3)


def test_tables_of_the_analyses():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
    lines = surrogate().splitlines()
    assert [line.split("|")[3].strip() for line in lines[-6:]] == ["10.00", "3.33", "2.00", "1.43", "1.11", "1.00"]
    z = [abs(float(line.split("|")[3])) for line in unbiasedness().splitlines()[2:]]
    assert [value < 5 for value in z] == [True, True, True, False, False, True]


def test_curves_of_hard_and_mislabelled_samples():
    epochs, flipped = torch.arange(40.0)[:, None], torch.arange(60) >= 40
    falling, late, rising = 0.9 - epochs / 50, 3 - epochs / 40, 1 + epochs / 40  # easy, hard, mislabelled
    losses = torch.where(flipped, rising, torch.where(torch.arange(60) < 4, late, falling))
    groups = groups_of(losses, flipped)
    assert groups.tolist() == [1] * 4 + [0] * 36 + [2] * 20
    assert torch.allclose(alignment(losses, WINDOW), torch.where(flipped, -1.0, 1.0))
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in curves([(losses, groups)]).splitlines()]
    assert rows[5][0] == "**hard above mislabelled, by loss**"
    assert rows[5][1:] == ["**0.00**"] * 6
    assert rows[9][1:] == ["", *["**1.00**"] * 5]
    assert [row[2] for row in rows[6:9]] == ["1.00", "1.00", "-1.00"]
