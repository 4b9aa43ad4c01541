"""Tiny data sets of the tasks, in the on-disk formats of the real ones."""

from __future__ import annotations

import json
import struct
import wave
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLES = 10


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def save_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_mnist(root: Path) -> None:
    """Write images, of which some are nearly empty, and labels, with their big-endian headers."""
    folder, rng = root / "MNIST" / "raw", drawn()
    folder.mkdir(parents=True)
    for split, number in (("train", SAMPLES), ("t10k", 2)):
        images = pixels(rng, number, 28, 28) * (rng.random((number, 1, 1)) < 0.5)
        header = struct.pack(">IIII", 0x803, number, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
        labels = struct.pack(">II", 0x801, number) + bytes(i % 10 for i in range(number))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)


def write_kitti(root: Path) -> None:
    """Write two drives of images of unequal sizes, and depths of 16 bits of which most are 0."""
    rng = drawn()
    for i in range(SAMPLES):
        drive, name, size = f"2011_09_2{6 + i % 2}_drive_000{i % 2}_sync", f"{i:010d}.png", (30 + i % 3, 60 - i % 2)
        save_image(root / drive[:10] / drive / "image_02" / "data" / name, pixels(rng, *size, 3))
        measured = rng.random(size) < 0.02 + 0.01 * i
        depth = (rng.uniform(1, 8 * (i + 1), size) * 256 * measured).astype(np.uint16)
        save_image(root / "train" / drive / "proj_depth" / "groundtruth" / "image_02" / name, depth)


def write_voc(root: Path) -> None:
    """Write images, palettes of classes with borders, boxes, and the lists of both tasks."""
    folder, rng = root / "VOCdevkit" / "VOC2012", drawn()
    names = [f"2007_{i:06d}" for i in range(SAMPLES)]
    for number, name in enumerate(names):
        height, width = 48 + number, 64 - number
        save_image(folder / "JPEGImages" / f"{name}.jpg", pixels(rng, height, width, 3))
        classes = np.full((height, width), number % 3, dtype=np.uint8)
        classes[8:40, 8:40] = 255  # the border
        classes[12:36, 12:36] = 20
        mask = Image.fromarray(classes).convert("P")
        mask.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        path = folder / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
        boxes = [("aeroplane", 4, 5, 30, 40), ("tvmonitor", 10, 12, 44, 35)][: 1 + number % 2]
        objects = "".join(
            f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for kind, a, b, c, d in boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        xml = folder / "Annotations" / f"{name}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>")
    for task in ("Segmentation", "Main"):
        path = folder / "ImageSets" / task / "train.txt"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(names) + "\n")


def write_coco(root: Path) -> None:
    """Write five images of two captions each, images and captions in other orders."""
    rng, numbers = drawn(), [139, 25, 391895, 522418, 9]
    for i in numbers:
        save_image(root / "train2017" / f"{i:012d}.jpg", pixels(rng, 30, 40, 3))
    captions = [f"A {word} on a table{'.' * k}\n" for k, word in enumerate(("dog", "very small red bus", "cat"))]
    found = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 30} for i in numbers],
        "annotations": [
            {"id": 100 + k, "image_id": sorted(numbers)[k % 5], "caption": captions[k % 3]} for k in range(SAMPLES)
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(found))


def write_msrvtt(root: Path) -> None:
    """Write five videos of 2 to 6 frames with two captions each, in another order, and one that is held out."""
    rng, sentences = drawn(), []
    for i in range(6):
        for k in range(2 + i):
            save_image(root / "frames" / f"video{i}" / f"{k:04d}.jpg", pixels(rng, 24, 32, 3))
        sentences += [
            {"caption": f"a {'very ' * i}fast car {k}", "video_id": f"video{i}", "sen_id": 2 * i + k} for k in range(2)
        ]
    found = {
        "info": {"year": "2016"},
        "videos": [
            {"video_id": f"video{i}", "split": "validate" if i == 3 else "train", "start time": 0.0} for i in range(6)
        ],
        "sentences": sentences[::-1],
    }
    (root / "train_val_videodatainfo.json").write_text(json.dumps(found))


def write_mjsynth(root: Path) -> None:
    rng, words = drawn(), ["Lube", "I", "extraordinarily", "slicker", "DOS"]
    names = [f"./{i % 3}/1/{i}_{words[i % 5]}_{40 + i}.jpg" for i in range(SAMPLES)]
    for name in names:
        save_image(root / name, pixels(rng, 31, 50 + len(name)))  # grey
    (root / "annotation_train.txt").write_text("".join(f"{name} {40 + i}\n" for i, name in enumerate(names)))


def write_flickr30k(root: Path) -> None:
    rng, lines = drawn(), []
    for i in range(SAMPLES // 2):
        name = f"{1000092795 + i}.jpg"
        save_image(root / "flickr30k-images" / name, pixels(rng, 40, 30 + i, 3))
        lines += [f"{name}#{k}\tTwo {'young ' * i}guys #{k} look at their hands ." for k in range(2)]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n")


def write_alpaca(root: Path) -> None:
    root.mkdir(parents=True)
    rows = [
        {"instruction": f"Name {i} primes.", "input": "odd ones" * (i % 2), "output": " ".join("357" * i) or "none"}
        for i in range(SAMPLES)
    ]
    (root / "alpaca_data.json").write_text(json.dumps(rows))


def write_stl10(root: Path) -> None:
    (root / "stl10_binary").mkdir(parents=True)
    (root / "stl10_binary" / "unlabeled_X.bin").write_bytes(pixels(drawn(), SAMPLES, 3, 96, 96).tobytes())


def write_cvusa(root: Path) -> None:
    rng, lines = drawn(), []
    for i in range(SAMPLES):
        names = [f"{folder}/{i:07d}.{end}" for folder, end in FOLDERS]
        lines.append(",".join(names))
        save_image(root / names[0], pixels(rng, 40, 40, 3))
        save_image(root / names[1], pixels(rng, 20, 80, 3))
    (root / "splits").mkdir()
    (root / "splits" / "train-19zl.csv").write_text("\n".join(lines) + "\n")


FOLDERS = (("bingmap/19", "jpg"), ("streetview/panos", "jpg"), ("streetview/annotations", "png"))
"""Of CVUSA's aerial images, street views, and annotations, which are not read."""


def write_speech_commands(root: Path) -> None:
    """Write words of up to a second, some of which are held out, and a longer noise."""
    rng, names = drawn(), [f"{('bed', 'yes')[i % 2]}/{i:08x}_nohash_0.wav" for i in range(SAMPLES + 2)]
    for number, name in enumerate([*names, "_background_noise_/pink_noise.wav"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(rng.integers(-9999, 9999, 16_000 - 1000 * (number % 3), dtype=np.int16).tobytes())
    (root / "validation_list.txt").write_text(names[-1] + "\n")
    (root / "testing_list.txt").write_text(names[-2] + "\n")


def write_mutag(root: Path) -> None:
    """Write rings of 3 to 6 nodes, both ways of each edge, and numbers from 1 on."""
    folder, rng = root / "MUTAG" / "raw", drawn()
    folder.mkdir(parents=True)
    sizes, start, edges = [3 + i % 4 for i in range(SAMPLES)], 1, []
    for size in sizes:
        ring = [(start + k, start + (k + 1) % size) for k in range(size)]
        edges += sorted([*ring, *((b, a) for a, b in ring)])
        start += size
    columns = {
        "A": [f"{a}, {b}" for a, b in edges],
        "edge_labels": [0] * len(edges),
        "graph_indicator": [1 + i for i, size in enumerate(sizes) for _ in range(size)],
        "graph_labels": [(1, -1)[i % 2] for i in range(SAMPLES)],
        "node_labels": [*range(7), *rng.integers(0, 7, start - 8)],
    }
    for name, values in columns.items():
        (folder / f"MUTAG_{name}.txt").write_text("".join(f"{value}\n" for value in values))
