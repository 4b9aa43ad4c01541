"""Influence: against the dense Hessian by autograd, and against training again without a sample."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian

from lightning_prune.scoring import influence
from lightning_prune.scoring.features.influence import solve_hessian

DAMPING = 0.05
MODULE = sys.modules[solve_hessian.__module__]


def mean_loss(head, features, targets):
    weight, bias = head.view(5, -1)[:, :-1], head.view(5, -1)[:, -1]
    return F.cross_entropy(features @ weight.T + bias, targets)


@pytest.fixture(scope="module")
def trained(golden):
    """The golden features, and the last layer that is best for them with a weight decay of the damping."""
    features, targets = golden["features"].double(), golden["targets"]
    return features, targets, fit_head(features, targets)


def gradient_of(function, head):
    head = head.clone().requires_grad_()
    return torch.autograd.grad(function(head), head)[0]


def hessian_of(function, head):
    return hessian(function, head, vectorize=True)


def fit_head(features, targets, total=None, start=None):
    """Minimise the losses' sum over ``total`` samples, plus the decay, by Newton's method."""
    head = torch.zeros(5 * (features.shape[1] + 1), dtype=torch.float64) if start is None else start
    share = len(targets) / (total or len(targets))

    def objective(h):
        return share * mean_loss(h, features, targets) + DAMPING / 2 * h.square().sum()

    for _ in range(12 if start is None else 6):
        gradient = gradient_of(objective, head)
        head = head - torch.linalg.solve(hessian_of(objective, head), gradient)
    assert float(gradient.norm()) < 1e-10
    return head


def logits_of(head, features):
    return features @ head.view(5, -1)[:, :-1].T + head.view(5, -1)[:, -1]


def reference(head, features, targets, direction=None):
    """Dense: the Hessian by autograd, one sample's gradient after another."""
    hessian = hessian_of(lambda h: mean_loss(h, features, targets), head) + DAMPING * torch.eye(len(head)).double()
    inverse = torch.linalg.inv(hessian)
    grads = [
        gradient_of(lambda h, i=i: mean_loss(h, features[i : i + 1], targets[i : i + 1]), head)
        for i in range(len(targets))
    ]
    solved = [inverse @ grad for grad in grads]
    if direction is None:
        return torch.stack([s.norm() for s in solved])
    return torch.stack([direction @ s for s in solved])


def test_norms_against_the_dense_hessian(trained):
    features, targets, head = trained
    scores = influence(logits_of(head, features), features, targets, damping=DAMPING)
    torch.testing.assert_close(scores, reference(head, features, targets).float(), rtol=1e-5, atol=1e-6)


def test_losses_against_the_dense_hessian(trained, golden):
    features, targets, head = trained
    shown = {"val_features": features[:20], "val_targets": targets[:20]}
    shown["val_logits"] = logits_of(head, shown["val_features"])
    scores = influence(logits_of(head, features), features, targets, kind="loss", damping=DAMPING, **shown)
    direction = gradient_of(lambda h: mean_loss(h, features[:20], targets[:20]), head)
    expected = reference(head, features, targets, direction)
    torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=1e-6)


def test_it_foresees_what_leaving_out_a_sample_does(trained):
    """The paper's own check: train again without a sample, to the optimum. The error is of the order of 1 / n."""
    features, targets, head = trained
    features, targets, n = features.repeat(10, 1), targets.repeat(10), 600  # of the same optimum
    logits = logits_of(head, features)
    norms = influence(logits, features, targets, damping=DAMPING) / n
    shown = {"val_logits": logits[:20], "val_features": features[:20], "val_targets": targets[:20]}
    losses = influence(logits, features, targets, kind="loss", damping=DAMPING, **shown) / n
    before = mean_loss(head, features[:20], targets[:20])
    moved, lost = [], []
    for i in range(0, 60, 6):
        rest = torch.arange(n) != i
        again = fit_head(features[rest], targets[rest], total=n, start=head)
        moved.append((again - head).norm())
        lost.append(mean_loss(again, features[:20], targets[:20]) - before)
    ids = torch.arange(0, 60, 6)
    assert float(torch.corrcoef(torch.stack([norms[ids].double(), torch.stack(moved)]))[0, 1]) > 0.999
    assert float(torch.corrcoef(torch.stack([losses[ids].double(), torch.stack(lost)]))[0, 1]) > 0.999
    assert float((norms[ids].double() / torch.stack(moved)).log().abs().max()) < 0.05


def test_a_part_of_the_samples_for_the_hessian(trained):
    features, targets, head = trained
    logits = logits_of(head, features)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(60, generator=generator)[:30]
    drawn = torch.Generator().manual_seed(0)
    scores = influence(logits, features, targets, damping=DAMPING, hessian_samples=30, generator=drawn)
    some = influence(logits[rows], features[rows], targets[rows], damping=DAMPING)
    torch.testing.assert_close(scores[rows], some)


def test_blocks_do_not_matter(trained, monkeypatch):
    features, targets, head = trained
    whole = influence(logits_of(head, features), features, targets)
    monkeypatch.setattr(MODULE, "_CHUNK", 1000)
    torch.testing.assert_close(influence(logits_of(head, features), features, targets), whole)


def test_a_sample_without_a_gradient_has_no_influence():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1.0]])
    assert influence(logits, torch.ones(2, 1), torch.tensor([0, 0])).tolist()[0] == 0


def test_what_does_not_converge_is_told(trained, monkeypatch):
    features, _, head = trained
    probs = logits_of(head, features).softmax(1)
    monkeypatch.setattr(MODULE, "_MOST_ROUNDS", 2)
    with pytest.warns(UserWarning, match="did not reach a relative error of 1e-06 in 2 rounds. Use a larger `damping`"):
        solve_hessian(torch.randn(1, 5, 9).double(), probs, F.pad(features, (0, 1), value=1.0), 1e-6)


def test_bad_inputs(golden, head):
    logits, _, _, targets = head
    features = golden["features"]
    with pytest.raises(ValueError, match="together, or none of them, but got only some"):
        influence(logits, features, targets, kind="loss", val_logits=logits)
    with pytest.raises(ValueError, match="with kind='norm', which uses no validation set"):
        influence(logits, features, targets, val_logits=logits, val_features=features, val_targets=targets)
    with pytest.raises(ValueError, match="`damping` to be a number > 0"):
        influence(logits, features, targets, damping=0.0)
    with pytest.raises(ValueError, match="`kind` to be one of"):
        influence(logits, features, targets, kind="self")
    with pytest.raises(ValueError, match="`hessian_samples` to be an int >= 1"):
        influence(logits, features, targets, hessian_samples=0)
