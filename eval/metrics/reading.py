"""What the scorers of reading comprehension share: the best over a question's references, the mean over all questions."""

from collections.abc import Callable, Mapping, Sequence

import datasets
import evaluate

Compare = Callable[[str, str], float]  # (prediction, reference) -> from 0 to 1


def mean_of_best(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str], compare: Compare) -> float:
    """% over all questions. A question without a prediction counts 0, and so does one without references.

    Args:
        references: id of a question -> its answers.
        predictions: id of a question -> the text that answers it. Ids of no question are left aside.
    """
    total = sum(
        max((compare(predictions[identity], answer) for answer in answers), default=0.0)
        for identity, answers in references.items()
        if identity in predictions
    )
    return 100 * total / len(references)


class ReadingMetric(evaluate.Metric):
    """A scorer in the form of evaluate's `squad`; a `prediction_text` of None is no prediction.

    Attributes:
        score: (references, predictions) as of `mean_of_best` -> scores.
    """

    score: Callable[[Mapping[str, Sequence[str]], Mapping[str, str]], dict[str, float]]

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        answers = {"text": datasets.Sequence(text), "answer_start": datasets.Sequence(datasets.Value("int32"))}
        features = {"predictions": {"id": text, "prediction_text": text}, "references": {"id": text, "answers": answers}}
        return evaluate.MetricInfo(
            description=str(self.__doc__), citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions: list[dict], references: list[dict]) -> dict[str, float]:
        return self.score(
            {reference["id"]: reference["answers"]["text"] for reference in references},
            {row["id"]: row["prediction_text"] for row in predictions if row["prediction_text"] is not None},
        )
