"""CoNLL F1 of coreference: the mean of MUC, B-cubed and CEAF-e (https://aclanthology.org/P14-2006.pdf).

Each sums numerators and denominators over all documents, as the reference scorer does. A mention is anything that can be
compared; what counts is which mentions are in one cluster. Clusters of one mention count where they are given.

    scorer = evaluate.load("eval/metrics/coreference.py")
"""

from collections.abc import Collection, Hashable, Sequence

import datasets
import evaluate
import numpy as np
from scipy.optimize import linear_sum_assignment

Clusters = Collection[Collection[Hashable]]
Fraction = tuple[float, float]


def owners(clusters: Clusters) -> dict[Hashable, int]:
    """Mention -> the number of its cluster."""
    return {mention: number for number, cluster in enumerate(clusters) for mention in cluster}


def muc(expected: Clusters, predicted: Clusters) -> Fraction:
    """Recall: the links that a spanning tree of each expected cluster needs, and those of them that are there."""
    owner = owners(predicted)
    # A mention that is in no predicted cluster is a part of its own.
    parts = [len({owner.get(mention, ("alone", mention)) for mention in cluster}) for cluster in expected]
    sizes = [len(set(cluster)) for cluster in expected]
    return sum(sizes) - sum(parts), sum(sizes) - len(sizes)


def b_cubed(expected: Clusters, predicted: Clusters) -> Fraction:
    """Recall: of each mention's expected cluster, the share that is in its predicted one."""
    sets = [set(cluster) for cluster in predicted]
    owner, total = owners(predicted), 0.0
    for cluster in map(set, expected):
        total += sum(len(cluster & sets[owner[mention]]) for mention in cluster if mention in owner) / len(cluster)
    return total, sum(len(set(cluster)) for cluster in expected)


def ceaf_e(expected: Clusters, predicted: Clusters) -> Fraction:
    """Recall: the likeness (Dice) of clusters, each paired with one at most, by the number of expected clusters."""
    left, right = ([set(cluster) for cluster in clusters] for clusters in (expected, predicted))
    likeness = np.array([[2 * len(a & b) / (len(a) + len(b)) for b in right] for a in left]).reshape(len(left), len(right))
    return float(likeness[linear_sum_assignment(likeness, maximize=True)].sum()), len(left)


def mentions(expected: Clusters, predicted: Clusters) -> Fraction:
    """Recall: the expected mentions that are in any predicted cluster."""
    wanted = owners(expected).keys()
    return len(wanted & owners(predicted).keys()), len(wanted)


PARTS = {"muc": muc, "b_cubed": b_cubed, "ceaf_e": ceaf_e}


def score(references: Sequence[Clusters], predictions: Sequence[Clusters]) -> dict[str, float]:
    """`conll_f1`, its three parts, and F1 of the mentions, in %; references and predictions are documents in the same order."""
    documents = list(zip(references, predictions, strict=True))
    scores = {}
    for name, recall in {**PARTS, "mention": mentions}.items():
        fractions = [(*recall(expected, predicted), *recall(predicted, expected)) for expected, predicted in documents]
        found, wanted, right, given = map(sum, zip(*fractions, strict=True)) if fractions else (0.0,) * 4
        shares = found / wanted if wanted else 0.0, right / given if given else 0.0
        scores[f"{name}_f1"] = 200 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0
    return {"conll_f1": sum(scores[f"{name}_f1"] for name in PARTS) / len(PARTS), **scores}


class Coreference(evaluate.Metric):
    """CoNLL F1 of clusters, a list of lists of `[start, end]` a document."""

    def _info(self) -> evaluate.MetricInfo:
        clusters = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("int32"))))
        features = datasets.Features({"predictions": clusters, "references": clusters})
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        as_spans = [
            [[[tuple(span) for span in cluster] for cluster in document] for document in part]
            for part in (references, predictions)
        ]
        return score(*as_spans)
