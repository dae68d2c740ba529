"""Fine-tunes a model on benchmark tasks, or on tables of one's own, and scores it: classification, pairs, choice, tagging.

python eval/clue.py --model runs/quickstart/model --trust_remote_code true --task tnews afqmc --data_dir DIR
python eval/clue.py --model hfl/chinese-macbert-base --task available --data_dir DIR --grid clue --seeds 5 --predictions true
python eval/clue.py --model hfl/chinese-macbert-base --train_file a.csv --validation_file b.csv --text_column review
"""

import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from transformers import PreTrainedTokenizerBase, set_seed

from zh_modernbert.eval.finetuning.loading import check_max_length, fingerprint, load_config, load_tokenizer, load_with_head
from zh_modernbert.eval.finetuning.runs import Outcome, best_on_dev, figures_elsewhere, figures_on_dev, run_all, summary
from zh_modernbert.eval.finetuning.settings import FineTuningSettings, grid_of, seeds_of
from zh_modernbert.eval.finetuning.training import Hyperparameters, fine_tune, predict
from zh_modernbert.eval.kinds.choice import choice, cloze
from zh_modernbert.eval.kinds.classification import classification, in_order_of, regression
from zh_modernbert.eval.kinds.kind import Kind
from zh_modernbert.eval.kinds.tagging import tagging
from zh_modernbert.eval.tasks.loading import Data, find_release, load_data, place_of
from zh_modernbert.eval.tasks.predictions import write_predictions, zip_predictions
from zh_modernbert.eval.tasks.registry import TASKS, Release, Task
from zh_modernbert.eval.tasks.results import write_result
from zh_modernbert.eval.tasks.tables import find_file, form_of
from zh_modernbert.train.common.cli import InputError, describe, run, setting
from zh_modernbert.train.common.files import hash_json
from zh_modernbert.train.common.model_folder import check_output, save_model
from zh_modernbert.train.pretraining.parallel import check_environment

KINDS = ("classification", "regression", "choice", "cloze", "tagging", "segmentation")
NAMES = [name for name, task in TASKS.items() if task.kind in KINDS]
AVAILABLE = "available"
PRIMARY = {"regression": "spearman", "tagging": "f1", "segmentation": "f1"}  # of tables of one's own
FORMS = {"choice": "choices", "cloze": "chid", "segmentation": "segmented"}


@dataclass
class Settings(FineTuningSettings):
    task: list[str] = setting([], f"{AVAILABLE}: all that have files in data_dir; or some of {', '.join(NAMES)}")
    data_dir: str = setting("", "folder of a task's files, or of folders of tasks")
    from_hub: bool = setting(False, "download the tasks from the Hub instead")
    split: str = setting("", "the split to score; empty: dev, or where there is none, test")
    predictions: bool = setting(False, "also write the official files of predictions, for splits without labels")
    train_file: str = setting("", "a table of one's own: .tsv, .csv or .jsonl with named columns; of tagging also a tag a line")
    validation_file: str = setting("", "the same, to score")
    kind: str = setting("classification", "of train_file and validation_file", choices=KINDS)
    text_column: str = setting("text", "of train_file and validation_file")
    text_pair_column: str = setting("", "second text, for pairs")
    label_column: str = setting("label", "of train_file and validation_file")
    split_characters: bool = setting(False, "tagging: each character is a token; segmentation always does so")
    output_dir: str = setting("", "where the fine-tuned model is saved; not at all where empty")


def own_task(settings: Settings) -> tuple[str, Task]:
    """The row of a task whose files the user names."""
    if not (settings.train_file and settings.validation_file):
        raise InputError("clue: train_file and validation_file go together")
    form = FORMS.get(settings.kind, "table")
    if settings.kind == "tagging":
        form = "spans" if form_of(find_file(settings.train_file)) in (".jsonl", ".json") else "tagged"
    columns = {"text": settings.text_column, "label": settings.label_column}
    columns |= {"text_pair": settings.text_pair_column} if settings.text_pair_column else {}
    files = {
        "train": (str(Path(settings.train_file).resolve()),),
        "validation": (str(Path(settings.validation_file).resolve()),),
    }
    release = Release(files, form=form, columns=columns)
    task = Task(settings.kind, (release,), primary_metric=PRIMARY.get(settings.kind, "accuracy"), folder=".")
    return Path(settings.train_file).name.split(".")[0], task


def tasks_of(settings: Settings) -> dict[str, Task]:
    """The tasks to run, by name.

    Raises:
        InputError: both tasks and files are given or neither, a task is unknown, or none has files.
    """
    if bool(settings.task) == bool(settings.train_file or settings.validation_file):
        raise InputError("clue: give either task and data_dir, or train_file and validation_file")
    if not settings.task:
        return dict([own_task(settings)])
    if settings.task == [AVAILABLE]:
        found = [name for name in NAMES if find_release(place_of(settings.data_dir, TASKS[name]), TASKS[name], settings.split)]
        if not found:
            raise InputError(f"{settings.data_dir or '.'}: no task has its files here, or in folders of this folder")
        return {name: TASKS[name] for name in found}
    for name in settings.task:
        if name not in NAMES:
            raise InputError(f"clue: unknown task {name!r}; known are {AVAILABLE}, {', '.join(NAMES)}")
    return {name: TASKS[name] for name in settings.task}


def kind_of(settings: Settings, task: Task, data: Data, tokenizer: PreTrainedTokenizerBase, config, max_length: int) -> Kind:
    rows = [row.values for rows in data.splits.values() for row in rows]
    if task.kind == "classification":
        return classification(task, tokenizer, max_length, in_order_of(config.label2id, data.labels))
    if task.kind == "regression":
        return regression(task, tokenizer, max_length)
    if task.kind == "choice":
        return choice(task, tokenizer, max_length, max(len(values["choices"]) for values in rows))
    if task.kind == "cloze":
        return cloze(task, tokenizer, max_length, max(len(values["candidates"]) for values in rows))
    return tagging(task, tokenizer, max_length, data.labels, settings.split_characters or task.kind == "segmentation")


def run_task(settings: Settings, name: str, task: Task) -> list[dict]:
    """The results of a task, one a seed, which are written too."""
    started = time.perf_counter()
    data = load_data(
        name,
        task,
        settings.data_dir,
        settings.split,
        settings.from_hub,
        settings.predictions,
        settings.skip_bad_rows,
        settings.max_train_examples,
        settings.max_eval_examples,
    )
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    config = load_config(settings.model, settings.trust_remote_code)
    max_length = settings.max_length or task.max_length
    check_max_length(config, max_length)
    kind = kind_of(settings, task, data, tokenizer, config, max_length)
    examples = cache(lambda split: kind.encode(data.splits[split]))
    predicted = [split for split in task.predictions if split in data.splits] if settings.predictions else []

    def run_one(hyperparameters: Hyperparameters, seed: int) -> Outcome:
        set_seed(seed)
        model = load_with_head(kind.head, settings.model, settings.trust_remote_code, settings.random_init, **kind.config)
        trainer, epochs = fine_tune(
            model,
            kind.collator,
            examples("train"),
            examples(data.chosen_on),
            hyperparameters,
            seed,
            kind.score,
            task.primary_metric,
            settings.device_batch_size,
        )
        outcome = Outcome(epochs)
        if data.split != data.chosen_on:
            scored = examples(data.split)
            outcome.metrics[data.split] = kind.score(predict(trainer, scored), scored.references)
        for split in predicted:
            outcome.answers[split] = kind.entries(predict(trainer, examples(split)), data.splits[split])
        if settings.output_dir:
            save_model(Path(settings.output_dir), model, tokenizer, "clue")
        return outcome

    recipe = {
        "model": fingerprint(settings.model, settings.random_init),
        "random_init": settings.random_init,
        "data": hash_json({split: [row.values for row in rows] for split, rows in data.splits.items()}),
        "max_length": max_length,
        "split_characters": settings.split_characters,
        "predictions": predicted,
        "output_dir": settings.output_dir,
    }
    grid, seeds = grid_of(settings, task), seeds_of(settings)
    outcomes = run_all(settings.results_dir, f"{data.name}-{data.split}", recipe, grid, seeds, run_one)
    if data.split == data.chosen_on:
        figures = figures_on_dev(outcomes, task.primary_metric)
    else:
        figures = figures_elsewhere(outcomes, data.split, task.primary_metric)
    baseline = kind.baseline(data.splits["train"], data.splits[data.split])
    notes = [*(["fine-tuned from random weights"] if settings.random_init else []), *data.notes]
    if data.chosen_on == "held_out":
        notes.append(f"{len(data.splits['held_out'])} training examples chose the epoch")
    results, digits = [], 4 if task.kind == "regression" else 2
    for seed, figure in figures.items():
        metrics = {**figure.metrics, **baseline}
        if data.split == data.chosen_on:
            metrics["best_on_dev"] = best_on_dev(outcomes[seed], task.primary_metric)
        result = {
            "task": data.name,
            "split": data.split,
            "model": settings.model,
            "primary_metric": task.primary_metric,
            "metrics": {metric: round(value, digits) for metric, value in metrics.items()},
            "num_examples": len(data.splits[data.split]),
            "seed": seed,
            "hyperparameters": {
                **asdict(grid[figure.chosen[0][0]]),
                "epochs": [epoch + 1 for _, epoch in figure.chosen],
                "max_length": max_length,
                "num_train_examples": len(data.splits["train"]),
                **({"grid": settings.grid, "settings_tried": len(grid)} if settings.grid else {}),
            },
            "notes": "; ".join(notes),
            "runtime_seconds": round(time.perf_counter() - started, 1),
        }
        write_result(settings.results_dir, result)
        results.append(result)
        for split in predicted:
            best = max(outcomes[seed], key=lambda outcome: max(e["metrics"][task.primary_metric] for e in outcome.epochs))
            folder = Path(settings.results_dir) / f"predictions-{seed}"
            write_predictions(folder / task.predictions[split], best.answers[split])
            zip_predictions(folder)
    return results


def summaries(results: list[dict]) -> dict[str, dict]:
    """Of each task: mean, standard deviation and best of its seeds, and what was best on dev."""
    tasks: dict[str, list[dict]] = {}
    for result in results:
        tasks.setdefault(result["task"], []).append(result)
    return {
        name: {
            "split": found[0]["split"],
            "primary_metric": found[0]["primary_metric"],
            **summary([result["metrics"][result["primary_metric"]] for result in found]),
            **(
                {"best_on_dev": max(tops)}
                if (tops := [top for result in found if (top := result["metrics"].get("best_on_dev")) is not None])
                else {}
            ),
            "seeds": [result["seed"] for result in found],
            "notes": found[0]["notes"],
        }
        for name, found in tasks.items()
    }


def main(settings: Settings) -> dict:
    check_environment(mixed_precision="no")
    tasks = tasks_of(settings)
    if settings.output_dir:
        if len(tasks) > 1 or settings.seeds > 1 or settings.grid:
            raise InputError("clue: output_dir keeps one model; give one task, one seed and no grid")
        check_output(Path(settings.output_dir), "clue")
    results, failed = [], {}
    for name, task in tasks.items():
        try:
            results += run_task(settings, name, task)
        except Exception as error:
            if len(tasks) == 1:
                raise
            failed[name] = str(error) if isinstance(error, InputError) else describe(error)
            print(f"error: {name}: {failed[name]}", file=sys.stderr)
    if failed:
        lines = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise InputError(f"{len(failed)} of {len(tasks)} tasks failed, the results of the others are there: {lines}")
    return results[0] if len(results) == 1 else {"results": summaries(results)}


if __name__ == "__main__":
    run(main, Settings)
