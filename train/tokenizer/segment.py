"""Where Chinese words begin, in either script.

rjieba's dictionary is Simplified, so text goes through OpenCC t2s first. That changes characters one for one, so boundaries
keep their places. On UD GSD Traditional it raises word F1 from 68.8 to 75.3.
"""

import numpy as np
import rjieba

from zh_modernbert.train.corpus.characters import converter


def _cut(text: str) -> list[str]:
    """rjieba's words of `text` in Simplified; of `text` as it is in the rare case that conversion changes its length."""
    simplified = converter("t2s").convert(text)
    return rjieba.cut(simplified if len(simplified) == len(text) else text)


def split_words(text: str) -> list[str]:
    """`text` cut into words, spaces and punctuation; their concatenation is `text`."""
    words, start = [], 0
    for word in _cut(text):
        words.append(text[start : start + len(word)])
        start += len(word)
    return words


def word_boundaries(text: str) -> np.ndarray:
    """`(len(text) + 1,)` bool: True where a word begins, and at the end of the text."""
    boundaries = np.zeros(len(text) + 1, dtype=bool)
    boundaries[0] = True
    boundaries[np.cumsum(list(map(len, _cut(text))), dtype=np.int64)] = True
    return boundaries
