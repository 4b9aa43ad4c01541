"""Image corruption (Xia et al., ICLR 2023; the robustness study of TDDS): five kinds, on uint8 images.

Each transform maps a uint8 tensor ``(..., C, H, W)`` to one of the same shape. Constants are those for 32 x 32 images;
lengths scale with the side. They are meant as a one-off change of a dataset, not as augmentation.
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_prune.core.checks import check_ratio
from lightning_prune.core.rng import resolve_generator


@final
class GaussianNoise(nn.Module):
    """Add ``N(0.2, 1)`` to each value on the scale of [0, 1], and clip.

    Args:
        generator: CPU generator of the noise. None: a fresh one, seeded from the system's entropy.

    Note:
        The published code lets values below 0 wrap around.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = resolve_generator(generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return noisy images."""
        _check_images(images)
        noise = torch.randn(images.shape, generator=self.generator, dtype=torch.float32).to(images.device) + 0.2
        return _to_uint8(images + 255 * noise)


@final
class Occlusion(nn.Module):
    """Black out a fixed rectangle: rows and columns 5 to 20 of 32."""

    def forward(self, images: Tensor) -> Tensor:
        """Return images with the rectangle."""
        _check_images(images)
        rows, columns = (slice(round(5 * side / 32), round(21 * side / 32)) for side in images.shape[-2:])
        occluded = images.clone()
        occluded[..., rows, columns] = 0
        return occluded


@final
class LowResolution(nn.Module):
    """Shrink to a quarter of the side and back, bicubic with antialiasing, as Pillow does."""

    def forward(self, images: Tensor) -> Tensor:
        """Return blocky images."""
        _check_images(images)
        height, width = images.shape[-2:]
        batch = images.reshape(-1, *images.shape[-3:])
        for size in ((max(1, height // 4), max(1, width // 4)), (height, width)):
            batch = F.interpolate(batch, size, mode="bicubic", antialias=True)
        return batch.reshape(images.shape)


@final
class Fog(nn.Module):
    """Mix with grey, ``I t + 0.5 (1 - t)`` with ``t = exp(-0.4 (sqrt 32 - 0.04 r))``, r the distance from the centre.

    Note:
        The published code stores the result, in [0, 1], as uint8: every image becomes black. Here it is scaled.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return foggy images."""
        _check_images(images)
        rows, columns = (
            torch.arange(side, device=images.device, dtype=torch.float32) * 32 / side - 16 for side in images.shape[-2:]
        )
        radius = torch.hypot(rows[:, None], columns[None, :])
        clarity = torch.exp(-0.4 * (math.sqrt(32) - 0.04 * radius))
        return _to_uint8(images * clarity + 0.5 * 255 * (1 - clarity))


@final
class MotionBlur(nn.Module):
    """Blur along a line of 15 of 32 pixels, then stretch the image's values to [0, 255]."""

    def forward(self, images: Tensor) -> Tensor:
        """Return blurred images."""
        _check_images(images)
        size = max(1, round(15 * min(images.shape[-2:]) / 32))
        kernel = motion_kernel(size).to(images.device) * size * 1024  # whole numbers: sums are exact
        before, after = size // 2, size - 1 - size // 2
        flat = images.reshape(-1, 1, *images.shape[-2:]).double()
        padded = F.pad(flat, (before, after, before, after), mode="reflect")
        filled = kernel.any(1).nonzero().squeeze(1).tolist()  # only the middle rows
        padded = padded[:, :, filled[0] : images.shape[-2] + filled[-1]]
        blurred = F.conv2d(padded, kernel[None, None, filled[0] : filled[-1] + 1]) / (size * 1024)
        blurred = blurred.round().clamp(0, 255).reshape(images.shape)
        low, high = blurred.amin((-3, -2, -1), keepdim=True), blurred.amax((-3, -2, -1), keepdim=True)
        return _to_uint8(torch.where(high > low, (blurred - low) * 255 / (high - low), blurred))


def motion_kernel(size: int) -> Tensor:
    """Return the blur kernel ``(size, size)``, float64: a diagonal line turned by 45 degrees, divided by its length.

    The result is a horizontal line over two rows. Its sum is below 1, for what the rotation moves outside is lost.
    Coordinates are rounded to 1/32 pixel, as in the image library of the published code.
    """
    center, pixels = size / 2, torch.arange(size, dtype=torch.float64)
    x, y = pixels[None, :] - center, pixels[:, None] - center
    source_x, source_y = (((turned * math.sqrt(0.5) + center) * 32).round() / 32 for turned in (x - y, x + y))
    weights = [(1 - (source[..., None] - pixels).abs()).clamp(min=0) for source in (source_x, source_y)]
    return (weights[0] * weights[1]).sum(2) / size


def corrupt_images(
    images: Tensor, rate: float = 0.04, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Corrupt a share ``rate`` of the images in each of the five ways, no image twice.

    Args:
        images: uint8 ``(n, C, H, W)``.
        rate: Share for each kind, in [0, 0.2]. TDDS takes 0.04, 20 % in all.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Images like ``images``, and the kind ``(n,)`` int64: 0 motion blur, 1 fog, 2 low resolution, 3 occlusion,
        4 Gaussian noise; -1: untouched.

    Raises:
        TypeError: If ``images`` is not a uint8 tensor.
        ValueError: If its shape or ``rate`` is wrong.

    Example:
        >>> images, kinds = corrupt_images(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), 0.1)
        >>> kinds.sort().values.tolist()
        [-1, -1, -1, -1, -1, 0, 1, 2, 3, 4]
    """
    _check_images(images)
    if images.dim() != 4:
        raise ValueError(f"Expected `images` of shape (n, C, H, W), but got {tuple(images.shape)}.")
    generator = resolve_generator(generator)
    kinds = draw_corruptions(len(images), rate, generator)
    corrupted = images.clone()
    for kind, transform in enumerate(corruptions(generator)):
        ids = (kinds == kind).nonzero().squeeze(1).to(images.device)
        if len(ids):
            corrupted[ids] = transform(images[ids])
    return corrupted, kinds


def draw_corruptions(num: int, rate: float, generator: torch.Generator) -> Tensor:
    """Return each image's corruption ``(n,)`` int64, -1 for none, as `corrupt_images` draws and numbers them."""
    check_ratio("rate", rate, high=0.2, closed_high=True)
    count = int(rate * num + 1e-6)
    order = torch.randperm(num, generator=generator)
    kinds = torch.full((num,), -1)
    for kind in range(len(corruptions(generator))):
        kinds[order[kind * count : (kind + 1) * count]] = kind
    return kinds


def corruptions(generator: torch.Generator) -> list[nn.Module]:
    """Return the five ways by their numbers."""
    return [MotionBlur(), Fog(), LowResolution(), Occlusion(), GaussianNoise(generator)]


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"Expected `images` to be a uint8 tensor, but got {got}.")
    if images.dim() < 3:
        raise ValueError(f"Expected `images` of shape (..., C, H, W), but got {tuple(images.shape)}.")


def _to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)
