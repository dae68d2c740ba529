"""How well a model reads long documents, by their length: windows of 512 tokens beside one pass of 8,192, and their speed.

python eval/long_documents.py --model runs/quickstart/model --trust_remote_code true --task drcd --data_dir DIR
python eval/long_documents.py --model hfl/chinese-macbert-base --task drcd --data_dir DIR --windows 512 --lengths 1024 4096
python eval/long_documents.py --model runs/quickstart/model --trust_remote_code true --task iflytek --data_dir DIR

Of a reading set, each question is asked of documents of all lengths, made of its passage and of others. A model is trained on
such documents, once for each window. A task of classification has the lengths that it has: a text is scored with those of the
next length, and what is beyond the window is cut off. lsht is LongBench's. Retrieval of long documents is in eval/sts.py.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import torch
from transformers import PreTrainedTokenizerBase

from zh_modernbert.eval.finetuning.loading import load_config, load_tokenizer, load_with_head
from zh_modernbert.eval.finetuning.settings import FineTuningSettings
from zh_modernbert.eval.finetuning.training import Examples, Metrics
from zh_modernbert.eval.kinds.classification import classification, in_order_of
from zh_modernbert.eval.kinds.kind import Kind
from zh_modernbert.eval.kinds.reading import leave_out_unanswerable, questions_of, reading
from zh_modernbert.eval.kinds.running import load, run_kind, run_tasks
from zh_modernbert.eval.speed.measuring import synchronize
from zh_modernbert.eval.tasks import lsht
from zh_modernbert.eval.tasks.haystack import Passage, hide_all, passages_of
from zh_modernbert.eval.tasks.loading import Data, cut
from zh_modernbert.eval.tasks.registry import TASKS, Task
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.common.cli import run, setting
from zh_modernbert.train.common.devices import check_environment, default_dtype
from zh_modernbert.train.common.model_folder import check_max_length

LONG = {
    **{name: task for name, task in TASKS.items() if task.kind == "reading"},
    **{name: TASKS[name] for name in ("iflytek", "thucnews", "hotel_reviews")},
    "lsht": lsht.TASK,
}
TIMED = 4  # documents of each length whose time is taken


@dataclass
class Settings(FineTuningSettings):
    task: str = setting("drcd", f"one of {', '.join(LONG)}", choices=tuple(LONG))
    lengths: list[int] = setting([1024, 2048, 4096, 8192], "tokens of a document, with its question", least=64)
    windows: list[int] = setting([512, 8192], "tokens that the model reads at once; each is a run of its own", least=32)
    stride: int = setting(128, "tokens that windows share", least=0)
    n_best: int = setting(20, "starts, and ends for each, that are looked at in a window", least=1)
    max_answer_characters: int = setting(100, "longest answer", least=1)


# --- documents and their lengths ---


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def long_rows(rows: list[Row], passages: list[Passage], lengths: list[int], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Each question on a document of the length at its place in `lengths`, made of `passages`."""
    room = [length - tokenizer.num_special_tokens_to_add(pair=True) for length in lengths]
    hidden = hide_all(questions_of(rows), passages, room, partial(count_tokens, tokenizer))
    return [
        row._replace(values={**found.question.to_values(), "length": length, "passage": [found.start, found.end]})
        for row, found, length in zip(rows, hidden, lengths, strict=True)
    ]


def lengthen(data: Data, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Data:
    """Reading on long documents. In training each question has one of the lengths in turn, in other splits it has all."""
    lengths = sorted(settings.lengths)

    notes = list(data.notes)

    def make(split: str, rows: list[Row]) -> list[Row]:
        passages = passages_of(questions_of(rows), partial(count_tokens, tokenizer))
        rows = cut(rows, settings.max_train_examples if split == "train" else settings.max_eval_examples, split, notes)
        each = [[lengths[place % len(lengths)] for place in range(len(rows))]]
        if split != "train":
            each = [[length] * len(rows) for length in lengths]
        return [row for chosen in each for row in long_rows(rows, passages, chosen, tokenizer)]

    return replace(data, splits={split: make(split, rows) for split, rows in data.splits.items()}, notes=notes)


def measured(data: Data, lengths: list[int], tokenizer: PreTrainedTokenizerBase) -> Data:
    """Classification of texts as long as they are: a row's length is the next one of `lengths`, or the longest."""

    def mark(rows: list[Row]) -> list[Row]:
        counts = count_tokens(tokenizer, [row.values["text"] for row in rows]) if rows else []
        limits = [next((length for length in lengths if count <= length), lengths[-1]) for count in counts]
        return [row._replace(values={**row.values, "length": limit}) for row, limit in zip(rows, limits, strict=True)]

    return replace(data, splits={split: mark(rows) for split, rows in data.splits.items()})


# --- scores by length ---


def by_length(kind: Kind, lengths: list[int]) -> Kind:
    """The kind with its scores for each length beside those of all. A row's length is its `length`."""

    def encode(rows: list[Row]) -> Examples:
        examples = kind.encode(rows)
        marked = list(zip(examples.references, (row.values["length"] for row in rows), strict=True))
        return replace(examples, references=marked)

    def score(answers: list, references: list) -> Metrics:
        scores = kind.score(answers, [reference for reference, _ in references])
        for length in lengths:
            chosen = [place for place, (_, of_row) in enumerate(references) if of_row == length]
            if chosen:
                part = kind.score([answers[place] for place in chosen], [references[place][0] for place in chosen])
                scores |= {f"{name}_{length}": value for name, value in part.items()}
        return scores

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        scores = {}
        for length in lengths:
            if rows := [row for row in scored if row.values["length"] == length]:
                scores |= {f"{name}_{length}": value for name, value in kind.baseline(train, rows).items()}
                scores[f"examples_{length}"] = len(rows)
                scores[f"characters_{length}"] = mean(len(row.values.get("context") or row.values["text"]) for row in rows)
        return scores

    return replace(kind, encode=encode, score=score, baseline=baseline)


def in_right_passage(kind: Kind) -> Kind:
    """The kind of reading with `in_passage`, the % of answers that are in the question's own passage, right or wrong."""

    def encode(rows: list[Row]) -> Examples:
        examples = kind.encode(rows)
        passages = [row.values["passage"] for row in rows]
        texts = [row.values["context"][start:end] for row, (start, end) in zip(rows, passages, strict=True)]
        return replace(examples, references=list(zip(examples.references, passages, strict=True)), groups=texts)

    def score(answers: list, references: list) -> Metrics:
        inside = [
            bool(found) and start <= found[0]["start"] < end
            for found, (_, (start, end)) in zip(answers, references, strict=True)
        ]
        return {**kind.score(answers, [texts for texts, _ in references]), "in_passage": 100 * mean(inside)}

    return replace(kind, encode=encode, score=score)


def with_speed(kind: Kind, lengths: list[int], make_model: Callable[[], torch.nn.Module], dtype: str) -> Kind:
    """The kind with documents a second for each length beside the baseline: by the processor's time, on a GPU by the clock."""

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        model = make_model().eval()
        scores = kind.baseline(train, scored)
        for length in lengths:
            if rows := [row for row in scored if row.values["length"] == length][:TIMED]:
                scores[f"documents_per_second_{length}"] = 1 / mean(seconds(model, kind, row, dtype) for row in rows)
        return scores

    return replace(kind, baseline=baseline)


@torch.inference_mode()
def seconds(model: torch.nn.Module, kind: Kind, row: Row, dtype: str) -> float:
    """What the model takes for all windows of a document, as one batch."""
    features = kind.encode([row]).features
    inputs = features.remove_columns([name for name in features.column_names if name.endswith("positions") or name == "labels"])
    device = next(model.parameters()).device
    batch = kind.collator([inputs[place] for place in range(len(inputs))]).to(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        model(**batch)  # the first call prepares things
        synchronize(device.type)
        started = clock()
        model(**batch)
        synchronize(device.type)
    return clock() - started


# --- runs ---


def load_long(settings: Settings, task: Task, tokenizer: PreTrainedTokenizerBase) -> Data:
    lengths = sorted(settings.lengths)
    if task.kind == "reading":
        # All passages are there to choose from, however few questions are asked.
        whole = replace(settings, max_train_examples=0, max_eval_examples=0)
        return lengthen(leave_out_unanswerable(load(whole, settings.task, task)), settings, tokenizer)
    if settings.task == "lsht":
        limits = settings.max_train_examples, settings.max_eval_examples
        return measured(
            lsht.load_lsht(settings.data_dir, settings.from_hub, settings.skip_bad_rows, *limits), lengths, tokenizer
        )
    return measured(load(settings, settings.task, task), lengths, tokenizer)


def run_window(settings: Settings, task: Task, data: Data, tokenizer: PreTrainedTokenizerBase, window: int) -> list[dict]:
    """The results of one window, one a seed, which are written too."""
    details: dict = {"max_length": window, "lengths": sorted(settings.lengths)}
    if task.kind == "reading":
        reads = {name: getattr(settings, name) for name in ("stride", "n_best", "max_answer_characters")}
        details |= {**reads, "scorer": task.scorer}
        kind = in_right_passage(reading(tokenizer, window, **reads, scorer=task.scorer))
    else:
        config = load_config(settings.model, settings.trust_remote_code)
        kind = classification(task, tokenizer, window, in_order_of(config.label2id, data.labels))

    def make_model() -> torch.nn.Module:
        model = load_with_head(kind.head, settings.model, settings.trust_remote_code, random_init=True, **kind.config)
        return model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]

    kind = with_speed(by_length(kind, details["lengths"]), details["lengths"], make_model, settings.dtype or default_dtype())
    ending = data.name.removeprefix(settings.task)  # of another script, or of files that stand in
    named = replace(data, name=f"{settings.task}_long_{window}{ending}")
    return run_kind(settings, replace(task, predictions={}), named, kind, tokenizer, details)


def main(settings: Settings) -> dict:
    check_environment(mixed_precision="no")
    task, tokenizer = LONG[settings.task], load_tokenizer(settings.model, settings.trust_remote_code)
    check_max_length(load_config(settings.model, settings.trust_remote_code), max(settings.windows))
    data = load_long(settings, task, tokenizer)
    windows = {str(window): task for window in settings.windows}
    return run_tasks(settings, windows, lambda window, task: run_window(settings, task, data, tokenizer, int(window)))


if __name__ == "__main__":
    run(main, Settings)
