"""Classes or a number for a text or a pair of texts."""

from collections import Counter

import numpy as np
from datasets import Dataset
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from zh_modernbert.eval.finetuning.training import Examples, Metrics
from zh_modernbert.eval.kinds.kind import Kind, identity
from zh_modernbert.eval.tasks.registry import Task
from zh_modernbert.eval.tasks.rows import Row

BINS = 20  # of character overlap
MARKS = str.maketrans("", "", "_[]")  # around what is asked of a text of CLUEWSC2020


def in_order_of(model_labels: dict[str, int], labels: list[str]) -> list[str]:
    """The classes in the order of a model that knows just these by name, so that its head may stay; else as they are."""
    return sorted(labels, key=lambda label: model_labels[label]) if set(labels) == set(model_labels) else labels


# --- scores ---


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve in %; 50 where all examples are of one class."""
    return 100 * float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else 50.0


def score_classes(answers: list[list[float]], references: list[int]) -> Metrics:
    """Accuracy, macro F1 and for two classes the area under the ROC curve, of probabilities."""
    probabilities, right = np.array(answers), np.array(references)
    predicted = probabilities.argmax(-1)
    metrics = {
        "accuracy": 100 * float(accuracy_score(right, predicted)),
        "macro_f1": 100 * float(f1_score(right, predicted, average="macro")),
    }
    return metrics | ({"auroc": area(probabilities[:, 1], right)} if probabilities.shape[1] == 2 else {})


def score_numbers(answers: list[float], references: list[float]) -> Metrics:
    """Correlations, from -1 to 1; 0 where all answers are equal."""
    if len(set(answers)) < 2 or len(set(references)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    ranks = rankdata(answers), rankdata(references)
    return {"pearson": float(np.corrcoef(answers, references)[0, 1]), "spearman": float(np.corrcoef(*ranks)[0, 1])}


# --- baselines ---


def overlap(row: Row) -> float:
    """The share of characters that two texts have in common (Dice)."""
    first, second = (Counter(row.values[name]) for name in ("text", "text_pair"))
    return 2 * (first & second).total() / (first.total() + second.total())


def overlap_answers(train: list[Row], scored: list[Row], classes: list[int], count: int) -> list[list[float]]:
    """Probabilities of classes by the overlap of characters alone: their shares in training, in bins of equal size."""
    overlaps, right = np.array([overlap(row) for row in train]), np.array(classes)
    edges = np.quantile(overlaps, np.linspace(0, 1, BINS + 1)[1:-1])
    shares = np.full((BINS, count), 1e-9)
    np.add.at(shares, (np.searchsorted(edges, overlaps), right), 1.0)
    shares /= shares.sum(1, keepdims=True)
    return shares[np.searchsorted(edges, [overlap(row) for row in scored])].tolist()


# --- kinds ---


def encode_texts(tokenizer, max_length: int, rows: list[Row], **columns) -> Dataset:
    names = ["text", *(["text_pair"] if "text_pair" in rows[0].values else [])]
    texts = [[row.values[name] for row in rows] for name in names]
    return Dataset.from_dict({**tokenizer(*texts, truncation=True, max_length=max_length), **columns})


def texts_without_marks(rows: list[Row]) -> list[str]:
    """The first text of each row, by which those that are about one text are known."""
    return [row.values["text"].translate(MARKS) for row in rows]


def classification(task: Task, tokenizer, max_length: int, names: list[str]) -> Kind:
    numbers = {name: number for number, name in enumerate(names)}
    written = {name: value for value, name in reversed(task.labels.items())}

    def class_of(row: Row) -> int:
        return numbers[task.name_of(row.values["label"])]

    def encode(rows: list[Row]) -> Examples:
        references = [class_of(row) for row in rows] if "label" in rows[0].values else []
        features = encode_texts(tokenizer, max_length, rows, **({"labels": references} if references else {}))
        return Examples(
            features,
            references,
            decode=lambda logits: softmax(logits.astype(np.float64), axis=-1).tolist(),
            groups=texts_without_marks(rows),
        )

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        classes, right = [class_of(row) for row in train], [class_of(row) for row in scored]
        metrics = {"majority_class": 100 * max(Counter(right).values()) / len(right)}
        if "text_pair" in scored[0].values:
            found = score_classes(overlap_answers(train, scored, classes, len(names)), right)
            metrics |= {f"overlap_{name}": value for name, value in found.items()}
        return metrics

    def entries(answers: list, rows: list[Row]) -> list[dict]:
        best = [names[int(np.argmax(answer))] for answer in answers]
        return [
            {"id": identity(row, index), "label": written.get(name, name)}
            for index, (row, name) in enumerate(zip(rows, best, strict=True))
        ]

    config = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}
    return Kind(
        AutoModelForSequenceClassification,
        config,
        encode,
        DataCollatorWithPadding(tokenizer),
        score_classes,
        baseline,
        entries,
    )


def regression(tokenizer, max_length: int) -> Kind:
    def encode(rows: list[Row]) -> Examples:
        references = [float(row.values["label"]) for row in rows] if "label" in rows[0].values else []
        features = encode_texts(tokenizer, max_length, rows, **({"labels": references} if references else {}))
        return Examples(
            features, references, decode=lambda logits: logits[:, 0].astype(float).tolist(), groups=texts_without_marks(rows)
        )

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        if "text_pair" not in scored[0].values:
            return {}
        found = score_numbers([overlap(row) for row in scored], [float(row.values["label"]) for row in scored])
        return {f"overlap_{name}": value for name, value in found.items()}

    def entries(answers: list, rows: list[Row]) -> list[dict]:
        return [
            {"id": identity(row, index), "label": answer} for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
        ]

    config = {"num_labels": 1, "problem_type": "regression"}
    collator = DataCollatorWithPadding(tokenizer)
    return Kind(AutoModelForSequenceClassification, config, encode, collator, score_numbers, baseline, entries)
