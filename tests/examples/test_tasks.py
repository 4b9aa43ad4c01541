"""Each task, through its yaml, on tiny files in the real format: two epochs, of which the second is pruned.

Before each step, a loop over the samples of its batch computes their losses with the network of that moment. What the
registry holds in the end must be the last of these for each sample.
"""

from __future__ import annotations

import ast
import doctest
import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from lightning_prune import ScoreRegistry
from lightning_prune.cli import PruneCLI
from tests.examples import files, task_files
from tests.examples.conftest import ROOT

pytest.importorskip("peft")
pytest.importorskip("torch_geometric")
pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def mean_over(losses, mask):
    """Return the mean over the elements that count, one by one."""
    values = [float(loss) for loss, counts in zip(losses.flatten(), mask.flatten(), strict=True) if counts]
    return sum(values) / len(values) if values else None


def vae(model, batch):
    noise = torch.randn(len(batch[0]), model.decoder[0].in_features)
    for image, epsilon in zip(batch[0], noise, strict=True):
        mean, log_variance = model.encoder(image[None])[0].chunk(2)
        chances = model.decoder((mean + epsilon * (0.5 * log_variance).exp())[None]).sigmoid()[0]
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1)).sum()
        yield -(image.flatten() * chances.log() + (1 - image.flatten()) * (1 - chances).log()).sum() + divergence


def depth(model, batch):
    for image, measured in zip(*batch, strict=True):
        error = (model.net(image[None]).predicted_depth[0] - measured).abs()
        yield mean_over(torch.where(error < 1, 0.5 * error**2, error - 0.5), measured > 0)


def segmentation(model, batch):
    """Batch normalisation makes the network's output one of the whole batch."""
    for logits, target in zip(model.net(batch[0])["out"], batch[1], strict=True):
        yield F.cross_entropy(logits[None], target[None], ignore_index=255)


def detection(model, batch):
    from torchvision.models.detection import RetinaNet

    net = model.net
    images, targets = net.transform(*batch)
    features = list(net.backbone(images.tensors).values())
    outputs, anchors = net.head(features), net.anchor_generator(images, features)
    for i, target in enumerate(targets):
        own = {name: output[i : i + 1] for name, output in outputs.items()}
        yield sum(RetinaNet.compute_loss(net, [target], own, [anchors[i]]).values())


def image_to_text(model, batch):
    """Each text without its padding, one token after another."""
    for image, tokens in zip(*batch, strict=True):
        tokens = tokens[tokens != 0]
        before = torch.tensor([[0, *tokens[:-1]]])
        chances = model.net(image[None], decoder_input_ids=before).logits[0].log_softmax(1)
        yield -sum(chances[i, token] for i, token in enumerate(tokens)) / len(tokens)


def video_to_text(model, batch):
    """Each frame by itself, and each text without its padding."""
    for frames, tokens in zip(*batch, strict=True):
        tokens = tokens[tokens != 0]
        patches = torch.cat([model.net.encoder(frame[None]).last_hidden_state[0] for frame in frames])
        before = torch.tensor([[0, *tokens[:-1]]])
        chances = model.net.decoder(before, encoder_hidden_states=patches[None]).logits[0].log_softmax(1)
        yield -sum(chances[i, token] for i, token in enumerate(tokens)) / len(tokens)


def clip(model, batch):
    images = [model.net.get_image_features(image[None]).pooler_output[0] for image in batch[0]]
    texts = [model.net.get_text_features(text[text != 0][None]).pooler_output[0] for text in batch[1]]
    cosines = torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in texts]) for a in images])
    table = cosines * model.net.logit_scale.exp()
    for i in range(len(images)):
        yield -(table[i].log_softmax(0)[i] + table[:, i].log_softmax(0)[i]) / 2


def instruction(model, batch):
    """Hugging Face's own loss of one sample, without padding."""
    for tokens, targets in zip(*batch, strict=True):
        length = int((tokens != 0).sum())
        yield model.net(input_ids=tokens[None, :length], labels=targets[None, :length]).loss


def simclr(model, batch):
    views = [[F.normalize(model.net(view[None])[0], dim=0) for view in views] for views in batch]
    flat = [*views[0], *views[1]]

    def find(own, other):
        near = [(own @ view / 0.5).exp() for view in flat if view is not own]
        return -((own @ other / 0.5).exp() / sum(near)).log()

    for first, second in zip(*views, strict=True):
        yield (find(first, second) + find(second, first)) / 2


def geo_localisation(model, batch):
    street = [F.normalize(model.street(image[None])[0], dim=0) for image in batch[0]]
    aerial = [F.normalize(model.aerial(image[None])[0], dim=0) for image in batch[1]]

    def distance(i, j):
        return (street[i] - aerial[j]).square().sum()

    for i in range(len(street)):
        pairs = [pair for j in range(len(street)) if j != i for pair in ((i, j), (j, i))]
        triplets = [(1 + (10 * (distance(i, i) - distance(*pair))).exp()).log() for pair in pairs]
        yield sum(triplets) / len(triplets)


def guessed(model, batch, is_sure):
    """None where the guess is not sure enough."""
    for weak, strong in zip(*batch["unlabelled"][0], strict=True):
        chances = model.net(weak[None])[0].softmax(0)
        guess = int(chances.argmax())
        yield -model.net(strong[None])[0].log_softmax(0)[guess] if is_sure(guess, float(chances[guess])) else None


def fixmatch(model, batch):
    return guessed(model, batch, lambda guess, confidence: confidence >= 0.8)


def flexmatch(model, batch):
    """Thresholds by counts of the guesses so far."""
    guesses = Counter(model.threshold.guesses.tolist())
    share = [guesses[c + 1] / max(guesses.values()) for c in range(10)]
    return guessed(model, batch, lambda guess, confidence: confidence >= 0.8 * share[guess] / (2 - share[guess]))


def dash(model, batch):
    """After two steps, in which the mean loss on labels moves by a tenth, a bound that falls to 0.7 in the next."""
    step, seen = model.global_step, model.__dict__.setdefault("seen", [])
    if step < 2:
        images, targets = batch["labelled"]
        seen.append(sum(-float(z.log_softmax(0)[t]) for z, t in zip(model.net(images), targets, strict=True)) / 4)
        return guessed(model, batch, lambda guess, confidence: False)
    bound = max(1.0001 * (0.9 * seen[0] + 0.1 * seen[1]) / 30 ** (step - 2), 0.7)
    return guessed(model, batch, lambda guess, confidence: -np.log(confidence) <= bound)


def unlike_guesses(model):
    """Have a fresh classifier guess unlike classes, some surely; and FlexMatch remember some guesses."""
    model.net.head.weight.data.mul_(100)
    if hasattr(model.threshold, "guesses"):
        model.threshold.guesses.copy_(torch.tensor([0, 1, 2, 3, 4, *[9] * 5]))


def ddpm(model, batch):
    number = len(batch[0])
    times, noise, dropped = torch.randint(1000, (number,)), torch.randn(batch[0].shape), torch.rand(number) < 0.1
    for image, label, time, added, drop in zip(*batch, times, noise, dropped, strict=True):
        signal = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: time + 1])
        seen = signal**0.5 * image + (1 - signal) ** 0.5 * added
        found = model.net(seen[None], time[None], torch.tensor([10]) if drop else label[None])[0]
        yield ((found - added).double() ** 2).sum() / 3072


def audio(model, batch):
    """The spectrogram frame by frame, by NumPy."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for wave, target in zip(*batch, strict=True):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave.numpy(), 200, "reflect"), 400)[::160]
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        logs = np.log(np.maximum(power @ model.bands.double().numpy(), 1e-10))
        image = torch.tensor((logs - logs.mean()) / (logs.std(ddof=1) + 1e-5), dtype=torch.float32)
        yield -model.net(image[None]).logits[0].log_softmax(0)[target]


def graphs(model, batch):
    for graph in batch.to_data_list():
        logits = model.head(model.net(graph.x, graph.edge_index).sum(0))
        yield -logits.log_softmax(0)[graph.y[0]]


@dataclass
class Case:
    """How to try a task: its files, what to make smaller, and the losses of a batch's samples, one by one."""

    write: Callable[..., Any]
    losses: Callable[[Any, Any], Any]
    small: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda model: None


DECODER = {"n_embd": 16, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""Of GPT-2, without dropout."""
TIMM = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
FEW_LABELS = {
    "data.name": "CIFAR10", "data.labels": 1, "data.ratio": 1, "model.num_classes": 10, "model.cifar_stem": False,
    "model.arch": "vit_tiny_patch16_224", "model.model_args": {**TIMM, "img_size": 32}, "model.lr": 1e-5,
}  # fmt: skip


def write_cifar(root, monkeypatch):
    files.write_cifar(root, "CIFAR10", monkeypatch)


CASES = {
    "audio": Case(
        lambda root, _: task_files.write_speech_commands(root / "speech_commands_v0.02"),
        audio,
        {"model.num_classes": 2, "model.model_args": {**VIT, "frequency_stride": 16, "time_stride": 16}},
    ),
    "ddpm": Case(
        write_cifar,
        ddpm,
        {"model.patch": 8, "model.width": 16, "model.depth": 1, "model.heads": 2},
    ),
    "fixmatch": Case(
        write_cifar, fixmatch,
        {**FEW_LABELS, "model.threshold": "examples.tasks.thresholds.Fixed", "model.threshold.value": 0.8},
        unlike_guesses,
    ),
    "flexmatch": Case(
        write_cifar, flexmatch,
        {**FEW_LABELS, "model.threshold.num_classes": 10, "model.threshold.num_unlabelled": 10,
         "model.threshold.value": 0.8},
        unlike_guesses,
    ),
    "dash": Case(
        write_cifar, dash,
        {**FEW_LABELS, "model.threshold.warmup": 2, "model.threshold.every": 1, "model.threshold.gamma": 30,
         "model.threshold.lowest": 0.7},
        unlike_guesses,
    ),
    "geo_localisation": Case(
        lambda root, _: task_files.write_cvusa(root / "cvusa"),
        geo_localisation,
        {
            "data.sizes": [[16, 32], [32, 32]],
            "model.arch": "vit_tiny_patch16_224",
            "model.model_args": [{**TIMM, "img_size": [16, 32]}, {**TIMM, "img_size": 32}],
        },
    ),
    "graphs": Case(lambda root, _: task_files.write_mutag(root), graphs, {"model.width": 4, "model.layers": 2}),
    "simclr": Case(
        lambda root, _: task_files.write_stl10(root),
        simclr,
        {
            "data.size": 32,
            "model.arch": "vit_tiny_patch16_224",
            "model.model_args": {**TIMM, "img_size": 32},
        },
    ),
    "captioning": Case(
        lambda root, _: task_files.write_coco(root / "coco"),
        image_to_text,
        {"data.size": "[32, 32]", "model.size": "[32, 32]", "model.encoder_args": VIT, "model.decoder_args": DECODER},
    ),
    "clip": Case(
        lambda root, _: task_files.write_flickr30k(root / "flickr30k"),
        clip,
        {"data.size": "[32, 32]", "model.text_args": VIT, "model.vision_args": {**VIT, "image_size": 32},
         "model.width": 8},
    ),
    "depth": Case(
        lambda root, _: task_files.write_kitti(root / "kitti"),
        depth,
        {
            "data.size": "[28, 56]",
            "model.model_args": {
                "backbone_config": {**VIT, "model_type": "dinov2", "num_hidden_layers": 2, "mlp_ratio": 1,
                                    "image_size": 28, "patch_size": 14, "out_indices": [1, 2],
                                    "reshape_hidden_states": False},
                "reassemble_hidden_size": 16, "reassemble_factors": [1, 0.5], "neck_hidden_sizes": [4, 4],
                "fusion_hidden_size": 4, "head_hidden_size": 4, "patch_size": 14,
            },
        },
    ),
    "detection": Case(
        lambda root, _: task_files.write_voc(root),
        detection,
        {"model.backbone": "resnet18", "model.pretrained": False, "model.size": 48, "data.batch_size": 10},
    ),
    "instruction": Case(
        lambda root, _: task_files.write_alpaca(root / "alpaca"),
        instruction,
        {"model.model_args": VIT, "model.rank": 2},
    ),
    "scene_text": Case(
        lambda root, _: task_files.write_mjsynth(root / "mjsynth"),
        image_to_text,
        {"model.encoder_args": {**VIT, "patch_size": 8}, "model.decoder_args": DECODER},
    ),
    "segmentation": Case(
        lambda root, _: task_files.write_voc(root),
        segmentation,
        {"data.size": 32, "model.arch": "lraspp_mobilenet_v3_large", "model.model_args": "null"},
    ),
    "video_captioning": Case(
        lambda root, _: task_files.write_msrvtt(root / "msr-vtt"),
        video_to_text,
        {"data.size": "[32, 32]", "data.frames": 3, "model.size": "[32, 32]", "model.encoder_args": VIT,
         "model.decoder_args": DECODER},
    ),
    "vae": Case(lambda root, _: task_files.write_mnist(root), vae, {"model.hidden": 8, "model.code": 3}),
}  # fmt: skip
"""By the name of the yaml."""


AS_STORED = ("audio", "captioning", "clip", "depth", "geo_localisation", "scene_text", "vae", "video_captioning")
"""Tasks without augmentation: a row of a batch is what the data set has at that sample's id."""
DROPS_LAST = ("clip", "simclr")
"""Tasks whose loader leaves out a shorter last batch."""


class Watch(L.Callback):
    """Computes the losses of each batch's samples before its step, and notes which parameters get no gradient."""

    def __init__(self, losses, as_stored):
        self.losses, self.as_stored = losses, as_stored
        self.expected, self.kept, self.without, self.rows, self.missing = {}, [], set(), [], 0
        self.trained = []

    def on_train_epoch_start(self, trainer, module):
        self.kept.append(set(ScoreRegistry.of(trainer).selection.indices.tolist()))
        self.trained.append(0)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        state = torch.get_rng_state()
        with torch.no_grad():
            self.rows = [None if loss is None else float(loss) for loss in self.losses(module, batch)]
        torch.set_rng_state(state)
        self.missing += self.rows.count(None)
        self.first = batch[0] if isinstance(batch, tuple | list) else None

    def on_after_backward(self, trainer, module):
        ids = ScoreRegistry.of(trainer).running.step_indices.tolist()
        self.trained[-1] += len(ids)
        if self.as_stored:
            assert torch.equal(self.first, torch.stack([trainer.datamodule.train[i][0] for i in ids]))
        self.expected |= {i: row for i, row in zip(ids, self.rows, strict=True) if row is not None}
        if not self.without:
            self.without = {n for n, value in module.named_parameters() if value.requires_grad and value.grad is None}


@pytest.mark.parametrize("name", CASES)
def test_task(name, fit, tmp_path, monkeypatch):
    case = CASES[name]
    case.write(tmp_path / "data", monkeypatch)
    watch = Watch(case.losses, name in AS_STORED)

    def prepare(cli):
        cli.trainer.callbacks.append(watch)
        case.prepare(cli.model)

    monkeypatch.setattr(PruneCLI, "before_fit", prepare, raising=False)
    method = yaml.safe_load((ROOT / f"examples/tasks/{name}.yaml").read_text())["trainer"]["callbacks"][-1]
    quick = {"trainer.max_epochs": 2, "trainer.limit_train_batches": 1.0, "data.batch_size": 4, **case.small}
    if method["class_path"] == "InfoBatch":
        quick["trainer.callbacks.anneal_ratio"] = 1.0
    cli = fit(f"tasks/{name}.yaml", **quick)
    registry = ScoreRegistry.of(cli.trainer)
    assert registry.num_samples == task_files.SAMPLES
    assert 0 < len(watch.kept[1]) < task_files.SAMPLES
    assert watch.trained == [n - n % 4 * (n > 4 and name in DROPS_LAST) for n in map(len, watch.kept)]
    assert watch.expected.keys() == set(registry.losses.isfinite().nonzero().flatten().tolist())
    assert {i: float(registry.losses[i]) for i in watch.expected} == pytest.approx(watch.expected, rel=1e-4, abs=1e-6)
    assert len(set(watch.expected.values())) > 1
    assert watch.without == set()
    assert bool(watch.missing) == (name in ("dash", "fixmatch", "flexmatch"))
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())


def test_bytes_as_tokens():
    failed, tried = doctest.testmod(importlib.import_module("examples.tasks.texts"))
    assert (failed, tried) == (0, 1)


def test_an_empty_folder_is_named(tmp_path):
    from examples.tasks.depth import KittiDepthData

    with pytest.raises(ValueError, match=r"Expected samples in `root`, but got none in '.*kitti'"):
        KittiDepthData(str(tmp_path / "kitti")).setup("fit")


def test_a_saved_language_model_is_tuned(tmp_path):
    """Its weights, its tokenizer; the first loss is the saved model's, since adapters start at nothing."""
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    from examples.tasks.instruction import Alpaca, InstructionTuning

    saved = LlamaForCausalLM(LlamaConfig(vocab_size=384, **VIT))
    saved.save_pretrained(tmp_path / "model")
    ByT5Tokenizer().save_pretrained(tmp_path / "model")
    task_files.write_alpaca(tmp_path / "alpaca")
    data = Alpaca(str(tmp_path / "alpaca"), tokenizer=str(tmp_path / "model"), num_workers=0)
    data.setup("fit")
    tokens, targets = data.collate([data.train[i] for i in (3, 5)])
    text = data.tokenizer.decode(tokens[0][targets[0] != -100], skip_special_tokens=True)
    assert text == " ".join("357" * 3)
    loss = InstructionTuning(str(tmp_path / "model")).training_step((tokens, targets), 0)
    assert float(loss) == pytest.approx(float(saved(input_ids=tokens, labels=targets).loss), rel=1e-5)


def test_diffusion_is_guided(monkeypatch):
    """With a network that finds a tenth of its label everywhere, in two steps, by hand."""
    from examples.tasks import ddpm

    monkeypatch.setattr(ddpm, "STEPS", 2)
    model = ddpm.DDPM(patch=8, width=16, depth=1, heads=2)
    monkeypatch.setattr(model, "net", torch.nn.Module())
    model.net.forward = lambda images, times, labels: (labels / 10).view(-1, 1, 1, 1).expand_as(images)
    torch.manual_seed(0)
    found = model.sample(torch.tensor([3, 7]), guidance=2.0)
    torch.manual_seed(0)
    images, noises = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    betas = (0.0001, 0.02)
    for k, label in enumerate((3, 7)):
        noise = 1.0 + 2.0 * (label / 10 - 1.0)
        image = (images[k] - betas[1] / (1 - 0.9999 * 0.98) ** 0.5 * noise) / 0.98**0.5 + 0.02**0.5 * noises[k]
        image = (image - betas[0] / 0.0001**0.5 * noise) / 0.9999**0.5
        assert torch.allclose(found[k], image, atol=1e-5)


def test_every_task_is_tried():
    """Each yaml has its case, and each module is one that a yaml names."""
    assert {path.stem for path in ROOT.glob("examples/tasks/*.yaml")} == CASES.keys()
    named = {
        yaml.safe_load(path.read_text())["model"]["class_path"].split(".")[-1]
        for path in ROOT.glob("examples/tasks/*.yaml")
    }
    written = {
        node.name
        for path in ROOT.glob("examples/tasks/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "L.LightningModule" in map(ast.unparse, node.bases)
    }
    assert written <= named


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/tasks/*.py")), ids=lambda path: path.stem)
def test_a_task_is_a_page(path):
    assert len(path.read_text().splitlines()) < 100
