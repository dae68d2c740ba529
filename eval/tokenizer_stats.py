"""How tokenizers cut text: characters a token, what is lost, and whether answers start and end on token edges.

Any fast tokenizer that transformers loads can be measured. Shares are in %. A model that points at tokens cannot give exactly
an answer that starts or ends inside a token, so `answers_on_token_edges` is the upper bound of its exact match.

    python eval/tokenizer_stats.py --tokenizer runs/mine/tokenizer --text held_out.jsonl --answers DRCD_dev.json
    python eval/tokenizer_stats.py --tokenizer runs/a runs/b --text runs/mine/dedup --held_out 0.01 --answers DRCD_dev.json

With one tokenizer the last line is its row, with several `rows`. `RESULTS_DIR/tokenizer_stats.json` has the same. With answers
and several tokenizers, `tokenizer_stats.png` plots `answers_on_token_edges` over characters a token.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoTokenizer

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.kinds.offsets import trimmed
from zh_modernbert.eval.tasks.reading import load_json
from zh_modernbert.modeling_zh_modernbert import ZhModernBertModel
from zh_modernbert.train.common.cli import BaseSettings, InputError, one_line, run, setting
from zh_modernbert.train.common.figures import as_label
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.corpus.held_out import read_held_out

BATCH = 256  # documents of a call of the tokenizer

Span = tuple[int, int]


@dataclass
class Settings(BaseSettings):
    tokenizer: list[str] = setting(help="tokenizer folders or Hub ids")
    text: list[str] = setting(help="text files or folders, as for train/sources.py")
    held_out: float = setting(0.0, "only the documents that train_tokenizer.py leaves out; 0: all", least=0, most=1)
    answers: list[str] = setting([], "files of SQuAD's form, plain or compressed")
    model_config: str = setting("", "a model.json, for the share of its parameters that the embeddings would be")
    trust_remote_code: bool = setting(False, "run the code that a tokenizer's folder brings")
    results_dir: str = setting("results", "where tokenizer_stats.json and .png go")


# --- reading ----------------------------------------------------------------------------------------------------------


def load_backend(name: str, trust_remote_code: bool = False) -> tuple[Tokenizer, int | None]:
    """A tokenizer as `tokenizers.Tokenizer`, to which "[MASK]" is plain text; and the id of its unknown token.

    Raises:
        InputError: the tokenizer cannot be loaded, or is not a fast one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: cannot be loaded: {one_line(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{name}: not a fast tokenizer; offsets are needed")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend, tokenizer.unk_token_id


def read_answers(path: str) -> tuple[list[tuple[str, list[Span]]], int]:
    """(passage, spans of its answers) from a file of SQuAD's form, and how many answers are not where the file says.

    An answer given twice for one question counts once.

    Raises:
        InputError: the file is not of that form.
    """
    try:
        articles = load_json(path)["data"]
        passages, misplaced = [], 0
        for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
            passage, spans = paragraph["context"], []
            for question in paragraph["qas"]:
                for start, answer in sorted({(answer["answer_start"], answer["text"]) for answer in question["answers"]}):
                    if answer and passage[max(start, 0) : start + len(answer)] == answer:
                        spans.append((start, start + len(answer)))
                    else:
                        misplaced += 1
            passages.append((passage, spans))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not of SQuAD's form (data, paragraphs, context, qas, answers): {error!r}") from error
    if not any(spans for _, spans in passages):
        raise InputError(f"{path}: no answer in it that stands in its passage")
    return passages, misplaced


# --- measuring --------------------------------------------------------------------------------------------------------


def split_characters(offsets: list[Span]) -> int:
    """How many characters are in more than one token."""
    return len({place for (_, end), (start, _) in pairwise(offsets) for place in range(start, end)})


def on_token_edges(text: str, offsets: list[Span], spans: list[Span]) -> int:
    """How many of `spans` start where a token starts and end where one ends, white space at the edges of both aside."""
    tokens = [trimmed(text, *offset) for offset in offsets]
    starts, ends = {start for start, end in tokens if start < end}, {end for start, end in tokens if start < end}
    return sum(start in starts and end in ends for start, end in (trimmed(text, *span) for span in spans))


def measure_text(backend: Tokenizer, unknown_id: int | None, documents: list[dict]) -> dict:
    counts = {}
    for first in tqdm(range(0, len(documents), BATCH), desc="text", unit=f" x {BATCH} documents"):
        batch = documents[first : first + BATCH]
        encodings = backend.encode_batch([document["text"] for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            count = counts.setdefault(document.get("script"), Counter())
            count["documents"] += 1
            count["characters"] += len(document["text"])
            count["tokens"] += len(encoding.ids)
            count["unknown"] += 0 if unknown_id is None else encoding.ids.count(unknown_id)
            count["split"] += split_characters(encoding.offsets)
            count["same"] += backend.decode(encoding.ids, skip_special_tokens=False) == document["text"]

    def summary(count: Counter) -> dict:
        return {
            "chars_per_token": round(count["characters"] / count["tokens"], 4),
            "round_trip": round(100 * count["same"] / count["documents"], 4),
            "unknown_rate": round(100 * count["unknown"] / count["tokens"], 4),
            "split_characters": round(100 * count["split"] / count["characters"], 4),
            "documents": count["documents"],
            "characters": count["characters"],
            "tokens": count["tokens"],
        }

    by_script = {script: summary(count) for script, count in sorted(counts.items(), key=str) if script}
    return summary(sum(counts.values(), Counter())) | {"by_script": by_script}


def measure_answers(backend: Tokenizer, passages: list[tuple[str, list[Span]]]) -> tuple[float, float]:
    """The % of the answers that are on token edges, and the characters a token of their passages."""
    found = answers = characters = tokens = 0
    for passage, spans in passages:
        encoding = backend.encode(passage, add_special_tokens=False)
        found += on_token_edges(passage, encoding.offsets, spans)
        answers += len(spans)
        characters += len(passage)
        tokens += len(encoding.ids)
    return round(100 * found / answers, 2), round(characters / tokens, 4)


def embedding_share(model_config: str, vocab_size: int) -> float:
    """The embeddings' % of the parameters of the encoder that `model_config` describes, with this vocabulary."""
    fields: dict[str, Any] = read_json(model_config) | {"vocab_size": vocab_size}
    config = ZhModernBertConfig(**fields)
    with torch.device("meta"):
        model = ZhModernBertModel(config)
    return round(100 * model.get_input_embeddings().weight.numel() / model.num_parameters(), 2)


def draw(rows: list[dict], path: Path) -> None:
    """Answers on token edges over characters a token: a line for each file of answers, a point for each tokenizer."""
    figure = Figure(figsize=(8, 5), layout="tight")
    axes = figure.subplots()
    rows = sorted(rows, key=lambda row: row["chars_per_token"])
    for name in rows[0]["answers_on_token_edges"]:
        points = [(row["chars_per_token"], row["answers_on_token_edges"][name]) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", label=as_label(name))
    for row in rows:
        place = row["chars_per_token"], max(row["answers_on_token_edges"].values())
        axes.annotate(
            as_label(Path(row["tokenizer"]).name), place, xytext=(3, 4), textcoords="offset points", fontsize=8, rotation=30
        )
    axes.set(xlabel="characters a token, held-out text", ylabel="% of answers on token edges")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(settings: Settings) -> dict:
    answers = {Path(path).name.split(".")[0]: read_answers(path) for path in settings.answers}
    if len(answers) < len(settings.answers):
        raise InputError(f"tokenizer_stats: answers holds two files of one name: {', '.join(settings.answers)}")
    documents = read_held_out(settings.text, settings.held_out)
    rows = []
    for name in settings.tokenizer:
        print(name, file=sys.stderr)
        backend, unknown_id = load_backend(name, settings.trust_remote_code)
        row = {"tokenizer": name, "vocab_size": backend.get_vocab_size()} | measure_text(backend, unknown_id, documents)
        measured = {file: measure_answers(backend, passages) for file, (passages, _) in answers.items()}
        row["answers_on_token_edges"] = {file: edges for file, (edges, _) in measured.items()}
        row["passages_chars_per_token"] = {file: length for file, (_, length) in measured.items()}
        row["answers_misplaced"] = {file: misplaced for file, (_, misplaced) in answers.items()}
        if settings.model_config:
            row["embedding_share"] = embedding_share(settings.model_config, row["vocab_size"])
        rows.append(row)
    result = rows[0] if len(rows) == 1 else {"rows": rows}
    results_dir = Path(settings.results_dir)
    results_dir.mkdir(parents=True, exist_ok=True)
    write_json(results_dir / "tokenizer_stats.json", result)
    if answers and len(rows) > 1:
        draw(rows, results_dir / "tokenizer_stats.png")
    return result


if __name__ == "__main__":
    run(main, Settings)
