"""A task from rows to result files, for every script that fine-tunes: grid, seeds, baselines, files of predictions."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerBase, set_seed

from zh_modernbert.eval.finetuning.loading import load_with_head, model_hash_of
from zh_modernbert.eval.finetuning.runs import Outcome, best_on_dev, figures_elsewhere, figures_on_dev, run_all, summary
from zh_modernbert.eval.finetuning.settings import FineTuningSettings, grid_of, seeds_of
from zh_modernbert.eval.finetuning.training import Hyperparameters, Metrics, fine_tune, predict
from zh_modernbert.eval.kinds.kind import Kind
from zh_modernbert.eval.metrics.cmrc2018 import has_punkt
from zh_modernbert.eval.tasks.loading import Data, load_data
from zh_modernbert.eval.tasks.predictions import check_owner, claim, write_predictions, zip_predictions
from zh_modernbert.eval.tasks.registry import Task
from zh_modernbert.eval.tasks.results import check_no_other, make_result, row_name, write_result
from zh_modernbert.eval.tasks.rows import hash_rows
from zh_modernbert.train.common.cli import InputError, describe, script_name
from zh_modernbert.train.common.files import hash_file, hash_json
from zh_modernbert.train.common.model_folder import check_output, save_model

EVAL = Path(__file__).parents[1]
DECIDING = ("finetuning/*.py", "kinds/*.py", "metrics/*.py", "tasks/*.py", "long_documents.py")  # code, below EVAL


@cache
def made_by(kind: str) -> dict[str, str | bool]:
    """What decides an outcome beside model, data and settings: versions of libraries, and a hash of the code here."""
    code = {str(path.relative_to(EVAL)): hash_file(path) for pattern in DECIDING for path in EVAL.glob(pattern)}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "code": hash_json(code)[:16]}
    return {**versions, "punkt": has_punkt()} if kind == "reading" else versions


def run_kind(
    settings: FineTuningSettings, task: Task, data: Data, kind: Kind, tokenizer: PreTrainedTokenizerBase, details: dict
) -> list[dict]:
    """The results of a task, one a seed, which are written too.

    Args:
        details: what else than model, data and settings decides an outcome, as `max_length`. It stands in the result files.
    """
    started, grid, seeds = time.perf_counter(), grid_of(settings, task), seeds_of(settings)
    row = row_name(settings.model, settings.random_init)
    hashes = {split: hash_rows(rows) for split, rows in data.splits.items()}
    details = {
        "model_hash": model_hash_of(settings.model, settings.random_init),
        "data": hash_json([hashes[split] for split in ("train", data.chosen_on, data.split)])[:16],
        **details,
    }
    check_no_other(settings.results_dir, data.name, data.split, seeds, row, details)
    examples = cache(lambda split: kind.encode(data.splits[split]))
    predicted = [split for split in task.predictions if split in data.splits] if settings.predictions else []
    folders = {seed: Path(settings.results_dir) / f"predictions-{seed}" for seed in seeds if predicted}
    owner = f"{row} with model_hash {details['model_hash']}"
    for folder in folders.values():
        check_owner(folder, owner)

    def run_one(hyperparameters: Hyperparameters, seed: int) -> Outcome:
        set_seed(seed)
        model = load_with_head(kind.head, settings.model, settings.trust_remote_code, settings.random_init, **kind.config)
        trainer, epochs = fine_tune(
            kind.around(model),
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
            save_model(Path(settings.output_dir), model, tokenizer, script_name(settings))
        return outcome

    recipe = {
        **details,
        "random_init": settings.random_init,
        "splits": hashes,
        "predictions": predicted,
        "kind": task.kind,
        **made_by(task.kind),
    }
    outcomes = run_all(
        settings.results_dir, f"{data.name}-{data.split}", recipe, grid, seeds, run_one, bool(settings.output_dir)
    )
    if data.split == data.chosen_on:
        figures = figures_on_dev(outcomes, task.primary_metric)
    else:
        figures = figures_elsewhere(outcomes, data.split, task.primary_metric)
    baseline = kind.baseline(data.splits["train"], data.splits[data.split])
    results = []
    for seed, figure in figures.items():
        metrics = {**figure.metrics, **baseline}
        if data.split == data.chosen_on:
            metrics["best_on_dev"] = best_on_dev(outcomes[seed], task.primary_metric)
        chosen = {**asdict(grid[figure.chosen[0][0]]), "epochs": [epoch + 1 for _, epoch in figure.chosen], **details}
        if settings.grid:
            chosen |= {"grid": settings.grid, "settings_tried": len(grid)}
        result = result_of(settings, task, data, seed, metrics, chosen, time.perf_counter() - started)
        write_result(settings.results_dir, result)
        results.append(result)
        if predicted:
            folder = folders[seed]
            claim(folder, owner)
            best = max(outcomes[seed], key=lambda outcome: best_on_dev([outcome], task.primary_metric))
            for split in predicted:
                place = folder if data.official else folder / data.name  # of which the zip file has nothing
                write_predictions(place / task.predictions[split], best.answers[split])
            zip_predictions(folder)
    return results


def result_of(
    settings: FineTuningSettings, task: Task, data: Data, seed: int, metrics: Metrics, chosen: dict, seconds: float
) -> dict:
    """What the result file of a seed says."""
    notes = [*(["fine-tuned from random weights"] if settings.random_init else []), *data.notes]
    if data.chosen_on == "held_out":
        notes.append(f"{len(data.splits['held_out'])} training examples chose the epoch")
    digits = 4 if task.kind == "regression" else 2
    return make_result(
        task=data.name,
        split=data.split,
        model=settings.model,
        primary_metric=task.primary_metric,
        metrics={metric: round(value, digits) for metric, value in metrics.items()},
        num_examples=len(data.splits[data.split]),
        seed=seed,
        hyperparameters={
            **chosen,
            **({"script": settings.script} if settings.script else {}),
            "num_train_examples": len(data.splits["train"]),
        },
        notes=notes,
        seconds=seconds,
    )


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


# --- what scripts do with it ---


def load(settings: FineTuningSettings, name: str, task: Task) -> Data:
    """The rows of a task that the settings ask for."""
    return load_data(
        name,
        task,
        settings.data_dir,
        settings.split,
        settings.from_hub,
        settings.predictions,
        settings.skip_bad_rows,
        settings.max_train_examples,
        settings.max_eval_examples,
        settings.script,
    )


def run_tasks(settings: FineTuningSettings, tasks: dict[str, Task], run_task: Callable[[str, Task], list[dict]]) -> dict:
    """The result, or where there are several, their summaries. A task that fails does not stop the others.

    Raises:
        InputError: a task failed, or what is to be saved is not one model.
    """
    script = script_name(settings)
    if settings.output_dir:
        if len(tasks) > 1 or settings.seeds > 1 or settings.grid:
            raise InputError(f"{script}: output_dir keeps one model; give one task, one seed and no grid")
        check_output(Path(settings.output_dir), script)
    results, failed = [], {}
    for name, task in tasks.items():
        try:
            results += run_task(name, task)
        except Exception as error:
            if len(tasks) == 1:
                raise
            failed[name] = str(error) if isinstance(error, InputError) else describe(error)
            print(f"error: {name}: {failed[name]}", file=sys.stderr)
    if failed:
        lines = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise InputError(f"{len(failed)} of {len(tasks)} tasks failed, the results of the others are there: {lines}")
    return results[0] if len(results) == 1 else {"results": summaries(results)}
