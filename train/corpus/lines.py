"""Strict reading of text files, line by line, plain or compressed, and a quarantine for lines that cannot be read."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
import pyarrow

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import require_file

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading a damaged file raises


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
