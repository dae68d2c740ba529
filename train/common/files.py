"""Files and folders that are whole or not there, JSON, and hashes."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from zh_modernbert.train.common.cli import InputError, one_line

# What the writing of files raises where the disk is full, by this project and by safetensors.
WRITE_ERRORS = (OSError, SafetensorError)


def reason(error: Exception) -> str:
    """Why a file cannot be written."""
    return one_line(getattr(error, "strerror", None) or str(error))


def require_file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    return Path(path)


def require_folder(path: str | Path, marker: str) -> Path:
    """`path`, a folder that holds the file `marker`."""
    if not Path(path).is_dir():
        raise InputError(f"{path}: no such folder")
    if not (Path(path) / marker).is_file():
        raise InputError(f"{path}: no {marker} in this folder; is it what the stage before wrote?")
    return Path(path)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in the folders below it, sorted. Links are followed, and no folder is entered twice.

    Raises:
        InputError: a link leads nowhere.
        OSError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    found, entered = [], set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for path in (Path(place, name) for name in names):
            if path.is_file():
                found.append(path)
            elif path.is_symlink():
                raise InputError(f"{path}: a link to what is not there: {os.readlink(path)}; mend it, or take it away")
    return sorted(found)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_any_json(path: str | Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(require_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def read_json(path: str | Path) -> dict:
    """The object in a JSON file."""
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value) -> None:
    """Writes under a temporary name, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character: JSON spells it so, too
    temporary.replace(path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """The name of a file to write, which no other process has. The file takes the place of `path` when the block ends well.

    Several processes may so write one file. The last of them is what stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(folder: Path, path: Path) -> None:
    """Renames `folder` to `path`; what was there is dropped when that is done.

    The files get the permissions that the folder has by the umask: some libraries write files for their owner alone.
    """
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(folder.stat().st_mode & 0o666)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    folder.replace(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `path` when the block ends well and vanishes when it does not.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        put_in_place(temporary, path)
    except WRITE_ERRORS as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(*chunks: bytes) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def hash_json(value) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode())
