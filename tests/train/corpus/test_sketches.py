"""Sketches agree as often as sets are alike, and what goes is like something that stays."""

import random

import numpy as np

from zh_modernbert.train.corpus import sketches as module
from zh_modernbert.train.corpus.ngrams import random_numbers
from zh_modernbert.train.corpus.sketches import alike, choose_removals, find_pairs, sketch


def test_sketches_agree_as_often_as_sets_are_alike():
    """Sets of few and of many: the mean over many pairs is the Jaccard likeness, and no single one is far off."""
    numbers = random_numbers(4000 * 40)
    for size, likeness, pairs in ((1, 0.0, 40), (12, 0.5, 40), (300, 0.8, 40), (4000, 0.2, 20)):
        shared = round(2 * size * likeness / (1 + likeness))  # of two sets of `size`
        agreements = []
        for pair in np.split(numbers[: pairs * 2 * size], pairs):
            one, other = pair[:size], pair[size - shared : 2 * size - shared]
            agreements.append((sketch(one, 256, 1) == sketch(other, 256, 1)).mean())
        true = shared / (2 * size - shared)
        assert abs(np.mean(agreements) - true) < 4 * (0.25 / 256 / pairs) ** 0.5
        assert max(abs(np.array(agreements) - true)) < 5 * (0.25 / 256) ** 0.5


def test_sketches_see_a_set():
    numbers = random_numbers(50)
    assert (sketch(numbers, 64, 1) == sketch(np.append(numbers, numbers)[::-1], 64, 1)).all()
    assert (sketch(numbers, 64, 1) != sketch(numbers, 64, 2)).all()


def test_removals_are_those_of_going_through_the_documents_in_order():
    generator = random.Random(8)
    for _ in range(200):
        pairs = {tuple(sorted(generator.sample(range(12), 2))) for _ in range(generator.randrange(20))}
        removed = []
        for key in range(12):
            if any(other not in removed for other, later in pairs if later == key):
                removed.append(key)
        assert choose_removals(np.array(sorted(pairs), np.uint64).reshape(-1, 2)).tolist() == removed


def test_pairs_of_a_group():
    """Rows 0, 2 and 3 share a hash, and are alike but for row 2; 1 and 4 share another; 5 is alone with its hash."""
    sketches = np.array([[1, 1, 1, 1], [2, 2, 2, 2], [9, 9, 9, 9], [1, 1, 1, 7], [2, 2, 2, 2], [1, 1, 1, 1]], np.uint8)
    hashes = np.array([5, 6, 5, 5, 6, 7], np.uint64)
    assert sorted(find_pairs(hashes, sketches, 3).tolist()) == [[0, 3], [1, 4]]
    assert sorted(find_pairs(hashes, sketches, 4).tolist()) == [[1, 4]]
    assert sorted(find_pairs(hashes, sketches, 0).tolist()) == [[0, 2], [0, 3], [1, 4]]


def pages(count: int, generator: np.random.Generator) -> np.ndarray:
    """`(count, 256)`: sketches of pages that have half of their places from one template, each page others."""
    numbers, template = (generator.integers(0, 256, (rows, 256), np.uint8) for rows in (count, 1))
    return np.where(generator.random((count, 256)) < 0.5, template, numbers)


def test_pages_from_one_template_are_not_all_compared_with_all(monkeypatch):
    """Four times as many take about four times the comparisons, not sixteen times."""
    compared = []
    monkeypatch.setattr(module, "alike", lambda *given: compared.append(len(given[1])) or alike(*given))
    totals = []
    for count in (1000, 4000):
        compared.clear()
        assert not len(find_pairs(np.zeros(count, np.uint64), pages(count, np.random.default_rng(1)), 180))
        totals.append(sum(compared))
    assert totals[1] < 6 * totals[0]


def test_duplicates_among_pages_from_one_template_are_found():
    """However many unlike pages there are: all copies of a page are paired with its first, and so are most that are like it."""
    generator = np.random.default_rng(2)
    unlike = pages(1000, generator)
    rows = np.concatenate([unlike, unlike, unlike])
    found = {tuple(pair) for pair in find_pairs(np.zeros(3000, np.uint64), rows, 180).tolist()}
    assert found == {(row, row + copy) for row in range(1000) for copy in (1000, 2000)}
    rows[1000:] ^= generator.random((2000, 256)) < 0.05
    assert len(find_pairs(np.zeros(3000, np.uint64), rows, 180)) > 0.9 * 2000
