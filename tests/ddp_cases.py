"""The cases of `test_ddp.py`, as each of two gloo processes runs them; each rank saves what it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune import InfoBatch, RandomPruning
from tests.helpers import Keep, Model, make_loader, make_trainer, registry_of

CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # callback, loader arguments, trainer arguments
    "infobatch": (lambda: InfoBatch(), {}, {}),
    "random": (lambda: RandomPruning(0.3), {}, {}),
    "odd": (lambda: Keep(31 / 40, 20 / 40, 0.8, 13 / 40), {}, {}),
    "odd_own_sampler": (lambda: Keep(31 / 40, 20 / 40, 0.8, 13 / 40), {}, {"use_distributed_sampler": False}),
    "workers": (lambda: Keep(0.5, 0.8, weight=1.5), {"num_workers": 2}, {}),
    "sequential": (lambda: Keep(0.5), {"shuffle": False}, {}),
    "one_sample": (lambda: Keep(1 / 40), {}, {}),
    "dataset_of_one": (lambda: InfoBatch(), {"num_samples": 1}, {}),
    "dataset_of_three": (lambda: InfoBatch(), {"num_samples": 3, "batch_size": 1}, {}),
    "uneven_records": (lambda: InfoBatch(), {}, {}),
    "halves": (lambda: Keep(1.0, 0.5, 0.8, weight=1.5), {"batch_size": 2}, {"accumulate_grad_batches": 3}),
}


class CountCollectives:
    """Counts calls of torch.distributed's collectives while active."""

    names = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast_object_list")

    def __enter__(self) -> CountCollectives:
        self.calls: list[str] = []
        self.real = {name: getattr(torch.distributed, name) for name in self.names}
        for name, real in self.real.items():
            setattr(torch.distributed, name, self.counted(name, real))
        return self

    def counted(self, name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return real(*args, **kwargs)

        return call

    def __exit__(self, *args: object) -> None:
        for name, real in self.real.items():
            setattr(torch.distributed, name, real)


class Watched(Model):
    """Notes each epoch's selection and state, and which collectives ran during steps and during epoch ends.

    Args:
        uneven: Rank 1 records nothing: all its elements are masked.
    """

    def __init__(self, uneven: bool = False) -> None:
        super().__init__()
        self.uneven = uneven
        self.epochs: list[dict[str, Any]] = []
        self.in_steps: list[str] = []
        self.counter: CountCollectives | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        losses = self.losses(batch)
        if not self.uneven:
            return self.weighted_loss(losses)
        if self.global_rank == 1:
            self.true_losses.clear()
        return self.weighted_loss(losses, mask=torch.full_like(losses, float(self.global_rank == 0)))

    def on_train_epoch_start(self) -> None:
        registry = registry_of(self.trainer)
        selection = registry.selection
        self.epochs.append({"indices": selection.indices, "weights": selection.weights, "before": registry.to_dict()})
        self.mark = len(self.counter.calls)

    def on_train_epoch_end(self) -> None:
        self.epochs[-1]["collectives"] = self.counter.calls[self.mark :]
        self.epochs[-1]["batches"] = self.trainer.num_training_batches


def run_case(name: str, folder: Path) -> None:
    make_callback, loader_kwargs, trainer_kwargs = CASES[name]
    trainer = make_trainer(make_callback(), devices=2, strategy="ddp", **trainer_kwargs)
    model = Watched(uneven=name == "uneven_records")
    with CountCollectives() as model.counter:
        trainer.fit(model, make_loader(**loader_kwargs))
    save(trainer, model, folder, name)


def save(trainer: Any, model: Any, folder: Path, name: str) -> None:
    registry = registry_of(trainer)
    result = {
        "epochs": getattr(model, "epochs", []),
        "seen": model.seen,
        "table": registry.to_dict(),
        "weights": {key: value.clone() for key, value in model.state_dict().items()},
        "saved": registry.saved_fraction,
        "true_losses": model.true_losses,
        "lrs": model.lrs,
    }
    torch.save(result, folder / f"{name}.{trainer.global_rank}.pt")


def run_resume(folder: Path) -> None:
    def fit(name: str, ckpt_path: Path | None = None) -> None:
        checkpoint = ModelCheckpoint(folder / name, "{step}", every_n_train_steps=1, save_top_k=-1)
        at_end = ModelCheckpoint(folder / name, "end-{step}", save_on_train_epoch_end=True, save_top_k=-1)
        callbacks = [InfoBatch(seed=2), checkpoint, at_end]
        trainer = make_trainer(*callbacks, devices=2, strategy="ddp", enable_checkpointing=True, max_epochs=5)
        model = Model(dropout=0.2)
        torch.manual_seed(10 + trainer.global_rank)
        trainer.fit(model, make_loader(), ckpt_path=ckpt_path)
        save(trainer, model, folder, name)

    fit("uninterrupted")
    for point, path in (
        ("boundary", "end-step=5.ckpt"),
        ("middle", "step=7.ckpt"),
        ("last_batch", "step=5.ckpt"),
    ):
        fit(f"resumed_{point}", folder / "uninterrupted" / path)


def run_rank(rank: int, folder: Path) -> None:
    for name in CASES:
        run_case(name, folder)
    run_resume(folder)
