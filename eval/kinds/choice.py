"""One of several texts: answers to a question, or idioms for the gaps of a passage."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax
from transformers import AutoModelForMultipleChoice

from zh_modernbert.eval.finetuning.training import Examples, Metrics
from zh_modernbert.eval.kinds.kind import Kind, identity
from zh_modernbert.eval.tasks.forms import MARK
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.common.cli import InputError


def grouped(encoded: dict, count: int) -> dict[str, list]:
    """Columns of `count` texts a row, of columns of one text a row."""
    return {name: [column[i : i + count] for i in range(0, len(column), count)] for name, column in encoded.items()}


def choice_collator(tokenizer) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """Features of several texts each to tensors of (batch, choices, tokens). Unlike transformers' own, it needs no labels."""

    def collate(features: list[dict]) -> dict[str, torch.Tensor]:
        names = [name for name in features[0] if name != "labels"]
        width = len(features[0]["input_ids"])
        texts = [{name: feature[name][i] for name in names} for feature in features for i in range(width)]
        padded = tokenizer.pad(texts, return_tensors="pt")
        batch = {name: tensor.view(len(features), width, -1) for name, tensor in padded.items()}
        return batch | ({"labels": torch.tensor([f["labels"] for f in features])} if "labels" in features[0] else {})

    return collate


def position_share(positions: list[int]) -> float:
    """The score of always choosing the commonest position, in %."""
    return 100 * max(Counter(positions).values()) / len(positions)


def choice(tokenizer, max_length: int, width: int) -> Kind:
    """A passage against question and choice. Only the passage is cut.

    Args:
        width: the most choices of any question. Where there are fewer, empty ones are added, which no answer may be.
    """
    between = tokenizer.sep_token or "\n"
    special = tokenizer.num_special_tokens_to_add(pair=True)

    def encode(rows: list[Row]) -> Examples:
        choices = [row.values["choices"] + [""] * (width - len(row.values["choices"])) for row in rows]
        asked = [f"{row.values['question']}{between}{text}" for row, texts in zip(rows, choices, strict=True) for text in texts]
        lengths = [len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]]
        if (longest := max(lengths)) + special >= max_length:
            raise InputError(
                f"{rows[lengths.index(longest) // width].where}: question and choice have {longest} tokens, which leaves "
                f"nothing of max_length, {max_length}, to the passage; give --max_length {longest + special + 64} or more"
            )
        passages = [row.values["text"] for row in rows for _ in range(width)]
        encoded = tokenizer(passages, asked, truncation="only_first", max_length=max_length)
        right = [row.values["choices"].index(row.values["label"]) for row in rows] if "label" in rows[0].values else []
        features = Dataset.from_dict({**grouped(encoded, width), **({"labels": right} if right else {})})
        # A choice that stands there twice is right twice.
        references = [
            [number for number, text in enumerate(row.values["choices"]) if text == row.values["label"]]
            for row in (rows if right else ())
        ]

        def decode(logits: np.ndarray) -> list[int]:
            return [int(scores[: len(row.values["choices"])].argmax()) for scores, row in zip(logits, rows, strict=True)]

        return Examples(features, references, decode, groups=[row.values["text"] for row in rows])

    def score(answers: list[int], references: list[list[int]]) -> Metrics:
        return {"accuracy": 100 * float(np.mean([answer in right for answer, right in zip(answers, references, strict=True)]))}

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        return {
            "majority_class": position_share([row.values["choices"].index(row.values["label"]) for row in scored]),
            "chance": 100 * float(np.mean([1 / len(row.values["choices"]) for row in scored])),
        }

    def entries(answers: list, rows: list[Row]) -> list[dict]:
        return [
            {"id": identity(row, index), "label": int(answer)}
            for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
        ]

    return Kind(AutoModelForMultipleChoice, {}, encode, choice_collator(tokenizer), score, baseline, entries)


def assign(scores: np.ndarray) -> list[int]:
    """The candidate of each gap: the best sum of log-probabilities with no candidate twice. `scores` are (gaps, candidates)."""
    if len(scores) > scores.shape[1]:
        return scores.argmax(-1).tolist()
    return linear_sum_assignment(-log_softmax(scores.astype(np.float64), axis=-1))[1].tolist()


def cloze(tokenizer, max_length: int, width: int) -> Kind:
    """Each candidate against the passage with the candidate in one gap and a mask in the others.

    So an idiom may be of any number of tokens, and no entry of the vocabulary has to be set aside for the gap. Of a passage
    that is longer than `max_length`, what is around the gap stays. All gaps of a passage are filled together.
    """
    other = tokenizer.mask_token or "…"

    def around(text: str, start: int, end: int, length: int) -> str:
        """The part of the text of some `length` tokens that has the place from `start` to `end` in its middle."""
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= length:
            return text
        inside = [i for i, (left, right) in enumerate(offsets) if left < end and right > start] or [0]
        spare = max(length - len(inside), 0)
        first = max(min(inside[0] - spare // 2, len(offsets) - length), 0)
        return text[offsets[first][0] : offsets[min(first + length, len(offsets)) - 1][1]]

    def encode(rows: list[Row]) -> Examples:
        firsts, seconds, right, gaps, references = [], [], [], [], []
        for row in rows:
            candidates = row.values["candidates"]
            room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
            longest = max(len(ids) for ids in tokenizer(candidates, add_special_tokens=False)["input_ids"])
            for passage in row.values["passages"]:
                marks = MARK.findall(passage)
                for mark in marks:
                    before, after = (MARK.sub(other, part) for part in passage.split(mark, 1))
                    for text in candidates + [""] * (width - len(candidates)):
                        filled = before + text + after
                        firsts.append(text)
                        seconds.append(around(filled, len(before), len(before) + len(text), room - longest))
                if marks:
                    gaps.append((len(marks), len(candidates)))
                    if "labels" in rows[0].values:
                        references.append([row.values["labels"][mark] for mark in marks])
                        right += references[-1]
        encoded = tokenizer(firsts, seconds, truncation="only_second", max_length=max_length)
        features = Dataset.from_dict({**grouped(encoded, width), **({"labels": right} if right else {})})

        def decode(logits: np.ndarray) -> list[list[int]]:
            answers, start = [], 0
            for count, candidates in gaps:
                answers.append(assign(logits[start : start + count, :candidates]))
                start += count
            return answers

        return Examples(features, references, decode)

    def score(answers: list[list[int]], references: list[list[int]]) -> Metrics:
        pairs = [pair for both in zip(answers, references, strict=True) for pair in zip(*both, strict=True)]
        return {"accuracy": 100 * float(np.mean([answer == right for answer, right in pairs]))}

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        labels = [(label, row) for row in scored for label in row.values["labels"].values()]
        return {
            "majority_class": position_share([label for label, _ in labels]),
            "chance": 100 * float(np.mean([1 / len(row.values["candidates"]) for _, row in labels])),
        }

    def entries(answers: list, rows: list[Row]) -> dict:
        marks = [found for row in rows for passage in row.values["passages"] if (found := MARK.findall(passage))]
        return {mark: answer for both in zip(marks, answers, strict=True) for mark, answer in zip(*both, strict=True)}

    return Kind(AutoModelForMultipleChoice, {}, encode, choice_collator(tokenizer), score, baseline, entries)
