"""Spans of a text with a type: entities, or the words that a text is made of.

Tokens are tagged, spans are of characters. A token has the tag of the first span that it touches. A span that begins or ends
within a token cannot be found; such spans count as missed, and their share is reported. A text that is longer than
`max_length` is tagged in pieces, none of which is dropped.
"""

from collections import defaultdict

import numpy as np
from datasets import Dataset
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from zh_modernbert.eval.finetuning.training import Examples, Metrics
from zh_modernbert.eval.kinds.kind import Kind, identity
from zh_modernbert.eval.kinds.offsets import trimmed
from zh_modernbert.eval.metrics import cluener
from zh_modernbert.eval.tasks.forms import PIECE
from zh_modernbert.eval.tasks.registry import Task
from zh_modernbert.eval.tasks.rows import Row

Span = tuple[int, int]
Entity = tuple[int, int, str, str]  # start, end, type, text
LONGEST = 30  # characters of what the dictionary's baseline finds
IGNORED = -100


# --- tags and spans ---


def tags_of_tokens(spans: list[Span | None], entities: list, length: int) -> list[str | None]:
    """The BIO tag of each token; None for one that stands for no text."""
    owners = [-1] * length
    for number, (start, end, *_) in enumerate(entities):
        owners[start:end] = [number] * (end - start)
    tags, begun = [], set()
    for span in spans:
        if span is None:
            tags.append(None)
            continue
        owner = next((owner for owner in owners[slice(*span)] if owner >= 0), -1)
        tags.append("O" if owner < 0 else f"{'I' if owner in begun else 'B'}-{entities[owner][2]}")
        begun.add(owner)
    return tags


def entities_of_tokens(spans: list[Span], tags: list[str], text: str) -> list[Entity]:
    """The entities of strict IOB2 tags. A token that begins within the one before, a part of a character, only continues it."""
    entities, end = [], 0
    current: tuple[int, int, str] | None = None
    for (start, stop), tag in zip(spans, tags, strict=True):
        prefix, _, kind = tag.partition("-")
        if current and (start < end or (prefix == "I" and kind == current[2])):
            current = (current[0], stop, current[2])
        else:
            entities += [current] if current else []
            current = (start, stop, kind) if prefix == "B" else None
        end = stop
    entities += [current] if current else []
    return [(start, stop, kind, text[start:stop]) for start, stop, kind in entities]


def token_spans(tokenizer, texts: list[str], max_length: int, split_characters: bool) -> tuple[dict, list[int], list[list]]:
    """Features, the text that each is a piece of, and the characters that each token of it stands for.

    Args:
        split_characters: each character is a token of its own, or several: no edge lies within a token.
    """
    encoded = tokenizer(
        [list(text) for text in texts] if split_characters else texts,
        is_split_into_words=split_characters,
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    pieces = list(encoded.pop("overflow_to_sample_mapping"))
    spans = []
    for feature, (piece, offsets) in enumerate(zip(pieces, encoded.pop("offset_mapping"), strict=True)):
        found: list[Span | None] = []
        for word, (start, end) in zip(encoded.word_ids(feature), offsets, strict=True):
            if split_characters:
                start, end = (word or 0, 0 if word is None else word + 1)
            start, end = trimmed(texts[piece], start, end)
            found.append((start, end) if start < end else None)
        spans.append(found)
    return dict(encoded), pieces, spans


# --- scores ---


def f1_of(right: int, predicted: int, true: int) -> float:
    return 200 * right / (predicted + true) if right else 0.0


def score_spans(answers: list[list[Entity]], references: list[list[Entity]]) -> Metrics:
    """Precision, recall and F1 of whole spans with their type, over all texts: what seqeval gives for strict IOB2."""
    pairs = [(set(answer), set(right)) for answer, right in zip(answers, references, strict=True)]
    right, predicted, true = (sum(counts) for counts in zip(*((len(a & r), len(a), len(r)) for a, r in pairs), strict=True))
    return {
        "f1": f1_of(right, predicted, true),
        "precision": 100 * right / predicted if predicted else 0.0,
        "recall": 100 * right / true if true else 0.0,
    }


def score_cluener(answers: list[list[Entity]], references: list[list[Entity]]) -> Metrics:
    """CLUENER's own, of strings wherever they stand."""
    texts = ([cluener.by_type((kind, text) for _, _, kind, text in found) for found in part] for part in (references, answers))
    return {"cluener_f1": cluener.score(*texts)["f1"]}


# --- baseline ---


def dictionary_answers(train: list[Row], scored: list[Row], words: bool) -> list[list[Entity]]:
    """What longest matches with the strings of training find, from left to right; of words, each other character is one."""
    types: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in train:
        for start, end, kind in row.values["entities"]:
            types[row.values["text"][start:end]][kind] += 1
    known = {string: max(kinds, key=kinds.__getitem__) for string, kinds in types.items() if words or len(string) > 1}
    longest = min(max(map(len, known), default=0), LONGEST)
    answers = []
    for row in scored:
        text, place, found = row.values["text"], 0, []
        while place < len(text):
            lengths = range(min(longest, len(text) - place), 0, -1)
            length = next((length for length in lengths if text[place : place + length] in known), 0)
            if length or words:
                string = text[place : place + max(length, 1)]
                found.append((place, place + len(string), known.get(string, PIECE), string))
            place += length or 1
        answers.append(found)
    return answers


# --- the kind ---


def tagging(task: Task, tokenizer, max_length: int, types: list[str], split_characters: bool) -> Kind:
    names = ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
    numbers = {name: number for number, name in enumerate(names)}

    def entities_of(row: Row) -> list[Entity]:
        return [(start, end, kind, row.values["text"][start:end]) for start, end, kind in row.values["entities"]]

    def encode(rows: list[Row]) -> Examples:
        texts = [row.values["text"] for row in rows]
        encoded, pieces, spans = token_spans(tokenizer, texts, max_length, split_characters)
        references = [entities_of(row) for row in rows] if "entities" in rows[0].values else []
        if references:
            labels = []
            for piece, found in zip(pieces, spans, strict=True):
                # What began in the piece before goes on in this one.
                first = next((span[0] for span in found if span), 0)
                going_on = any(start < first < end for start, end, *_ in references[piece])
                tags = tags_of_tokens(found, references[piece], len(texts[piece]))
                if going_on and (begun := next((i for i, tag in enumerate(tags) if tag), None)) is not None:
                    tags[begun] = str(tags[begun]).replace("B-", "I-", 1)
                labels.append([IGNORED if tag is None else numbers.get(tag, IGNORED) for tag in tags])
            encoded["labels"] = labels

        def decode(logits: np.ndarray) -> list[list[Entity]]:
            tokens, tags = [[] for _ in texts], [[] for _ in texts]
            for piece, found, scores in zip(pieces, spans, logits, strict=True):
                for span, number in zip(found, scores[: len(found)].argmax(-1), strict=True):
                    if span:
                        tokens[piece].append(span)
                        tags[piece].append(names[number])
            return [entities_of_tokens(*example) for example in zip(tokens, tags, texts, strict=True)]

        return Examples(Dataset.from_dict(encoded), references, decode)

    def score(answers: list[list[Entity]], references: list[list[Entity]]) -> Metrics:
        metrics = score_spans(answers, references)
        return metrics | score_cluener(answers, references) if task.scorer == "cluener" else metrics

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        """The dictionary's score, and the share of spans whose edges are edges of tokens."""
        words = task.kind == "segmentation"
        references = [entities_of(row) for row in scored]
        found = score(dictionary_answers(train, scored, words), references)
        _, pieces, spans = token_spans(tokenizer, [row.values["text"] for row in scored], max_length, split_characters)
        starts, ends = [set() for _ in scored], [set() for _ in scored]
        for piece, tokens in zip(pieces, spans, strict=True):
            starts[piece] |= {span[0] for span in tokens if span}
            ends[piece] |= {span[1] for span in tokens if span}
        on_edges = [entity[0] in starts[i] and entity[1] in ends[i] for i, right in enumerate(references) for entity in right]
        share = {"spans_on_token_edges": 100 * float(np.mean(on_edges))} if on_edges else {}
        return {f"dictionary_{task.primary_metric}": found[task.primary_metric], **share}

    def entries(answers: list, rows: list[Row]) -> list[dict]:
        lines = []
        for index, (row, entities) in enumerate(zip(rows, answers, strict=True)):
            label: dict[str, dict[str, list]] = {}
            for start, end, kind, text in entities:
                label.setdefault(kind, {}).setdefault(text, []).append([start, end - 1])
            lines.append({"id": identity(row, index), "text": row.values["text"], "label": label})
        return lines

    config = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers}
    collator = DataCollatorForTokenClassification(tokenizer)
    return Kind(AutoModelForTokenClassification, config, encode, collator, score, baseline, entries)
