"""Which tokens of a batch are masked, and by what: token, whole-word and n-gram masking.

Tokens are grouped into units: tokens, words or n-grams of words. A unit is chosen with all its tokens, since a visible part
would give a word away. All tokens of a chosen unit get labels; they become [MASK] (8 in 10 units), random tokens (1 in 10), or
stay as they are (1 in 10): BERT's 80/10/10, https://arxiv.org/abs/1810.04805, drawn per unit. Units are chosen in random order
until the wanted share of tokens is reached. The unit that would go beyond it is chosen with the probability that makes the
expected share exact.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS

IGNORE_INDEX = -100
UNUSED = re.compile(r"\[unused\d+\]")
# Of n-grams of 1, 2, 3 and 4 words, as in MacBERT (https://arxiv.org/abs/2004.13922, section 3.2).
NGRAM_PROBABILITIES = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Masking:
    """How to mask; `masking` is `whole_word`, `ngram` or `token`.

    Args:
        special_ids: tokens that are never masked, and that no token is replaced by; see `special_ids_of`.
    """

    vocab_size: int
    masking: str = "whole_word"
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    mask_token_id: int = SPECIAL_TOKENS.index("[MASK]")
    special_ids: tuple[int, ...] = tuple(range(len(SPECIAL_TOKENS)))

    @cached_property
    def maskable(self) -> np.ndarray:
        """`(vocab_size,)` bool: all but the special tokens."""
        return ~np.isin(np.arange(self.vocab_size), self.special_ids)

    @cached_property
    def random_ids(self) -> np.ndarray:
        return np.flatnonzero(self.maskable)


def special_ids_of(tokenizer) -> tuple[int, ...]:
    """The ids that no text has: special tokens, and `[unusedN]` entries, whose sight would give a random replacement away."""
    unused = (i for token, i in tokenizer.get_vocab().items() if UNUSED.fullmatch(token))
    return tuple(sorted({*tokenizer.added_tokens_decoder, *unused}))


def unit_starts(
    word_starts: np.ndarray, maskable: np.ndarray, bounds: np.ndarray, masking: str, generators: list[np.random.Generator]
) -> np.ndarray:
    """`(units,)`: the positions at which the units of some rows begin.

    A special token is a unit by itself. An example is a row of seven tokens with the words 我们, 喜欢 and 北京:

        tokens        [CLS]  我  们  喜欢  北  京  [SEP]
        word_starts     1    1   0    1    1   0    1
        token           0    1   2    3    4   5    6
        whole_word      0    1        3    4        6
        ngram           0    1             4        6     for lengths of 1, 2, 1, ... words: 我们喜欢 is one unit

    Args:
        word_starts: `(N,)` bool, of rows that are concatenated; True at special tokens too, so that no unit spans documents.
        maskable: `(N,)` bool, False at special tokens.
        bounds: `(R + 1,)`: where the rows begin, and N. Each row begins with a special token.
        generators: one a row.
    """
    if masking == "token":
        return np.arange(len(word_starts))
    words = np.flatnonzero(word_starts)
    if masking == "whole_word":
        return words
    # n-grams: each row draws lengths in words and lays them end to end. A unit begins where a length ends, at a special token,
    # and after one.
    rows = np.searchsorted(words, bounds)
    counts = np.diff(rows)
    draws = np.concatenate([generator.random(count) for generator, count in zip(generators, counts, strict=True)])
    ends = np.cumsum(np.searchsorted(np.cumsum(NGRAM_PROBABILITIES)[:-1], draws, side="right") + 1)
    before = np.concatenate(([0], ends))[rows[:-1]]  # the sum of the lengths of earlier rows
    ends += np.repeat(rows[:-1] - before, counts)
    starts = ~maskable[words]
    starts[1:] |= starts[:-1]
    starts[ends[ends < np.repeat(rows[1:], counts)]] = True
    return words[starts]


def choose_units(
    unit_sizes: np.ndarray, rows: np.ndarray, probability: float, generators: list[np.random.Generator]
) -> np.ndarray:
    """`(units,)` bool: of each row, units in random order until `probability` of its tokens is reached, exactly in expectation.

    Args:
        unit_sizes: `(units,)`, tokens of each unit that may be masked.
        rows: `(R + 1,)`: the number of each row's first unit, and the number of all units.
        generators: one a row.
    """
    counts = np.diff(rows)
    order = [
        first + generator.permutation(count) for first, count, generator in zip(rows[:-1], counts, generators, strict=True)
    ]
    order = np.concatenate(order)
    crossing = np.repeat([generator.random() for generator in generators], counts)
    sizes = unit_sizes[order]
    ends = np.concatenate(([0], np.cumsum(sizes)))
    budgets = np.repeat(probability * np.diff(ends[rows]), counts)
    chosen = np.empty(len(order), dtype=bool)
    # True for a unit that ends within the row's budget, False for one that begins beyond it, by chance for the one between.
    chosen[order] = crossing * sizes < budgets - (ends[:-1] - np.repeat(ends[rows[:-1]], counts))
    return chosen


def mask_rows(
    input_ids: np.ndarray,
    word_starts: np.ndarray,
    bounds: np.ndarray,
    probability: float,
    masking: Masking,
    generators: list[np.random.Generator],
) -> tuple[np.ndarray, np.ndarray]:
    """Masks packed rows that are concatenated. Each row gets the masks that it would get alone.

    Args:
        input_ids: `(N,)` integers.
        word_starts: `(N,)`, true where a word or a special token begins.
        bounds: `(R + 1,)`: where the rows begin, and N.
        probability: share of a row's maskable tokens to mask.
        generators: one a row, for all that is random in it.

    Returns:
        Masked ids and labels, `(N,)` int64 each. Labels are -100 at tokens that are not to be predicted.
    """
    masked_ids = input_ids.astype(np.int64)
    maskable = masking.maskable[masked_ids]
    starts = unit_starts(word_starts, maskable, bounds, masking.masking, generators)
    rows = np.searchsorted(starts, bounds)
    lengths = np.diff(starts, append=len(masked_ids))
    chosen = choose_units(lengths * maskable[starts], rows, probability, generators) & maskable[starts]
    labels = np.where(np.repeat(chosen, lengths), masked_ids, IGNORE_INDEX)
    # One draw a unit says what becomes of it, if it is chosen.
    kind = np.concatenate([generator.random(count) for generator, count in zip(generators, np.diff(rows), strict=True)])
    replaced = chosen & (kind < masking.mask_replace_prob)
    random = chosen & ~replaced & (kind < masking.mask_replace_prob + masking.random_replace_prob)
    masked_ids[np.repeat(replaced, lengths)] = masking.mask_token_id
    places = np.flatnonzero(np.repeat(random, lengths))
    counts = np.diff(np.searchsorted(places, bounds))
    draws = [generator.integers(len(masking.random_ids), size=n) for generator, n in zip(generators, counts, strict=True)]
    masked_ids[places] = masking.random_ids[np.concatenate(draws)]
    return masked_ids, labels


@dataclass(frozen=True)
class MlmSchedule:
    """The share of tokens that each update masks.

    One probability is the share of all updates. Three are start, peak and end: from start to peak over the warm-up, from peak
    to end over the rest, both linear (system A: 15% to 30% to 15%, https://arxiv.org/abs/2510.12285).
    """

    probabilities: list[float]
    num_warmup_steps: int
    max_steps: int

    def at(self, step: int) -> float:
        """The share that update `step` masks, counted from 0."""
        if len(self.probabilities) == 1:
            return self.probabilities[0]
        start, peak, end = self.probabilities
        if step < self.num_warmup_steps:
            return start + (peak - start) * step / self.num_warmup_steps
        return peak + (end - peak) * (step - self.num_warmup_steps) / max(self.max_steps - self.num_warmup_steps, 1)
