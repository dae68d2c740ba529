"""Planted duplicates are found, and little else goes."""

from zh_modernbert.eval import dedup_recall


def test_planted_duplicates():
    """The figures that eval/dedup_recall.py gives, on fewer pairs."""
    result = dedup_recall.main(dedup_recall.Settings(pairs=60, likeness=[0.5, 0.59, 0.8, 0.9], max_length=600))
    assert result["documents"] == 60 * (4 * 2 + 5)
    by_likeness = result["by_likeness"]
    assert by_likeness["0.8"]["found"] >= 58 / 60
    assert by_likeness["0.9"]["found"] == 1
    assert by_likeness["0.5"]["found"] == 0
    assert result["false_removals"] <= 1
    assert result["removed"] >= 60 * 3  # of each chain one at least
