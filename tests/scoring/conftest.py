"""Golden vectors, made by running published code, and the order in which its training visited the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Tensors by key; ``static.json`` beside them says what each is. 60 samples, 5 classes, 14 epochs."""
    with np.load(FOLDER / "static.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.fixture(scope="session")
def head(golden):
    """Logits, probabilities, output gradients and targets of the golden linear head on the golden features."""
    logits = golden["features"] @ golden["head_weight"].T + golden["head_bias"]
    probs = logits.softmax(1)
    grads = probs - F.one_hot(golden["targets"], 5)
    return logits, probs, grads, golden["targets"]


@pytest.fixture
def feed(golden):
    """Return a function that feeds a tracker the golden run in batches, in the golden order."""

    def feed(tracker, batch_size=16, epochs=14):
        for epoch in range(epochs):
            for ids in torch.split(golden["order"][epoch], batch_size):
                tracker.update(
                    ids,
                    losses=golden["losses"][epoch][ids],
                    logits=golden["logits"][epoch][ids],
                    targets=golden["targets"][ids],
                    features=golden["features"][ids],
                )
            tracker.end_epoch()
        return tracker

    return feed
