"""Rows of tasks' files, and what is wrong with some of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import hash_json
from zh_modernbert.train.corpus.lines import BadLines

NAMED = 3  # bad rows that an error names
# What `part_note` says.
PART = re.compile(r"only (?P<used>\d+) of \d+ examples of (?P<split>\w+)")


class Row(NamedTuple):
    """A row, and where it stands: a line of a file, or of what has no lines the number of an entry."""

    path: str
    number: int
    values: dict

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.number}"


def part_note(used: int, count: int, split: str) -> str:
    """What the notes of a result say of a split of which not all is used. Such a result is not the benchmark's."""
    return f"only {used} of {count} examples of {split}"


def hash_rows(rows: list[Row]) -> str:
    return hash_json([row.values for row in rows])[:16]


class BadRows(BadLines):
    """Where readers and checks report rows that cannot be used. They are counted and named."""

    def __init__(self, found: Iterable[str] = ()):
        self.found = [*found]

    def report(self, path: str | Path, number: int, reason: str, line: str = "") -> None:
        self.found.append(f"{path}, line {number}: {reason}")

    def __str__(self) -> str:
        rest = len(self.found) - NAMED
        return "; ".join(self.found[:NAMED]) + (f"; and {rest} more" if rest > 0 else "")

    def unknown(self, known_defects: dict[str, int]) -> list[str]:
        """What was reported but known defects: parts of reasons, and how many rows of the official files have them."""
        known = [
            bad
            for part, count in known_defects.items()
            if len(with_it := [bad for bad in self.found if part in bad]) <= count
            for bad in with_it
        ]
        return [bad for bad in self.found if bad not in known]


def settle(splits: dict[str, list[Row]], bad_rows: dict[str, BadRows], skip: bool, known_defects: dict[str, int]) -> list[str]:
    """Notes on the rows that were left out. A split is whole where it lacks nothing but known defects.

    Args:
        splits: the rows that are left.
        bad_rows: those of each split.
        known_defects: see `BadRows.unknown`. So many are left out in any case.

    Raises:
        InputError: there are others, and they are not to be skipped.
    """
    every = BadRows(found for each in bad_rows.values() for found in each.found)
    unknown = every.unknown(known_defects)
    if unknown and not skip:
        raise InputError(f"{BadRows(unknown)}; mend these rows, or leave them out with --skip_bad_rows true")
    notes = [f"bad rows left out: {len(every.found)} ({every})"] if every.found else []
    lacking = set(unknown)
    for split, rows in splits.items():
        if lost := sum(found in lacking for found in bad_rows[split].found):
            notes.append(part_note(len(rows), len(rows) + lost, split))
    return notes
