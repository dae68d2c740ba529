"""One stage writes one folder. The folder is complete or not there; a killed run goes on; a finished one is not repeated.

The recipe of an output is a hash of the settings that decide what the output is, and of the content of what the stage reads.
A stage works in a hidden folder beside its output, which is named after the recipe, and renames it when all is there. A run
that was killed leaves the hidden folder behind: the same command goes on in it, and another recipe starts a new one. Every
output has `settings.json`, the resolved settings, and `manifest.json`: the recipe, the result, and the size and hash of each
file. A stage does nothing where its output is there already, with the same recipe.
"""

import fcntl
import glob
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import IO

from zh_modernbert.train.common.cli import InputError, recipe_of, script_name
from zh_modernbert.train.common.files import WRITE_ERRORS, hash_json, put_in_place, read_json, reason
from zh_modernbert.train.common.manifest import SCRATCH, content_of, is_output, read_manifest, write_manifest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
RECIPE_DIGITS = 12  # of the recipe, in the name of the hidden folder


def made_by(folder: Path, stage: str) -> bool:
    """Whether `folder` holds what `stage` wrote, by its `settings.json`."""
    try:
        return read_json(folder / "settings.json").get("stage") == stage
    except InputError:
        return False


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The files of the tokenizer in a folder, which may hold much else: a model, or a whole clone."""
    return [Path(folder) / name for name in TOKENIZER_FILES if (Path(folder) / name).is_file()]


def inputs_of(settings, inputs: Iterable[str | Path]) -> list[tuple[str, Path]]:
    """What a stage reads, each with its name: the settings that end in `_dir`, and `inputs`.

    Of a `tokenizer_dir` that no stage wrote, only the tokenizer's files are read. Else no output could lie in a clone.
    """
    named = [(name, value) for name, value in vars(settings).items() if name.endswith("_dir") and name != "output_dir"]
    read = [(name, Path(value)) for name, value in [*named, *(("input", given) for given in inputs)] if value]
    parts = {given: tokenizer_files(given) for name, given in read if name == "tokenizer_dir" and not is_output(given)}
    return [(name, path) for name, given in read for path in parts.get(given) or [given]]


def resolve_output_dir(settings, read: list[tuple[str, Path]]) -> Path:
    """The absolute path of `settings.output_dir`.

    Args:
        read: what the stage reads, as `inputs_of`.

    Raises:
        InputError: the folder must not be replaced: it holds something that this stage did not write, or what the stage reads.
    """
    if not settings.output_dir:
        raise InputError("output_dir is empty; name a folder")
    path = Path(settings.output_dir).resolve()
    if Path.cwd().is_relative_to(path):
        raise InputError(f"{path}: output_dir is where you are; choose a folder inside")
    for name, given in read:
        if given.resolve().is_relative_to(path):
            raise InputError(f"{path}: output_dir holds {name} {given}; choose another output_dir")
        if path.is_relative_to(given.resolve()):
            raise InputError(f"{path}: output_dir lies in {name} {given}; choose another output_dir")
    stage = script_name(settings)
    try:
        if path.exists() and not made_by(path, stage) and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{path}: exists and was not written by this stage ({stage}); choose another output_dir")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return path


def finished_result(folder: Path, stage: str, recipe: str) -> dict | None:
    """The result in the manifest of `folder`; None where the folder is missing, damaged, or of another stage or recipe."""
    try:
        manifest = read_manifest(folder, stage)
    except InputError:
        return None
    return manifest["result"] if manifest.get("recipe") == recipe else None


def lock_folder(folder: Path) -> IO | None:
    """Locks a folder for this process, until the file that this returns is closed or the process ends.

    Processes that this one started do not keep the lock. Returns None where another process has it.
    """
    lock = open(folder / ".lock", "a")  # noqa: SIM115
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except (BlockingIOError, PermissionError):
        lock.close()
        return None


def run_stage(settings, build: Callable[[Path], dict], inputs: Iterable[str | Path] = ()) -> dict:
    """Makes sure that `settings.output_dir` holds the output of these settings: builds it, goes on with it, or finds it done.

    Args:
        build: fills the folder it is given, and returns the result, plain JSON. A run that was killed may have left part of the
            work in the folder.
        inputs: files and folders that the stage reads, beside the settings that end in `_dir`.

    Returns:
        What `build` returned, and `output_dir`.

    Raises:
        InputError: the output cannot be written, or another run is writing it.
    """
    read = inputs_of(settings, inputs)
    path, stage = resolve_output_dir(settings, read), script_name(settings)
    values = {name: value for name, value in recipe_of(settings).items() if not name.endswith("_dir")}
    for _, given in read:
        if not given.exists():
            raise InputError(f"{given}: no such file or folder")
    contents = [content_of(given) for _, given in read]
    recipe = hash_json([stage, version("zh-modernbert"), values, contents])
    if (done := finished_result(path, stage, recipe)) is not None:
        print(f"{path}: there already, from the same settings and input; nothing to do", file=sys.stderr)
        return {**done, "output_dir": settings.output_dir}
    work = path.with_name(f".{path.name}.{recipe[:RECIPE_DIGITS]}.tmp")
    try:
        # Exactly this output's: corpus.v2 has a hidden folder whose name begins alike.
        for other in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * RECIPE_DIGITS}.tmp"):
            if other != work and lock_folder(other):
                shutil.rmtree(other)
        work.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(work)
        if not lock:
            raise InputError(f"{path}: another run is writing it; wait for that to end")
        with lock:
            try:
                if finished_result(work, stage, recipe) is None:  # else a run was killed when all but the renaming was done
                    write_manifest(work, settings, recipe, build(work))
            finally:
                if {file.name for file in work.iterdir()} == {".lock"}:
                    shutil.rmtree(work)
            shutil.rmtree(work / SCRATCH, ignore_errors=True)  # only now: a killed run needs all of it or nothing
            (work / ".lock").unlink()
            put_in_place(work, path)
    except WRITE_ERRORS as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}; the same command goes on from here") from error
    return {**read_json(path / "manifest.json")["result"], "output_dir": settings.output_dir}
