"""A search for hyper-parameters by Optuna that prunes twice: trials that fall behind, and samples within each trial.

pip install optuna
python -m examples.engines.optuna_search --trials 12 --max_epochs 8

A trial is ended at a validation, by an exception: the callbacks leave nothing behind, and the next trial starts afresh.
"""

import argparse
from typing import final

import lightning.pytorch as L
import optuna

from examples.digits.task import DigitsData, DigitsModel
from lightning_prune import InfoBatch


@final
class ReportToTrial(L.Callback):
    """Tells Optuna each validation's accuracy, and ends the trial if that is too low."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trial.report(float(trainer.callback_metrics["val_accuracy"]), step=trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def run(trial: optuna.Trial, max_epochs: int) -> float:
    """Train with what the trial suggests; return the accuracy."""
    L.seed_everything(0, verbose=False)
    model = DigitsModel(width=trial.suggest_int("width", 2, 8), lr=trial.suggest_float("lr", 1e-3, 0.3, log=True))
    method = InfoBatch(prune_ratio=trial.suggest_float("prune_ratio", 0.2, 0.8))
    trainer = L.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        callbacks=[method, ReportToTrial(trial)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(model, DigitsData())
    finally:
        trial.set_user_attr("steps", trainer.global_step)
        trial.set_user_attr("epochs", len(trial.study.trials[trial.number].intermediate_values))
    return float(trainer.callback_metrics["val_accuracy"])


def main(arguments: list[str] | None = None) -> optuna.Study:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--max_epochs", type=int, default=8)
    args = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
    )
    study.optimize(lambda trial: run(trial, args.max_epochs), n_trials=args.trials)

    all_epochs, batches = args.trials * args.max_epochs, 45  # of an epoch of all 1,437 digits
    epochs = sum(trial.user_attrs["epochs"] for trial in study.trials)
    steps = sum(trial.user_attrs["steps"] for trial in study.trials)
    ended = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
    print(f"{ended} of {args.trials} trials ended early: {100 * epochs / all_epochs:.0f} % of the epochs")
    print(f"InfoBatch: {100 * steps / (epochs * batches):.0f} % of the steps of these epochs")
    print(f"both: {100 * steps / (all_epochs * batches):.0f} % of the steps of the whole search")
    print(f"best accuracy {100 * study.best_value:.1f} %, by {study.best_params}")
    return study


if __name__ == "__main__":
    main()
