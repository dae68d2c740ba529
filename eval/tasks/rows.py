"""Rows of tasks' files, and what is wrong with some of them."""

from pathlib import Path
from typing import NamedTuple

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import hash_json
from zh_modernbert.train.corpus.lines import BadLines

NAMED = 3  # bad rows that an error names


class Row(NamedTuple):
    """A row, and where it stands: a line of a file, or of what has no lines the number of an entry."""

    path: str
    number: int
    values: dict

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.number}"


def hash_rows(rows: list[Row]) -> str:
    return hash_json([row.values for row in rows])[:16]


class BadRows(BadLines):
    """Where readers and checks report rows that cannot be used. They are counted and named."""

    def __init__(self):
        self.found: list[str] = []

    def report(self, path: str | Path, number: int, reason: str, line: str = "") -> None:
        self.found.append(f"{path}, line {number}: {reason}")

    def __str__(self) -> str:
        rest = len(self.found) - NAMED
        return "; ".join(self.found[:NAMED]) + (f"; and {rest} more" if rest > 0 else "")

    def settle(self, skip: bool, known_defects: dict[str, int]) -> str:
        """A note on the rows that were left out, or nothing.

        Args:
            known_defects: parts of reasons, and how many rows that have them may be left out in any case.

        Raises:
            InputError: there are others, and they are not to be skipped.
        """
        known = [
            bad
            for part, count in known_defects.items()
            if len(with_it := [bad for bad in self.found if part in bad]) <= count
            for bad in with_it
        ]
        others = BadRows()
        others.found = [bad for bad in self.found if bad not in known]
        if others.found and not skip:
            raise InputError(f"{others}; mend these rows, or leave them out with --skip_bad_rows true")
        return f"bad rows left out: {len(self.found)} ({self})" if self.found else ""
