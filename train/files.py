"""Files and folders between the stages: strict reading, and outputs that exist whole or not at all.

A document is `{"id", "source", "text", "script"?, "url"?}`; a corpus is a folder of `.jsonl.zst` shards. Every output folder is
written under a temporary name beside its final one, renamed when it is whole, and holds `settings.json`, the resolved settings.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import zstandard

from zh_modernbert.train.cli import InputError, script_of

DOCUMENTS_PER_SHARD = 20_000


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


def open_binary(path: str | Path) -> io.BufferedIOBase:
    """A file for reading bytes; `.gz` and `.zst` are decompressed."""
    path = require_file(path)
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")
        if path.suffix == ".zst":
            # unlike zstandard.open, this notices a file that breaks off
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 20)
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 file, plain or compressed; a byte order mark is dropped.

    Raises:
        InputError: the file is missing, unreadable or damaged, or a line is not UTF-8, naming the line.
    """
    number = 0
    with open_binary(path) as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); convert the file") from error
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: damaged, or not what its name says, after line {number}: {error}") from error


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON Lines file; blank lines are skipped.

    Raises:
        InputError: as `read_lines`, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if "\\u" in line:
                json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except UnicodeEncodeError as error:
            raise InputError(f"{path}, line {number}: half a surrogate pair (\\ud800 to \\udfff) is no text") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, got {type(value).__name__}")
        yield number, value


def read_json(path: str | Path) -> dict:
    """The object in a JSON file."""
    try:
        value = json.loads(require_file(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value) -> None:
    """Writes under a temporary name, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def made_by(folder: Path, stage: str) -> bool:
    """Whether `folder` holds what `stage` wrote, by its `settings.json`."""
    try:
        return json.loads((folder / "settings.json").read_text(encoding="utf-8"))["stage"] == stage
    except (OSError, ValueError, TypeError, KeyError):
        return False


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `path` when the block ends well and vanishes when it does not.

    Raises:
        InputError: it cannot be written.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def output_folder(path: str | Path, settings) -> Iterator[Path]:
    """`replacing`, for a stage: with `settings.json` in it, and refusing to replace anything but this stage's own output.

    Raises:
        InputError: `path` is not empty and was not written by this stage, or holds what it reads; or it cannot be written.
    """
    if not str(path):
        raise InputError("output_dir is empty; name a folder")
    stage = script_of(settings)
    path = Path(path).resolve()
    if Path.cwd().is_relative_to(path):
        raise InputError(f"{path}: output_dir is where you are; choose a folder inside")
    for name, value in vars(settings).items():
        if name.endswith("_dir") and name != "output_dir" and Path(value).resolve().is_relative_to(path):
            raise InputError(f"{path}: output_dir holds {name}; choose another output_dir")
    try:
        if path.exists() and not made_by(path, stage) and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{path}: exists and was not written by this stage ({stage}); choose another output_dir")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    with replacing(path) as folder:
        yield folder
        write_json(folder / "settings.json", {"stage": stage, **dataclasses.asdict(settings)})


def corpus_shards(folder: str | Path) -> list[Path]:
    """The shards of a corpus folder, in order.

    Raises:
        InputError: there is no such folder, or no shard in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    shards = sorted(folder.glob("*.jsonl.zst"))
    if not shards:
        raise InputError(f"{folder}: an empty corpus: no .jsonl.zst shard in it")
    return shards


def read_corpus_shard(shard: Path) -> Iterator[dict]:
    """The documents of one shard.

    Raises:
        InputError: a line cannot be read, or is no document.
    """
    for number, document in read_jsonl(shard):
        for field in ("id", "source", "text"):
            if not isinstance(document.get(field), str):
                raise InputError(f"{shard}, line {number}: a document needs a string {field!r}")
        yield document


def read_corpus(folder: str | Path) -> Iterator[dict]:
    """The documents of a corpus folder, in order.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    empty = True
    for shard in corpus_shards(folder):
        for document in read_corpus_shard(shard):
            empty = False
            yield document
    if empty:
        raise InputError(f"{folder}: an empty corpus: no documents in it")


def write_corpus(folder: Path, documents: Iterable[dict]) -> dict:
    """Writes shards `00000.jsonl.zst` and on; returns the counts of documents and characters."""
    counts = {"documents": 0, "characters": 0}
    file = None
    try:
        for document in documents:
            if counts["documents"] % DOCUMENTS_PER_SHARD == 0:
                if file:
                    file.close()
                shard = folder / f"{counts['documents'] // DOCUMENTS_PER_SHARD:05d}.jsonl.zst"
                file = io.TextIOWrapper(zstandard.open(shard, "wb"), encoding="utf-8", newline="\n")
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
            counts["documents"] += 1
            counts["characters"] += len(document["text"])
    finally:
        if file:
            file.close()
    return counts


def sha256(*chunks: bytes) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
