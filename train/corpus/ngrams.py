"""Text as letters, and n-grams as hashes, for finding similar texts. The numbers are the same on every machine."""

import unicodedata
from functools import cache

import numpy as np

from zh_modernbert.train.corpus.characters import code_points, converter

ALONE = 0x2E80  # from this code point on scripts have no spaces, and each letter is a token


@cache
def letter_table(fold_scripts: bool) -> np.ndarray:
    """`(0x110000,)` uint32: each letter and digit in lower case and half width; 0 for all other code points.

    Args:
        fold_scripts: give a Traditional character as its Simplified one, without regard to the characters beside it.
    """
    table = np.zeros(0x110000, np.uint32)
    letters = [chr(code) for code in range(len(table)) if chr(code).isalnum()]
    folded = [lowered if len(lowered := unicodedata.normalize("NFKC", c).lower()) == 1 else c for c in letters]
    if fold_scripts:
        folded = converter("t2s").convert("\n".join(folded)).split("\n")
    table[[ord(c) for c in letters]] = [ord(c) for c in folded]
    return table


def letters(text: str, fold_scripts: bool = False) -> np.ndarray:
    """`(L,)` uint32: the letters and digits of a text, as `letter_table` gives them."""
    codes = letter_table(fold_scripts)[code_points(text)]
    return codes[codes > 0]


def mix(hashes: np.ndarray) -> np.ndarray:
    """Mixes the 64 bits of each hash, so that each depends on all others, one to one (the finalizer of MurmurHash3)."""
    half = np.uint64(33)
    hashes = (hashes ^ (hashes >> half)) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> half)) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> half)


def tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, places in the text) `(T,)` of a text's tokens: single Chinese characters, and whole words and numbers of others.

    "GPT-4 很好" has the tokens gpt, 4, 很 and 好 at places 0, 4, 6 and 7. "gpt：4，很好" has the same hashes.
    """
    codes = letter_table(True)[code_points(text)]
    letter, word = codes > 0, (codes > 0) & (codes < ALONE)
    starts = letter.copy()
    starts[1:] &= ~(word[1:] & word[:-1])
    places, codes, starts = np.flatnonzero(starts), codes[letter].astype(np.uint64), np.flatnonzero(starts[letter])
    inside = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    hashes = mix(codes | inside.astype(np.uint64) << 32)
    return np.add.reduceat(hashes, starts) if len(starts) else hashes, places


@cache
def random_numbers(count: int, seed: int = 0) -> np.ndarray:
    """`(count,)` uint64, all odd."""
    return mix(mix(np.arange(count, dtype=np.uint64)) + np.uint64(seed)) | np.uint64(1)


def ngram_hashes(letters: np.ndarray, n: int) -> np.ndarray:
    """`(L - n + 1,)` uint64: a hash of each n-gram. Fewer than n letters have one hash, of all of them."""
    n = min(n, len(letters))
    hashes = np.zeros(len(letters) - n + 1, np.uint64)
    for i, factor in enumerate(random_numbers(n)):
        hashes += factor * letters[i : i + len(hashes)]
    return mix(hashes)
