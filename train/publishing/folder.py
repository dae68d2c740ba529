"""The folder that is published: which files it may have, what it may replace, and a clone of this project in its place."""

import re
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import hash_file, read_json
from zh_modernbert.train.common.model_folder import ROOT_FILES
from zh_modernbert.train.common.stage import TOKENIZER_FILES
from zh_modernbert.train.publishing.card import MARK
from zh_modernbert.train.publishing.source import SENTENCE_FILES, modules_in

PLOTS = "metrics.png"
# Files of a published model, beside shards of weights, ONNX files and the modules of sentence-transformers.
FILES = {"config.json", "model.safetensors", "model.safetensors.index.json", "README.md"} | {
    *TOKENIZER_FILES,
    *SENTENCE_FILES,
    *(path.name for path in ROOT_FILES),
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
ONNX_LIST = "onnx/export.json"
ONNX = re.compile(rf"onnx/model(_int8)?\.onnx(\.data)?|{ONNX_LIST}")


def of_a_model(names: Collection[str]) -> set[str]:
    """Of a folder's files, those that make it a published model. Beside another model they must not stay.

    ONNX files do where train/export.py's list is beside them. A folder such as 1_Pooling/ may be anybody's, and is only read
    where modules.json names it.
    """
    exported = ONNX_LIST in names
    return {name for name in names if name in FILES or SHARD.fullmatch(name) or (exported and ONNX.fullmatch(name))}


def names_in(folder: Path) -> Iterator[str]:
    """The names of a folder's files, from the folder on."""
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def is_clone(folder: Path) -> bool:
    """Whether a folder is a clone of this project, which is a model repository too."""
    return all(
        (folder / name).is_file() for name in ("pyproject.toml", "train/publish.py", *(path.name for path in ROOT_FILES))
    )


def check_output(output_dir: Path, form: str) -> None:
    """Checks that the output may be written there: what is there is nothing, of publishing's making, or a clone with its code.

    Raises:
        InputError: it may not.
    """
    if is_clone(output_dir):
        if form != "zh_modernbert":
            raise InputError(
                f"{output_dir}: a clone of this project holds its code, which form {form!r} must not; choose another"
            )
        for path in ROOT_FILES:
            if (output_dir / path.name).read_bytes() != path.read_bytes():
                raise InputError(f"{output_dir / path.name}: not the code that is published; run that clone's own script")
        return
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return
    card = output_dir / "README.md"
    is_own = card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")
    names = set(names_in(output_dir))
    if not is_own or names - {PLOTS, *of_a_model(names), *modules_in(output_dir)}:
        raise InputError(f"{output_dir}: exists and is no published folder; choose another output_dir")


def onnx_of(identity: str, *folders: Path) -> Path | None:
    """The `onnx/` in one of the folders that train/export.py made of the model with this `hash_model`, if there is one.

    Raises:
        InputError: a file there is not what was written.
    """
    for folder in (folder / "onnx" for folder in folders):
        made = read_json(folder / "export.json") if (folder / "export.json").is_file() else {}
        if made.get("model") != identity or "files" not in made:
            if folder.is_dir():
                print(f"{folder}: left out: it is not of this model; train/export.py makes one that is", file=sys.stderr)
            continue
        for name, file in made["files"].items():
            if not (folder / name).is_file() or hash_file(folder / name) != file["sha256"]:
                raise InputError(f"{folder / name}: missing or damaged: not what train/export.py wrote; run that again")
        return folder
    return None


def lay_into(clone: Path, folder: Path) -> None:
    """Moves a model that was written in `folder` beside the root files of a clone, in the place of an earlier one.

    The card and its plots are not taken along: the clone has its own README.
    """
    of_the_clone = {"README.md", PLOTS, *(path.name for path in ROOT_FILES)}
    new = set(names_in(folder)) - of_the_clone
    there = {path.relative_to(clone).as_posix() for path in [*clone.glob("*"), *clone.glob("onnx/*")] if path.is_file()}
    for name in of_a_model(there) - new - of_the_clone:
        (clone / name).unlink()
    if (clone / "onnx").is_dir() and not any((clone / "onnx").iterdir()):
        (clone / "onnx").rmdir()
    for name in new:
        (clone / name).parent.mkdir(exist_ok=True)
        (folder / name).replace(clone / name)
    shutil.rmtree(folder)
