"""What only a GPU can show: ``python -m benchmarks.gpu [--json PATH]``; ``--cpu`` runs the same code on tiny inputs.

(a) No step of any method waits for the device. (b) The pruning logic of a million samples. (c) Images per second of
ResNet-18 at 32 x 32, batch 512, bf16, channels last, data on the device; and an epoch's time over the ideal one, which
is a plain epoch's times the share kept. (d) A compiled module is not compiled anew when epochs change their length.
(e) A step under FSDP. Times are wall clock, between two synchronisations of the device.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_prune
from benchmarks.epoch_end import (
    available,
    exponential_losses,
    make_method,
    plan_next,
    record_epoch,
    start_run,
)
from benchmarks.measure import HEADER, Row, machine, quiet_trainer
from lightning_prune import InfoBatch, PruningCallback, ScoreRegistry, WeightedLossMixin
from lightning_prune.core.arrays import to_device


@dataclass(frozen=True)
class Size:
    """How much is run, and where."""

    device: str
    width: int
    num_samples: int
    batch_size: int
    epochs: int
    steps: int
    logic: int
    rounds: int
    turns: int


GPU = Size(
    "cuda", width=64, num_samples=51_200, batch_size=512, epochs=6, steps=200, logic=1_000_000, rounds=10, turns=3
)
CPU = Size("cpu", width=4, num_samples=64, batch_size=16, epochs=4, steps=4, logic=1_000, rounds=2, turns=1)


class Images(Dataset[Any]):
    """Random images on the device, handed out by the batch."""

    def __init__(self, size: Size) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size.num_samples, 3, 32, 32, generator=generator)
        self.x = x.to(size.device, memory_format=torch.channels_last)
        self.y = torch.randint(10, (size.num_samples,), generator=generator).to(size.device)

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        ids = to_device(torch.tensor(indices), self.y.device)
        return self.x[ids], self.y[ids]


def loader(size: Size) -> DataLoader[Any]:
    """Return a shuffling loader of whole batches."""
    return DataLoader(Images(size), size.batch_size, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        short = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.short = nn.Sequential(*([] if same else short))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


class ResNet18(WeightedLossMixin, L.LightningModule):
    """ResNet-18 for images of 32 x 32: a 3 x 3 stem, no pooling after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = [
            Block(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 2 if i > 0 and j == 0 else 1)
            for i in range(4)
            for j in range(2)
        ]
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))
        self.net = nn.Sequential(stem, *blocks, head).to(memory_format=torch.channels_last)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits, y = self.net(batch[0]), batch[1]
        return self.weighted_loss(F.cross_entropy(logits, y, reduction="none"), logits=logits, targets=y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(size: Size, callbacks: list[L.Callback], module: Any = None, **arguments: Any) -> L.Trainer:
    """Train ResNet-18 in bf16 on one device; return the trainer."""
    defaults = {"accelerator": size.device, "devices": 1, "precision": "bf16-mixed", "max_epochs": size.epochs}
    trainer = quiet_trainer(**defaults | arguments, callbacks=callbacks)
    trainer.fit(ResNet18(size.width) if module is None else module, loader(size))
    return trainer


def synchronise(size: Size) -> None:
    """Wait for the device."""
    if size.device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def no_wait(size: Size) -> Iterator[None]:
    """Raise where code waits for the GPU; on the CPU there is nothing to wait for."""
    if size.device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Guard(ScoreRegistry):
    """Runs each step from the first of our hooks to the last in a context that forbids to wait."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.steps = 0
        self.context: Any = None

    def on_train_batch_start(self, *args: Any) -> None:
        self.context = no_wait(self.size)
        self.context.__enter__()
        super().on_train_batch_start(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.context.__exit__(None, None, None)
        self.steps += 1

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self.context is not None:
            self.context.__exit__(None, None, None)
        super().on_exception(trainer, pl_module, exception)


def no_step_waits(size: Size) -> list[Row]:
    """Return, for each method, how many steps were run under the guard without an error."""
    rows = []
    for name in available():
        method, guard = make_method(name), Guard(size)
        callbacks = [guard] if method is None else [guard, method]
        fit(size, callbacks, max_epochs=-1, max_steps=size.steps)
        rows.append(
            Row(f"(a) {name}: steps without waiting for the device", size.steps, [guard.steps], size.steps, None, True)
        )
    return rows


def logic(size: Size) -> list[Row]:
    """Return the time from an epoch's last step to the next one's plan, weights and log on the device."""
    rows, losses = [], exponential_losses(size.logic)
    for name in available():
        values = []
        for i in range(size.rounds + 1):
            session = start_run(make_method(name), size.logic, device=size.device)
            session.begin_epoch()
            record_epoch(session, losses)
            synchronise(size)
            start = time.perf_counter()
            plan_next(session)
            synchronise(size)
            if i > 0:
                values.append((time.perf_counter() - start) * 1e3)
        rows.append(Row(f"(b) {name}: pruning logic", size.logic, values, 82, 10, unit="ms"))
    return rows


class Clock(L.Callback):
    """Seconds and steps of each epoch, from its start to the next one's."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.starts: list[float] = []
        self.steps: list[int] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        synchronise(self.size)
        self.starts.append(time.perf_counter())
        self.steps.append(trainer.global_step)

    on_train_end = on_train_epoch_start

    def epochs(self) -> list[tuple[float, int]]:
        """Return seconds and steps of the epochs after the first two, which warm up."""
        seconds = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        steps = [b - a for a, b in zip(self.steps, self.steps[1:], strict=False)]
        return list(zip(seconds, steps, strict=True))[2:]


def throughput(size: Size) -> list[Row]:
    """Return images per second, and epochs' time over the ideal."""
    methods: dict[str, Callable[[], PruningCallback] | None] = {"plain Lightning": None}
    for name in ("InfoBatch", "RePB", "OrderDP"):
        methods[name] = getattr(lightning_prune, name)
    if hasattr(lightning_prune, "AlignPrune"):
        methods["AlignPrune on InfoBatch"] = lambda: lightning_prune.AlignPrune(InfoBatch(), window=2)
    epochs: dict[str, list[tuple[float, int]]] = {name: [] for name in methods}
    over: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(size.turns):  # in turn: what else the machine does hits all of them
        for name, make in methods.items():
            clock = Clock(size)
            fit(size, [clock] if make is None else [clock, make()])
            epochs[name] += clock.epochs()
            if make is None:
                per_step = statistics.median(seconds / steps for seconds, steps in clock.epochs())
            over[name] += [seconds / (steps * per_step) for seconds, steps in clock.epochs()]
    rows = []
    for name, make in methods.items():
        what = f"(c) ResNet-18, {name}"
        speeds = [steps * size.batch_size / seconds for seconds, steps in epochs[name]]
        rows.append(Row(f"{what}: images per second", size.num_samples, speeds, at_least=True))
        if make is not None:
            rows.append(Row(f"{what}: epoch / ideal epoch", size.num_samples, over[name], 1.07, 1.03))
    return rows


class Graphs(L.Callback):
    """Graphs that torch.compile has made by the end of each epoch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiled(size: Size) -> list[Row]:
    """Return how many graphs were compiled after the first epoch, in epochs of five lengths."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs, clock = Graphs(), Clock(size)
    module = torch.compile(ResNet18(size.width), backend="inductor" if size.device == "cuda" else "eager")
    fit(size, [graphs, clock, InfoBatch(anneal_ratio=1.0)], module, max_epochs=6)
    if graphs.counts[0] == 0:
        raise RuntimeError("Expected the step to be compiled, but no graph was made.")
    anew = graphs.counts[-1] - graphs.counts[0]
    lengths = sorted({steps for _, steps in clock.epochs()})
    return [Row(f"(d) torch.compile: graphs made after the first epoch; epochs of {lengths} steps", 6, [anew], 0)]


def sharded(size: Size) -> list[Row]:
    """Return how many steps were done under FSDP."""
    if size.device != "cuda":
        return [Row("(e) FSDP on one device: steps done", 2, [], why_not="needs a GPU")]
    trainer = fit(size, [InfoBatch()], strategy="fsdp", max_epochs=-1, max_steps=2)
    return [Row("(e) FSDP on one device: steps done", 2, [trainer.global_step], 2, at_least=True)]


PARTS = {"a": no_step_waits, "b": logic, "c": throughput, "d": compiled, "e": sharded}


def run(size: Size, letter: str) -> list[Row]:
    """Return the rows of a part; on a GPU, one that fails is a row that says why, and the others still run."""
    try:
        return PARTS[letter](size)
    except Exception as error:
        if size is CPU:
            raise
        return [Row(f"({letter})", 0, [], why_not=f"{type(error).__name__}: {error}".splitlines()[0])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny inputs on the CPU; the figures mean nothing")
    parser.add_argument("--parts", default="abcde", help="which parts to run")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_float32_matmul_precision("high")
    described: dict[str, Any] = {"command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(), **machine()}
    found = torch.cuda.is_available()
    described["device"] = "tiny run on the CPU" if arguments.cpu else torch.cuda.get_device_name() if found else "none"
    print(", ".join(f"{key} {value}" for key, value in described.items()), f"\n\n{HEADER}", sep="", flush=True)
    rows = []
    for letter in arguments.parts:
        no_gpu = [Row(f"({letter})", 0, [], why_not="no GPU")]
        for row in run(CPU if arguments.cpu else GPU, letter) if arguments.cpu or found else no_gpu:
            rows.append(row)
            print(row, flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": described, "rows": [row.to_dict() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
