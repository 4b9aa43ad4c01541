"""The papers' recipes beside those of `test_vision.py`: each through its yaml, on tiny files in the real formats.

For speed networks are thinner and images smaller; the networks that the yamls name are built once, without memory, and
have as many weights as torchvision says that its own have, or as follow from the sizes in a paper.
"""

from __future__ import annotations

import csv
import importlib
import json
import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from scipy.io import wavfile

from examples.audio.esc50 import ESC50Data
from examples.text.news import NewsData
from examples.text.pretrained import PretrainedClassifier, by_layer
from examples.vision.eurosat import EuroSATData
from examples.vision.mae import MAEPretraining
from examples.vision.module import VisionModule, load_encoder
from lightning_prune.scoring import ScoreFile, load_scores
from tests.examples import files
from tests.examples.conftest import ROOT, registry_of

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

THIN = "{layers: [1, 1, 1, 1], channels: [8, 8, 8, 8]}"
SWIN = "{img_size: 32, patch_size: 2, window_size: 2, depths: [1, 1, 1, 1], embed_dim: 12, num_heads: [1, 2, 3, 4]}"
VIT = "{img_size: 32, depth: 1, embed_dim: 16, num_heads: 2}"
IMAGES = {"data__batch_size": 5, "data__image_size": 32}
TWO_WINDOWS = json.dumps(2 * [{"class_path": "TDDS", "init_args": {"window": 3, "num_epochs": 3}}])
WINDOW = {"trainer__callbacks__tracker__init_args__window": 3, "trainer__callbacks__tracker__init_args__num_epochs": 3}
ALIGNED = {"trainer__callbacks__window": 2, "trainer__callbacks__base__init_args__anneal_ratio": 1.0}


def cifar(name):
    def write(folder, monkeypatch):
        clean = files.write_cifar(folder / "data", name, monkeypatch)
        classes = int(name.removeprefix("CIFAR"))
        files.write_human_labels(folder / "data" / f"CIFAR-{classes}_human.pt", clean, classes)
        write_scores(folder, f"cifar{classes}_tdds")

    return write


def imagenet(folder, monkeypatch):
    files.write_imagenet(folder / "data" / "imagenet")
    write_scores(folder, "imagenet_resnet34_tdds")
    write_scores(folder, "imagenet_swin_t_tdds")


def write_scores(folder, name):
    (folder / "scores").mkdir(exist_ok=True)
    ScoreFile.make(torch.rand(files.TRAIN), method="TDDS", keep="high").save(folder / "scores" / f"{name}.npz")


def eurosat(folder, monkeypatch):
    """Of two classes, of 5 and of 8 images of 64 x 64: 4 and 6 of them train."""
    rng = np.random.default_rng(0)
    for name, number in (("Forest", 5), ("River", 8)):
        (folder / "data" / "eurosat" / "2750" / name).mkdir(parents=True)
        for i in range(number):
            path = folder / "data" / "eurosat" / "2750" / name / f"{name}_{i + 1}.jpg"
            files.random_image(rng, 64, 64).save(path)


def agnews(folder, monkeypatch):
    """Write csv files, and a folder of a small BERT as Hugging Face lays it out, without weights."""
    (folder / "data" / "ag_news").mkdir(parents=True)
    rows = [(str(1 + i % 4), f"Oil {i}", 'the "talks" of\nthe sea') for i in range(files.TRAIN)]
    for name, some in (("train.csv", rows), ("test.csv", rows[: files.HELD_OUT])):
        with (folder / "data" / "ag_news" / name).open("w", newline="") as lines:
            csv.writer(lines, quoting=csv.QUOTE_ALL).writerows(some)
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "oil", "the", "sea", "talk", "##s", '"']
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(words))
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(words), **size}))


def esc50(folder, monkeypatch):
    """Write five folds of wav files at 44.1 kHz, one in stereo and one short, and the folder of a small HuBERT."""
    root = folder / "data" / "ESC-50-master"
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    rng, rows = np.random.default_rng(0), ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(15):
        name, shape = f"{i % 5 + 1}-{i}-A-{i}.wav", (4410 if i == 2 else 22050, *((2,) if i == 1 else ()))
        wavfile.write(root / "audio" / name, 44_100, rng.integers(-9000, 9000, shape).astype(np.int16))
        rows.append(f"{name},{i % 5 + 1},{i % 50},dog,False,{i},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = {"model_type": "hubert", **size, "conv_dim": [8, 8], "conv_kernel": [10, 8], "conv_stride": [80, 8]}
    config |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    (folder / "hubert").mkdir()
    (folder / "hubert" / "config.json").write_text(json.dumps({**config, "classifier_proj_size": 8}))


def news(folder, monkeypatch):
    """Write the pickle of Co-teaching+: word vectors, texts of word ids, newsgroups from 0 to 19."""
    rng = np.random.default_rng(0)
    content = (rng.normal(size=(30, 6)), rng.integers(0, 30, (15, 20)), np.arange(15))
    (folder / "data").mkdir()
    (folder / "data" / "news.pkl").write_bytes(pickle.dumps(content, protocol=2))


IN_NOISE = {"data__num_workers": None, "data__data__init_args__num_workers": 0}
TRANSFORMER = {"model__pretrained": "false", "data__batch_size": 5, "trainer__callbacks__window_batches": 1}
VISION, TEXT, AUDIO = "vision/configs", "text", "audio"
RECIPES = {
    "cifar10_resnet50_orderdp": (VISION, cifar("CIFAR10"), {"model__model_args": THIN}),
    "cifar100_resnet18_orderdp": (VISION, cifar("CIFAR100"), {"model__model_args": THIN}),
    "cifar10_resnet18_repb": (VISION, cifar("CIFAR10"), {"model__model_args": THIN}),
    "cifar10_resnet50_repb": (VISION, cifar("CIFAR10"), {"model__model_args": THIN}),
    "cifar100_resnet50_repb": (VISION, cifar("CIFAR100"), {"model__model_args": THIN}),
    "cifar100n_infobatch_alignprune": (VISION, cifar("CIFAR100"), {"model__model_args": THIN, **ALIGNED}),
    "cifar100n_sop_alignprune": (
        VISION, cifar("CIFAR100"), {"model__model_args": THIN, "model__num_samples": files.TRAIN, **ALIGNED},
    ),
    "cifar100_resnet18_tdds_score": (VISION, cifar("CIFAR100"), {"model__model_args": THIN, **WINDOW}),
    "cifar100_resnet18_tdds_prune": (VISION, cifar("CIFAR100"), {"model__model_args": THIN}),
    "cifar10_cross_architecture_tdds": (VISION, cifar("CIFAR10"), {"model__model_args": THIN}),
    "cifar10_resnet18_tdds_grid": (
        VISION, cifar("CIFAR10"), {"model__model_args": THIN, "trainer__callbacks__tracker": TWO_WINDOWS},
    ),
    "imagenet_resnet18_repb": (VISION, imagenet, {**IMAGES, "model__model_args": THIN}),
    "imagenet_resnet50_repb": (VISION, imagenet, {**IMAGES, "model__model_args": THIN}),
    "imagenet_efficientnet_repb": (VISION, imagenet, IMAGES),
    "imagenet_resnet50_timm_orderdp": (
        VISION, imagenet, {**IMAGES, "data__held_out_size": 40, "data__resize": 44, "model__model_args": THIN},
    ),
    "imagenet_swin_t_orderdp": (VISION, imagenet, {**IMAGES, "model__model_args": SWIN}),
    "imagenet_resnet34_tdds_score": (VISION, imagenet, {**IMAGES, "model__model_args": THIN, **WINDOW}),
    "imagenet_resnet34_tdds_prune": (VISION, imagenet, {**IMAGES, "model__model_args": THIN}),
    "imagenet_swin_t_tdds_score": (VISION, imagenet, {**IMAGES, "model__model_args": SWIN, **WINDOW}),
    "imagenet_swin_t_tdds_prune": (VISION, imagenet, {**IMAGES, "model__model_args": SWIN}),
    "imagenet_resnet50_asym20_alignprune": (
        VISION, imagenet,
        {"model__model_args": THIN, "data__data__init_args__image_size": 32, "data__data__init_args__batch_size": 5,
         "data__num_classes": 2, **IN_NOISE, **ALIGNED},
    ),
    "eurosat_vit_repb": (
        VISION, eurosat,
        {"data__batch_size": 5, "data__image_size": 8, "model__pretrained": "false",
         "model__model_args": "{img_size: 8, patch_size: 2, depth: 1, embed_dim: 16, num_heads: 2}",
         "trainer__callbacks__window_batches": 1},
    ),
    "agnews_bert_repb": (TEXT, agnews, {**TRANSFORMER, "model__model": "bert", "data__tokenizer": "bert"}),
    "esc50_hubert_repb": (AUDIO, esc50, {**TRANSFORMER, "model__model": "hubert", "data__seconds": 0.5}),
    "news_alignprune": (
        TEXT, news,
        {"data__data__init_args__size": 12, "data__data__init_args__batch_size": 5, "model__size": 12, **IN_NOISE,
         **ALIGNED},
    ),
}  # fmt: skip
"""By name: the folder, what writes its data, and what is smaller in the test."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, fit, tmp_path, monkeypatch):
    """Three epochs of two steps; whatever prunes has pruned, and what was trained is finite."""
    folder, write, changed = RECIPES[name]
    write(tmp_path, monkeypatch)
    changed = {"data__batch_size": 5, **changed} if "cifar" in name else changed
    cli = fit(f"{folder}/{name}.yaml", **changed)
    registry = registry_of(cli)
    assert cli.trainer.global_step > 0
    assert registry.losses[registry.counts > 0].isfinite().all()
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())
    assert torch.isfinite(cli.trainer.callback_metrics["val_loss"])
    if "score" in name or "grid" in name:
        assert registry.saved_fraction == 0
        assert load_scores(next(tmp_path.glob("scores/**/*.npz"))).scores.isfinite().all()
    else:
        assert 0 < registry.saved_fraction < 1


def published(name, classes=1000, width=0):
    """Return how many weights torchvision says that a network has, with a head from ``width`` to other classes."""
    weights = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    return weights - (width + 1) * (1000 - classes)


def for_cifar(name, classes, width):
    """Return the same with a first convolution of 3 x 3, where that of ImageNet has 7 x 7, from 3 to 64 channels."""
    return published(name, classes, width) + 3 * 64 * (3 * 3 - 7 * 7)


def block(width):
    """Return the weights of a transformer's block: four projections, a network of four widths, two norms."""
    return 4 * (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width + 2 * 2 * width


MAE_DECODER = (768 + 1) * 512 + 512 + 197 * 512 + 8 * block(512) + 2 * 512 + (512 + 1) * 768
"""He et al.: a width of 512, 8 blocks; to and from it, a mask's vector, places, a norm."""
WEIGHTS = {
    "imagenet_resnet50_timm_orderdp": published("resnet50"),
    "cifar10_resnet18_repb": for_cifar("resnet18", 10, 512),
    "cifar100_resnet18_orderdp": for_cifar("resnet18", 100, 512),
    "cifar10_resnet50_orderdp": for_cifar("resnet50", 10, 2048),
    "cifar100_resnet50_repb": for_cifar("resnet50", 100, 2048),
    "imagenet_resnet18_repb": published("resnet18"),
    "imagenet_resnet34_tdds_score": published("resnet34"),
    "imagenet_resnet50_repb": published("resnet50"),
    "imagenet_efficientnet_repb": published("efficientnet_b0"),
    "imagenet_swin_t_orderdp": published("swin_t"),
    "imagenet_vit_b_mae_pretrain_orderdp": published("vit_b_16", 0, 768) + MAE_DECODER,
    "imagenet_vit_b_mae_finetune_orderdp": published("vit_b_16"),
    "webvision50_infobatch": 55_843_464 - (1536 + 1) * 950,  # timm's table of results: 55.84 million
    "clothing1m_infobatch": published("resnet50", 14, 2048),
    "news_alignprune": 4800 * 1200 + 1200 * 3 + 1200 * 300 + 300 * 3 + 300 * 7 + 7,  # the sizes of Co-teaching+'s code
}
"""From torchvision's own counts, or from the sizes that a paper prints."""


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_network_of_a_yaml_is_the_papers(name):
    path = next((ROOT / "examples").glob(f"*/**/{name}.yaml"))
    given = yaml.safe_load(path.read_text())["model"]
    module, _, cls = given["class_path"].rpartition(".")
    arguments = given["init_args"] | {name: None for name in ("encoder", "pretrained") if name in given["init_args"]}
    arguments |= {name: 0 for name in ("mixup", "cutmix") if name in arguments}  # their numbers have no meaning there
    with torch.device("meta"):
        model = getattr(importlib.import_module(module), cls)(**arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == WEIGHTS[name]


BERT = (30_522 + 512 + 2) * 768 + 2 * 768 + 12 * block(768) + (768 + 1) * 768
"""Words, places and halves, a norm, 12 blocks, a layer on the first token: Devlin et al., 110 million."""
WAVES = 512 * 10 + 512 * 512 * (4 * 3 + 2 * 2) + 2 * 512
"""Seven convolutions of 512 channels, the first with a norm."""
HUBERT = WAVES + 2 * 512 + (512 + 1) * 768 + (768 // 16 * 128 + 1) * 768 + 128 + 2 * 768 + 12 * block(768)
"""Hsu et al., Table 1: the convolutions, a layer from 512 to 768, one of 128 places in 16 groups, 12 blocks, norms; 95
million with the head of its pre-training."""


@pytest.mark.parametrize(
    ("kind", "model_type", "weights"),
    [("text", "bert", BERT + (768 + 1) * 4), ("audio", "hubert", HUBERT + (768 + 1) * 256 + (256 + 1) * 4)],
)
def test_transformers_are_of_their_base_size(kind, model_type, weights, tmp_path):
    """With heads of four classes; that of sounds on a projection to 256."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with torch.device("meta"):
        model = PretrainedClassifier(str(tmp_path), kind, 4, pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == weights


HIDDEN_OF_VGG = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096


@pytest.mark.parametrize(
    ("arch", "args", "weights"),
    [
        ("resnet18", {}, for_cifar("resnet18", 10, 512)),
        ("vgg16_bn", {"mlp_ratio": 0.01}, published("vgg16_bn", 0, 4096) - HIDDEN_OF_VGG + (512 + 1) * 10),
        ("mobilenetv2_100", {}, published("mobilenet_v2", 10, 1280)),
        ("torchvision/shufflenet_v2_x1_0", {}, published("shufflenet_v2_x1_0", 10, 1024)),
    ],
)
def test_networks_for_small_images(arch, args, weights):
    """The architectures of TDDS's Tables 7 and 8 at 32 x 32: nothing is halved before the first stage."""
    model = VisionModule(arch, 10, model_args=args, cifar_stem=True).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    seen = []
    stage = next(
        module for name, module in model.net.named_modules() if name in ("layer1", "features", "blocks", "conv1")
    )
    stage.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert seen == [32]


MAE = {"model_args": {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}}
SMALL_DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def test_mae_pretrains_and_is_fine_tuned(fit, tmp_path, monkeypatch):
    """Both runs of OrderDP's ViT-B, by their yamls: the second starts from the encoder of the first."""
    imagenet(tmp_path, monkeypatch)
    pretrain = f"{VISION}/imagenet_vit_b_mae_pretrain_orderdp.yaml"
    small = {f"model__{name}": value for name, value in SMALL_DECODER.items()}
    cli = fit(pretrain, **IMAGES, **small, model__model_args=VIT)
    assert registry_of(cli).saved_fraction == pytest.approx(0.4)  # 8 of 10, then 6
    cli.trainer.save_checkpoint(tmp_path / "mae_vit_b.ckpt")
    learnt = cli.model.encoder.patch_embed.proj.weight
    tuned = fit(
        f"{VISION}/imagenet_vit_b_mae_finetune_orderdp.yaml", **IMAGES,
        model__model_args=VIT.replace("}", ", global_pool: avg}"), trainer__max_epochs=1, model__lr=0,
    )  # fmt: skip
    assert torch.equal(tuned.model.net.patch_embed.proj.weight, learnt)
    rates = [group["lr_scale"] for group in tuned.trainer.optimizers[0].param_groups]
    assert {round(rate, 6) for rate in rates} == {1, 0.65, round(0.65**2, 6)}  # head, block, patches
    with pytest.raises(ValueError, match=r"`MAEPretraining` with this `arch`, but it lacks \['blocks.1"):
        load_encoder(
            VisionModule("vit_base_patch16_224", model_args={**MAE["model_args"], "depth": 2}).net, "mae_vit_b.ckpt"
        )


def test_mae_loss_is_that_of_the_hidden_patches(monkeypatch):
    """One image, by hand: of 4 patches the last 3 of the order are hidden, and each is normalised by itself."""
    torch.manual_seed(0)
    model = MAEPretraining(**MAE, **SMALL_DECODER).eval()
    order = torch.tensor([[2, 0, 3, 1]])
    monkeypatch.setattr(torch, "rand", lambda *shape, device: order.argsort(1).float())
    predictions = []
    model.decoder.register_forward_hook(lambda module, inputs, output: predictions.append(output))
    image = torch.randn(1, 3, 32, 32)
    loss = model.losses(image)
    total = 0.0
    for place in (0, 3, 1):
        row, column = 16 * (place // 2), 16 * (place % 2)
        pixels = image[0, :, row : row + 16, column : column + 16].flatten()
        wanted = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
        total += float((predictions[0][0, 1 + place] - wanted).square().mean()) / 3
    assert float(loss) == pytest.approx(total, rel=1e-4)
    seen = image.clone()
    seen[:, :, 16:, :16] = 0  # the patch that was seen changes the prediction
    assert float(model.losses(seen)) != float(loss)


@pytest.mark.skipif("efficientvim_m1" not in timm.list_models(), reason="this timm does not have it")
def test_a_state_space_network_by_flag(fit, tmp_path, monkeypatch):
    """In place of Vim, of RePB's Table 3, which timm does not have."""
    imagenet(tmp_path, monkeypatch)
    thin = {"model__arch": "efficientvim_m1", "model__model_args": "{embed_dim: [8, 8, 8], depths: [1, 1, 1]}"}
    cli = fit(f"{VISION}/imagenet_efficientnet_repb.yaml", **IMAGES, **thin)
    assert type(cli.model.net).__name__ == "EfficientViM"
    assert 0 < registry_of(cli).saved_fraction < 1


@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_is_the_mean_over_classes(mixed):
    torch.manual_seed(0)
    model = VisionModule("resnet18", 3, model_args=yaml.safe_load(THIN), bce=True)
    logits = torch.randn(2, 3)
    model.forward = lambda images: logits
    targets = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.5, 0.5]]) if mixed else torch.tensor([2, 0])
    wanted = targets.tolist() if mixed else [[0, 0, 1], [1, 0, 0]]
    total = 0.0
    for chances, row in zip(logits.sigmoid().tolist(), wanted, strict=True):
        total -= sum(t * np.log(p) + (1 - t) * np.log(1 - p) for p, t in zip(chances, row, strict=True)) / 3
    assert float(model.training_step([torch.zeros(2, 3, 32, 32), targets], 0)) == pytest.approx(total / 2, rel=1e-6)


def test_layers_of_a_transformer_have_falling_rates(tmp_path, monkeypatch):
    agnews(tmp_path, monkeypatch)
    model = PretrainedClassifier(str(tmp_path / "bert"), pretrained=False)
    names = {id(parameter): name for name, parameter in model.net.named_parameters()}
    rates = {names[id(one)]: group["lr"] for group in by_layer(model.net, 1.0, 0.5) for one in group["params"]}
    assert len(rates) == len(names)
    assert rates["classifier.weight"] == rates["bert.pooler.dense.weight"] == 1
    assert rates["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert rates["bert.encoder.layer.0.attention.self.query.bias"] == 0.25
    assert rates["bert.embeddings.word_embeddings.weight"] == 0.125


def test_eurosat_sounds_and_news_are_split_as_said(tmp_path, monkeypatch):
    for write in (eurosat, esc50, news):
        write(tmp_path, monkeypatch)
        (tmp_path / "data").rename(tmp_path / write.__name__)
    satellite = EuroSATData(str(tmp_path / "eurosat" / "eurosat" / "2750"), image_size=32)
    satellite.setup("fit")
    assert (satellite.train.indices, satellite.held_out.indices) == ([0, 1, 2, 3, 5, 6, 7, 8, 9, 10], [4, 11, 12])
    assert satellite.train[0][0].shape == (3, 32, 32)

    sounds = ESC50Data(str(tmp_path / "esc50" / "ESC-50-master"), seconds=0.25)
    sounds.setup("fit")
    assert (len(sounds.train), len(sounds.held_out)) == (12, 3)
    assert sounds.held_out.targets == [4, 9, 14]
    wave = sounds.train[0][0]["input_values"]
    assert wave.shape == (4000,)
    assert (float(wave.mean()), float(wave.var())) == pytest.approx((0, 1), abs=1e-3)
    short = sounds.train[2][0]["input_values"]  # a tenth of a second, then silence
    assert (bool(short[:1600].any()), bool(short[1600:].any())) == (True, False)

    texts = NewsData(str(tmp_path / "news" / "news.pkl"), size=12)
    texts.setup("fit")
    assert (len(texts.train), len(texts.held_out)) == (10, 5)
    assert texts.train.targets.tolist() == [0, 1, 1, 1, 1, 1, 2, 3, 3, 3]
    vectors = texts.train.vectors[texts.train.words[3]].flatten()
    assert torch.allclose(texts.train[3][0], vectors.view(12, -1).mean(1))


def test_the_grid_holds_the_best_settings_of_the_paper():
    """Appendix C; and the file that the head of the yaml names is that of T 70 and K 10."""
    path = ROOT / "examples" / VISION / "cifar10_resnet18_tdds_grid.yaml"
    (recorder,) = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    settings = [tuple(one["init_args"].values()) for one in recorder["init_args"]["tracker"]]
    assert {(10, 70), (10, 90), (10, 80), (10, 30), (5, 10)} <= set(settings)
    assert settings[9] == (10, 70)
    assert "tdds_9.npz --trainer.callbacks.prune_ratio=0.3" in path.read_text()


def test_the_page_of_the_papers_names_recipes_that_are_there():
    """And all of them but the bases of AlignPrune alone, second runs, and those of no paper's table."""
    words = set(re.findall(r"`(\w+)`", (ROOT / "docs/papers.md").read_text()))
    recipes = {
        path.stem
        for path in (ROOT / "examples").glob("*/**/*_*.yaml")
        if path.parent.name in ("configs", "text", "audio")
    }
    of_data = re.compile(r"(agnews|cifar10|clothing1m|esc50|eurosat|imagenet|news_|webvision50)")
    assert {word for word in words if of_data.match(word)} <= recipes
    assert {path.stem for path in ROOT.glob("examples/tasks/*.yaml")} - words == {
        "audio",
        "clip",
        "detection",
        "graphs",
        "instruction",
        "segmentation",
        "simclr",
    }
    assert {name for name in recipes - words if not name.endswith(("_prune", "_infobatch", "_seta"))} == {
        "agnews_repb",
        "cifar10_resnet50_repb",
    }
