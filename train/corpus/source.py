"""Where documents come from: JSONL, Parquet and text files, Wikipedia dumps, and Hub datasets."""

import json
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zh_modernbert.train.common.cli import BaseSettings, InputError, one_line, setting
from zh_modernbert.train.corpus.documents import corpus_shards
from zh_modernbert.train.corpus.lines import DAMAGED, PACKED, STRICT, BadLines, open_binary, read_jsonl, read_lines
from zh_modernbert.train.corpus.rules import RuleError, apply_rule

SCRIPTS = ("hans", "hant", "mixed")
Part = Path | int  # a file, or the number of a shard of a Hub dataset
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "txt", ".xml": "wikipedia"}
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
            splits_lines = "\n".encode(self.txt_encoding) == b"\n"
        except LookupError:
            splits_lines = False
        if not splits_lines:
            raise InputError(f"sources: txt_encoding is {self.txt_encoding!r}; it must be gb18030, big5hkscs or alike")
        for condition in self.where:
            parse_condition(condition)


# --- readers: one file or shard -> (number of the row, row) ---


def read_txt(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    """The documents of a text file, which `txt_documents` tells apart; the number is that of the first line."""
    start, lines, before = 1, [], 0
    for number, line in read_lines(path, bad_lines, source.txt_encoding):
        if number != before + 1 and source.txt_documents != "line":
            lines = None  # a line could not be read, so the rest of its document is skipped
        before = number
        ends = source.txt_documents == "line" or (source.txt_documents == "blank_line" and not line.strip())
        if source.txt_documents == "line":
            start, lines = number, [line]
        elif not ends and lines is not None:
            lines.append(line)
        if ends:
            if lines is not None:
                yield start, {source.text_field: "\n".join(lines)}
            start, lines = number + 1, []
    if lines:
        yield start, {source.text_field: "\n".join(lines)}


def read_parquet(path: Path, source: Source, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error


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


READERS = {"jsonl": read_json_lines, "parquet": read_parquet, "txt": read_txt, "wikipedia": read_wikipedia}


# --- a source is its files, or the shards of its dataset ---


def name_and_format(path: Path) -> tuple[str, str]:
    """The file's name without its known endings, and the format that these stand for, empty if there is no such ending."""
    packed = path.suffix in PACKED
    plain = path.with_suffix("") if packed else path
    suffix = plain.suffix.partition("-")[0]  # parts of a dump end in .xml-p1p187712
    kind = SUFFIXES.get(suffix)
    return (plain.stem, "" if packed and kind == "parquet" else kind) if kind else (path.name, "")


def files_of(source: Source) -> list[Path]:
    """The files of a local source, sorted by path. Of a corpus that a stage wrote these are its shards only.

    Raises:
        InputError: there is no file, or its format is unknown.
    """
    path = Path(source.path)
    if path.is_dir():
        if (path / "manifest.json").is_file() and (path / "settings.json").is_file():
            return corpus_shards(path)
        files = sorted(file for file in path.rglob("*") if file.is_file() and name_and_format(file)[1])
        if not files:
            raise InputError(f"{path}: nothing in this folder ends in {FORMATS}")
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


def field_of(row: dict, name: str):
    """The row's field `name`, and for `a.b` field b of field a; None if there is no such field."""
    if name in row or "." not in name:
        return row.get(name)
    outer, _, inner = name.partition(".")
    return field_of(row[outer], inner) if isinstance(row.get(outer), dict) else None


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
            except (TypeError, ValueError) as error:
                raise ValueError(f"no number in field {field!r}, which `where` needs, but {value!r}") from error
        if not compare(value, bound):
            return False
    return True


def text_of(row: dict, source: Source) -> str:
    """The text of a row, below its title if the source has a `title_field` and the text does not begin with the title.

    Raises:
        ValueError: the row has no text.
    """
    text = field_of(row, source.text_field)
    if not isinstance(text, str):
        what = "it has " + ", ".join(map(str, row)) if text is None else f"it is {type(text).__name__}"
        raise ValueError(f"no string field {source.text_field!r}; {what}")
    title = field_of(row, source.title_field) if source.title_field else None
    if not isinstance(title, str) or not title.strip() or text.lstrip().partition("\n")[0].strip() == title.strip():
        return text
    return f"{title.strip()}\n{text}"


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
        raise ValueError(f"no string field {source.source_field!r}; it has {', '.join(map(str, row))}")
    if not text.strip():
        return None
    document = {"id": str(row.get("id") if row.get("id") is not None else identity), "source": named, "text": text}
    script = source.script or row.get("script")
    if script in SCRIPTS:
        document["script"] = script
    if row.get("url"):
        document["url"] = str(row["url"])
    "".join(document.values()).encode()
    return document


def read_part(source: Source, part: Part, bad_lines: BadLines = STRICT) -> Iterator[dict | None]:
    """The documents of one of `parts_of(source)`; None for a row without text or not wanted by `where`.

    Raises:
        InputError: the part cannot be read; or as `bad_lines` does, where a row is no document.
    """
    conditions = [parse_condition(condition) for condition in source.where]
    if isinstance(part, int):
        name, by_lines = source.name or source.dataset, False
        place, prefix, rows = f"{source.dataset}, shard {part}", f"{name}/{part}", read_hub(part, source)
    else:
        stem, kind = name_and_format(part)
        name, by_lines = source.name or stem, kind != "parquet"
        inside = (part.parent / stem).relative_to(source.path if Path(source.path).is_dir() else part.parent)
        place, prefix, rows = part, (Path(source.name) / inside).as_posix(), READERS[kind](part, source, bad_lines)
    number = 0
    for number, row in rows:
        try:
            yield apply_rule(document_of, row, source, conditions, name, f"{prefix}-{number}")
        except RuleError as error:
            reason = str(error.__cause__) if isinstance(error.__cause__, ValueError) else error.reason
            bad_lines.report(place, number, reason, json.dumps(row, ensure_ascii=False, default=str))
    if not by_lines:
        bad_lines.end_file(place, number)  # readers of lines and pages have done so themselves


def read_source(source: Source) -> Iterator[dict]:
    """The documents of one source, at most `max_documents`.

    Raises:
        InputError: as `parts_of` and `read_part`.
    """
    documents = (document for part in parts_of(source) for document in read_part(source, part) if document)
    return islice(documents, source.max_documents or None)
