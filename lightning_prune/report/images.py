"""What a sample looks like: a small picture, its text, or nothing; from the dataset, without its augmentation."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from typing import Any, final

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

Look = Callable[[int], Any]
"""Returns what a sample looks like, by its id: a picture, or its text."""

EDGE = 48
"""Longest edge of a thumbnail, in pixels; smaller pictures stay as they are."""

MOST_BYTES = 2_000_000
"""Bytes of all thumbnails of a report."""

MOST_TEXT = 280
"""Characters of a sample's text."""

_SECONDS = 20.0
_QUALITY = 82


def find_look(dataset: Dataset[Any], images: Look | str | None) -> Look | None:
    """Return how to see a training sample by its id, or None where there is no way that is known.

    Args:
        dataset: The training dataset.
        images: A function of the id, or the name of an attribute of the dataset that holds one picture or text for each
            sample. None: ``data`` of torchvision's datasets, the files of its `ImageFolder`, or the first tensor of a
            `TensorDataset`, where these look like pictures.

    Raises:
        MisconfigurationException: If ``images`` is given and its first sample cannot be drawn.
    """
    if images is None:
        look = _known_look(dataset)
        return look if look is not None and _can_be_drawn(look) else None
    look = images if callable(images) else _attribute_look(dataset, images)
    try:
        as_picture_or_text(look(0))
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(f"Expected `images` to show sample 0, but: {error}") from error
    return look


def _known_look(dataset: Dataset[Any]) -> Look | None:
    if isinstance(dataset, Subset):
        inner, indices = _known_look(dataset.dataset), dataset.indices
        return None if inner is None else lambda i: inner(int(indices[i]))
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[0].__getitem__
    size = len(dataset) if hasattr(dataset, "__len__") else -1
    files, load = getattr(dataset, "samples", None), getattr(dataset, "loader", None)
    if isinstance(files, list) and callable(load) and len(files) == size:
        return lambda i: load(files[i][0])
    data = getattr(dataset, "data", None)
    if isinstance(data, np.ndarray | Tensor) and len(data) == size:
        return data.__getitem__
    return None


def _attribute_look(dataset: Dataset[Any], name: str) -> Look:
    if isinstance(dataset, Subset) and not hasattr(dataset, name):
        inner, indices = _attribute_look(dataset.dataset, name), dataset.indices
        return lambda i: inner(int(indices[i]))
    values = getattr(dataset, name, None)
    size = len(dataset) if hasattr(dataset, "__len__") else -1
    if values is None or not hasattr(values, "__getitem__") or not hasattr(values, "__len__") or len(values) != size:
        each = f"each of its {size} samples" if size >= 0 else "each sample, and to have a length"
        raise MisconfigurationException(
            f"Expected the training dataset `{type(dataset).__name__}` to hold {name!r}, one picture or text for "
            f"{each}, but it does not. Name such an attribute, or pass a function of the sample's id."
        )
    return lambda i: values[i]


def _can_be_drawn(look: Look) -> bool:
    try:
        as_picture_or_text(look(0))
    except (TypeError, ValueError, LookupError, OSError):
        return False
    return True


def as_picture_or_text(value: Any) -> Image.Image | str:
    """Return what can be shown of a sample: a picture in RGB or grey, or a text.

    Args:
        value: A PIL image; an array or tensor ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` with 1, 3 or 4 channels, bytes
            or, if floating, scaled from its lowest to its highest value unless these lie in [0, 1]; or a string.

    Raises:
        TypeError: If it is something else.
        ValueError: If the shape is another one.

    Example:
        >>> as_picture_or_text(np.zeros((3, 8, 10), np.uint8)).size
        (10, 8)
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Image.Image):
        return value if value.mode in ("RGB", "L") else value.convert("RGB")
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"Expected a picture (PIL image, array or tensor) or a text, but got {type(value).__name__}. "
            "Pass `images=`, a function from a sample's id to one of these."
        )
    pixels = _as_bytes(_channels_last(value))
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])


def _channels_last(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    channels = (1, 3, 4)
    if values.ndim == 2 and min(values.shape) > 1:
        return values[..., None]
    if values.ndim == 3 and values.shape[-1] in channels:
        return values
    if values.ndim == 3 and values.shape[0] in channels:
        return np.moveaxis(values, 0, -1)
    raise ValueError(
        f"Expected a picture of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, but got {values.shape}. "
        "Pass `images=`, a function from a sample's id to a picture or a text."
    )


def _as_bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    values = np.nan_to_num(values.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        values = (values - low) / (high - low if high > low else 1)
    return np.ascontiguousarray((values * 255).round().astype(np.uint8))


def encode(picture: Image.Image) -> bytes:
    """Return a thumbnail as WebP; its longest edge is at most 48 pixels."""
    if max(picture.size) > EDGE:
        picture = picture.copy()
        picture.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


@final
class Looks:
    """Thumbnails and texts of samples, by id.

    Attributes:
        pictures: WebP files.
        texts: Texts, cut to 280 characters.
    """

    def __init__(self) -> None:
        self.pictures: dict[int, bytes] = {}
        self.texts: dict[int, str] = {}

    def __contains__(self, sample: int) -> bool:
        return sample in self.pictures or sample in self.texts

    def collect(self, look: Look, samples: Iterable[int]) -> None:
        """Look at samples, the first ones first, until 2 MB or 20 seconds are spent; one that cannot be seen is not."""
        spent = sum(map(len, self.pictures.values())) + sum(map(len, self.texts.values()))
        start = time.perf_counter()
        for sample in samples:
            if spent > MOST_BYTES or time.perf_counter() - start > _SECONDS:
                return
            if sample in self:
                continue
            try:
                seen = as_picture_or_text(look(sample))
            except (TypeError, ValueError, LookupError, OSError):  # a broken file must not lose the report
                continue
            if isinstance(seen, str):
                self.texts[sample] = seen if len(seen) <= MOST_TEXT else seen[: MOST_TEXT - 1] + "…"
                spent += len(self.texts[sample])
            else:
                self.pictures[sample] = encode(seen)
                spent += len(self.pictures[sample])
