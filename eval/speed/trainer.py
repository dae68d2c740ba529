"""Updates of transformers' Trainer, timed.

A module of its own, since the Trainer loads `datasets` wherever that is installed, and nothing else of the speed room does.
"""

import tempfile
import time

import numpy as np
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from zh_modernbert.eval.speed.measuring import compiled_graphs, kept_precision, synchronize


class StepTimes(TrainerCallback):
    """When each update of the Trainer was done, on the device too, and how many graphs were compiled by then."""

    def __init__(self, device: str):
        self.device, self.ends, self.graphs = device, [], []

    def on_step_end(self, args, state, control, **kwargs):
        synchronize(self.device)
        self.ends.append(time.perf_counter())
        self.graphs.append(compiled_graphs())


def time_updates(model: nn.Module, dataset: list[dict], collator, device: str, **arguments) -> list[float]:
    """Seconds of the updates of a model in the Trainer that compile nothing, from the end of one to the end of the next.

    Args:
        arguments: of TrainingArguments.
    """
    times = StepTimes(device)
    with tempfile.TemporaryDirectory() as folder, kept_precision():
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=device == "cpu",
            remove_unused_columns=False,  # it would take the mask of special tokens from the collator
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **arguments,
        )
        trainer = Trainer(model, arguments, collator, dataset, callbacks=[times])  # pyright: ignore[reportArgumentType]  # a list will do
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return np.diff(times.ends)[np.diff(times.graphs) == 0].tolist()
