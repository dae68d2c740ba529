"""Masked loss and pseudo-perplexity on held-out rows, in all and by the length of documents.

Every validation of a run scores the same rows with the same masks: the rows are spread evenly over the folder, and the masks
depend on the seed alone, not on the run's own masking. Each row is scored twice. `eval_loss` has 15% of the tokens masked, as
whole words. `eval_pseudo_perplexity` (https://arxiv.org/abs/1910.14659) has one token of each document masked, which counts as
many times as the document has tokens: that is an unbiased estimate of what eval/pseudo_perplexity.py computes over all tokens.
"""

import contextlib
import math
import time
from itertools import pairwise

import numpy as np
import torch
from accelerate import Accelerator

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import move
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.parallel import add_up
from zh_modernbert.train.rows.masking import IGNORE_INDEX, Masking, mask_rows, special_ids_of
from zh_modernbert.train.rows.packed import PackedRows
from zh_modernbert.train.rows.row_stream import PackedStream

MLM_PROBABILITY = 0.15
# Upper bounds of the length classes: documents of up to so many tokens, special ones included, and of more than the bound
# before.
LENGTHS = (128, 512, 1024, 8192, 1 << 20)


def ask_words(
    ids: np.ndarray, starts: np.ndarray, bounds: np.ndarray, masking: Masking, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row with whole words masked: ids, labels, and each token's weight, which is 1. Each is `(T,)`."""
    masked_ids, labels = mask_rows(ids, starts, np.array([0, len(ids)]), MLM_PROBABILITY, masking, [generator])
    return masked_ids, labels, np.ones(len(ids))


def ask_single(
    ids: np.ndarray, starts: np.ndarray, bounds: np.ndarray, masking: Masking, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row with one token of each document masked, whose weight is the number of tokens that could have been."""
    masked_ids, labels = ids.astype(np.int64), np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
    weights, maskable = np.zeros(len(ids)), ~np.isin(ids, masking.special_ids)
    for start, end in pairwise(bounds):
        places = start + np.flatnonzero(maskable[start:end])
        if len(places):
            chosen = generator.choice(places)
            labels[chosen], weights[chosen] = ids[chosen], len(places)
            masked_ids[chosen] = masking.mask_token_id
    return masked_ids, labels, weights


PASSES = (ask_words, ask_single)


class Validation:
    """Scores the model on held-out rows when called. Every process has to call it, and scores its part of the rows.

    Raises:
        InputError: `validation_dir` holds the training rows, rows of another tokenizer, or rows too long for the model.
    """

    def __init__(self, settings, training: PackedStream, tokenizer: ZhModernBertTokenizer, config: ZhModernBertConfig):
        folder = settings.validation_dir
        self.settings, self.rows = settings, PackedRows(folder)
        if self.rows.content in {rows.content for rows in training.folders.values()}:
            raise InputError(f"validation_dir: {folder} holds the very rows of data_dir; pack other documents")
        if self.rows.tokenizer != training.tokenizer:
            raise InputError(f"validation_dir: {folder} was encoded with another tokenizer than data_dir; encode it anew")
        if self.rows.seq_len > config.max_position_embeddings:
            raise InputError(
                f"validation_dir: {folder} has rows of {self.rows.seq_len} tokens, longer than the model's "
                f"max_position_embeddings ({config.max_position_embeddings}); pack it with a smaller seq_len"
            )
        self.masking = Masking(self.rows.vocab_size, "whole_word", 1.0, 0.0, tokenizer.mask_token_id, special_ids_of(tokenizer))
        # Two passes over them have as many tokens as a batch of the training.
        self.rows_at_once = max(settings.per_device_batch_size * training.seq_len // (len(PASSES) * self.rows.seq_len), 1)
        count = min(settings.eval_rows, len(self.rows))
        self.chosen = [place * len(self.rows) // count for place in range(count)]

    def due(self, step: int) -> bool:
        every, last = self.settings.eval_steps, self.settings.max_steps
        return step == last or (every > 0 and step % every == 0)

    def batch(self, places: range) -> tuple[dict, np.ndarray, np.ndarray]:
        """The model's input for the chosen rows at `places`; and for each label, its cell in `sums` and its weight.

        A place beyond the last chosen row only gives each process as many rows as the others. Its labels have weight 0.
        """
        ids, labels, lengths, cells, weights = [], [], [], [], []
        for place in places:
            number = self.chosen[place % len(self.chosen)]
            row_ids, starts, bounds = self.rows.row(number)
            buckets = np.searchsorted(LENGTHS, np.diff(bounds)).repeat(np.diff(bounds))
            for index, ask in enumerate(PASSES):
                generator = np.random.default_rng((self.settings.seed, index, number))
                masked_ids, row_labels, row_weights = ask(row_ids, starts, bounds, self.masking, generator)
                asked = row_labels != IGNORE_INDEX
                ids.append(masked_ids)
                labels.append(row_labels)
                lengths.append(np.diff(bounds))
                cells.append(index * len(LENGTHS) + buckets[asked])
                weights.append(row_weights[asked] * (place < len(self.chosen)))
        lengths = np.concatenate(lengths)
        batch = {
            "input_ids": torch.from_numpy(np.concatenate(ids))[None],
            "labels": torch.from_numpy(np.concatenate(labels))[None],
            "cu_seqlens": torch.from_numpy(np.concatenate(([0], lengths.cumsum())).astype(np.int32)),
            "max_seqlen": int(lengths.max()),
        }
        return batch, np.concatenate(cells), np.concatenate(weights)

    @torch.no_grad()
    def sums(self, model, process_index: int = 0, num_processes: int = 1) -> np.ndarray:
        """`(passes, length classes, 3)`: this process's weighted sums of loss (nats), right predictions and predictions."""
        device = next(model.parameters()).device
        places = range(process_index, -(-len(self.chosen) // num_processes) * num_processes, num_processes)
        total = np.zeros((3, len(PASSES) * len(LENGTHS)))
        was_training = model.training
        model.eval()
        for first in range(0, len(places), self.rows_at_once):
            batch, cells, weights = self.batch(places[first : first + self.rows_at_once])
            outputs = model(**{**batch, "input_ids": move(batch["input_ids"], device)}, return_logits=False)
            losses = outputs.losses.double().cpu().numpy()
            correct = (outputs.predictions.cpu() == batch["labels"][batch["labels"] != IGNORE_INDEX]).numpy()
            for kind, values in enumerate((losses, correct, np.ones(len(cells)))):
                total[kind] += np.bincount(cells, values * weights, total.shape[1])
        model.train(was_training)
        return total.T.reshape(len(PASSES), len(LENGTHS), 3)

    def __call__(self, model, accelerator: Accelerator) -> dict[str, float]:
        started = time.perf_counter()
        # Compiled layers would be compiled once more for evaluation, which takes longer than it saves.
        plain = torch.compiler.set_stance("force_eager") if self.settings.compile else contextlib.nullcontext()
        with plain, accelerator.autocast():  # under FSDP2 nothing else would compute in the precision of training
            sums = torch.from_numpy(self.sums(model, accelerator.process_index, accelerator.num_processes))
        sums = add_up(accelerator, sums.to(accelerator.device)).cpu().numpy()
        return summarise(sums) | {"eval_runtime": round(time.perf_counter() - started, 3)}


def summarise(sums: np.ndarray) -> dict[str, float]:
    """`eval_loss`, `eval_masked_accuracy` and `eval_pseudo_perplexity`; loss and perplexity also of each length class."""
    words, single = sums
    found = {"eval_masked_accuracy": words[:, 1].sum() / max(words[:, 2].sum(), 1)}
    for cells, name, value_of in ((words, "eval_loss", float), (single, "eval_pseudo_perplexity", perplexity)):
        lengths = zip((f"_{length}" for length in LENGTHS), cells, strict=True)
        for suffix, (loss, _, count) in (("", cells.sum(0)), *lengths):
            if count:
                found[name + suffix] = value_of(loss / count)
    return found


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # exp of more overflows
