"""CLUENER2020's F1 (https://github.com/CLUEbenchmark/CLUENER2020): over the texts of entities, not their places.

For each text and type, the set of different surface strings that are called so is compared. F1 of each type is over all texts,
and the score is the mean of the types. Where the authors' script would divide by zero, F1 is 0; a type that no reference has is
left aside. The benchmark has ten, and its files have all of them.

    scorer = evaluate.load("eval/metrics/cluener.py")
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import datasets
import evaluate

Entities = Mapping[str, Collection[str]]  # type -> surface strings, as the keys of a row's "label" in the official files


def score(references: Iterable[Entities], predictions: Iterable[Entities]) -> dict[str, float]:
    """`f1` in %, and that of each type; references and predictions are in the same order."""
    shared, either, types = Counter(), Counter(), set()
    for expected, predicted in zip(references, predictions, strict=True):
        types |= {kind for kind, texts in expected.items() if texts}
        for kind in expected.keys() | predicted.keys():
            right, found = set(expected.get(kind, ())), set(predicted.get(kind, ()))
            shared[kind] += len(right & found)
            either[kind] += len(right) + len(found)
    by_type = {kind: 200 * shared[kind] / either[kind] for kind in sorted(types)}
    return {"f1": sum(by_type.values()) / max(len(types), 1), **{f"f1_{kind}": value for kind, value in by_type.items()}}


def by_type(entities: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """The surface strings of each type, of (type, surface string) pairs."""
    found: dict[str, set[str]] = {}
    for kind, text in entities:
        found.setdefault(kind, set()).add(text)
    return found


class Cluener(evaluate.Metric):
    """Macro F1 over types of sets of surface strings, by the rules of CLUENER2020."""

    def _info(self) -> evaluate.MetricInfo:
        entities = [{"type": datasets.Value("string"), "text": datasets.Value("string")}]
        features = datasets.Features({"predictions": entities, "references": entities})
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", inputs_description="", features=features)

    def _compute(self, predictions: list[list[dict]], references: list[list[dict]]) -> dict[str, float]:
        return score(
            *([by_type((row["type"], row["text"]) for row in rows) for rows in part] for part in (references, predictions))
        )
