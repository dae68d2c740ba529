"""What a stage wrote, by its `manifest.json`: the recipe, the result, and the size and hash of each file."""

import dataclasses
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from zh_modernbert.train.common.cli import InputError, script_name
from zh_modernbert.train.common.files import files_below, hash_file, hash_json, read_json, require_folder, sha256, write_json

SCRATCH = "scratch"  # a folder of a stage's notes on its work, which are not part of its output


def describe_files(folder: Path) -> dict[str, dict]:
    """Name below `folder` -> size and SHA-256, of each file that belongs to the output."""

    def describe(path: Path) -> dict:
        return {"bytes": path.stat().st_size, "sha256": hash_file(path)}

    own = {".lock", "settings.json", "manifest.json"}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    paths = [path for path in paths if path.relative_to(folder).parts[0] != SCRATCH]
    with ThreadPoolExecutor() as threads:
        return {
            path.relative_to(folder).as_posix(): found for path, found in zip(paths, threads.map(describe, paths), strict=True)
        }


def write_manifest(folder: Path, settings, recipe: str, result: dict) -> None:
    """Ends a stage's work: `settings.json` and, last of all, `manifest.json`."""
    stage, files = script_name(settings), describe_files(folder)
    write_json(folder / "settings.json", {"stage": stage, **dataclasses.asdict(settings)})
    content = sha256(json.dumps(files).encode())
    manifest = {"stage": stage, "recipe": recipe, "content": content, "result": result, "files": files}
    write_json(folder / "manifest.json", manifest | {"sha256": hash_json(manifest)})


def is_output(folder: Path) -> bool:
    """Whether a folder is what a stage wrote."""
    return all((folder / name).is_file() for name in ("manifest.json", "settings.json"))


def again(folder: Path, manifest: dict) -> str:
    return f"delete {folder} and run train/{manifest.get('stage')}.py again"


def read_manifest(folder: str | Path, stage: str | None = None) -> dict:
    """The manifest of what a stage wrote, after a look at whether all files are there.

    Args:
        stage: that must have written it; None: any.

    Raises:
        InputError: another stage wrote the folder, a file is missing or has another size, or the manifest is damaged.
    """
    folder = require_folder(folder, "manifest.json")
    path = folder / "manifest.json"
    manifest = read_json(path)
    if stage and manifest.get("stage") != stage:
        raise InputError(f"{folder}: not what train/{stage}.py writes")
    if manifest.pop("sha256", None) != hash_json(manifest):
        raise InputError(f"{path}: damaged: not what was written; {again(folder, manifest)}")
    for name, file in manifest["files"].items():
        inside = folder / name
        if not inside.is_file() or inside.stat().st_size != file["bytes"]:
            raise InputError(f"{inside}: missing or cut short; it must have {file['bytes']} bytes; {again(folder, manifest)}")
    return manifest


@lru_cache(maxsize=4)
def manifest_of(folder: Path, time: int) -> dict:
    """The manifest of `folder`, last changed at `time`. A task reads the manifest once, not for each of its files."""
    return read_json(folder / "manifest.json")


def verify_files(folder: Path, names: Iterable[str]) -> None:
    """Compares files that a stage wrote with their hashes. Who reads a file does this first.

    Raises:
        InputError: a file is not what was written.
    """
    manifest = manifest_of(folder, (folder / "manifest.json").stat().st_mtime_ns)
    for name in names:
        if hash_file(folder / name) != manifest["files"][name]["sha256"]:
            raise InputError(f"{folder / name}: damaged: not the bytes that were written; {again(folder, manifest)}")


def content_of(path: str | Path) -> str:
    """A hash of what a file or folder holds.

    A stage's output has the hash in its manifest. Of anything else, the names, sizes and times of its files are hashed.
    """
    path = Path(path)
    if is_output(path):
        return read_manifest(path)["content"]
    files = files_below(path) if path.is_dir() else [path]
    states = [
        (str(file.relative_to(path)), *(getattr(file.stat(), key) for key in ("st_size", "st_mtime_ns"))) for file in files
    ]
    return sha256(json.dumps(states).encode())
