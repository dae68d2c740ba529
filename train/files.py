"""Files between the stages: strict reading, a quarantine for lines that cannot be read, corpora.

A document is `{"id", "source", "text", "script"?, "url"?}`; a corpus is a folder of `.jsonl.zst` shards.
"""

import bz2
import codecs
import gzip
import hashlib
import io
import json
import lzma
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pyarrow
import zstandard

from zh_modernbert.train.cli import InputError

DOCUMENTS_PER_SHARD = 20_000
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading a damaged file raises


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
    """A file for reading bytes; `.gz`, `.zst`, `.bz2` and `.xz` are decompressed."""
    path = require_file(path)
    try:
        openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        if path.suffix in openers:
            return openers[path.suffix](path, "rb")
        if path.suffix == ".zst":
            # unlike zstandard.open, this notices a file that breaks off
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 20)
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


class Corrupt:
    """What is done with lines that cannot be read: the strict way, which stops at the first."""

    def __call__(self, path: str | Path, number: int, reason: str, line: str) -> None:
        raise InputError(f"{path}, line {number}: {reason}")

    def end(self, path: str | Path, lines: int) -> None:
        """Is told at the end of each file how many lines it has."""


STRICT = Corrupt()


class Quarantine(Corrupt):
    """Sets them aside, one JSON object each in a file that is only there if there are any.

    Attributes:
        count, lines: lines set aside, and all lines, of the files that have been read to their end.
    """

    def __init__(self, path: Path):
        self.path, self.count, self.lines, self._in_file, self._last = path, 0, 0, 0, ""
        path.unlink(missing_ok=True)

    def __call__(self, path: str | Path, number: int, reason: str, line: str) -> None:
        self.path.parent.mkdir(exist_ok=True)
        entry = {"file": str(path), "line": number, "reason": reason, "text": line[:1000]}
        with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.count, self._in_file, self._last = self.count + 1, self._in_file + 1, f"line {number}: {reason}"

    def end(self, path: str | Path, lines: int) -> None:
        if 2 * self._in_file > lines:
            what = f"{self._in_file} of its {lines} lines cannot be read"
            raise InputError(f"{path}: {what}; is it what its name says? The last of them, {self._last}")
        self.lines, self._in_file = self.lines + lines, 0


def read_lines(path: str | Path, corrupt: Corrupt = STRICT, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a text file, plain or compressed; a byte order mark is dropped.

    Args:
        encoding: one in which the byte 0A is nothing but the end of a line. UTF-16 is known by its byte order mark.

    Raises:
        InputError: the file is missing, unreadable or damaged; or by `corrupt`: a line is not in `encoding`.
    """
    number = 0
    with open_binary(path) as file:
        try:
            lines: Iterable[bytes] = file
            if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                encoding, lines = "utf-8", (line.encode() for line in io.TextIOWrapper(file, "utf-16", newline="\n"))
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode(encoding)
                except UnicodeDecodeError as error:
                    reason = (
                        f"not {error.encoding.upper()} (byte {error.start + 1}); convert the file (iconv -f GB18030 -t UTF-8), "
                        "or for .txt give --input '{path: FILE, txt_encoding: gb18030}'"
                    )
                    corrupt(path, number, reason, line.decode(encoding, "backslashreplace"))
                else:
                    yield number, text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
            corrupt.end(path, number)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number + 1}: not {error.encoding.upper()}; convert the file") from error
        except DAMAGED as error:
            raise InputError(f"{path}: damaged, or not what its name says, after line {number}: {error}") from error


def read_jsonl(path: str | Path, corrupt: Corrupt = STRICT) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON Lines file; blank lines are skipped.

    Raises:
        InputError: as `read_lines`; or by `corrupt`: a line is not a JSON object.
    """
    for number, line in read_lines(path, corrupt):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except ValueError as error:
            corrupt(path, number, f"not valid JSON: {error}", line)
        else:
            if isinstance(value, dict):
                yield number, value
            else:
                corrupt(path, number, f"expected a JSON object, got {type(value).__name__}", line)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def put_in_place(folder: Path, path: Path) -> None:
    """Renames `folder` to `path`; what was there is dropped when that is done."""
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
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def corpus_shards(folder: str | Path) -> list[Path]:
    """The shards of a corpus folder, in order.

    Raises:
        InputError: there is no such folder, no shard in it, or not the shards that its stage wrote.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    shards = sorted(folder.glob("*.jsonl.zst"))
    if not shards:
        raise InputError(f"{folder}: an empty corpus: no .jsonl.zst shard in it")
    if (folder / "manifest.json").is_file():
        files = check_files(folder, read_json(folder / "manifest.json"))
        for shard in shards:
            if shard.name not in files:
                raise InputError(f"{shard}: not what the stage wrote, by manifest.json; take it away, or read it as a source")
    return shards


def check_files(folder: Path, manifest: dict) -> dict:
    """The files of a stage's output, by `manifest.json`, after a look at whether they are there.

    Raises:
        InputError: one is missing or has another size, or the manifest is damaged.
    """
    again = f"run train/{manifest.get('stage')}.py again"
    try:
        for name, file in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise InputError(f"{path}: missing or cut short; it must have {file['bytes']} bytes; {again}")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'manifest.json'}: damaged ({error}); {again}") from error
    return manifest["files"]


def read_corpus_shard(shard: Path, corrupt: Corrupt = STRICT) -> Iterator[dict]:
    """The documents of one shard.

    Raises:
        InputError: as `read_jsonl`; or by `corrupt`: a line is no document.
    """
    for number, document in read_jsonl(shard, corrupt):
        missing = [field for field in ("id", "source", "text") if not isinstance(document.get(field), str)]
        if missing:
            corrupt(shard, number, f"a document needs a string {missing[0]!r}", json.dumps(document, ensure_ascii=False))
        else:
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


def write_corpus(folder: Path, documents: Iterable[dict], prefix: str = "") -> dict:
    """Writes shards `00000.jsonl.zst` and on, `prefix` before their names; returns the counts of documents and characters."""
    counts = {"documents": 0, "characters": 0}
    file = None
    try:
        for document in documents:
            if counts["documents"] % DOCUMENTS_PER_SHARD == 0:
                if file:
                    file.close()
                shard = folder / f"{prefix}{counts['documents'] // DOCUMENTS_PER_SHARD:05d}.jsonl.zst"
                file = io.BufferedWriter(zstandard.open(shard, "wb"), 1 << 20)
            file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
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
