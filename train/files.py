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

import zstandard

from zh_modernbert.train.cli import InputError

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
            return io.BufferedReader(zstandard.open(path, "rb"), 1 << 20)
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
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise InputError(f"{path}, after line {number}: cannot be read further: {error}") from error


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
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, got {type(value).__name__}")
        yield number, value


def read_json(path: str | Path) -> dict:
    try:
        return json.loads(require_file(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def write_json(path: Path, value) -> None:
    """Writes under a temporary name, then renames."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


@contextmanager
def output_folder(path: str | Path, settings=None, marker: str = "settings.json") -> Iterator[Path]:
    """A new folder to write into, which becomes `path` when the block ends well and vanishes when it does not.

    Args:
        settings: the stage's dataclass instance, saved as `settings.json` where given.
        marker: a file that says that what lies at `path` now was written by the same stage, and may be replaced.

    Raises:
        InputError: `path` is anything else, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path / marker).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists and was not written by this stage; choose another output_dir")
    temporary = path.with_name(path.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if settings is not None:
            write_json(temporary / "settings.json", dataclasses.asdict(settings))
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
