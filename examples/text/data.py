"""Labelled texts from local csv or tsv files, in words, without anything to download."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

WORD = re.compile(r"\w+|[^\w\s]")
PAD, UNKNOWN = 0, 1


@final
class TextData(L.LightningDataModule):
    """Rows of a label and texts: ``"3","Title","Body"``, as in AG News, Yelp or DBpedia's csv files.

    The classes are the labels of the training file, in sorted order; the vocabulary is its most frequent words.

    Args:
        train_file: A ``.csv`` or a ``.tsv`` file.
        test_file: Another, of the same columns.
        label_column: Column of the label, from 0; the other columns are joined to the text.
        header: Whether the first row names the columns.
        vocabulary: Number of word ids, padding and unknown words among them.
        max_length: Words of a text that are read.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        train_file: str = "data/ag_news/train.csv",
        test_file: str = "data/ag_news/test.csv",
        label_column: int = 0,
        header: bool = False,
        vocabulary: int = 30_000,
        max_length: int = 128,
        batch_size: int = 64,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        hp: Any = self.hparams
        train, test = self.rows(hp.train_file), self.rows(hp.test_file)
        self.classes = sorted({label for label, _ in train})
        if unknown := {label for label, _ in test} - set(self.classes):
            raise ValueError(f"Expected the test labels to be among {self.classes}, but got {sorted(unknown)} too.")
        counts = Counter(word for _, words in train for word in words)
        frequent = [word for word, _ in counts.most_common(hp.vocabulary - 2)]
        self.ids = {word: number for number, word in enumerate(frequent, start=2)}
        self.train, self.held_out = self.encoded(train), self.encoded(test)

    def rows(self, file: str) -> list[tuple[str, list[str]]]:
        """Return label and words of each row."""
        hp: Any = self.hparams
        column, limit = hp.label_column, hp.max_length
        with Path(file).open(newline="", encoding="utf-8") as lines:
            rows = list(csv.reader(lines, delimiter="\t" if file.endswith(".tsv") else ","))[int(hp.header) :]
        texts = [" ".join(row[:column] + row[column + 1 :]).lower() for row in rows]
        return [(row[column], WORD.findall(text)[:limit]) for row, text in zip(rows, texts, strict=True)]

    def encoded(self, rows: list[tuple[str, list[str]]]) -> list[tuple[Tensor, int]]:
        return [
            (torch.tensor([self.ids.get(word, UNKNOWN) for word in words or ["\0"]]), self.classes.index(label))
            for label, words in rows
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.held_out, shuffle=False)

    def loader(self, samples: list[tuple[Tensor, int]], *, shuffle: bool) -> DataLoader[Any]:
        hp: Any = self.hparams
        listed: Any = samples  # a list is as good as a dataset
        return DataLoader(listed, hp.batch_size, shuffle=shuffle, num_workers=hp.num_workers, collate_fn=padded)


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return word ids ``(B, T)``, filled up with `PAD`, and labels ``(B,)``."""
    texts, labels = zip(*samples, strict=True)
    return torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True, padding_value=PAD), torch.tensor(labels)
