"""Labelled texts from local csv or tsv files, in the tokens of a transformer of Hugging Face."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer


@final
class TokenData(L.LightningDataModule):
    """Rows of a label and texts: ``"3","Title","Body"``, as in AG News, Yelp or DBpedia's csv files.

    Batches are ``(inputs, targets)``: the tokenizer's dictionary, and class ids ``(B,)``.

    Args:
        tokenizer: Its name, or a folder, such as that of the model.
        train_file: A ``.csv`` or a ``.tsv`` file.
        test_file: Another, of the same columns.
        label_column: Column of the label, from 0; the other columns are joined to the text.
        max_length: Tokens of a text that are read.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        tokenizer: str = "bert-base-uncased",
        train_file: str = "data/ag_news/train.csv",
        test_file: str = "data/ag_news/test.csv",
        label_column: int = 0,
        max_length: int = 512,
        batch_size: int = 8,
        num_workers: int = 2,
    ) -> None:
        super().__init__()
        self.tokenizer_name, self.max_length = tokenizer, max_length
        self.train_file, self.test_file, self.label_column = train_file, test_file, label_column
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, stage: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_name)
        self.train, self.held_out = self.rows(self.train_file), self.rows(self.test_file)
        self.classes = sorted({label for label, _ in self.train})
        if unknown := {label for label, _ in self.held_out} - set(self.classes):
            raise ValueError(f"Expected the test labels to be among {self.classes}, but got {sorted(unknown)} too.")

    def rows(self, file: str) -> list[tuple[str, str]]:
        """Return label and text of each row."""
        column = self.label_column
        with Path(file).open(newline="", encoding="utf-8") as lines:
            rows = list(csv.reader(lines, delimiter="\t" if file.endswith(".tsv") else ","))
        return [(row[column], " ".join(row[:column] + row[column + 1 :])) for row in rows]

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.held_out, shuffle=False)

    def loader(self, rows: list[tuple[str, str]], *, shuffle: bool) -> DataLoader[Any]:
        listed: Any = rows  # a list is as good as a dataset
        return DataLoader(listed, self.batch_size, shuffle=shuffle, num_workers=self.num_workers, collate_fn=self.batch)

    def batch(self, rows: list[tuple[str, str]]) -> tuple[dict[str, Tensor], Tensor]:
        """Return a batch of rows, padded to its longest text."""
        labels, texts = zip(*rows, strict=True)
        shape: Any = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
        return dict(self.tokenizer(list(texts), **shape)), torch.tensor([self.classes.index(label) for label in labels])
