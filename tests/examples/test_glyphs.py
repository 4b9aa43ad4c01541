"""The glyphs are what their geometry says, the same each time, and can be learnt."""

from __future__ import annotations

import torch

from examples.glyphs.task import GlyphData, GlyphModel, _distance, draw_glyphs, glyph_strokes
from lightning_prune import OrderDP
from tests.helpers import make_trainer, registry_of


def test_distances_are_those_to_the_nearest_stroke():
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(3, 4, 2, 2, generator=generator) * 2 - 1
    ends[0, 0, 1] = ends[0, 0, 0]  # a dot
    pixels = torch.rand(20, 2, generator=generator) * 2 - 1

    def distance(p, a, b):
        t = ((p - a) @ (b - a) / ((b - a) @ (b - a)).clamp(min=1e-6)).clamp(0, 1)
        return float((p - a - t * (b - a)).norm())

    expected = torch.tensor([[min(distance(p, *s) for s in strokes) for p in pixels] for strokes in ends])
    assert torch.allclose(_distance(pixels, ends), expected, atol=1e-3)


def test_images_are_deterministic_and_classes_differ():
    labels = torch.arange(600) % 3
    images = draw_glyphs(labels, glyph_strokes(3), noise=0.1)
    assert images.shape == (600, 1, 32, 32)
    assert torch.equal(images, draw_glyphs(labels, glyph_strokes(3), noise=0.1))
    assert not torch.equal(images, draw_glyphs(labels, glyph_strokes(3), noise=0.1, seed=1))
    means = torch.stack([images[labels == c].mean(0) for c in range(3)]).flatten(1)
    assert float(torch.cdist(means, means)[0, 1:].min()) > 1


def test_the_task_is_learnt_and_pruned():
    torch.manual_seed(0)
    trainer = make_trainer(OrderDP(seed=0), max_epochs=4)
    trainer.fit(GlyphModel(num_classes=4, width=4), GlyphData(1200, 200, 4, batch_size=32, noise=0.1))
    assert float(trainer.callback_metrics["val_accuracy"]) > 0.7
    assert registry_of(trainer).saved_fraction > 0.39
