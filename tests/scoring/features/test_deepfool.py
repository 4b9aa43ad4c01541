from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_prune.scoring import deepfool


def mlp(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def reference_deepfool(model, x, max_iter):
    """One sample, one class at a time."""
    total = torch.zeros_like(x)
    first = None
    for _ in range(max_iter):
        point = (x + total).requires_grad_()
        logits = model(point[None])[0]
        first = int(logits.argmax()) if first is None else first
        if int(logits.argmax()) != first:
            break
        grads = [torch.autograd.grad(z, point, retain_graph=True)[0] for z in logits]
        best = None
        for c in range(len(logits)):
            if c == first:
                continue
            normal, gap = grads[c] - grads[first], float((logits[c] - logits[first]).detach())
            if best is None or abs(gap) / normal.norm() < best[0]:
                best = (abs(gap) / normal.norm(), abs(gap) / normal.norm() ** 2 * normal)
        total = total + best[1].detach()
    return float(total.square().sum())


@pytest.mark.parametrize("max_iter", [1, 3, 50])
def test_reference(max_iter):
    model = mlp()
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.tensor([reference_deepfool(model, x, max_iter) for x in inputs])
    torch.testing.assert_close(deepfool(model, inputs, max_iter), expected, rtol=1e-5, atol=1e-7)


def test_the_distance_to_a_linear_boundary():
    model = nn.Linear(2, 2)
    model.weight.data, model.bias.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([-5.0, 0.0])
    inputs = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # 4 above and 1 below the line 3x + 4y = 5
    torch.testing.assert_close(deepfool(model, inputs), torch.tensor([16.0, 1.0]), rtol=1e-4, atol=0)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together, alone = deepfool(model, inputs), deepfool(model, inputs[2:3])
    torch.testing.assert_close(together[2:3], alone)
    assert [module.training for module in model] == [True, True, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_constant_model_never_flips():
    model = nn.Linear(2, 3)
    model.weight.data.zero_()
    assert deepfool(model, torch.ones(2, 2), max_iter=3).tolist() == [0.0, 0.0]


def test_bad_inputs():
    with pytest.raises(TypeError, match="`inputs` to be a floating-point tensor"):
        deepfool(nn.Linear(2, 2), torch.zeros(3, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="logits of shape"):
        deepfool(nn.Linear(2, 1), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="`max_iter` to be an int >= 1"):
        deepfool(nn.Linear(2, 2), torch.zeros(3, 2), 0)
