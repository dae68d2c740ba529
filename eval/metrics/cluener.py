"""CLUENER2020's F1 (https://github.com/CLUEbenchmark/CLUENER2020): over the texts of entities, not their places.

For each text and type, the set of different surface strings that are called so is compared. F1 of each type is over all texts,
and the score is the mean of the ten types. Where the authors' script would divide by zero, F1 is 0.

    scorer = evaluate.load("eval/metrics/cluener.py")
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import datasets
import evaluate

TYPES = ("address", "book", "company", "game", "government", "movie", "name", "organization", "position", "scene")
Entities = Mapping[str, Collection[str]]  # type -> surface strings, as the keys of a row's "label" in the official files


def score(references: Iterable[Entities], predictions: Iterable[Entities]) -> dict[str, float]:
    """`f1` in %, and that of each type; references and predictions are in the same order."""
    shared, either = Counter(), Counter()
    for expected, predicted in zip(references, predictions, strict=True):
        for kind in TYPES:
            of_text, found = set(expected.get(kind, ())), set(predicted.get(kind, ()))
            shared[kind] += len(of_text & found)
            either[kind] += len(of_text) + len(found)
    by_type = {kind: 200 * shared[kind] / either[kind] if shared[kind] else 0.0 for kind in TYPES}
    return {"f1": sum(by_type.values()) / len(TYPES), **{f"f1_{kind}": value for kind, value in by_type.items()}}


class Cluener(evaluate.Metric):
    """Macro F1 over ten types of sets of surface strings, by the rules of CLUENER2020."""

    def _info(self) -> evaluate.MetricInfo:
        entities = [{"type": datasets.Value("string"), "text": datasets.Value("string")}]
        features = datasets.Features({"predictions": entities, "references": entities})
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", inputs_description="", features=features)

    def _compute(self, predictions: list[list[dict]], references: list[list[dict]]) -> dict[str, float]:
        def by_type(rows: list[list[dict]]) -> list[dict[str, set[str]]]:
            return [{kind: {row["text"] for row in entities if row["type"] == kind} for kind in TYPES} for entities in rows]

        return score(by_type(references), by_type(predictions))
