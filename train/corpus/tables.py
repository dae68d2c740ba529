"""Rows of named columns from delimited and JSON Lines files, plain or compressed."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import DAMAGED, PACKED, STRICT, BadLines, open_binary, read_jsonl, read_lines


def find_file(path: str | Path) -> Path:
    """`path`, or `path` with the ending of a compression added if only that exists."""
    for candidate in (Path(path), *(Path(f"{path}{suffix}") for suffix in PACKED)):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no such file")


def form_of(path: Path) -> str:
    """The ending of a file's name, without that of its compression."""
    return next((suffix for suffix in map(str.lower, reversed(path.suffixes)) if suffix not in PACKED), "")


def _delimited(path: Path, dialect: dict, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True, **dialect)
        try:
            for row in reader:
                if None in row or None in row.values():
                    reason = f"not {len(reader.fieldnames or ())} columns, as the header has"
                    bad_lines.report(path, reader.line_num, reason, str(row))
                else:
                    yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, after line {reader.line_num}: not UTF-8; convert the file") from error
        except (csv.Error, *DAMAGED) as error:
            raise InputError(f"{path}: damaged, or not what its name says, after line {reader.line_num}: {error}") from error


def _separated(path: Path, header: tuple[str, ...], separator: str, bad_lines: BadLines) -> Iterator[tuple[int, dict]]:
    """Rows of a file without header or quoting. The column `label` may be missing where it is the last one."""
    lengths = {len(header), len(header) - (header[-1] == "label")}
    for number, line in read_lines(path, bad_lines):
        cells = line.split(separator)
        if len(cells) in lengths:
            yield number, dict(zip(header, cells, strict=False))
        elif line.strip():
            bad_lines.report(path, number, f"{len(cells)} columns, not {len(header)}", line)


def read_table(
    path: str | Path,
    columns: list[str],
    header: tuple[str, ...] = (),
    separator: str = "",
    bad_lines: BadLines = STRICT,
) -> list[tuple[int, dict]]:
    """(line number, row) of a table. The ending gives its form: .csv, .tsv (without quoting), .jsonl or .json (JSON Lines).

    Args:
        columns: the columns that every row must have.
        header: the names of the columns of a delimited file that has no header, of any ending but .csv.
        separator: of such a file; a tab if not given.

    Raises:
        InputError: the file is missing, empty or of another form, or lacks a column; or as `bad_lines` does, where a row has
            not as many columns as the others, or lacks one.
    """
    path = find_file(path)
    form = form_of(path)
    if form in (".jsonl", ".json"):
        found = read_jsonl(path, bad_lines)
    elif header:
        found = _separated(path, header, separator or "\t", bad_lines)
    elif form == ".tsv":
        found = _delimited(path, {"delimiter": "\t", "quoting": csv.QUOTE_NONE}, bad_lines)
    elif form == ".csv":
        found = _delimited(path, {}, bad_lines)
    else:
        raise InputError(
            f"{path}: unknown form; it must end in .tsv, .csv or .jsonl, and may end in {', '.join(PACKED)} after that"
        )
    rows, empty = [], True
    for number, values in found:
        empty = False
        missing = [column for column in columns if values.get(column) is None]
        if missing:
            bad_lines.report(path, number, f"no column {missing[0]!r}; it has {', '.join(values)}", str(values))
        else:
            rows.append((number, values))
    if empty:
        raise InputError(
            f"{path}: no rows in it{', which are JSON objects, one a line' if form in ('.jsonl', '.json') else ''}"
        )
    return rows
