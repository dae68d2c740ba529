"""Batches of texts to measure speed on."""

import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.speed.measuring import LENGTHS, lengths_at
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.flops import encoder_flops

WORKLOADS = {
    "cpu": ["64x1", "128x1", "512x1", "512x16", "512x16-questions", "512x16-articles", "8192x1"],
    "cuda": ["512x32-questions", "8192x8-documents", "512x32-articles", "512x32", "8192x8"],
}
PRETRAINING_WORKLOADS = {"cpu": ["512x4"], "cuda": ["1024x64", "8192x8"]}


@dataclass
class Workload:
    """The name of a workload, and the lengths in tokens of the texts of its batch."""

    name: str
    lengths: list[int]

    @classmethod
    def parse(cls, name: str) -> "Workload":
        """The workload that `TxB` or `TxB-KIND` names.

        Raises:
            InputError: the name has another form.
        """
        match = re.fullmatch(rf"([1-9]\d*)x([1-9]\d*)(?:-({'|'.join(LENGTHS)}))?", name)
        if match is None:
            kinds = ", ".join(LENGTHS)
            raise InputError(f"throughput: workload holds {name!r}; it must be TxB or TxB-KIND, as 512x16, KIND one of {kinds}")
        longest, rows = int(match[1]), int(match[2])
        if not match[3]:
            return cls(name, [longest] * rows)
        lengths = lengths_at(match[3], (np.arange(rows) + 0.5) / rows)
        return cls(name, np.minimum(lengths, longest).tolist())

    def padded(self, device, pad_token_id: int = 0) -> dict:
        """`input_ids` `(B, T)`, and `attention_mask` where there are pads."""
        rows, width = len(self.lengths), max(self.lengths)
        mask = torch.arange(width) < torch.tensor(self.lengths)[:, None]
        input_ids = torch.randint(10, 1000, (rows, width), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": input_ids.masked_fill(~mask, pad_token_id)}
        if not mask.all():
            batch["attention_mask"] = mask.long()
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def packed(self, device) -> dict:
        """The same texts in one row `(1, N)`, with `cu_seqlens` and `max_seqlen`."""
        batch = self.padded("cpu")
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        cu_seqlens = F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0)).to(torch.int32)
        input_ids = batch["input_ids"][mask][None]
        return {"input_ids": input_ids.to(device), "cu_seqlens": cu_seqlens.to(device), "max_seqlen": max(self.lengths)}

    def flops(self, shape: dict) -> float:
        """Floating-point operations of one forward of an encoder of `shape` over the real tokens."""
        return encoder_flops(self.lengths, ZhModernBertConfig(**shape))
