"""White space at the edges of tokens is no part of what they stand for."""

import pytest

from zh_modernbert.eval.kinds.offsets import trimmed


@pytest.mark.parametrize(
    ("place", "expected"),
    [((0, 3), (0, 2)), ((2, 8), (3, 6)), ((3, 5), (3, 4)), ((3, 6), (3, 6)), ((7, 9), (9, 9)), ((4, 4), (4, 4))],
)
def test_trimmed(place, expected):
    assert trimmed("今天 a b\n\u3000\n好", *place) == expected
