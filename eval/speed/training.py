"""Speed of pretraining beside transformers' own way of it, on the same rows: masking alone, and whole updates.

An update is all that train/pretrain.py does for one: it reads and masks rows, computes the mean loss over all masked tokens,
clips gradients, and steps the optimizer. The peer is stock ModernBERT in transformers' Trainer. The Trainer is set up as a user
would, with the cheapest choices: it gets rows whose tokens are masked already, no document bounds and no attention mask, and
fused AdamW.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.speed.limits import is_out_of_memory
from zh_modernbert.eval.speed.measuring import clear, compiled_graphs, lengths_at, peak_memory, synchronize, take_turns
from zh_modernbert.eval.speed.peers import stock_config
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.flops import training_flops
from zh_modernbert.train.pretraining.optimizer import build_optimizer
from zh_modernbert.train.pretraining.parallel import prepare, recompute_in_backward
from zh_modernbert.train.pretraining.update import update
from zh_modernbert.train.rows.dataloader import MicroBatches, micro_batches
from zh_modernbert.train.rows.masking import IGNORE_INDEX, Masking, MlmSchedule
from zh_modernbert.train.rows.row_stream import RowStream

MLM_PROBABILITY, LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 0.3, 1e-4, 0.1, 1.0
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16"}
# Updates of a turn: those of the warm-up, and those that are timed.
UPDATES = {"cpu": (1, 3), "cuda": (3, 10)}


# --- rows -------------------------------------------------------------------------------------------------------------


class MadeRows:
    """Full packed rows in memory, as a `RowStream` takes them in a folder's place.

    The documents have random words of 1 to 3 tokens, and the lengths of real documents. They are laid end to end and cut at the
    ends of rows.
    """

    vocab_size = 32768

    def __init__(self, count: int, seq_len: int):
        generator = np.random.default_rng(0)
        lengths = lengths_at("documents", generator.random(count * seq_len // lengths_at("documents", 0) + 1))
        ends = np.cumsum(lengths)
        self.rows = []
        for first in range(0, count * seq_len, seq_len):
            inner = ends[(ends > first + 2) & (ends < first + seq_len - 2)] - first
            bounds = np.array([0, *inner, seq_len])
            word_starts = np.zeros(seq_len, dtype=np.uint8)
            words = np.cumsum(generator.integers(1, 4, size=seq_len))
            word_starts[words[words < seq_len]] = 1
            input_ids = generator.integers(len(SPECIAL_TOKENS), self.vocab_size, size=seq_len).astype(np.uint16)
            for places, token in ((bounds[:-1], "[CLS]"), (bounds[1:] - 1, "[SEP]")):
                input_ids[places], word_starts[places] = SPECIAL_TOKENS.index(token), 1
            word_starts[bounds[:-1] + 1] = 1
            self.rows.append((input_ids, word_starts, bounds))

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.rows[index]

    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [int(length) for *_, bounds in self.rows for length in np.diff(bounds)]

    def features(self) -> list[dict]:
        """The rows as transformers' collator takes them. A gap between offsets begins a word for it, so each word has one."""
        features = []
        for input_ids, word_starts, _ in self.rows:
            ends = np.cumsum(1 + word_starts.astype(int))
            offsets = np.stack((ends - 1, ends), axis=1)
            special = (input_ids < len(SPECIAL_TOKENS)).astype(int)
            arrays = {"input_ids": input_ids, "special_tokens_mask": special, "offset_mapping": offsets}
            features.append({name: array.tolist() for name, array in arrays.items()})
        return features

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer from which transformers' collator takes the pad token and [MASK]."""
        vocabulary = [*SPECIAL_TOKENS, *(str(index) for index in range(self.vocab_size - len(SPECIAL_TOKENS)))]
        backend = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
        special = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **special, model_input_names=["input_ids"])

    def masked(self, masking: Masking, updates: int, rows_at_once: int) -> MicroBatches:
        """Updates of all the rows, in micro-batches of `rows_at_once`."""
        schedule = MlmSchedule([MLM_PROBABILITY], 0, updates)
        return MicroBatches(RowStream({"made": self}), masking, schedule, rows_at_once, np.full(updates, len(self)), seed=0)


def masked_share(batch: dict) -> float:
    return float((batch["labels"] != IGNORE_INDEX).float().mean())


# --- the collator -----------------------------------------------------------------------------------------------------


def compare_collators(rows: int, seq_len: int, settings) -> dict:
    """Tokens a second of masking whole words in a micro-batch of `rows`, here and in transformers.

    Args:
        settings: those of eval/throughput.py.
    """
    made = MadeRows(rows, seq_len)
    # All masked tokens become [MASK], because transformers has no random tokens with whole words.
    replaced: dict[str, Any] = {"mask_replace_prob": 1, "random_replace_prob": 0}
    collator = DataCollatorForLanguageModeling(
        made.tokenizer(), whole_word_mask=True, mlm_probability=MLM_PROBABILITY, **replaced
    )
    features = made.features()
    ours = made.masked(Masking(made.vocab_size, "whole_word", **replaced), settings.repeats + 1, rows)
    numbers = iter(range(len(ours)))

    def timed(function):
        started = time.perf_counter()
        batch = function()
        return time.perf_counter() - started, batch

    def our_turn():
        return timed(lambda: ours[next(numbers)])

    def peer_turn():
        return timed(lambda: collator(features))

    shares = [masked_share(turn()[1]) for turn in (our_turn, peer_turn)]  # the warm-up
    our_seconds, peer_seconds, runs = take_turns(our_turn, peer_turn, settings.repeats, settings.seconds)
    return {
        "rows": rows,
        "seq_len": seq_len,
        "ratio": round(peer_seconds / our_seconds, 2),
        "our_tokens_per_second": round(rows * seq_len / our_seconds),
        "peer_tokens_per_second": round(rows * seq_len / peer_seconds),
        "our_masked_share": round(shares[0], 4),
        "peer_masked_share": round(shares[1], 4),
        "runs": runs,
        "transformers": transformers.__version__,
    }


def leave(device: str) -> None:
    """Clears the device, and the state of Accelerate, which is one for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    clear(device)


@dataclass(frozen=True)
class Updates:
    """Updates of `rows` full rows of `seq_len` tokens. Each update of both sides has the same rows.

    Args:
        recompute: whether our side has `gradient_checkpointing: mlp`.
        compile, peer_compile: of each side.
    """

    seq_len: int
    rows: int
    shape: dict
    device: str
    dtype: str
    compile: bool = False
    peer_compile: bool = False
    recompute: bool = False

    @cached_property
    def made(self) -> MadeRows:
        return MadeRows(self.rows, self.seq_len)

    @cached_property
    def config(self) -> ZhModernBertConfig:
        return ZhModernBertConfig(
            **self.shape, vocab_size=self.made.vocab_size, max_position_embeddings=max(self.seq_len, 8192)
        )

    def our_model(self) -> ZhModernBertForMaskedLM:
        torch.manual_seed(0)
        with torch.device(self.device):
            model = ZhModernBertForMaskedLM(self.config).train()
        recompute_in_backward(model, "mlp" if self.recompute else "none")
        return model

    def accelerator(self, mixed_precision: str) -> Accelerator:
        return Accelerator(mixed_precision=mixed_precision, cpu=self.device == "cpu")

    def check(self) -> dict[str, float]:
        """Compares an update of two micro-batches in float32 with the plain mean over all logits of the same batches.

        Returns:
            The relative differences of loss and gradient norm.

        Raises:
            InputError: one is above 1e-4, or not finite.
        """
        dataset = MadeRows(2, self.seq_len).masked(Masking(self.made.vocab_size), updates=1, rows_at_once=1)
        batches = [dataset[0], dataset[1]]
        model = self.our_model()
        parameters = list(model.parameters())
        result = update(self.accelerator("no"), model, iter(batches), 2, parameters, MAX_GRAD_NORM)
        found = {"loss": result["loss"] / result["masked"], "gradient": result["grad_norm"]}
        model.zero_grad()
        masked, loss = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches), 0.0
        for batch in batches:
            labels = batch.pop("labels")[0].to(self.device)
            inputs = {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}
            part = F.cross_entropy(model(**inputs).logits[0], labels, ignore_index=IGNORE_INDEX, reduction="sum") / masked
            part.backward()
            loss += part.item()
        # In float32, as clipping computes it; on CPU this norm has an error of up to 1e-4 itself.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        differences = {}
        for name, plain in (("loss", loss), ("gradient", norm)):
            differences[f"{name}_difference"] = abs(found[name] - plain) / plain
            if not differences[f"{name}_difference"] <= 1e-4:
                raise InputError(f"pretraining: an update's {name} is {found[name]:.6g}, computed plainly it is {plain:.6g}")
        return differences

    def ours(self, rows_at_once: int, count: int) -> list[float]:
        """Seconds of those of `count` updates, as train/pretrain.py makes them, that compile nothing.

        Raises:
            InputError: the loss or the gradient of an update is not finite.
        """
        accelerator = self.accelerator(MIXED_PRECISION[self.dtype])
        model = self.our_model()
        parameters = list(model.parameters())
        optimizer = build_optimizer("stable_adamw", model, LEARNING_RATE, (0.9, 0.95), 1e-8, WEIGHT_DECAY)
        wrapped = prepare(accelerator, model, optimizer, self.compile)
        dataset = self.made.masked(Masking(self.made.vocab_size), count, rows_at_once)
        stream, seconds = iter(micro_batches(dataset, 0, num_workers=0)), []
        for step in range(count):
            started, graphs = time.perf_counter(), compiled_graphs()
            result = update(accelerator, wrapped, stream, int(dataset.counts[step]), parameters, MAX_GRAD_NORM)
            if not (math.isfinite(result["loss"]) and math.isfinite(result["grad_norm"])):
                raise InputError(f"pretraining: update {step + 1} has loss {result['loss']}, gradient {result['grad_norm']}")
            optimizer.step()
            optimizer.zero_grad()
            synchronize(self.device)
            if compiled_graphs() == graphs:
                seconds.append(time.perf_counter() - started)
        return seconds

    @cached_property
    def peer_rows(self) -> list[dict[str, torch.Tensor]]:
        """The rows as tensors, with the Trainer's masks, so that its time is not that of lists and of masking."""
        features = [{name: row[name] for name in ("input_ids", "special_tokens_mask")} for row in self.made.features()]
        batch = DataCollatorForLanguageModeling(self.made.tokenizer(), mlm_probability=MLM_PROBABILITY)(features)
        return [{name: batch[name][row] for name in ("input_ids", "labels")} for row in range(self.rows)]

    def peer(self, backend: str, rows_at_once: int, count: int) -> list[float]:
        """Seconds of the updates of stock ModernBERT in the Trainer, from the end of one to the end of the next."""
        from zh_modernbert.eval.speed.trainer import time_updates

        torch.manual_seed(0)
        with torch.device(self.device):
            model = ModernBertForMaskedLM(stock_config(self.shape, self.made.vocab_size, self.seq_len, backend))
        return time_updates(
            model,
            # Rows for one update more: the loader prepares a batch ahead, even after the last update.
            self.peer_rows * (count + 1),
            default_data_collator,
            self.device,
            bf16=self.dtype == "bfloat16",
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=self.rows // rows_at_once,
            max_steps=count,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            torch_compile=self.peer_compile,
            tf32=False,  # beside torch_compile it would be on
        )

    def most_rows(self, side: Callable) -> tuple[int, int]:
        """The most rows that fit the device at once, and the peak bytes of tensors, with weights and optimizer.

        Two updates are made, because the optimizer creates its state in the first, so the peak is in the second.
        """
        choices = (self.rows // parts for parts in range(1, self.rows + 1) if self.rows % parts == 0)
        while True:
            rows_at_once = next(choices)
            leave(self.device)
            try:
                return rows_at_once, peak_memory(partial(side, rows_at_once, 2), self.device)
            except Exception as error:
                if rows_at_once == 1 or not is_out_of_memory(error):
                    raise

    def turn(self, side: Callable, rows_at_once: int) -> tuple[float]:
        """The median seconds of an update, after a warm-up.

        Raises:
            InputError: every update compiled something.
        """
        leave(self.device)
        warm_up, timed = UPDATES[self.device]
        seconds = side(rows_at_once, warm_up + timed)[-timed:]
        if not seconds:
            raise InputError(f"pretraining: each of {warm_up + timed} updates compiled something, so none can be timed")
        return (statistics.median(seconds),)


def compare_updates(backend: str, seq_len: int, rows: int, dtype: str, shape: dict, as_preset: bool, settings) -> dict:
    """Time and memory of an update of `rows` rows here, and in the Trainer with stock ModernBERT on `backend`.

    Each side takes as many rows at once as fit the device, and accumulates gradients over the rest. Only one side is in memory
    at a time.

    Args:
        as_preset: our side computes as system A's presets say: compiled, and with `gradient_checkpointing: mlp`.
        settings: those of eval/throughput.py.

    Raises:
        InputError: as `Updates.check` and `Updates.ours`.
    """
    compiled = (settings.compile or as_preset, settings.compile)
    task = Updates(seq_len, rows, shape, settings.device, dtype, *compiled, recompute=as_preset)
    ours, peer = task.ours, partial(task.peer, backend)
    peer_rows, peer_memory = task.most_rows(peer)
    leave(task.device)
    checked = task.check()
    our_rows, our_memory = task.most_rows(ours)
    our_seconds, peer_seconds, runs = take_turns(
        partial(task.turn, ours, our_rows), partial(task.turn, peer, peer_rows), settings.repeats, settings.seconds
    )
    leave(task.device)
    tokens = rows * seq_len
    shares = [
        masked_share(batch)
        for batch in (task.made.masked(Masking(task.made.vocab_size), 1, rows)[0], default_data_collator(task.peer_rows))
    ]
    return checked | {
        "our_seconds": our_seconds,
        "peer_seconds": peer_seconds,
        "runs": runs,
        "ratio": round(peer_seconds / our_seconds, 3),
        "tokens_per_second": round(tokens / our_seconds),
        "peer_tokens_per_second": round(tokens / peer_seconds),
        "our_memory": our_memory,
        "peer_memory": peer_memory,
        "our_rows_at_once": our_rows,
        "peer_rows_at_once": peer_rows,
        "our_masked_share": round(shares[0], 4),
        "peer_masked_share": round(shares[1], 4),
        "documents": len(task.made.lengths()),
        "flops": training_flops(task.made.lengths(), shares[0] * tokens, task.config),
        # The peer has no document bounds, and computes logits of all tokens.
        "peer_flops": training_flops([seq_len] * rows, tokens, task.config),
    }
