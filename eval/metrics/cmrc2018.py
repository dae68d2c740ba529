"""CMRC2018's exact match and F1, as version 6 of its authors' script counts them (https://github.com/ymcui/cmrc2018).

F1 is over the longest run of words that prediction and reference share. A Han character is a word. What stands between Han
characters is cut into words by nltk: by Punkt into sentences, where its data is installed (`nltk.download("punkt_tab")`), and
by the rules of the Penn Treebank. Without Punkt, a full stop that ends a sentence within such a piece stays with its word.

    scorer = evaluate.load("eval/metrics/cmrc2018.py")
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby

import nltk

from zh_modernbert.eval.metrics import reading

IGNORED = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


@cache
def has_punkt() -> bool:
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def without_punctuation(text: str) -> str:
    """The text in lower case without the characters that do not count. Among these is no half-width comma, and no `…`."""
    return "".join(character for character in text.lower().strip() if character not in IGNORED)


def words(text: str) -> Iterator[str]:
    for is_han, characters in groupby(without_punctuation(text), lambda character: "\u4e00" <= character <= "\u9fa5"):
        piece = "".join(characters)
        yield from piece if is_han else nltk.word_tokenize(piece, preserve_line=not has_punkt())


def exact_match(prediction: str, reference: str) -> float:
    return float(without_punctuation(prediction) == without_punctuation(reference))


def f1(prediction: str, reference: str) -> float:
    predicted, expected = list(words(prediction)), list(words(reference))
    shared = difflib.SequenceMatcher(None, predicted, expected, autojunk=False).find_longest_match().size
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def score(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """`em`, `f1`, and their `average`, in %; see `mean_of_best`."""
    em, overlap = (reading.mean_of_best(references, predictions, compare) for compare in (exact_match, f1))
    return {"em": em, "f1": overlap, "average": (em + overlap) / 2}


class Cmrc2018(reading.ReadingMetric):
    """Exact match and F1 over the longest shared run of words, by the rules of CMRC2018."""

    score = staticmethod(score)
