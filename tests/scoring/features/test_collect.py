from __future__ import annotations

import random

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_prune import WeightedLossMixin
from lightning_prune.scoring import Features, collect_features

N, D, C = 23, 6, 3
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(N, D, generator=GENERATOR), torch.arange(N) % C


def loader(batch_size=5, **kwargs):
    return DataLoader(TensorDataset(X, Y), batch_size, **{"shuffle": True, "drop_last": True, **kwargs})


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, C))


class Module(WeightedLossMixin, L.LightningModule):
    """Shows what ``passes`` names; its batches are dicts, which only its own step understands."""

    def __init__(self, passes=("logits", "targets")):
        super().__init__()
        self.net, self.passes, self.ends, self.moved = network(), passes, 0, 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.moved += 1
        return {"x": batch[0], "y": batch[1]}

    def training_step(self, batch, batch_idx):
        logits = self.net(batch["x"])
        losses = F.cross_entropy(logits, batch["y"], reduction="none")
        shown = {"logits": logits, "targets": batch["y"], "features": batch["x"]}
        self.log("loss", losses.mean())
        loss = self.weighted_loss(losses, **{name: shown[name] for name in self.passes})
        self.ends += 1
        return loss


def expected():
    net = network().eval()
    with torch.no_grad():
        return net(X), net[:-1](X)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
@pytest.mark.parametrize("make", [network, Module])
def test_rows_are_those_of_the_dataset(make, batch_size):
    shown = collect_features(make(), loader(batch_size), progress=False)
    logits, features = expected()
    torch.testing.assert_close(shown.logits, logits)
    torch.testing.assert_close(shown.features, features)
    assert torch.equal(shown.targets, Y)
    assert len(shown) == N


def test_the_step_is_only_run_to_its_losses():
    module = Module(("logits", "targets", "features"))
    shown = collect_features(module, loader(), progress=False)
    assert torch.equal(shown.features, X)
    assert module.ends == 0
    assert module.moved == 5


def test_half_precision_storage():
    shown = collect_features(network(), loader(), dtype=torch.float16, progress=False)
    assert shown.features.dtype == torch.float16
    assert shown.logits.dtype == torch.float32


def test_nothing_is_left_behind():
    net = network()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    class Noisy(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + torch.randn(D) + random.random() + np.random.rand(), y

    def collect(seed):
        return collect_features(net, DataLoader(Noisy(X, Y), 5), seed=seed, progress=False).logits

    first = collect(0)
    assert torch.equal(collect(0), first)
    assert not torch.equal(collect(1), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert [part.training for part in net] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part._forward_pre_hooks for part in net)


def test_nothing_is_left_behind_by_a_pass_that_fails():
    class Broken(nn.Linear):
        def forward(self, x):
            torch.rand(1)
            raise RuntimeError("broken")

    net, state = nn.Sequential(Broken(D, C)), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken") as error:
        collect_features(net, loader(), progress=False)
    assert torch.equal(torch.get_rng_state(), state), error
    assert net.training
    assert not net[0]._forward_pre_hooks


def test_a_progress_bar(capsys):
    collect_features(network(), loader(), progress=False)
    assert not capsys.readouterr().err
    collect_features(network(), loader())
    assert "Features: 100%" in capsys.readouterr().err


def test_what_is_not_shown_is_named():
    shown = Features(features=X)
    assert list(shown.given) == ["features"]
    with pytest.raises(ValueError, match=r"Expected `targets` of each sample, but there are only \['features'\]"):
        _ = shown.targets
    with pytest.raises(ValueError, match="Expected `logits`"):
        _ = shown.probs


def test_derived_values():
    logits, features = expected()
    shown = Features(logits=logits, targets=Y, features=features)
    grads = torch.func.grad(lambda z: F.cross_entropy(z, Y, reduction="sum"))(logits)
    torch.testing.assert_close(shown.output_grads, grads)
    torch.testing.assert_close(shown.losses, F.cross_entropy(logits, Y, reduction="none"))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    ("module", "data", "error", "match"),
    [
        (network(), [1, 2], MisconfigurationException, "Expected a `torch.utils.data.DataLoader`"),
        (network(), DataLoader(Stream(), 4), MisconfigurationException, "IterableDataset"),
        (network(), DataLoader(TensorDataset(X, Y), None), MisconfigurationException, "forms batches"),
        (network(), DataLoader(TensorDataset(X[:0], Y[:0]), 4), MisconfigurationException, "it is empty"),
        (network(), DataLoader(TensorDataset(X), 4), TypeError, r"batches `\(inputs, targets, ...\)`, but got list"),
        (network(), DataLoader(TensorDataset(X, Y.float()), 4), ValueError, "Mixed targets"),
        (network(), DataLoader(TensorDataset(X, Y + 1), 4), ValueError, r"`targets` within \[0, 3\).*\[1, 3\]"),
        (nn.Linear(D, 1), loader(), ValueError, "`logits` to have shape"),
        (Module(()), loader(), ValueError, "`Module` shows only losses. Write"),
    ],
)
def test_bad_input(module, data, error, match):
    with pytest.raises(error, match=match):
        collect_features(module, data, progress=False)


def test_a_collate_function_that_drops_samples():
    def drop(samples):
        return torch.utils.data.default_collate(samples[1:])

    with pytest.raises(ValueError, match=r"`logits` to have shape \(5, d\)"):
        collect_features(network(), loader(collate_fn=drop), progress=False)
