"""The one function that fine-tunes a model on a task, by transformers' Trainer, and gives what it scored after each epoch.

A task is what the model reads (`Examples.features`), what it should answer (`references`), how its outputs become answers
(`decode`), and how answers are scored (`score`). Examples and features are two things: a long passage may be several features,
and a question with four choices one.
"""

import contextlib
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.devices import check_dtype, check_one_device

Metrics = dict[str, float]
Score = Callable[[list, list], Metrics]  # (answers, references), one of each an example


@dataclass(frozen=True)
class Hyperparameters:
    """What a grid varies, and what published settings are."""

    learning_rate: float = 2e-5
    batch_size: int = 32
    num_train_epochs: float = 3
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    dtype: str = "float32"


@dataclass
class Examples:
    """A split of a task, as the model reads it.

    Attributes:
        features: the inputs of the model's forward, and its labels where it trains on them. Other columns are not sent to it.
        references: what is right, one an example, in the form that `score` takes; empty where the split has no labels.
        decode: the model's outputs for all features, as Trainer gives them, to answers, one an example.
        groups: what an example is about, as the passage of a question, one an example; None where no two are about the same.
    """

    features: Dataset
    references: list
    decode: Callable[[Any], list]
    groups: list | None = None


def answers_of(examples: Examples, predictions, learning_rate: float) -> list:
    """The answers that the model's outputs mean.

    Raises:
        InputError: they are not finite.
    """
    parts = predictions if isinstance(predictions, tuple) else (predictions,)
    if not all(np.isfinite(part).all() for part in parts):
        raise InputError(f"the training diverged at learning_rate {learning_rate}; take a smaller one")
    return examples.decode(predictions)


def predict(trainer: Trainer, examples: Examples) -> list:
    """The answers of a model that `fine_tune` gave, one an example."""
    features: Any = examples.features  # Trainer's annotation means datasets of torch alone
    with contextlib.redirect_stdout(sys.stderr):
        return answers_of(examples, trainer.predict(features).predictions, trainer.args.learning_rate)


def score_halves(score: Score, answers: list, examples: Examples) -> list[Metrics]:
    """The scores of every second group, and of the others. `runs.py` chooses on one half what it scores on the other.

    No group is in both halves. Where all examples are of one, they are halved as if each were a group.
    """
    groups = examples.groups if examples.groups and len(set(examples.groups)) > 1 else range(len(answers))
    ranks = {group: rank for rank, group in enumerate(dict.fromkeys(groups))}
    halves = [[place for place, group in enumerate(groups) if ranks[group] % 2 == half] for half in (0, 1)]
    return [score([answers[place] for place in half], [examples.references[place] for place in half]) for half in halves]


def fine_tune(
    model: PreTrainedModel,
    collator: Callable,
    train: Examples,
    dev: Examples | None,
    hyperparameters: Hyperparameters,
    seed: int,
    score: Score,
    primary_metric: str,
    device_batch_size: int = 0,
) -> tuple[Trainer, list[dict]]:
    """A Trainer with the weights of the epoch that scores best on `dev`, and the scores after each epoch.

    Args:
        dev: the examples that choose the epoch. None: the last epoch's weights stay, and there are no scores.
        seed: of order and dropout. New weights of the head are the caller's, who makes the model after `set_seed`.
        device_batch_size: most examples of an update that are computed at once; 0: all of them.

    Returns:
        The scores are one `{"epoch", "metrics", "halves"}` an epoch; `halves` as `score_halves`.

    Raises:
        InputError: `device_batch_size` does not divide the batch, the training diverged, or as `check_one_device` and
            `check_dtype`.
    """
    check_one_device()
    check_dtype(hyperparameters.dtype)
    at_once = min(device_batch_size or hyperparameters.batch_size, hyperparameters.batch_size)
    if hyperparameters.batch_size % at_once:
        raise InputError(f"device_batch_size is {at_once}; it must divide batch_size, {hyperparameters.batch_size}")
    updates = math.ceil(-(-len(train.features) // hyperparameters.batch_size) * hyperparameters.num_train_epochs)
    history = []

    def score_epoch(prediction) -> Metrics:
        assert dev is not None
        answers = answers_of(dev, prediction.predictions, hyperparameters.learning_rate)
        metrics = score(answers, dev.references)
        history.append({"metrics": metrics, "halves": score_halves(score, answers, dev)})
        return {primary_metric: metrics[primary_metric]}

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            learning_rate=hyperparameters.learning_rate,
            num_train_epochs=hyperparameters.num_train_epochs,
            warmup_steps=int(updates * hyperparameters.warmup_ratio),
            weight_decay=hyperparameters.weight_decay,
            per_device_train_batch_size=at_once,
            per_device_eval_batch_size=at_once,
            gradient_accumulation_steps=hyperparameters.batch_size // at_once,
            eval_strategy="epoch" if dev else "no",
            save_strategy="epoch" if dev else "no",  # with "best", the first versions of transformers 5 keep the last
            save_only_model=True,
            save_total_limit=1,
            load_best_model_at_end=dev is not None,
            metric_for_best_model=primary_metric if dev else None,
            greater_is_better=True if dev else None,
            bf16=hyperparameters.dtype == "bfloat16",
            use_cpu=not torch.accelerator.is_available(),  # without this, the Trainer takes bf16 for a GPU's alone
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=max(updates // 10, 1),
            report_to="none",
            seed=seed,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=collator,
            train_dataset=train.features,
            eval_dataset=dev.features if dev else None,
            compute_metrics=score_epoch if dev else None,
        )
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints its log
            trainer.train()
        trainer.compute_metrics = None  # what is predicted from here on is no epoch
    return trainer, [{"epoch": number, **scores} for number, scores in enumerate(history, 1)]
