"""What the tasks with texts share: images with their texts, and tokens without a vocabulary to download."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from transformers import ByT5Tokenizer

from examples.tasks.data import TaskData
from examples.vision.data import IMAGENET, to_tensor

PAD, END, VOCABULARY = 0, 1, 384
"""Ids of ByT5's tokens: padding, which also starts a text, and the end; and how many there are."""


@final
class ImagesWithTexts(Dataset[Any]):
    """Pairs of an image ``(3, *size)`` and a text; each pair is a sample.

    Args:
        pairs: Path and text of each.
        size: Height and width that images are scaled to.
    """

    def __init__(self, pairs: list[tuple[Path, str]], size: tuple[int, int]) -> None:
        self.pairs = pairs
        self.transform = v2.Compose([v2.Resize(size), *to_tensor(*IMAGENET)])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        path, text = self.pairs[index]
        return self.transform(default_loader(str(path))), text


class ImageTextData(TaskData, ABC):
    """Batches of images and of their texts' tokens ``(B, T)``, padded.

    Args:
        root: Folder of the data.
        size: Height and width that images are scaled to.
        max_length: Tokens of a text that are read.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
        drop_last: Leave out a last batch that is shorter.
    """

    def __init__(
        self,
        root: str,
        size: tuple[int, int] = (224, 224),
        max_length: int = 128,
        batch_size: int = 64,
        num_workers: int = 4,
        drop_last: bool = False,
    ) -> None:
        super().__init__(root, batch_size, num_workers, drop_last)
        self.size, self.max_length = size, max_length

    def collate(self, samples: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        images, texts = zip(*samples, strict=True)
        return torch.stack(images), tokens_of(list(texts), self.max_length)


def tokens_of(texts: list[str], max_length: int) -> Tensor:
    """Return the bytes of texts as ids ``(B, T)``, each text with an end, padded; for words take another tokenizer.

    Example:
        >>> tokens_of(["ab", "c"], 8)
        tensor([[100, 101,   1],
                [102,   1,   0]])
    """
    tokenize = ByT5Tokenizer()
    tokens: Tensor = tokenize(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")[
        "input_ids"
    ]
    return tokens
