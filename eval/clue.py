"""Fine-tunes a model on a classification task and scores it: ChnSentiCorp, or any table with a text and a label column.

python eval/clue.py --model runs/quickstart/model --trust_remote_code true --task chnsenticorp --data_dir DIR
python eval/clue.py --model hfl/chinese-macbert-base --train_file a.csv --validation_file b.csv --text_column review
"""

import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import numpy as np
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from zh_modernbert.eval.tasks.registry import TASKS, Task
from zh_modernbert.eval.tasks.results import write_result
from zh_modernbert.eval.tasks.tables import read_table
from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.model_folder import check_output, load_by_auto_class, save_model
from zh_modernbert.train.pretraining.parallel import check_environment


@dataclass
class Settings(BaseSettings):
    model: str = setting(help="model folder or Hub id")
    trust_remote_code: bool = setting(False, "run the code that the model's folder brings")
    random_init: bool = setting(False, "start from random weights of the same architecture: the yardstick of pretraining")
    task: str = setting("", f"one of {', '.join(TASKS)}; or give train_file and validation_file")
    data_dir: str = setting("", "folder with the task's files")
    split: str = setting("dev", "the task's split to score")
    train_file: str = setting("", ".tsv, .csv or .jsonl with named columns")
    validation_file: str = setting("", "the same, to score")
    text_column: str = setting("text", "of train_file and validation_file")
    text_pair_column: str = setting("", "second text, for pairs")
    label_column: str = setting("label", "of train_file and validation_file")
    max_length: int = setting(0, "most tokens of an example; 0 takes the task's, or 128", least=0)
    learning_rate: float = setting(0.0, "peak; 0 takes the task's, or 2e-5", least=0)
    num_train_epochs: float = setting(0.0, "passes over the training set; 0 takes the task's, or 3", least=0)
    batch_size: int = setting(32, "examples of an update", least=1)
    warmup_ratio: float = setting(0.1, "share of the updates that warm up", least=0, most=1)
    weight_decay: float = setting(0.01, "of AdamW", least=0)
    max_train_examples: int = setting(0, "use only so many, the first; 0 uses all", least=0)
    seed: int = setting(42, "of the classifier's weights and the order", least=0, most=2**32 - 1)
    results_dir: str = setting("results", "where the result file goes")
    output_dir: str = setting("", "where the fine-tuned model is saved; not at all where empty")


def resolve(settings: Settings) -> tuple[str, str, Task, dict[str, Path]]:
    """The names of task and split, the task's columns and published settings, and its files.

    Raises:
        InputError: both task and files are given or neither, or the task or split is unknown.
    """
    own_files = bool(settings.train_file or settings.validation_file)
    if bool(settings.task) == own_files:
        raise InputError("clue: give either task and data_dir, or train_file and validation_file")
    if own_files:
        if not (settings.train_file and settings.validation_file):
            raise InputError("clue: train_file and validation_file go together")
        task = Task({}, settings.text_column, settings.label_column, settings.text_pair_column)
        files = {"train": Path(settings.train_file), "validation": Path(settings.validation_file)}
        return Path(settings.train_file).name.split(".")[0], "validation", task, files
    if settings.task not in TASKS:
        raise InputError(f"clue: unknown task {settings.task!r}; known are {', '.join(TASKS)}")
    task = TASKS[settings.task]
    if settings.split not in task.files:
        raise InputError(f"clue: {settings.task} has no split {settings.split!r}; it has {', '.join(task.files)}")
    files = {split: Path(settings.data_dir) / task.files[split] for split in ("train", settings.split)}
    return settings.task, settings.split, task, files


def label_ids(train: list[tuple[int, dict]], scored: list[tuple[int, dict]], column: str, scored_file: Path) -> dict[str, int]:
    """Label -> class, in sorted order of the training labels.

    Raises:
        InputError: training has fewer than two labels, or lacks one that is scored.
    """
    labels = {label: i for i, label in enumerate(sorted({str(row[column]) for _, row in train}))}
    if len(labels) < 2:
        raise InputError(f"label column {column!r}: training has only the label {next(iter(labels))!r}; it needs two or more")
    for number, row in scored:
        if str(row[column]) not in labels:
            raise InputError(f"{scored_file}, line {number}: label {row[column]!r} does not occur in training")
    return labels


def load(settings: Settings, labels: dict[str, int]):
    """Tokenizer and classifier, through the Auto classes."""
    names = {"id2label": {i: label for label, i in labels.items()}, "label2id": labels, "num_labels": len(labels)}
    remote = {"trust_remote_code": settings.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, **remote)
        if settings.random_init:
            config = AutoConfig.from_pretrained(settings.model, **remote, **names)
            return tokenizer, AutoModelForSequenceClassification.from_config(config, **remote)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise InputError(f"{settings.model}: cannot be loaded: {describe(error)}") from error
    model = load_by_auto_class(AutoModelForSequenceClassification, settings.model, new_head=True, **remote, **names)
    return tokenizer, model


def scores(prediction) -> dict[str, float]:
    predicted = np.argmax(prediction.predictions, axis=-1)
    return {
        "accuracy": 100 * accuracy_score(prediction.label_ids, predicted),
        "macro_f1": 100 * f1_score(prediction.label_ids, predicted, average="macro"),
    }


def main(settings: Settings) -> dict:
    started = time.perf_counter()
    name, split, task, files = resolve(settings)
    check_environment(mixed_precision="no")
    if settings.output_dir:
        check_output(Path(settings.output_dir), "clue")
    columns = [column for column in (task.text_column, task.text_pair_column, task.label_column) if column]
    tables = {part: read_table(path, columns) for part, path in files.items()}
    if settings.max_train_examples:
        tables["train"] = tables["train"][: settings.max_train_examples]
    labels = label_ids(tables["train"], tables[split], task.label_column, files[split])
    set_seed(settings.seed)
    tokenizer, model = load(settings, labels)
    max_length = settings.max_length or task.max_length
    longest = getattr(model.config, "max_position_embeddings", max_length)
    if max_length > longest:
        raise InputError(f"max_length is {max_length}, longer than the model's max_position_embeddings ({longest})")

    def encode(rows: list[tuple[int, dict]]) -> Dataset:
        texts = [[str(row[column]) for _, row in rows] for column in (task.text_column, task.text_pair_column) if column]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        return Dataset.from_dict({**encoded, "labels": [labels[str(row[task.label_column])] for _, row in rows]})

    train, scored = encode(tables["train"]), encode(tables[split])
    epochs = settings.num_train_epochs or task.num_train_epochs
    updates = -(-len(train) // settings.batch_size) * epochs
    hyperparameters = {
        "learning_rate": settings.learning_rate or task.learning_rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": settings.batch_size,
        "warmup_steps": int(updates * settings.warmup_ratio),
        "weight_decay": settings.weight_decay,
    }
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=settings.batch_size,
            save_strategy="no",
            report_to="none",
            logging_steps=max(int(updates) // 10, 1),
            seed=settings.seed,
            **hyperparameters,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=scored,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=scores,
        )
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints its log
            trainer.train()
            measured = trainer.evaluate()
    if settings.output_dir:
        save_model(Path(settings.output_dir), model, tokenizer, "clue")
    metrics = {metric: round(measured[f"eval_{metric}"], 2) for metric in ("accuracy", "macro_f1")}
    counts = np.bincount(scored["labels"])
    result = {
        "task": name,
        "split": split,
        "model": settings.model,
        "primary_metric": "accuracy",
        "metrics": {**metrics, "majority_class": round(100 * counts.max() / counts.sum(), 2)},
        "num_examples": len(scored),
        "seed": settings.seed,
        "hyperparameters": {**hyperparameters, "max_length": max_length, "num_train_examples": len(train)},
        "notes": "fine-tuned from random weights" if settings.random_init else "",
        "runtime_seconds": round(time.perf_counter() - started, 1),
    }
    write_result(settings.results_dir, result)
    return result


if __name__ == "__main__":
    run(main, Settings)
