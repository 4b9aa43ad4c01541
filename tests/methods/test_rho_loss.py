"""RHO-LOSS: the top of the reducible losses, the file of irreducible ones, and runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_prune import RHOLoss, ScoreRegistry
from lightning_prune.cli import main
from lightning_prune.core.plan import num_keep
from lightning_prune.scoring import save_scores
from tests.helpers import Model, make_loader, make_trainer, registry_of


@pytest.fixture
def irreducible(tmp_path):
    def write(values, name="il.npy"):
        np.save(tmp_path / name, np.asarray(values))
        return str(tmp_path / name)

    return write


class Noted(RHOLoss):
    """Notes ids, losses and picks of each batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.picked = []

    def pick(self, step, generator):
        positions = super().pick(step, generator)
        self.picked.append((step.indices.tolist(), step.recorded_losses.tolist(), positions.tolist()))
        return positions


def test_picks_the_highest_reducible_losses(irreducible):
    losses = np.random.default_rng(0).normal(size=40).astype(np.float32)
    method = Noted(prune_ratio=0.7, irreducible_losses=irreducible(losses))
    trainer = make_trainer(method, max_epochs=3)
    trainer.fit(Model(), make_loader(batch_size=12))  # batches of 12, 12, 12, 4
    assert len(method.picked) == 12
    for ids, values, positions in method.picked:
        k = max(2, num_keep(len(ids), 1 - 0.7))  # of the last batch two, which BatchNorm can train on
        reducible = np.float32(values) - losses[ids]
        assert positions == sorted(np.argsort(reducible)[-k:])
    assert registry_of(trainer).saved_fraction == pytest.approx(1 - (3 + 3 + 3 + 2) / 40)


def test_without_irreducible_losses_it_is_the_top_of_the_losses_and_with_the_same_ones_a_draw(irreducible):
    """All reducible losses equal: each of the 4 samples of a batch is picked with 1/2; 1,000 batches, z <= 5."""

    class Step:
        def __init__(self, registry):
            self.registry, self.indices, self.recorded_losses = registry, torch.arange(4), torch.tensor([3.0, 1, 4, 1])
            self.running = None

    registry = ScoreRegistry()
    registry.allocate(4, "cpu")
    method = RHOLoss(0.5, irreducible(np.zeros(4)))
    method.setup_columns(registry)
    source = torch.Generator().manual_seed(0)
    assert method.pick(Step(registry), source).tolist() == [0, 2]
    registry.column("irreducible_losses").copy_(torch.tensor([3.0, 1, 4, 1]))
    counts = torch.zeros(4)
    for _ in range(1000):
        counts[method.pick(Step(registry), source)] += 1
    assert (counts / 1000 - 0.5).abs().max() <= 5 * math.sqrt(0.25 / 1000)


def test_a_missing_irreducible_loss_counts_zero(irreducible):
    values = np.zeros(40)
    values[[3, 8]] = np.nan, np.inf
    trainer = make_trainer(RHOLoss(0.5, irreducible(values)), max_epochs=1)
    with pytest.warns(UserWarning, match="2 of 40 irreducible losses"):
        trainer.fit(Model(), make_loader())
    assert registry_of(trainer).column("irreducible_losses").tolist() == [0.0] * 40


def test_from_the_registry_of_another_run_and_from_a_score_file(tmp_path):
    first = make_trainer(ScoreRegistry(), max_epochs=1)
    first.fit(Model(), make_loader())
    registry_of(first).save(tmp_path / "il.npz")
    second = make_trainer(RHOLoss(0.5, tmp_path / "il.npz"), max_epochs=1)
    second.fit(Model(), make_loader())
    assert torch.equal(registry_of(second).column("irreducible_losses"), registry_of(first).losses)
    save_scores(tmp_path / "scores.npz", registry_of(first).losses, method="SmallLoss", keep="low")
    RHOLoss(0.5, str(tmp_path / "scores.npz"))
    third = make_trainer(RHOLoss(0.5, str(tmp_path / "scores.npz")), max_epochs=1)
    third.fit(Model(), make_loader())
    assert torch.equal(registry_of(third).column("irreducible_losses"), registry_of(first).losses)


def test_a_missing_file_is_refused_at_construction():
    with pytest.raises(FileNotFoundError, match=r"no\.npz"):
        RHOLoss(irreducible_losses="no.npz")
    with pytest.raises(ValueError, match="Train a model on held-out data"):
        RHOLoss()


@pytest.mark.parametrize("values", [np.zeros(39), np.zeros((40, 2)), np.zeros(40, dtype=int)])
def test_a_file_that_does_not_fit_is_refused_before_the_first_step(values, irreducible):
    model = Model()
    with pytest.raises(ValueError, match="Expected 40 irreducible losses"):
        make_trainer(RHOLoss(0.5, irreducible(values))).fit(model, make_loader())
    assert not model.seen


def test_something_else_than_an_array_is_refused(tmp_path):
    (tmp_path / "il.npy").write_text("no array")
    with pytest.raises(ValueError, match="to hold an array"):
        make_trainer(RHOLoss(0.5, str(tmp_path / "il.npy"))).fit(Model(), make_loader())
    np.savez(tmp_path / "other.npz", values=np.zeros(40))
    with pytest.raises(ValueError, match="`losses` or `scores`"):
        make_trainer(RHOLoss(0.5, str(tmp_path / "other.npz"))).fit(Model(), make_loader())


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_bad_ratio(ratio, irreducible):
    with pytest.raises(ValueError, match="prune_ratio"):
        RHOLoss(ratio, irreducible(np.zeros(4)))


@pytest.mark.filterwarnings("ignore")
def test_from_yaml(tmp_path, monkeypatch, irreducible):
    from tests.test_cli import CONFIG, ROOT

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    path = irreducible(np.zeros(1437))
    (tmp_path / "method.yaml").write_text(
        f"trainer:\n  callbacks:\n    class_path: RHOLoss\n    init_args: {{irreducible_losses: {path}}}\n"
    )
    main(["fit", "--config", CONFIG, "--config", "method.yaml", "--trainer.fast_dev_run=true"])
