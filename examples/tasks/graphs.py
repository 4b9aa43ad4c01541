"""Classes of graphs: the files of TUDataset. ``lightning-prune fit --config examples/tasks/graphs.yaml``

**The loss of a sample** is the cross-entropy of a graph's class. A batch is one large graph; nodes are added up graph
by graph before the loss, so there is one loss a graph, however many nodes it has.

**Pruning** leaves out graphs that are classified well; no graph's loss depends on its batch. Loaders of torch_geometric
can be pruned, too.

Data: ``root/MUTAG/raw/MUTAG_A.txt``, ``..._graph_indicator.txt``, ``..._graph_labels.txt`` and ``..._node_labels.txt``,
downloaded if missing.
"""

from __future__ import annotations

from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.datasets import TUDataset
from torch_geometric.nn import GIN, global_add_pool

from examples.tasks.data import TaskData
from lightning_prune import WeightedLossMixin


@final
class GraphData(TaskData):
    """Graphs of a data set of TUDataset's collection.

    Args:
        root: Folder of the data.
        name: Which data set.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(self, root: str, name: str = "MUTAG", batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__(root, batch_size, num_workers)
        self.name = name

    def prepare_data(self) -> None:
        TUDataset(str(self.root), self.name)

    def dataset(self) -> Any:
        return TUDataset(str(self.root), self.name)

    def collate(self, samples: list[Any]) -> Any:
        return Batch.from_data_list(samples)


@final
class GraphClassifier(WeightedLossMixin, L.LightningModule):
    """Xu et al., "How Powerful are Graph Neural Networks?", ICLR 2019.

    Args:
        features: Features of a node.
        num_classes: Number of classes.
        width: Size of the hidden states.
        layers: Number of layers.
        lr: Learning rate of Adam.
    """

    def __init__(
        self, features: int = 7, num_classes: int = 2, width: int = 64, layers: int = 5, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.lr = lr
        self.net, self.head = GIN(features, width, layers), nn.Linear(width, num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        nodes = self.net(batch.x, batch.edge_index)
        logits = self.head(global_add_pool(nodes, batch.batch, batch.num_graphs))
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=batch.y)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
