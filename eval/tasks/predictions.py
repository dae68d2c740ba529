"""Official files of predictions, as CLUE's site takes them: an object a line, or one object; one model's in one zip file.

Several processes may write into one folder, each the predictions of other tasks.
"""

import json
import zipfile
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import aside

OWNER = "model.txt"  # says whose predictions a folder has


def check_owner(folder: Path, model: str) -> None:
    """Checks that the predictions in a folder, where there are any, are those of a model, so that others may stand beside them.

    Args:
        model: its name and the hash of its files: another training may leave another model under one name.

    Raises:
        InputError: they are of another one, or nothing says of which.
    """
    if not any(folder.glob("[!.]*")):  # what begins with a dot is still being written
        return
    owner = folder / OWNER
    other = owner.read_text(encoding="utf-8") if owner.is_file() else "a model that no file names"
    if other != model:
        raise InputError(f"{folder}: predictions of {other}, not of {model}; give another --results_dir, or delete them")


def claim(folder: Path, model: str) -> None:
    """Makes a folder for the predictions of a model, and says so in it.

    Raises:
        InputError: as `check_owner`.
    """
    check_owner(folder, model)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / OWNER).is_file():
        with aside(folder / OWNER) as temporary:
            temporary.write_text(model, encoding="utf-8")


def write_predictions(path: Path, entries: list[dict] | dict) -> Path:
    """`{"id", "label"}` a line for a list; one object for a dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = entries if isinstance(entries, list) else [entries]
    with aside(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def zip_predictions(folder: Path) -> None:
    """All official files of predictions in `folder`, if there are any, in `folder`.zip, without folders.

    What another process writes meanwhile is zipped too, so that the last zip file has all.
    """
    zipped = {}
    while (files := {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*_predict.json"))}) != zipped:
        place = folder.with_name(f"{folder.name}.zip")
        with aside(place) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, path.name)
        zipped = files
