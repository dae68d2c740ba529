"""Where documents come from: JSONL, Parquet and text files, Wikipedia dumps, and Hub datasets."""

import operator
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from zh_modernbert.train.common.cli import BaseSettings, InputError, one_line, setting
from zh_modernbert.train.common.files import files_below
from zh_modernbert.train.common.manifest import is_output
from zh_modernbert.train.corpus.documents import corpus_shards
from zh_modernbert.train.corpus.lines import (
    DAMAGED,
    PACKED,
    STRICT,
    BadLines,
    open_binary,
    read_all_lines,
    read_jsonl,
    read_lines,
    shown,
)
from zh_modernbert.train.corpus.rules import RuleError, apply_rule

SCRIPTS = ("hans", "hant", "mixed")
Part = Path | int  # a file, or the number of a shard of a Hub dataset
SUFFIXES = {".jsonl": "jsonl", ".json": "json", ".parquet": "parquet", ".txt": "txt", ".xml": "wikipedia"}
FORMATS = f"{', '.join(SUFFIXES)}, all but Parquet also with {', '.join(PACKED)} behind"


def begins(value, prefixes: str) -> bool:
    """Whether a text begins with one of the prefixes, which spaces part."""
    return isinstance(value, str) and value.startswith(tuple(prefixes.split()))


# Of a `where` condition: for texts and numbers, for texts, for numbers.
COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    "^=": begins,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


MOST_AT_ONCE = 1 << 28  # bytes of a JSON file that is not one of lines, and so is read at once


@dataclass
class Source(BaseSettings):
    """One place that documents come from: a local `path`, or a Hub `dataset`."""

    path: str = setting("", f"a file, or a folder searched for {FORMATS}")
    dataset: str = setting("", "a Hub dataset id, streamed")
    config: str | None = setting(None, "configuration of the Hub dataset")
    split: str = setting("train", "split of the Hub dataset")
    revision: str | None = setting(None, "branch, tag or commit of the Hub dataset")
    data_files: list[str] = setting([], "paths or patterns of the Hub dataset's files to read; empty leaves it to the dataset")
    name: str = setting("", "what its documents' `source` says; the file's or dataset's name where not given")
    source_field: str = setting("", "field whose value is the documents' `source`, where one place holds several")
    text_field: str = setting("text", "field that holds the text; a.b is field b of field a")
    title_field: str = setting("", "field that becomes the first line of the text")
    where: list[str] = setting(
        [], "conditions that all have to hold, such as score >= 3, lang != en, url ^= https://a.org/ https://b.org/"
    )
    script: str | None = setting(None, "hans or hant, where that is known; cleaning finds it out anew", (None, "hans", "hant"))
    licence: str = setting("", "kept in settings.json beside the corpus")
    txt_documents: str = setting(
        "blank_line",
        "what ends a document of a .txt file: a blank_line, each line, or the file",
        ("blank_line", "line", "file"),
    )
    txt_encoding: str = setting("utf-8", "of .txt files, such as gb18030 or big5hkscs; UTF-16 is known by its byte order mark")
    wiki_script: str | None = setting(
        None, "render a Wikipedia dump in hans or hant, as readers see it; else it stays as written", (None, "hans", "hant")
    )
    max_documents: int = setting(0, "read at most so many; 0 reads all", least=0)

    def __post_init__(self):
        super().__post_init__()
        if bool(self.path) == bool(self.dataset):
            raise InputError(f"input {self.name or self.path or self.dataset!r}: give either path or dataset")
        try:
            first, second, rest = "文\n文\n".encode(self.txt_encoding, "replace").split(b"\n")
            splits_lines = first.decode(self.txt_encoding) == second.decode(self.txt_encoding) and not rest
        except (LookupError, ValueError):  # there is no such encoding, or one that text files do not have
            splits_lines = False
        if not splits_lines:
            raise InputError(f"sources: txt_encoding is {self.txt_encoding!r}; it must be gb18030, big5hkscs or alike")
        for condition in self.where:
            parse_condition(condition)


# --- readers: one file or shard -> (number of the row, row) ---


def text_blocks(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, list[str | None]]]:
    """The lines of each document of a text file, with the number of its first; None for a line that cannot be read."""
    start, lines = 1, []
    for number, line in read_all_lines(path, bad_lines, source.txt_encoding):
        blank = source.txt_documents == "blank_line" and line is not None and not line.strip()
        if not blank:
            lines.append(line)
        if blank or source.txt_documents == "line":
            yield start, lines
            start, lines = number + 1, []
    yield start, lines


def read_txt(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    """The documents of a text file, which `txt_documents` tells apart.

    A document with a line that cannot be read, wherever that stands, goes as a whole.
    """
    for start, lines in text_blocks(path, source, bad_lines):
        good = [line for line in lines if line is not None]
        if len(good) == len(lines):
            yield start, {source.text_field: "\n".join(good)}
        elif good:
            bad = start + lines.index(None)
            bad_lines.lose(path, start, f"the rest of a document, of which line {bad} cannot be read", good)


def parquet_columns(names: list[str], source: Source) -> list[str] | None:
    """The columns that a source needs of those in a file; None, which is all, where the text is in none."""
    fields = [source.text_field, source.title_field, source.source_field, "id", "script", "url"]
    fields += [parse_condition(condition)[0] for condition in source.where]
    found = [name for name in names if any(f"{field}.".startswith(f"{name}.") for field in fields)]
    return found if any(f"{source.text_field}.".startswith(f"{name}.") for name in found) else None


def python_rows(batch) -> Iterator[dict | Exception]:
    """The rows of a `RecordBatch`; an exception for each with a value that Python does not have."""
    try:
        rows = batch.to_pylist()
    except Exception as error:  # of many kinds: years past 9999, text that is not UTF-8, unknown time zones
        parts = (batch.slice(row, 1) for row in range(batch.num_rows))
        rows = [error] if batch.num_rows == 1 else (row for part in parts for row in python_rows(part))
    yield from rows


def read_parquet(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    """The rows of a Parquet file, as far as they are needed."""
    import pyarrow
    import pyarrow.parquet as pq

    number = 0
    try:
        with path.open("rb") as opened:  # pyarrow takes no name that is not UTF-8
            file = pq.ParquetFile(opened)
            for batch in file.iter_batches(batch_size=1024, columns=parquet_columns(file.schema_arrow.names, source)):
                for row in python_rows(batch):
                    number += 1
                    if isinstance(row, dict):
                        yield number, row
                    else:
                        bad_lines.report(path, number, f"a value that Python does not have: {one_line(row)}", "")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {one_line(error)}") from error


def read_wikipedia(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    from xml.parsers.expat import ExpatError

    from zh_modernbert.train.corpus.wikipedia import read_articles

    with open_binary(path) as file:
        try:
            yield from read_articles(file, source.wiki_script, path, bad_lines)
        except (InputError, ExpatError, *DAMAGED) as error:
            raise InputError(f"{path}: not a whole Wikipedia dump: {error}") from error


@contextmanager
def hub_errors(source: Source) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises many kinds; each means that the source cannot be read
        raise InputError(f"dataset {source.dataset}: cannot be loaded: {one_line(error)}") from error


def load_hub(source: Source):
    """The `IterableDataset` of a Hub source."""
    from datasets import load_dataset

    options = {"split": source.split, "revision": source.revision, "data_files": source.data_files or None}
    with hub_errors(source):
        return load_dataset(source.dataset, source.config, **options, streaming=True)


def read_hub(shard: int, source: Source) -> Iterator[tuple[int, dict]]:
    dataset = load_hub(source)
    with hub_errors(source):
        yield from enumerate(dataset.shard(dataset.num_shards, shard), 1)


def read_json_lines(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    return read_jsonl(path, bad_lines)


def json_value(path: Path) -> list | dict | None:
    """The value of a JSON file that holds a list, or a single object; None of a file of JSON Lines, and of anything else."""
    lines = (line for _, line in read_lines(path) if line.strip())
    try:
        head = list(islice(lines, 2))
        with suppress(ValueError):
            if len(head) == 2 and isinstance(orjson.loads(head[0]), dict):
                return None
        if path.stat().st_size > MOST_AT_ONCE:
            return None
        value = orjson.loads("\n".join([*head, *lines]))
    except (ValueError, InputError):  # who reads the file as lines says what is wrong
        return None
    return value if isinstance(value, (list, dict)) else None


def read_json_file(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON file: its lines, or the items of its one list, or its one value."""
    value = json_value(path)
    if value is None:
        yield from read_jsonl(path, bad_lines)
        return
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            yield number, item
        else:
            bad_lines.report(path, number, f"expected a JSON object, got {type(item).__name__}", shown(item))
    bad_lines.end_file(path, len(items))


READERS = {
    "jsonl": read_json_lines,
    "json": read_json_file,
    "parquet": read_parquet,
    "txt": read_txt,
    "wikipedia": read_wikipedia,
}


# --- a source is its files, or the shards of its dataset ---


def name_and_format(path: Path) -> tuple[str, str]:
    """The file's name without its known endings, and the format that these stand for, empty if there is no such ending."""
    packed = path.suffix.lower() in PACKED
    plain = path.with_suffix("") if packed else path
    suffix = plain.suffix.lower().partition("-")[0]  # parts of a dump end in .xml-p1p187712
    kind = SUFFIXES.get(suffix)
    return (plain.stem, "" if packed and kind == "parquet" else kind) if kind else (path.name, "")


def describes_data(path: Path, source: Source) -> bool:
    """Whether a file is JSON that describes the data beside it, such as dataset_infos.json: one object, and without a text."""
    value = json_value(path) if name_and_format(path)[1] == "json" else None
    return isinstance(value, dict) and field_of(value, source.text_field, MISSING) is MISSING


def files_of(source: Source) -> list[Path]:
    """The files of a local source, sorted by path. Of a corpus that a stage wrote these are its shards only.

    Files of a folder that are left out are named on stderr, but for hidden ones.

    Raises:
        InputError: there is no file, or its format is unknown.
    """
    path = Path(source.path)
    if path.is_dir():
        if is_output(path):
            return corpus_shards(path)
        inside = files_below(path)
        files = [file for file in inside if name_and_format(file)[1] and not describes_data(file, source)]
        others = [printable(str(file.relative_to(path))) for file in sorted({*inside} - {*files}) if file.name[0] != "."]
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        if not files:
            raise InputError(f"{path}: nothing in this folder ends in {FORMATS}{(others and f'; it has {shown}') or ''}")
        if others:
            print(f"{printable(str(path))}: left out, by its ending or for want of documents: {shown}", file=sys.stderr)
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if not name_and_format(path)[1]:
        raise InputError(f"{path}: unknown format; it must end in {FORMATS}")
    return [path]


def parts_of(source: Source) -> list[Path | int]:
    """The parts of a source that can be read separately: its files, or the numbers of its Hub dataset's shards.

    Raises:
        InputError: as `files_of`, or the dataset cannot be loaded.
    """
    return [*range(load_hub(source).num_shards)] if source.dataset else [*files_of(source)]


# --- rows -> documents ---


def parse_condition(text: str) -> tuple[str, Callable, float | str]:
    """`score >= 3` as field, comparison and bound. The bound is a number if it can be read as one, but for `^=`.

    Raises:
        InputError: the condition has another form.
    """
    match = re.fullmatch(r"\s*([\w.-]+)\s*(>=|<=|==|!=|\^=|>|<)\s*(.+?)\s*", text)
    if match:
        field, sign, bound = match.groups()
        if sign != "^=":
            with suppress(ValueError):
                bound = float(bound)
        if sign in ("==", "!=", "^=") or isinstance(bound, float):
            return field, COMPARISONS[sign], bound
    raise InputError(
        f"sources: where is {text!r}; it must be FIELD == TEXT, FIELD != TEXT, FIELD ^= PREFIXES (what it begins with), or "
        "FIELD NUMBER with one of == != >= <= > < between"
    )


MISSING = object()


def field_of(row: dict, name: str, missing=None) -> Any:
    """The row's field `name`, and for `a.b` field b of field a; `missing` if there is no such field."""
    if name in row or "." not in name:
        return row.get(name, missing)
    outer, _, inner = name.partition(".")
    return field_of(row[outer], inner, missing) if isinstance(row.get(outer), dict) else missing


def fields_of(row: dict) -> str:
    return f"it has {', '.join(map(str, row))}"


def is_wanted(row: dict, conditions: list[tuple]) -> bool:
    """Whether all conditions hold. Numbers may be given as text.

    Raises:
        ValueError: the bound is a number, and the field is not.
    """
    for field, compare, bound in conditions:
        value = field_of(row, field)
        if isinstance(bound, float):
            try:
                value = float(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"no number in field {field!r}, which `where` needs, but {value!r}") from error
        if not compare(value, bound):
            return False
    return True


def text_of(row: dict, source: Source) -> str:
    """The text of a row, below its title if the source has a `title_field` and the text does not begin with the title.

    Raises:
        ValueError: the row has no text.
    """
    text = field_of(row, source.text_field, MISSING)
    if not isinstance(text, str):
        what = fields_of(row) if text is MISSING else f"it is {'null' if text is None else type(text).__name__}"
        raise ValueError(f"no string field {source.text_field!r}; {what}")
    title = field_of(row, source.title_field) if source.title_field else None
    if not isinstance(title, str) or not title.strip() or text.lstrip().partition("\n")[0].strip() == title.strip():
        return text
    return f"{title.strip()}\n{text}"


def printable(name: str) -> str:
    """A file's name as text that can be written: bytes that are not UTF-8 are spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def place_of(source: Source, part: Part) -> str:
    """What the ids of a part's documents begin with: the source's name, if it has one, and the file in it or the shard."""
    if isinstance(part, int):
        return f"{source.name or source.dataset}/{part}"
    inside = part.relative_to(source.path) if Path(source.path).is_dir() else part.name
    return printable((Path(source.name) / inside).as_posix())


def is_identity(value) -> bool:
    """Whether a row's `id` tells it from others; NaN is what tables have for none."""
    return value not in (None, "") and value == value


def document_of(row: dict, source: Source, conditions: list[tuple], name: str, identity: str) -> dict | None:
    """The document of a row; None for a row without text or not wanted by `where`.

    Args:
        name, identity: its source and its id, where the row does not say them.

    Raises:
        ValueError: the row has no text in `text_field`, or no number in a field that `where` compares with one, or text that
            cannot be written in UTF-8.
    """
    text = text_of(row, source) if is_wanted(row, conditions) else ""
    named = field_of(row, source.source_field) if source.source_field else name
    if not isinstance(named, str):
        raise ValueError(f"no string field {source.source_field!r}; {fields_of(row)}")
    if not text.strip():
        return None
    document = {"id": str(row["id"]) if is_identity(row.get("id")) else identity, "source": named, "text": text}
    script = source.script or row.get("script")
    if script in SCRIPTS:
        document["script"] = script
    if isinstance(row.get("url"), str) and row["url"]:
        document["url"] = row["url"]
    "".join(document.values()).encode()
    return document


def read_part(source: Source, part: Part, bad_lines: BadLines = STRICT, prefix: str = "") -> Iterator[dict | None]:
    """The documents of one of `parts_of(source)`; None for a row without text or not wanted by `where`.

    A document keeps its row's `id`. Where there is none, the id says where the row is, after `prefix`.

    Raises:
        InputError: the part cannot be read; or as `bad_lines` does, where a row is no document.
    """
    conditions = [parse_condition(condition) for condition in source.where]
    if isinstance(part, int):
        name, by_lines = source.name or source.dataset, False
        place, rows = f"{source.dataset}, shard {part}", read_hub(part, source)
    else:
        stem, kind = name_and_format(part)
        name, by_lines = source.name or printable(stem), kind != "parquet"
        place, rows = part, READERS[kind](part, source, bad_lines)
    number, beginning = 0, prefix + place_of(source, part)
    for number, row in rows:
        try:
            yield apply_rule(document_of, row, source, conditions, name, f"{beginning}-{number}")
        except RuleError as error:
            reason = str(error.__cause__) if isinstance(error.__cause__, ValueError) else error.reason
            bad_lines.report(place, number, reason, shown(row))
    if not by_lines:
        bad_lines.end_file(place, number)  # readers of lines and pages have done so themselves


def read_source(source: Source) -> Iterator[dict]:
    """The documents of one source, at most `max_documents`.

    Raises:
        InputError: as `parts_of` and `read_part`.
    """
    documents = (document for part in parts_of(source) for document in read_part(source, part) if document)
    return islice(documents, source.max_documents or None)
