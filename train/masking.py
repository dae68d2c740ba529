"""Which tokens of a batch are masked, and by what: token, whole-word and n-gram masking.

Tokens are grouped into units, and units are masked whole: all of a unit's tokens become [MASK] (8 in 10 units), random tokens
(1 in 10), or stay as they are (1 in 10), and all of them get labels (BERT's 80/10/10, https://arxiv.org/abs/1810.04805,
drawn per unit: a visible part would give a word away). Units are taken in random order until the asked share of tokens is
reached; the unit that would cross it is taken with the probability that makes the expected share exact.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS

IGNORE_INDEX = -100
# Lengths 1 to 4 in words, as in MacBERT (https://arxiv.org/abs/2004.13922, section 3.2).
NGRAM_PROBABILITIES = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Masking:
    """How to mask; `masking` is `whole_word`, `ngram` or `token`.

    Args:
        special_ids: tokens that are never masked, and never put in as random ones; those of `train/train_tokenizer.py`.
    """

    vocab_size: int
    masking: str = "whole_word"
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    mask_token_id: int = SPECIAL_TOKENS.index("[MASK]")
    special_ids: tuple[int, ...] = tuple(range(len(SPECIAL_TOKENS)))

    @cached_property
    def random_ids(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.vocab_size), self.special_ids)


def unit_ids(word_starts: np.ndarray, maskable: np.ndarray, masking: str, generator: np.random.Generator) -> np.ndarray:
    """`(N,)`: the unit of each token, counted from 0.

    Args:
        word_starts: `(N,)` bool, True at special tokens too, so that no unit spans documents.
        maskable: `(N,)` bool, False at special tokens.
    """
    if masking == "token":
        return np.arange(len(word_starts))
    word_ids = np.cumsum(word_starts) - 1
    if masking == "whole_word":
        return word_ids
    # n-grams: special tokens begin a unit and end one; between them, words are joined to units of random length.
    special = ~maskable[np.flatnonzero(word_starts)]  # (words,)
    words = len(special)
    lengths = generator.choice(len(NGRAM_PROBABILITIES), size=words, p=NGRAM_PROBABILITIES) + 1
    ends = np.cumsum(lengths)
    starts = special.copy()
    starts[:1] = True
    starts[ends[ends < words]] = True
    starts[1:] |= special[:-1]
    return (np.cumsum(starts) - 1)[word_ids]


def choose_units(unit_sizes: np.ndarray, probability: float, generator: np.random.Generator) -> np.ndarray:
    """`(units,)` bool: units in random order until `probability` of the tokens is reached, exactly in expectation."""
    budget = probability * unit_sizes.sum()
    order = generator.permutation(len(unit_sizes))
    ends = np.cumsum(unit_sizes[order])
    chosen = ends <= budget
    crossing = int(chosen.sum())
    if crossing < len(order):
        size = unit_sizes[order[crossing]]
        chosen[crossing] = generator.random() * size < budget - (ends[crossing] - size)
    mask = np.zeros(len(order), dtype=bool)
    mask[order[chosen]] = True
    return mask


def mask_tokens(
    input_ids: np.ndarray, word_starts: np.ndarray, probability: float, masking: Masking, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Masks one packed row.

    Args:
        input_ids: `(N,)` integers.
        word_starts: `(N,)`, true where a word or a special token begins.
        probability: share of the maskable tokens to mask.

    Returns:
        Masked ids and labels, `(N,)` int64 each; labels are -100 where nothing is asked.
    """
    input_ids = input_ids.astype(np.int64)
    maskable = ~np.isin(input_ids, masking.special_ids)
    units = unit_ids(word_starts.astype(bool), maskable, masking.masking, generator)
    unit_sizes = np.bincount(units, weights=maskable).astype(np.int64)
    chosen = choose_units(unit_sizes, probability, generator)
    kind = generator.random(len(unit_sizes))  # what happens to a unit that is chosen
    masked = chosen[units] & maskable
    labels = np.where(masked, input_ids, IGNORE_INDEX)
    replaced = masked & (kind < masking.mask_replace_prob)[units]
    random = masked & ~replaced & (kind < masking.mask_replace_prob + masking.random_replace_prob)[units]
    masked_ids = np.where(replaced, masking.mask_token_id, input_ids)
    masked_ids[random] = masking.random_ids[generator.integers(len(masking.random_ids), size=int(random.sum()))]
    return masked_ids, labels


def mlm_probability_at(step: int, probabilities: list[float], num_warmup_steps: int, max_steps: int) -> float:
    """The masking rate of update `step`.

    One value is constant. Three are start, peak and end: start to peak over the warm-up, peak to end over the rest, both linear
    (system A: 15% to 30% to 15%, https://arxiv.org/abs/2510.12285).
    """
    if len(probabilities) == 1:
        return probabilities[0]
    start, peak, end = probabilities
    if step < num_warmup_steps:
        return start + (peak - start) * step / num_warmup_steps
    return peak + (end - peak) * (step - num_warmup_steps) / max(max_steps - num_warmup_steps, 1)
