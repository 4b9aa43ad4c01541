"""Samples are seen as they are in the dataset, without its augmentation, or not at all."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_prune.report import images as module
from lightning_prune.report.images import EDGE, Looks, as_picture_or_text, encode, find_look

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


class Folder(Dataset):
    """As torchvision's `ImageFolder`, whose transform must not be applied."""

    def __init__(self, paths):
        self.samples = [(path, 0) for path in paths]

    def loader(self, path):
        with Image.open(path) as picture:
            return picture.copy()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        raise AssertionError("augmented")


class Data(Folder):
    """As torchvision's `CIFAR10`."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)


@pytest.mark.parametrize(
    ("value", "size", "mode"),
    [
        (GREY, (8, 6), "L"),
        (torch.from_numpy(GREY), (8, 6), "L"),
        (GREY[..., None], (8, 6), "L"),
        (GREY[None], (8, 6), "L"),
        (np.stack([GREY] * 3), (8, 6), "RGB"),
        (np.stack([GREY] * 4, axis=-1), (8, 6), "RGB"),
        (Image.fromarray(GREY), (8, 6), "L"),
        (Image.fromarray(GREY).convert("RGBA"), (8, 6), "RGB"),
        (torch.randn(3, 6, 8), (8, 6), "RGB"),
    ],
)
def test_pictures(value, size, mode):
    picture = as_picture_or_text(value)
    assert (picture.size, picture.mode) == (size, mode)


def test_values_of_a_picture():
    np.testing.assert_array_equal(np.asarray(as_picture_or_text(torch.from_numpy(GREY / 255))), GREY)
    scaled = np.asarray(as_picture_or_text(torch.tensor([[-1.0, 0.0], [1.0, float("nan")]])))
    assert scaled.tolist() == [[0, 128], [255, 128]]
    assert as_picture_or_text("a text") == "a text"


@pytest.mark.parametrize("shape", [(5, 6, 8), (2, 6, 8), (8,), (1, 1, 6, 8)])
def test_shapes_that_cannot_be_drawn_are_refused(shape):
    with pytest.raises(ValueError, match=r"Expected a picture of shape \(H, W\), .* but got \(.*Pass `images=`"):
        as_picture_or_text(np.zeros(shape))
    data = TensorDataset(torch.zeros(4, 2))
    data.pictures = np.zeros((4, *shape))
    with pytest.raises(MisconfigurationException, match="Expected `images` to show sample 0, but: Expected a picture"):
        find_look(data, "pictures")


@pytest.mark.parametrize("value", [3, {"image": 1}, None])
def test_things_that_are_no_pictures_are_refused(value):
    with pytest.raises(TypeError, match="Expected a picture .* or a text, but got"):
        as_picture_or_text(value)


def test_where_pictures_are_found(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(find_look(Folder([str(tmp_path / "a.png")]), None)(0)), GREY)
    data = Data(np.stack([GREY, GREY + 1]))
    assert find_look(data, None)(1)[0, 0] == 1
    assert find_look(Subset(Subset(data, [1, 0]), [1]), None)(0)[0, 0] == 0
    assert find_look(TensorDataset(torch.zeros(3, 1, 4, 4)), None)(2).shape == (1, 4, 4)
    data.texts = ["one", "two"]
    assert find_look(Subset(data, [1]), "texts")(0) == "two"
    assert find_look(data, lambda i: f"sample {i}")(1) == "sample 1"


@pytest.mark.parametrize("data", [TensorDataset(torch.zeros(3, 5)), Data(np.zeros((3, 7))), Data([1, 2])])
def test_where_there_are_none(data):
    assert find_look(data, None) is None


def test_an_attribute_that_is_not_there_is_refused():
    for name in ("pixels", "tensors"):
        with pytest.raises(MisconfigurationException, match=f"Expected the training dataset .* to hold '{name}', one"):
            find_look(TensorDataset(torch.zeros(3, 5)), name)


def test_thumbnails_are_small():
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 200, 3), dtype=np.uint8))
    seen = Image.open(io.BytesIO(encode(large)))
    assert (seen.size, seen.format) == ((EDGE // 2, EDGE), "WEBP")
    assert large.size == (200, 400)  # the dataset's own is as it was
    assert Image.open(io.BytesIO(encode(Image.fromarray(GREY)))).size == (8, 6)


def test_looking_ends_when_the_bytes_are_spent(monkeypatch):
    one = len(encode(Image.fromarray(GREY)))
    monkeypatch.setattr(module, "MOST_BYTES", 3 * one)
    looks, asked = Looks(), []
    looks.collect(lambda i: asked.append(i) or GREY, [7, 7, 5, 3, 2, 1, 0])
    assert list(looks.pictures) == [7, 5, 3, 2]
    assert asked == [7, 5, 3, 2]


def test_a_broken_sample_does_not_lose_the_others():
    def look(i):
        if i == 1:
            raise OSError("truncated file")
        return "x" * 400 if i == 2 else GREY

    looks = Looks()
    looks.collect(look, range(4))
    assert list(looks.pictures) == [0, 3]
    assert len(looks.texts[2]) == 280
