"""Strict reading of text files, line by line, plain or compressed, and a quarantine for lines that cannot be read."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import orjson
import pyarrow

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import require_file

BinaryFile = gzip.GzipFile | io.BufferedReader
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # raised when a damaged file is read
PACKED = (".gz", ".zst", ".bz2", ".xz")
BUFFER = 1 << 20
ENOUGH_LINES = 100  # of a file, to tell by its bad lines that it is not what its name says


class Streams(io.RawIOBase):
    """The content of a file of compressed streams, one behind the other. Anything else in the file is an error when it is read.

    `bz2.open` and `lzma.open` end without a word where the header of a later stream is damaged.

    Args:
        new_stream: makes the decompressor of one stream.
        padding: the byte that may stand behind a stream.
    """

    def __init__(self, file: io.BufferedReader, new_stream: Callable, padding: bytes = b""):
        self.file, self.new_stream, self.padding, self.stream = file, new_stream, padding, new_stream()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while True:
            data = b""
            if self.stream.eof:
                data = self.stream.unused_data.lstrip(self.padding)
                while not data:
                    if not (data := self.file.read(io.DEFAULT_BUFFER_SIZE)):
                        return 0
                    data = data.lstrip(self.padding)
                self.stream = self.new_stream()
            elif self.stream.needs_input and not (data := self.file.read(io.DEFAULT_BUFFER_SIZE)):
                raise EOFError("the file ends inside a compressed stream")
            if content := self.stream.decompress(data, len(buffer)):
                buffer[: len(content)] = content
                return len(content)


def open_binary(path: str | Path) -> BinaryFile:
    """A file for reading bytes; `.gz`, `.zst`, `.bz2` and `.xz` are decompressed."""
    path = require_file(path)
    try:
        packing = path.suffix.lower()
        if packing in PACKED and not path.stat().st_size:
            raise InputError(f"{path}: empty; a compressed file has a header, even without content")
        if packing == ".gz":
            return gzip.open(path, "rb")
        file = path.open("rb")
        if packing == ".zst":
            # zstandard.open would not notice that a file is cut short.
            return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"), BUFFER)
        if packing == ".bz2":
            return io.BufferedReader(Streams(file, bz2.BZ2Decompressor), BUFFER)
        if packing == ".xz":
            return io.BufferedReader(Streams(file, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), b"\0"), BUFFER)
        return file
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def shown(row) -> str:
    """A value as text, for `BadLines`: JSON, or an extract where that nests too deep."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str)
    except RecursionError:
        return reprlib.repr(row)


class BadLines:
    """Where readers report lines that they cannot read. This one is strict: the first such line stops the reading."""

    def report(self, path: str | Path, number: int, reason: str, line: str) -> None:
        raise InputError(f"{path}, line {number}: {reason}")

    def lose(self, path: str | Path, number: int, reason: str, lines: list[str]) -> None:
        """Readers report here the good lines, from line `number` on, of a document that has a line that cannot be read."""

    def end_file(self, path: str | Path, lines: int) -> None:
        """Readers call this at the end of each file, with the number of all its lines."""


STRICT = BadLines()


class Quarantine(BadLines):
    """Writes such lines to a file, one JSON object a line, and lets the reading go on. Without such lines there is no file.

    Documents on which a rule raised are written to such a file too.

    Attributes:
        count: lines that went here so far, those of lost documents among them.
        lines: all lines of the files that have been read to their end.
    """

    def __init__(self, path: Path):
        self.path, self.count, self.lines, self._in_file, self._last = path, 0, 0, 0, ""
        path.unlink(missing_ok=True)

    def report(self, path: str | Path, number: int, reason: str, line: str) -> None:
        self._write({"file": str(path), "line": number, "reason": reason, "text": line[:1000]})
        self._in_file, self._last = self._in_file + 1, f"line {number}: {reason}"

    def lose(self, path: str | Path, number: int, reason: str, lines: list[str]) -> None:
        self._write({"file": str(path), "line": number, "reason": reason, "text": "\n".join(lines)[:1000]}, len(lines))

    def set_aside(self, identity: str, rule: str, reason: str, text: str) -> None:
        self._write({"id": identity, "rule": rule, "reason": reason, "text": text[:1000]})

    def _write(self, entry: dict, lines: int = 1) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.count += lines

    def end_file(self, path: str | Path, lines: int) -> None:
        if 2 * self._in_file > lines >= ENOUGH_LINES:
            what = f"{self._in_file} of its {lines} lines cannot be read"
            raise InputError(f"{path}: {what}; is it what its name says? The last of them, {self._last}")
        self.lines, self._in_file = self.lines + lines, 0


# Byte order marks. That of UTF-32 begins with that of UTF-16.
WIDE = {"utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}


def read_all_lines(path: str | Path, bad_lines: BadLines = STRICT, encoding: str = "utf-8") -> Iterator[tuple[int, str | None]]:
    """As `read_lines`, with None for a line that cannot be read."""
    number = 0
    with open_binary(path) as file:
        try:
            lines: Iterable[bytes] = file
            head = file.peek(4)[:4]
            if wide := next((name for name, marks in WIDE.items() if head.startswith(marks)), None):
                encoding, lines = "utf-8", (line.encode() for line in io.TextIOWrapper(file, wide, newline="\n"))
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode(encoding)
                except UnicodeDecodeError as error:
                    reason = (
                        f"not {error.encoding.upper()} (byte {error.start + 1}); convert the file (iconv -f GB18030 -t UTF-8), "
                        "or for .txt give --input '{path: FILE, txt_encoding: gb18030}'"
                    )
                    bad_lines.report(path, number, reason, line.decode(encoding, "backslashreplace"))
                    yield number, None
                else:
                    yield number, text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
            bad_lines.end_file(path, number)
        except UnicodeError as error:
            wanted = error.encoding if isinstance(error, UnicodeDecodeError) else encoding
            raise InputError(f"{path}, line {number + 1}: not {wanted.upper()}; convert the file") from error
        except DAMAGED as error:
            raise InputError(f"{path}: damaged, or not what its name says, after line {number}: {error}") from error


def read_lines(path: str | Path, bad_lines: BadLines = STRICT, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a text file, plain or compressed. A byte order mark is dropped.

    Args:
        encoding: an encoding in which the byte 0A always ends a line. UTF-16 and UTF-32 are recognised by their byte order
            marks instead.

    Raises:
        InputError: the file is missing, unreadable or damaged; or as `bad_lines` does, where a line is not in `encoding`.
    """
    return ((number, line) for number, line in read_all_lines(path, bad_lines, encoding) if line is not None)


def read_jsonl(path: str | Path, bad_lines: BadLines = STRICT) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a JSON Lines file; blank lines are skipped.

    Raises:
        InputError: as `read_lines`; or as `bad_lines` does, where a line is not a JSON object.
    """
    for number, line in read_lines(path, bad_lines):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
            if isinstance(value, dict) and isinstance(value.get("id"), float):
                value["id"] = json.loads(line)["id"]  # to orjson, a whole number beyond 64 bits is a float
        except ValueError as error:
            whole = "; one value over several lines is read from .json" if line.strip() in ("[", "{") else ""
            bad_lines.report(path, number, f"not valid JSON: {error}{whole}", line)
        else:
            if isinstance(value, dict):
                yield number, value
            else:
                bad_lines.report(path, number, f"expected a JSON object, got {type(value).__name__}", line)
