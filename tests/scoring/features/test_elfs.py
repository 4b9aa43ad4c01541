"""ELFS: clusters that are the classes, margins against autograd, agreement against all pairings, and a clean set."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from lightning_prune import AlignPrune, InfoBatch
from lightning_prune.scoring import (
    Features,
    StaticPruning,
    agreement,
    double_end_scores,
    proxy_margins,
    pseudo_labels,
    score_features,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clusters():
    """Four clusters of 50 directions, the true classes, and labels of which 40 % are wrong."""
    classes = torch.arange(200) % 4
    centres = F.normalize(torch.randn(4, 16, generator=seeded()))
    features = centres[classes] + 0.15 * torch.randn(200, 16, generator=seeded(1))
    wrong = torch.rand(200, generator=seeded(2)) < 0.4
    noisy = torch.where(wrong, (classes + 1 + torch.randint(3, (200,), generator=seeded(3))) % 4, classes)
    return features, classes, noisy, wrong


def test_clusters_are_the_classes(clusters):
    features, classes, noisy, wrong = clusters
    state = torch.random.get_rng_state()
    labels = pseudo_labels(features, 4, generator=seeded())
    assert torch.equal(state, torch.random.get_rng_state())
    assert bool(agreement(labels, classes).all())
    assert torch.equal(agreement(labels, noisy), ~wrong)
    assert torch.equal(labels, pseudo_labels(features, 4, generator=seeded()))


def test_margins_against_autograd():
    features, labels = torch.randn(20, 3, generator=seeded()), torch.randint(3, (20,), generator=seeded(1))
    found = proxy_margins(features, labels, num_epochs=5, learning_rate=0.3, generator=seeded(2))
    inputs = (features - features.mean(0)) / features.std(0, correction=0) / 3**0.5
    layer = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)
    sums = torch.zeros(20)
    for _ in range(5):  # one batch holds all
        logits = layer(inputs)
        probs = logits.detach().softmax(1)
        for i in range(20):
            others = [float(p) for c, p in enumerate(probs[i]) if c != labels[i]]
            sums[i] += float(probs[i, labels[i]]) - max(others)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    torch.testing.assert_close(found, sums / 5, rtol=1e-4, atol=1e-5)


def test_agreement_is_the_best_pairing():
    labels, targets = torch.randint(4, (40,), generator=seeded()), torch.randint(4, (40,), generator=seeded(1))
    best = max(sum(p[int(a)] == int(b) for a, b in zip(labels, targets, strict=True)) for p in permutations(range(4)))
    assert int(agreement(labels, targets).sum()) == best


def test_a_cluster_too_many_agrees_with_none():
    assert agreement(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([5, 5, 9, 9, 9])).tolist() == [True] * 4 + [False]


def test_double_end():
    margins = torch.randn(50, generator=seeded())
    order = margins.argsort().tolist()
    expected = order[10:] + order[:10][::-1]
    assert double_end_scores(margins, 0.2).argsort(descending=True).tolist() == expected


def test_a_pseudo_clean_reference_for_alignprune(clusters, tmp_path):
    """Of labels that are wrong by 40 %, the tenth that AlignPrune takes has none."""
    features, _, noisy, wrong = clusters
    file = score_features("ELFS", Features(features=features, targets=noisy), pseudo_clean=True)
    path = file.save(tmp_path / "clean.npz")
    kept = StaticPruning(path, 0.9).choose(200).indices
    assert len(kept) == 20
    assert not bool(wrong[kept].any())
    assert AlignPrune(InfoBatch(), reference=str(path)).reference == str(path)


def test_the_cutoff_is_a_third_of_what_is_pruned(clusters):
    features, classes, _, _ = clusters
    shown = Features(features=features, targets=classes)
    file = score_features("ELFS", shown, prune_ratio=0.6)
    assert torch.equal(file.scores, double_end_scores(file.columns["margin"], 0.2))
    assert file.meta["parameters"] == {"seed": 0, "prune_ratio": 0.6}
    other = score_features("ELFS", shown, prune_ratio=0.6, hard_cutoff=0.4)
    assert torch.equal(other.scores, double_end_scores(file.columns["margin"], 0.4))


def test_without_labels():
    embeddings = Features(features=torch.randn(30, 4, generator=seeded()))
    assert set(score_features("ELFS", embeddings, num_clusters=3).columns) == {"pseudo_labels", "margin"}
    with pytest.raises(ValueError, match="Expected `targets` of each sample"):
        score_features("ELFS", embeddings)


def test_scikit_learn_may_be_missing(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-prune\[cluster\]'"):
        pseudo_labels(torch.eye(3), 2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pseudo_labels(torch.eye(3), 4), "`num_clusters` to be an int >= 2 and <= 3"),
        (lambda: proxy_margins(torch.eye(3), torch.tensor([0, 1, 1]), num_epochs=0), "`num_epochs`"),
        (lambda: proxy_margins(torch.eye(3), torch.tensor([0, 1, 1]), learning_rate=0.0), "`learning_rate`"),
        (lambda: double_end_scores(torch.ones(3), 1.0), "`hard_cutoff`"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
