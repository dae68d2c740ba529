"""What is masked, how much of it, and by what."""

from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train.rows.masking import (
    IGNORE_INDEX,
    Masking,
    MlmSchedule,
    choose_units,
    mask_rows,
    unit_starts,
)
from zh_modernbert.train.rows.packed import PackedRows

CLS, SEP, MASK = (SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
KINDS = ("whole_word", "ngram", "token")
VOCAB_SIZE = 200
# Tokens of made-up rows have ids of this and above, random tokens ids below: each output token shows what was done to it.
MADE_UP = 100


class Visible(Masking):
    @cached_property
    def random_ids(self) -> np.ndarray:
        ids = super().random_ids
        return ids[ids < MADE_UP]


def make_row(generator: np.random.Generator, length: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Ids and word starts of a row of documents of 1 to 60 tokens, in words of 1 to 4."""
    ids, starts = [], []
    while len(ids) < length:
        tokens = int(generator.integers(1, 60))
        word_starts = np.zeros(tokens, dtype=int)
        ends = np.cumsum(generator.integers(1, 5, size=tokens))
        word_starts[[0, *ends[ends < tokens]]] = 1
        ids += [CLS, *generator.integers(MADE_UP, VOCAB_SIZE, size=tokens), SEP]
        starts += [1, *word_starts, 1]
    return np.array(ids, dtype=np.uint16), np.array(starts, dtype=np.uint8)


@pytest.fixture(scope="module")
def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """A million tokens that may be masked, and some special ones."""
    generator, rows, tokens = np.random.default_rng(0), [], 0
    while tokens < 1_000_000:
        rows.append(make_row(generator))
        tokens += int((rows[-1][0] >= len(SPECIAL_TOKENS)).sum())
    return rows


def seeded(seed) -> np.random.Generator:
    return np.random.default_rng(seed)


def mask_together(rows: list, rate: float, masking: Masking, seeds) -> tuple[np.ndarray, np.ndarray]:
    """Rows one behind the other, each with its own seed."""
    ids, starts = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    bounds = np.cumsum([0, *(len(row[0]) for row in rows)])
    return mask_rows(ids, starts, bounds, rate, masking, [seeded(seed) for seed in seeds])


def mask_tokens(ids: np.ndarray, starts: np.ndarray, rate: float, masking: Masking, generator: np.random.Generator):
    """One row alone."""
    return mask_rows(ids, starts, np.array([0, len(ids)]), rate, masking, [generator])


def units_of(starts: np.ndarray, maskable: np.ndarray, masking: str) -> np.ndarray:
    return unit_starts(starts, maskable, np.array([0, len(starts)]), masking, [seeded(0)])


def units(ids: np.ndarray, starts: np.ndarray, masking: str, seed: int) -> list[np.ndarray]:
    """The positions of each unit that `mask_tokens` masks whole, given the same seed."""
    bounds = np.array([0, len(ids)])
    begin = unit_starts(starts, ids >= len(SPECIAL_TOKENS), bounds, masking, [seeded(seed)])
    return np.split(np.arange(len(ids)), begin[1:])


@pytest.mark.parametrize(
    ("masking", "starts"), [("token", [0, 1, 2, 3, 4, 5, 6]), ("whole_word", [0, 1, 3, 4, 6]), ("ngram", [0, 1, 4, 6])]
)
def test_the_example_of_unit_starts(masking, starts):
    """[CLS] 我 们 喜欢 北 京 [SEP], with n-grams of 1, 2 and 1 words."""
    word_starts, maskable = np.array([1, 1, 0, 1, 1, 0, 1], dtype=bool), np.array([0, 1, 1, 1, 1, 1, 0], dtype=bool)
    drawn = SimpleNamespace(random=lambda count: np.array([0.0, 0.5, 0.0, 0.0, 0.0][:count]))
    assert unit_starts(word_starts, maskable, np.array([0, 7]), masking, [drawn]).tolist() == starts


@pytest.mark.parametrize("masking", ["whole_word", "ngram"])
@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_a_unit_is_labelled_whole_or_not_at_all(stages, masking, rate):
    """On real rows, whose documents are in Simplified and Traditional by turns."""
    packed, labelled_longer = PackedRows(stages / "packed"), 0
    for index in range(len(packed)):
        ids, starts, _ = packed.row(index)
        _, labels = mask_tokens(ids, starts, rate, Masking(512, masking), seeded(index))
        labelled = labels != IGNORE_INDEX
        words = units(ids, starts, "whole_word", index)  # an n-gram is made of whole words, so words are whole under both
        for unit in [*words, *units(ids, starts, masking, index)]:
            assert labelled[unit].all() or not labelled[unit].any()
            labelled_longer += len(unit) > 1 and labelled[unit].all()
    assert labelled_longer > 100  # words of several tokens did occur


@pytest.mark.parametrize("masking", KINDS)
def test_labels_are_the_tokens_and_other_tokens_stay(rows, masking):
    for seed, (ids, starts) in enumerate(rows[:200]):
        masked_ids, labels = mask_tokens(ids, starts, 0.3, Visible(VOCAB_SIZE, masking), seeded(seed))
        labelled = labels != IGNORE_INDEX
        assert labelled.any()
        assert (labels[labelled] == ids[labelled]).all()
        assert (masked_ids[~labelled] == ids[~labelled]).all()
        assert masked_ids.dtype == labels.dtype == np.int64


@pytest.mark.parametrize("masking", KINDS)
def test_what_becomes_of_a_unit_is_one_thing(rows, masking):
    for seed, (ids, starts) in enumerate(rows[:200]):
        masked_ids, labels = mask_tokens(ids, starts, 0.3, Visible(VOCAB_SIZE, masking), seeded(seed))
        for unit in units(ids, starts, masking, seed):
            if labels[unit[0]] != IGNORE_INDEX:
                outcomes = (masked_ids[unit] == MASK, masked_ids[unit] == ids[unit], masked_ids[unit] < VOCAB_SIZE)
                assert any(outcome.all() for outcome in outcomes)


@pytest.mark.parametrize("masking", KINDS)
@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_shares_over_a_million_tokens(rows, masking, rate):
    masked_ids, labels = mask_together(rows, rate, Visible(VOCAB_SIZE, masking), range(len(rows)))
    ids = np.concatenate([ids for ids, _ in rows])
    maskable, labelled = ids >= len(SPECIAL_TOKENS), labels != IGNORE_INDEX
    assert not labelled[~maskable].any()
    assert (masked_ids[~maskable] == ids[~maskable]).all()
    random = labelled & (masked_ids != MASK) & (masked_ids < MADE_UP)
    assert labelled.sum() / maskable.sum() == pytest.approx(rate, rel=0.01)
    assert (masked_ids[labelled] == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert random.sum() / labelled.sum() == pytest.approx(0.1, abs=0.01)
    assert (masked_ids[labelled] == ids[labelled]).mean() == pytest.approx(0.1, abs=0.01)
    # Random tokens are drawn from all that may be drawn, no special token, each about as often as another.
    random_tokens = np.bincount(masked_ids[random], minlength=MADE_UP)
    assert random_tokens[: len(SPECIAL_TOKENS)].sum() == 0
    even = random_tokens.sum() / (MADE_UP - len(SPECIAL_TOKENS))
    assert (abs(random_tokens[len(SPECIAL_TOKENS) :] - even) < 8 * even**0.5 + 1).all()


@pytest.mark.parametrize(("mask", "random", "expected"), [(1.0, 0.0, "mask"), (0.0, 1.0, "random"), (0.0, 0.0, "kept")])
def test_replacement_shares_are_settings(rows, mask, random, expected):
    ids, starts = rows[0]
    masked_ids, labels = mask_tokens(ids, starts, 0.3, Visible(VOCAB_SIZE, "whole_word", mask, random), seeded(0))
    found = masked_ids[labels != IGNORE_INDEX]
    seen = np.where(found == MASK, "mask", np.where(found < MADE_UP, "random", "kept"))
    assert set(seen) == {expected}


@pytest.mark.parametrize("masking", KINDS)
def test_the_generator_alone_decides(rows, masking):
    ids, starts = rows[0]
    first, again, other = (mask_tokens(ids, starts, 0.3, Masking(VOCAB_SIZE, masking), seeded(seed)) for seed in (1, 1, 2))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("masking", KINDS)
def test_a_row_is_masked_alike_alone_and_among_others(rows, masking):
    some, masking = [*rows[:20], (np.array([CLS, SEP]), np.array([1, 1]))], Visible(VOCAB_SIZE, masking)
    alone = [mask_tokens(*row, 0.3, masking, seeded(seed)) for seed, row in enumerate(some)]
    for seeds in (range(21), reversed(range(21))):
        seeds = list(seeds)
        together = mask_together([some[seed] for seed in seeds], 0.3, masking, seeds)
        for part in (0, 1):
            assert (together[part] == np.concatenate([alone[seed][part] for seed in seeds])).all()


def test_whole_word_units_are_the_words():
    starts = np.array([1, 1, 0, 0, 1, 1, 1, 1, 0, 1], dtype=bool)
    maskable = np.array([0, 1, 1, 1, 1, 0, 0, 1, 1, 0], dtype=bool)
    assert units_of(starts, maskable, "whole_word").tolist() == [0, 1, 4, 5, 6, 7, 9]
    assert units_of(starts, maskable, "token").tolist() == list(range(10))


def test_ngrams_do_not_cross_documents(rows):
    for seed, (ids, starts) in enumerate(rows[:200]):
        document = np.cumsum(ids == CLS)
        for unit in units(ids, starts, "ngram", seed):
            assert len(set(document[unit])) == 1
            assert (np.diff(unit) == 1).all()
            assert starts[unit].sum() <= 4
            assert len(unit) == 1 or (ids[unit] >= len(SPECIAL_TOKENS)).all()  # a special token stands alone


def test_ngram_lengths_are_as_stated():
    """4, 3, 2 and 1 in 10 n-grams have 1, 2, 3 and 4 words; one long document, so that next to none is cut at an end."""
    starts = np.tile([True, False], 100_000)
    maskable = np.ones_like(starts)
    maskable[0] = False
    begin = units_of(starts, maskable, "ngram")
    lengths = np.bincount(np.diff(begin[1:]) // 2, minlength=5)
    assert len(lengths) == 5
    np.testing.assert_allclose(lengths[1:] / lengths.sum(), (0.4, 0.3, 0.2, 0.1), atol=0.01)


def test_chosen_share_is_exact_in_expectation():
    """Also where one unit is more than what may be masked."""
    sizes, draws = np.array([1, 7, 2, 0, 5]), 40_000
    rows = np.arange(draws + 1) * len(sizes)
    chosen = choose_units(np.tile(sizes, draws), rows, 0.2, [seeded(0)] * draws).reshape(draws, -1) @ sizes
    assert chosen.mean() == pytest.approx(0.2 * 15, rel=0.02)
    assert chosen.max() > 3  # the unit that crosses the budget is sometimes taken
    assert chosen.min() < 3  # and sometimes not


def test_a_row_without_words_has_nothing_to_mask():
    ids, labels = mask_tokens(np.array([CLS, SEP]), np.array([1, 1]), 0.3, Masking(VOCAB_SIZE), seeded(0))
    assert ids.tolist() == [CLS, SEP]
    assert (labels == IGNORE_INDEX).all()


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.15), (5, 0.225), (10, 0.3), (60, 0.2), (85, 0.15), (110, 0.1)], ids=lambda value: str(value)
)
def test_mlm_probability_rises_and_falls(step, expected):
    assert MlmSchedule([0.15, 0.3, 0.1], num_warmup_steps=10, max_steps=110).at(step) == pytest.approx(expected)


def test_mlm_probability_without_warmup_starts_at_the_peak():
    assert MlmSchedule([0.15, 0.3, 0.1], num_warmup_steps=0, max_steps=10).at(0) == pytest.approx(0.3)
    assert MlmSchedule([0.15, 0.3, 0.1], num_warmup_steps=10, max_steps=10).at(10) == pytest.approx(0.3)


@pytest.mark.parametrize("step", [0, 7, 100])
def test_one_mlm_probability_is_constant(step):
    assert MlmSchedule([0.3], num_warmup_steps=10, max_steps=100).at(step) == 0.3


def test_special_tokens_elsewhere():
    """As in a vocabulary that was another model's: some in the middle, [MASK] at the end, and ordinary tokens from 0 on."""
    special = (40, 41, 42, VOCAB_SIZE - 1)
    generator, random_tokens = seeded(0), set()
    for seed in range(200):
        ids = generator.permutation(VOCAB_SIZE)
        masking = Masking(VOCAB_SIZE, "token", mask_token_id=VOCAB_SIZE - 1, special_ids=special)
        masked_ids, labels = mask_tokens(ids, np.ones(len(ids)), 0.9, masking, seeded(seed))
        changed = masked_ids != ids
        assert (labels[np.isin(ids, special)] == IGNORE_INDEX).all()
        assert not changed[np.isin(ids, special)].any()
        assert (masked_ids[changed] == VOCAB_SIZE - 1).sum() > 50
        random_tokens |= set(masked_ids[changed].tolist()) - {VOCAB_SIZE - 1}
    assert random_tokens == set(range(VOCAB_SIZE)) - set(special)
