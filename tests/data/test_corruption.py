from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_prune.data import Fog, GaussianNoise, LowResolution, MotionBlur, Occlusion, corrupt_images
from lightning_prune.data.corruption import motion_kernel

ALL = [Fog, GaussianNoise, LowResolution, MotionBlur, Occlusion]


@pytest.fixture
def image(golden):
    return golden["corrupt_image"].permute(2, 0, 1)


def test_golden(golden, image):
    assert torch.equal(Occlusion()(image), golden["corrupt_occlusion"].permute(2, 0, 1))
    assert torch.equal(LowResolution()(image), golden["corrupt_resolution"].permute(2, 0, 1))
    assert torch.equal(motion_kernel(15), golden["corrupt_motion_kernel"])


def test_motion_blur_reference(golden, image):
    """Correlation with the mirrored border, rounded, then stretched; by loops."""
    scale = 15 * 1024  # makes the kernel's entries whole numbers, and sums exact
    kernel, pixels = golden["corrupt_motion_kernel"].numpy() * scale, image.numpy().astype(float)
    padded = np.pad(pixels, ((0, 0), (7, 7), (7, 7)), mode="reflect")
    blurred = np.zeros_like(pixels)
    for c, row, column in np.ndindex(*pixels.shape):
        window = padded[c, row : row + 15, column : column + 15]
        blurred[c, row, column] = np.round((window * kernel).sum() / scale)
    stretched = np.round((blurred - blurred.min()) * 255 / (blurred.max() - blurred.min()))
    assert np.array_equal(MotionBlur()(image).numpy(), stretched)


def test_fog_reference(image):
    foggy = Fog()(image)
    for row, column in ((0, 0), (16, 16), (31, 5)):
        depth = math.sqrt(32) - 0.04 * math.hypot(row - 16, column - 16)
        clarity = math.exp(-0.4 * depth)
        expected = image[:, row, column].float() * clarity + 127.5 * (1 - clarity)
        assert (foggy[:, row, column] - expected).abs().max() <= 0.5
    assert foggy.float().mean() > 80  # not black, as the published code has it


def test_gaussian_noise():
    grey = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    noisy = GaussianNoise(torch.Generator().manual_seed(0))(grey)
    # the share clipped at either end of [0, 1], for 128 / 255 + N(0.2, 1)
    cdf = torch.distributions.Normal(0.2 + 128 / 255, 1).cdf
    for value, share in ((0, cdf(torch.tensor(0.0))), (255, 1 - cdf(torch.tensor(1.0)))):
        assert abs(float((noisy == value).float().mean()) - float(share)) < 0.02


@pytest.mark.parametrize("transform", ALL)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 5, 3, 64, 48), (3, 224, 224)])
def test_shapes(transform, shape):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = images.clone()
    corrupted = transform()(images)
    assert corrupted.shape == images.shape
    assert corrupted.dtype == torch.uint8
    assert torch.equal(images, before)
    assert not torch.equal(corrupted, images)


@pytest.mark.parametrize("transform", [Fog, LowResolution, MotionBlur, Occlusion])
def test_a_batch_is_its_images(transform, image):
    images = torch.stack([image, image.flip(1), 255 - image])
    assert torch.equal(transform()(images), torch.stack([transform()(one) for one in images]))


def test_blur_of_a_constant_image():
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    assert torch.equal(MotionBlur()(black), black)


def test_corrupt_images(image):
    images = image[None].repeat(103, 1, 1, 1)
    corrupted, kinds = corrupt_images(images, 0.04, generator=torch.Generator().manual_seed(0))
    assert [(kinds == kind).sum().item() for kind in range(-1, 5)] == [83, 4, 4, 4, 4, 4]
    assert torch.equal(corrupted[kinds == -1], images[kinds == -1])
    for kind, transform in enumerate((MotionBlur, Fog, LowResolution, Occlusion)):
        assert torch.equal(corrupted[kinds == kind][0], transform()(image))
    again, _ = corrupt_images(images, 0.04, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, corrupted)


def test_bad_inputs(image):
    with pytest.raises(TypeError, match=r"uint8 tensor, but got torch\.float32"):
        Fog()(image.float())
    with pytest.raises(ValueError, match=r"shape \(\.\.\., C, H, W\)"):
        Occlusion()(image[0])
    with pytest.raises(ValueError, match=r"shape \(n, C, H, W\)"):
        corrupt_images(image)
    with pytest.raises(ValueError, match=r"`rate` to be a number in \[0, 0.2\]"):
        corrupt_images(image[None], 0.3)
