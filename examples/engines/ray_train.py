"""InfoBatch under Ray Train: workers on any machines of a Ray cluster, checkpoints and restore through Ray.

pip install 'ray[train]'
python -m examples.engines.ray_train --workers 2 --max_epochs 10

A worker that dies is started anew, and the run goes on from the last checkpoint as if it had not been interrupted: the
per-sample state is in it. So does the same command with the same --name, after an interruption or with more epochs.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer

from examples.digits.task import DigitsData, DigitsModel
from lightning_prune import InfoBatch


def train(config: dict[str, Any], callbacks: Sequence[L.Callback] = ()) -> None:
    """Be one of Ray's workers."""
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=config["max_epochs"],
        accelerator="gpu" if config["gpu"] else "cpu",
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[InfoBatch(prune_ratio=0.5), RayTrainReportCallback(), *callbacks],
        logger=False,
        enable_checkpointing=False,  # the callback reports one to Ray at each epoch's end
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with contextlib.ExitStack() as stack:
        path = None
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            folder = stack.enter_context(checkpoint.as_directory())
            path = Path(folder, RayTrainReportCallback.CHECKPOINT_NAME)
        prepare_trainer(trainer).fit(DigitsModel(width=8), DigitsData(), ckpt_path=path, weights_only=False)


def make_trainer(args: argparse.Namespace, train_loop: Callable[[dict[str, Any]], None] = train) -> TorchTrainer:
    """Return what runs the workers."""
    return TorchTrainer(
        train_loop,
        train_loop_config={"max_epochs": args.max_epochs, "gpu": args.gpu},
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=args.gpu),
        run_config=RunConfig(
            name=args.name,
            storage_path=str(Path(args.storage).resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=3),
        ),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max_epochs", type=int, default=10)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--name", default="digits", help="of the run: the same name goes on")
    parser.add_argument("--storage", default="ray_results", help="folder that all machines see")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    metrics = make_trainer(parse()).fit().metrics
    print(
        f"test accuracy {100 * metrics['val_accuracy']:.1f} %, "
        f"{100 * metrics['prune/saved_fraction']:.1f} % of the sample-steps saved"
    )
