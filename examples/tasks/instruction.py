"""Instruction tuning of a language model: Alpaca. ``lightning-prune fit --config examples/tasks/instruction.yaml``

**The loss of a sample** is the mean cross-entropy of the tokens of its answer: losses ``(B, T)`` and a mask. The
instruction is read, but not trained on, and padding is neither. What is trained is the mean over all answers' tokens of
the batch, ``normalize="token"``, as transformers has it. A score is the mean of a sample's own tokens, so that it does
not grow with the length of the answer.

**Pruning** leaves out instructions that the model answers well already; no sample's loss depends on its batch. Only the
adapters are trained, but a score is of the whole model.

Data: ``root/alpaca_data.json``, a list of ``{"instruction": ..., "input": ..., "output": ...}``.
"""

from __future__ import annotations

import json
from typing import Any, final

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from examples.tasks.data import TaskData
from examples.tasks.texts import PAD, VOCABULARY
from lightning_prune import WeightedLossMixin

IGNORED = -100


@final
class Alpaca(TaskData):
    """Tokens ``(B, T)`` of instructions with their answers, and the targets, `IGNORED` but for the answers.

    Args:
        root: Folder of the file.
        tokenizer: Name or folder of the tokenizer. None: bytes.
        max_length: Tokens of a sample that are read.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self, root: str, tokenizer: str | None = None, max_length: int = 512, batch_size: int = 16, num_workers: int = 2
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.tokenizer = ByT5Tokenizer() if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
        self.max_length = max_length

    def dataset(self) -> Any:
        rows = json.loads((self.root / "alpaca_data.json").read_text(encoding="utf-8"))
        return [self.sample(**row) for row in rows]

    def sample(self, instruction: str, input: str, output: str) -> tuple[Tensor, Tensor]:  # noqa: A002
        prompt = f"### Instruction:\n{instruction}\n\n" + f"### Input:\n{input}\n\n" * bool(input) + "### Response:\n"
        asked = self.tokenizer(prompt, add_special_tokens=False).input_ids
        answer = [*self.tokenizer(output, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        tokens = torch.tensor([*asked, *answer])[: self.max_length]
        return tokens, tokens.where(torch.arange(len(tokens)) >= len(asked), IGNORED)

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        tokens, targets = map(list, zip(*samples, strict=True))
        return pad_sequence(tokens, True, PAD), pad_sequence(targets, True, IGNORED)


@final
class InstructionTuning(WeightedLossMixin, L.LightningModule):
    """Low-rank adapters (Hu et al., "LoRA", ICLR 2022) on a causal language model.

    Args:
        model: Name or folder of the model. None: a Llama with random weights.
        model_args: What differs, in that Llama, from transformers' `LlamaConfig`, which has 7 billion weights.
        rank: Rank of the adapters.
        lr: Learning rate of AdamW.
    """

    def __init__(
        self, model: str | None = None, model_args: dict[str, Any] | None = None, rank: int = 8, lr: float = 3e-4
    ) -> None:
        super().__init__()
        self.lr = lr
        if model is None:
            net = LlamaForCausalLM(LlamaConfig(**{"vocab_size": VOCABULARY, **(model_args or {})}))
        else:
            net = AutoModelForCausalLM.from_pretrained(model)
        self.net = get_peft_model(net, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, targets = batch[0], batch[1][:, 1:]
        logits = self.net(input_ids=tokens).logits[:, :-1]  # causal: the padding, on the right, changes nothing
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        return self.weighted_loss(losses, mask=targets != IGNORED, normalize="token")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)
