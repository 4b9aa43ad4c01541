"""Runs the blocks of the README, as they stand, after what a reader brings; run by a fresh environment's Python.

The first argument is a file of blocks: ``[{"kind": "python" | "bash" | "yaml", "text": ...}, ...]``.
"""

import json
import shlex
import sys
import time
import warnings
from pathlib import Path

READER = """
import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from lightning_prune import WeightedLossMixin

class Model(WeightedLossMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=y)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(40, 4), torch.arange(40) % 3), 10)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

model = self = Model()
data = loader = model.train_dataloader()
logits, y, weight = torch.randn(8, 3), torch.arange(8) % 3, torch.ones(3)
scheduler = torch.optim.lr_scheduler.ConstantLR(model.configure_optimizers())
"""
"""What the README takes a reader to have: a module, data, and in `training_step` what is at hand there."""
SHORTER = {"fit": ["--trainer.max_epochs=1"], "score": ["--trainer.max_epochs=12"], "compare": ["--dry_run"]}
"""Arguments with which a command of the README takes less time."""


def tell(what):
    """Note a block that ran, and after how long."""
    done.append(what)
    print(f"{time.process_time():.1f} s: {what}", file=sys.stderr)


def run_commands(text):
    from lightning_prune.__main__ import main

    for line in text.splitlines():
        program, *args = shlex.split(line, comments=True) or [""]
        if program != "lightning-prune":
            continue
        try:
            main([*args, *SHORTER.get(args[0], [])])
        except SystemExit as error:  # `--print_config` ends the program
            if error.code:
                raise
        tell(line)


def run_yaml(text):
    from lightning_prune.__main__ import main

    Path("block.yaml").write_text(text)
    main(["fit", "--config", "block.yaml", "--model=reader.Model", "--trainer.fast_dev_run=true"])


done = []
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    Path("reader.py").write_text(READER)
    sys.path.insert(0, "")
    names = {"__name__": "readme"}
    exec(READER, names)
    for block in json.loads(Path(sys.argv[1]).read_text()):
        if block["kind"] == "bash":
            run_commands(block["text"])
        elif block["kind"] == "yaml":
            run_yaml(block["text"])
        else:
            exec(compile(block["text"], "README.md", "exec"), dict(names))
            tell(block["text"].splitlines()[0])
    print(f"done: {len(done)}")
