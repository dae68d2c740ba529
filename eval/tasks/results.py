"""The file that an evaluation leaves."""

import os
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import reason, write_json


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


def check_name(name: str) -> None:
    """A result's name is a part of its file's name.

    Raises:
        InputError: it has a separator of folders.
    """
    if "/" in name or "\\" in name:
        raise InputError(f"name is {name!r}; it must be a part of a file's name, without / and \\")


def write_result(results_dir: str | Path, result: dict) -> Path:
    """Writes `<task>-<split>-<seed>.json`."""
    path = results_folder(results_dir) / f"{result['task']}-{result['split']}-{result['seed']}.json"
    write_json(path, result)
    return path
