from __future__ import annotations

import torch
import torch.nn.functional as F

from lightning_prune.scoring import GraNd
from lightning_prune.scoring.trackers.grand import last_layer_grad_norm


def test_golden(golden, head):
    _, probs, _, targets = head
    norms = last_layer_grad_norm(probs, targets, golden["features"])
    torch.testing.assert_close(norms, golden["grand_lastlayer"], rtol=0, atol=5e-5)


def test_closed_form_is_autograd(golden):
    weight, bias = (golden[name].clone().requires_grad_() for name in ("head_weight", "head_bias"))
    for i in (0, 7, 31):
        h, y = golden["features"][i : i + 1], golden["targets"][i : i + 1]
        logits = h @ weight.T + bias
        grads = torch.autograd.grad(F.cross_entropy(logits, y), (weight, bias))
        expected = torch.cat([g.flatten() for g in grads]).norm()
        torch.testing.assert_close(last_layer_grad_norm(logits.detach().softmax(1), y, h)[0], expected)


def test_mean_over_epochs(golden, feed):
    tracker = feed(GraNd(60, num_epochs=4))
    expected = torch.stack(
        [last_layer_grad_norm(golden["logits"][t].softmax(1), golden["targets"], golden["features"]) for t in range(4)]
    ).mean(0)
    torch.testing.assert_close(tracker.compute(), expected)
