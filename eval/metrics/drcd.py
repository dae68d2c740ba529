"""DRCD's exact match and F1: SQuAD 1.1's over a bag of characters (its authors, https://github.com/DRCKnowledgeTeam/DRCD/issues/6).

SQuAD's script with two changes: characters take the place of words, and eight full-width marks are dropped, too. The single
spaces that SQuAD's normalisation leaves count as characters.

    scorer = evaluate.load("eval/metrics/drcd.py")
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from zh_modernbert.eval.metrics import reading

IGNORED = frozenset(string.punctuation + "《》？，。、；：")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in IGNORED)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, reference: str) -> float:
    return float(normalise(prediction) == normalise(reference))


def f1(prediction: str, reference: str) -> float:
    predicted, expected = normalise(prediction), normalise(reference)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def score(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """`em` and `f1` in %; see `mean_of_best`."""
    return {
        "em": reading.mean_of_best(references, predictions, exact_match),
        "f1": reading.mean_of_best(references, predictions, f1),
    }


class Drcd(reading.ReadingMetric):
    """Exact match and F1 over a bag of characters, by the rules of DRCD."""

    score = staticmethod(score)
