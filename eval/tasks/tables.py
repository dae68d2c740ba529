"""Rows of named columns from TSV, CSV and JSON Lines files, plain, gzip or zstd."""

import csv
import io
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import DAMAGED, open_binary, read_jsonl


def find_file(path: str | Path) -> Path:
    """`path`, or `path` with .gz or .zst added if only that exists."""
    for candidate in (Path(path), Path(f"{path}.gz"), Path(f"{path}.zst")):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no such file")


def _delimited(path: Path, dialect: dict) -> list[tuple[int, dict]]:
    rows = []
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True, **dialect)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}, line {reader.line_num}: not {len(reader.fieldnames or ())} columns, as the header has"
                    )
                rows.append((reader.line_num, row))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, after line {reader.line_num}: not UTF-8; convert the file") from error
        except (csv.Error, *DAMAGED) as error:
            raise InputError(f"{path}: damaged, or not what its name says, after line {reader.line_num}: {error}") from error
    return rows


def read_table(path: str | Path, columns: list[str]) -> list[tuple[int, dict]]:
    """(line number, row) of a table. The ending gives its form: .tsv (without quoting), .csv, .jsonl or .json.

    Args:
        columns: the columns that every row must have.

    Raises:
        InputError: the file is missing, empty or of another form, or has a bad line or lacks a column.
    """
    path = find_file(path)
    form = [suffix for suffix in map(str.lower, path.suffixes) if suffix not in (".gz", ".zst")][-1:]
    if form == [".tsv"]:
        rows = _delimited(path, {"delimiter": "\t", "quoting": csv.QUOTE_NONE})
    elif form == [".csv"]:
        rows = _delimited(path, {})
    elif form in ([".jsonl"], [".json"]):
        rows = list(read_jsonl(path))
    else:
        raise InputError(f"{path}: unknown form; it must end in .tsv, .csv or .jsonl, and may end in .gz or .zst after that")
    if not rows:
        raise InputError(f"{path}: no rows in it")
    for number, row in rows:
        for column in columns:
            if row.get(column) is None:
                raise InputError(f"{path}, line {number}: no column {column!r}; it has {', '.join(row)}")
    return rows
