"""The file that an evaluation leaves."""

import os
from collections.abc import Iterable
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import aside, read_json, reason, write_json


def results_folder(results_dir: str | Path) -> Path:
    """The folder for result files. It is made before anything is computed whose result would be lost.

    Raises:
        InputError: it cannot be made, or no file can be written there.
    """
    folder = Path(results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: no folder for results can be made there: {reason(error)}; give another --results_dir"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: no file can be written there; give another --results_dir")
    return folder


# What a result is of, beside its model, task and split: hashes of what was trained on and scored, or of the characters scored.
OF = ("data", "text", "unit", "max_length")


def check_name(name: str) -> None:
    """A result's name is a part of its file's name.

    Raises:
        InputError: it has a separator of folders.
    """
    if "/" in name or "\\" in name:
        raise InputError(f"name is {name!r}; it must be a part of a file's name, without / and \\")


def row_name(model: str, random_init: bool) -> str:
    """What a result is of, as a report's row: a model, or its architecture with random weights."""
    return f"{model}{' (random weights)' if random_init else ''}"


def row_of(result: dict) -> str:
    random_init = result["hyperparameters"].get("random_init") or "random weights" in result.get("notes", "")
    return row_name(result["model"], bool(random_init))


def check_no_other(results_dir: str | Path, task: str, split: str, seeds: Iterable[int], row: str, said: dict) -> None:
    """Checks that the result files of seeds, where they are there, are of the same row and data, so that they may be replaced.

    Args:
        said: what is known of the hyperparameters.

    Raises:
        InputError: one is of another model, other data or another length.
    """
    for path in (path_of(results_dir, task, split, seed) for seed in seeds):
        if not path.is_file():
            continue
        other = read_json(path)
        if (theirs := row_of(other)) != row:
            raise InputError(f"{path}: the result of {theirs}, not of {row}; give another --results_dir")
        for name in (name for name in OF if name in said and name in other["hyperparameters"]):
            if (theirs := other["hyperparameters"][name]) != said[name]:
                raise InputError(
                    f"{path}: a result whose {name} is {theirs}, not {said[name]}; give another --results_dir, "
                    "or for files of your own another --name"
                )


def make_result(
    task: str,
    split: str,
    model: str,
    primary_metric: str,
    metrics: dict[str, float],
    num_examples: int,
    seed: int,
    hyperparameters: dict,
    notes: list[str],
    seconds: float,
) -> dict:
    """What a result file says.

    Args:
        model: folder or Hub id, or the file of predictions that is scored.
        hyperparameters: all that the metrics depend on, with those of `OF` that apply.
        notes: what a reader of the metrics must know.
        seconds: what it took.
    """
    return {
        "task": task,
        "split": split,
        "model": model,
        "primary_metric": primary_metric,
        "metrics": {metric: round(value, 4) for metric, value in metrics.items()},
        "num_examples": num_examples,
        "seed": seed,
        "hyperparameters": hyperparameters,
        "notes": "; ".join(notes),
        "runtime_seconds": round(seconds, 1),
    }


def path_of(results_dir: str | Path, task: str, split: str, seed: int) -> Path:
    return Path(results_dir) / f"{task}-{split}-{seed}.json"


def write_result(results_dir: str | Path, result: dict) -> Path:
    """Writes `<task>-<split>-<seed>.json`.

    Raises:
        InputError: see `results_folder` and `check_no_other`.
    """
    task, split, seed = result["task"], result["split"], result["seed"]
    check_no_other(results_dir, task, split, [seed], row_of(result), result["hyperparameters"])
    path = path_of(results_folder(results_dir), task, split, seed)
    with aside(path) as temporary:
        write_json(temporary, result)
    return path
