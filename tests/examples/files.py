"""Tiny data sets in the on-disk formats of the real ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

TRAIN, HELD_OUT = 10, 4


def random_image(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_images(folder: Path, names: list[str], seed: int = 0) -> None:
    """Write JPEGs of unequal sizes; one is grey and one has a palette, as among the real ones."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = random_image(rng, 40 + number, 56 - number)
        image = image.convert("L") if number == 1 else image
        image.save(path, format="PNG" if number == 2 else "JPEG")  # ImageNet has a PNG with the ending of a JPEG


def write_cifar(root: Path, name: str, monkeypatch) -> list[int]:
    """Write the pickles of CIFAR; torchvision's integrity check stays on, told the sums of these files.

    Returns:
        The training labels, in torchvision's order.
    """
    dataset = getattr(torchvision.datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    classes, key = (10, "labels") if name == "CIFAR10" else (100, "fine_labels")
    labels: list[int] = []

    def write(filename: str, content: dict) -> str:
        (folder / filename).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((folder / filename).read_bytes()).hexdigest()

    def batch(filename: str, number: int) -> list[str]:
        drawn = [int(label) for label in rng.integers(0, classes, number)]
        if "test" not in filename:
            labels.extend(drawn)
        pixels = rng.integers(0, 256, (number, 3072), dtype=np.uint8)
        extra = {"coarse_labels": [label // 5 for label in drawn]} if name == "CIFAR100" else {}
        names = [f"{number}_{i}.png" for i in range(number)]
        return [filename, write(filename, {"data": pixels, key: drawn, "filenames": names, **extra})]

    train = [filename for filename, _ in dataset.train_list]
    monkeypatch.setattr(dataset, "train_list", [batch(filename, TRAIN // len(train)) for filename in train])
    monkeypatch.setattr(dataset, "test_list", [batch(filename, HELD_OUT) for filename, _ in dataset.test_list])
    meta = {dataset.meta["key"]: [f"class {label}" for label in range(classes)]}
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": write(dataset.meta["filename"], meta)})
    return labels


def write_human_labels(path: Path, labels: list[int], classes: int) -> dict[str, np.ndarray]:
    """Write the label file of CIFAR-10N or CIFAR-100N: a dictionary of int64 arrays, by `torch.save`."""
    clean = np.array(labels, dtype=np.int64)
    wrong = np.where(np.arange(len(clean)) % 5 < 2, (clean + 1) % classes, clean)  # 40 %
    noisy = ["aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]
    sets = {"clean_label": clean, **dict.fromkeys(noisy if classes == 10 else ["noisy_label"], wrong)}
    torch.save(sets, path)
    return sets


def write_imagenet(root: Path) -> None:
    for split, number in (("train", TRAIN), ("val", HELD_OUT)):
        ids = ["n01440764", "n01443537"]
        write_images(root / split, [f"{ids[i % 2]}/{ids[i % 2]}_{i}.JPEG" for i in range(number)])


def write_webvision(root: Path) -> None:
    """Write lists and images of classes 0, 49 and 50; the last is not among the first 50."""
    (root / "info").mkdir(parents=True)
    train = [(f"google/q{i % 3:04d}/img{i}.jpg", (0, 49)[i % 2]) for i in range(TRAIN)]
    held_out = [(f"val{i:06d}.jpg", (0, 49)[i % 2]) for i in range(HELD_OUT)]
    for name, samples, folder in (
        ("train_filelist_google.txt", train, root),
        ("val_filelist.txt", held_out, root / "val_images_256"),
    ):
        write_images(folder, [path for path, _ in samples])
        lines = [f"{path} {label}" for path, label in samples]
        lines.insert(3, f"{'google/q0050/' if folder == root else ''}absent.jpg 50")
        (root / "info" / name).write_text("\n".join(lines) + "\n")


def write_clothing1m(root: Path) -> None:
    """Write key lists, labels by key in another order, and images; no clean label for most noisy keys."""
    root.mkdir(parents=True)
    noisy = [f"images/{i % 3}/{i:02d}/{i}_name,{i}.jpg" for i in range(TRAIN)]
    clean = {split: [f"images/9/{i:02d}/{split}{i}.jpg" for i in range(HELD_OUT)] for split in ("val", "test")}
    write_images(root, [*noisy, *clean["val"], *clean["test"]])
    (root / "noisy_train_key_list.txt").write_text("\n".join(noisy) + "\n")
    lines = [f"{key} {number % 14}" for number, key in enumerate(noisy)]
    (root / "noisy_label_kv.txt").write_text("\n".join(reversed(lines)) + "\n")
    for split, keys in clean.items():
        (root / f"clean_{split}_key_list.txt").write_text("\n".join(keys) + "\n")
    pairs = [f"{key} 13" for split in clean.values() for key in split]
    (root / "clean_label_kv.txt").write_text("\n".join(pairs) + "\n")
