"""A task of mteb whose pairs come from here and not from the Hub."""

from typing import Any

import mteb  # pyright: ignore[reportMissingImports]  # an extra of its own
from datasets import Dataset, DatasetDict
from mteb.abstasks.sts import AbsTaskSTS  # pyright: ignore[reportMissingImports]
from mteb.abstasks.task_metadata import TaskMetadata  # pyright: ignore[reportMissingImports]

from zh_modernbert.eval.tasks.rows import Row


def pair_task(name: str, split: str, rows: list[Row]) -> AbsTaskSTS:
    """A task of similarity with these pairs, for `mteb.evaluate`."""
    texts = {"sentence1": "text", "sentence2": "text_pair"}
    columns: dict[str, list] = {column: [row.values[ours] for row in rows] for column, ours in texts.items()}
    columns["score"] = [float(row.values["label"]) for row in rows]

    class Pairs(AbsTaskSTS):
        min_score, max_score = min(columns["score"]), max(columns["score"])
        metadata = TaskMetadata(
            name=name,
            description=f"{name} from local files",
            dataset={"path": "local", "revision": "local"},
            type="STS",
            eval_splits=[split],
            eval_langs=["cmn-Hans"],
            main_score="cosine_spearman",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset: Any = DatasetDict({split: Dataset.from_dict(columns)})
            self.data_loaded = True

    return Pairs()


def evaluate_pairs(model, name: str, split: str, rows: list[Row], batch_size: int) -> dict[str, float]:
    """`pearson` and `spearman` of the cosines, by mteb."""
    found = mteb.evaluate(
        *(model, pair_task(name, split, rows)),
        cache=None,
        encode_kwargs={"batch_size": batch_size},
        show_progress_bar=False,
        co2_tracker=False,
    )
    (scores,) = found.task_results[0].scores[split]
    return {metric: float(scores[f"cosine_{metric}"]) for metric in ("pearson", "spearman")}
