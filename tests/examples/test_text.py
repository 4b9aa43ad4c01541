"""The text recipe on tiny csv and tsv files."""

from __future__ import annotations

import csv

import pytest
import torch

from examples.text.data import PAD, UNKNOWN, TextData, padded
from examples.text.module import TextModule
from tests.examples.conftest import registry_of

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

TRAIN = [
    ("3", "Wall St. Bears", 'Short-sellers, "Wall Street\'s band"\nof ultra-cynics'),
    ("4", "Oil, and economy", "Soaring oil prices; the oil of the economy"),
    ("1", "Ünïcode über", "the talks"),
    ("2", "", ""),
]


def write(path, rows, delimiter=",", header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(([header] if header else []) + rows)
    return str(path)


@pytest.mark.parametrize("method", [None, "infobatch", "orderdp"])
def test_recipe(method, fit, tmp_path):
    write(tmp_path / "data" / "ag_news" / "train.csv", TRAIN * 3)
    write(tmp_path / "data" / "ag_news" / "test.csv", TRAIN)
    overlay = [f"methods/{method}.yaml"] if method else []
    cli = fit("text/agnews_repb.yaml", *overlay, data__batch_size=6)
    registry = registry_of(cli)
    assert registry.num_samples == 12
    assert 0 < registry.saved_fraction < 0.67
    assert registry.losses[registry.counts > 0].isfinite().all()
    assert torch.isfinite(cli.trainer.callback_metrics["val_loss"])


def test_rows_words_and_classes(tmp_path):
    train = write(tmp_path / "train.csv", [("b", "Sea, sea", "the Sea"), ("a", "the, the wind", "cut"), ("b", "", "")])
    data = TextData(train, train, vocabulary=5, max_length=4)
    data.setup("fit")
    assert data.classes == ["a", "b"]
    assert data.ids == {"the": 2, "sea": 3, ",": 4}  # by number, then as met; what is cut does not count
    words, labels = padded(data.train)
    assert words.tolist() == [[3, 4, 3, 2], [2, 4, 2, UNKNOWN], [UNKNOWN, PAD, PAD, PAD]]
    assert labels.tolist() == [1, 0, 1]


def test_tsv_with_a_header_and_another_label_column(tmp_path):
    rows = [(title, label) for label, title, _ in TRAIN]
    train = write(tmp_path / "train.tsv", rows, "\t", ("text", "label"))
    data = TextData(train, train, label_column=1, header=True)
    data.setup("fit")
    assert len(data.train) == 4
    assert "bears" in data.ids
    assert "text" not in data.ids


def test_unknown_test_labels_are_named(tmp_path):
    train, test = write(tmp_path / "a.csv", TRAIN), write(tmp_path / "b.csv", [("7", "a", "b")])
    with pytest.raises(ValueError, match=r"but got \['7'\] too"):
        TextData(train, test).setup("fit")


def test_padding_does_not_change_the_logits():
    model = TextModule(vocabulary=20).eval()
    words = torch.tensor([[4, 5, 6]])
    wider = torch.tensor([[4, 5, 6, PAD, PAD]])
    assert torch.allclose(model(words), model(wider), atol=1e-6)
