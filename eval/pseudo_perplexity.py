"""Pseudo-perplexity of a masked language model on text (https://arxiv.org/abs/1910.14659), exact or estimated.

Pseudo-perplexity is exp(-mean of log P(token | the rest of its document)) over all tokens. Exact, every token is masked once,
in a copy of its document. Many copies of many documents go through the model at once, sorted by length. Bits per character
come from the same sum, for the characters that tokens hold: WordPiece drops white space. The perplexity of a unigram model on
the same tokens stands beside it: what is possible without context.

Figures compare where the scored characters are the same. `text` is their hash. `max_length` and the rows of the table count a
tokenizer's own tokens. So two tokenizers score the same text only where no document is cut and `max_documents` is 0.

What is masked beside the token that is asked for (`unit`): nothing (token), its whole word (word), or what follows of its word
(word_l2r, https://arxiv.org/abs/2305.10588). Only the last is log P of the whole word, by the chain rule, so that it depends
least on how finely a tokenizer cuts. Words are found by rjieba.

With `mask_share`, a document is passed a few times, each time with that share of its tokens masked. That alone is too high, for
lack of context. So some tokens are also masked alone, and their mean difference corrects the estimate without bias.
`standard_error` is what the masks leave to chance on these documents. `standard_error_over_documents` is for other documents of
the kind, exact or not, and mostly far larger.

    python eval/pseudo_perplexity.py --model runs/quickstart/model --trust_remote_code true \\
        --input runs/quickstart/held_out_hans.jsonl --unigram_input runs/quickstart/dedup
"""

import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, set_seed

from zh_modernbert.eval.finetuning.loading import load_tokenizer, load_with_head, model_hash_of
from zh_modernbert.eval.tasks.results import check_name, check_no_other, make_result, results_folder, row_name, write_result
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.devices import default_dtype
from zh_modernbert.train.common.files import hash_json
from zh_modernbert.train.common.model_folder import check_max_length, load_by_auto_class
from zh_modernbert.train.corpus.held_out import is_held_out, read_held_out
from zh_modernbert.train.corpus.source import Source, read_source

# Upper bounds of the length classes, in tokens, special ones included.
LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 1 << 20)
SPLIT = "all"
AFTER_SPACE = ("Ġ", "▁")  # with which tokens begin that hold the space before them, whatever their offsets say


@dataclass
class Settings(BaseSettings):
    model: str = setting(help="model folder or Hub id")
    trust_remote_code: bool = setting(False, "run the code that the model's folder brings")
    random_init: bool = setting(False, "take random weights of the same architecture: the model before training")
    input: list[str] = setting([], "text files or folders, as for train/sources.py")
    unigram_input: list[str] = setting(
        [], "text that unigrams are counted in, but what is held out; what is scored where empty"
    )
    name: str = setting("pseudo_perplexity", "what the result is called")
    max_length: int = setting(128, "documents are cut to so many tokens, with the special ones", least=3)
    held_out: float = setting(0.0, "score only what this share held out of training; 0 scores all", least=0, most=0.5)
    max_documents: int = setting(0, "score only so many of each script and length, spread evenly; 0 scores all", least=0)
    unit: str = setting("token", "what is masked at once; see above", ("token", "word", "word_l2r"))
    mask_share: float = setting(
        0.0, "share of a document's tokens to mask in a pass; 0 masks one unit: exact", least=0, most=0.5
    )
    exact_units: int = setting(256, "with mask_share, so many units of each script and length are masked alone too", least=2)
    dtype: str = setting("", "of the computation; on a GPU bfloat16 where empty", ("", "float32", "bfloat16"))
    batch_tokens: int = setting(8192, "tokens computed at once", least=1)
    seed: int = setting(0, "of random weights, and of what is masked together", least=0, most=2**32 - 1)
    results_dir: str = setting("results", "where the result file goes")


@dataclass(frozen=True, eq=False)
class Text:
    """A document of T tokens, of which P are scored: all but the special ones.

    Args:
        ids: `(T,)`.
        places: `(P,)`, rising: where the scored tokens stand.
        words: `(P,)`, rising: the number of each scored token's word.
        content: the characters that are scored.
        in_no_token: how many of them no scored token holds, so that no model is asked for them.
    """

    ids: np.ndarray
    places: np.ndarray
    words: np.ndarray
    content: str
    script: str
    in_no_token: int = 0

    @property
    def tokens(self) -> np.ndarray:
        return self.ids[self.places]

    @property
    def cell(self) -> tuple[str, int]:
        """The row of the table that the document belongs to."""
        return self.script, LENGTHS[bisect_left(LENGTHS, len(self.ids))]


# --- what is masked, and what is asked ---


def units_of(words: np.ndarray, unit: str) -> np.ndarray:
    """`(U, 3)`: begin, end, last. Tokens from begin to end are asked for, while those from begin to last are masked."""
    tokens = np.arange(len(words))
    if unit == "token":
        return np.stack([tokens, tokens + 1, tokens + 1], axis=1)
    if unit == "word_l2r":
        return np.stack([tokens, tokens + 1, np.searchsorted(words, words, side="right")], axis=1)
    begins, ends = (np.searchsorted(words, np.unique(words), side=side) for side in ("left", "right"))
    return np.stack([begins, ends, ends], axis=1)


@dataclass(frozen=True, eq=False)
class Copy:
    """A copy of a document, in which units `(U, 3)` are masked and asked for."""

    text: Text
    units: np.ndarray

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where tokens are masked, and where they are asked for, in rising order."""
        masked, asked = np.zeros((2, len(self.text.places)), dtype=bool)
        for begin, end, last in self.units:
            masked[begin:last] = True
            asked[begin:end] = True
        return self.text.places[masked], self.text.places[asked]


def copies_of(text: Text, unit: str, share: float, generator: np.random.Generator) -> Iterator[Copy]:
    """Copies that ask for every token once: one a unit, or 1 / `share` with as many units each, drawn at random."""
    units = units_of(text.words, unit)
    if not share:
        return (Copy(text, units[i : i + 1]) for i in range(len(units)))
    return (Copy(text, part) for part in np.array_split(generator.permutation(units), min(math.ceil(1 / share), len(units))))


# --- the model's answers ---


def asked_logits(model, ids: torch.Tensor, attention_mask: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """`(M, V)`: the logits at the M places of `asked` `(B, T)`, in order; the model computes no others where it can."""
    if getattr(model.config, "sparse_prediction", False):
        return model(input_ids=ids, attention_mask=attention_mask, labels=ids.masked_fill(~asked, -100)).logits
    # Of other models, the last matrix is by far the largest of the head.
    with model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][asked],)):
        return model(input_ids=ids, attention_mask=attention_mask).logits


@torch.inference_mode()
def log_probabilities(model, batch: list[Copy], mask_id: int, pad_id: int, bf16: bool = False) -> list[np.ndarray]:
    """For each copy, log P of the tokens that it asks for, in order."""
    places = [copy.places() for copy in batch]
    shape = len(batch), max(len(copy.text.ids) for copy in batch)
    ids, mask, asked = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, (copy, (masked, wanted)) in enumerate(zip(batch, places, strict=True)):
        ids[row, : len(copy.text.ids)], mask[row, : len(copy.text.ids)] = copy.text.ids, 1
        ids[row, masked] = mask_id
        asked[row, wanted] = True
    targets = np.concatenate([copy.text.ids[wanted] for copy, (_, wanted) in zip(batch, places, strict=True)])
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = asked_logits(model, *(torch.from_numpy(array).to(device) for array in (ids, mask, asked)))
    losses = F.cross_entropy(logits.float(), torch.from_numpy(targets).to(device), reduction="none")
    return np.split(-losses.double().cpu().numpy(), np.cumsum([len(wanted) for _, wanted in places])[:-1])


def batches(copies: Iterator[Copy], batch_tokens: int) -> Iterator[list[Copy]]:
    """Copies whose documents come in order of their length, in lists of at most `batch_tokens` with pads, or one."""
    batch: list[Copy] = []
    for copy in copies:
        if batch and (len(batch) + 1) * len(copy.text.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(copy)
    if batch:
        yield batch


class Scorer:
    """A model that tells the log-probabilities of asked tokens."""

    def __init__(self, model, tokenizer, settings: Settings):
        self.model, self.mask_id, self.pad_id = model, tokenizer.mask_token_id, tokenizer.pad_token_id
        self.batch_tokens, self.unit, self.share = settings.batch_tokens, settings.unit, settings.mask_share
        self.bf16 = (settings.dtype or default_dtype()) == "bfloat16"

    def ask(self, copies: Iterator[Copy]) -> Iterator[tuple[Copy, np.ndarray]]:
        for batch in batches(copies, self.batch_tokens):
            answers = log_probabilities(self.model, batch, self.mask_id, self.pad_id, self.bf16)
            yield from zip(batch, answers, strict=True)

    def score(self, texts: list[Text], seed: int = 0) -> list[np.ndarray]:
        """For each text, log P of its P tokens."""
        generator, order = np.random.default_rng(seed), sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        results = {id(text): np.zeros(len(text.ids)) for text in texts}
        copies = (copy for i in order for copy in copies_of(texts[i], self.unit, self.share, generator))
        with tqdm(total=sum(len(text.places) for text in texts), desc="tokens", unit=" tokens") as progress:
            for copy, answers in self.ask(copies):
                results[id(copy.text)][copy.places()[1]] = answers
                progress.update(len(answers))
        return [results[id(text)][text.places] for text in texts]

    def correction(self, texts: list[Text], estimates: list[np.ndarray], count: int, seed: int = 0) -> tuple[float, float]:
        """What to add to the estimates' mean, and its standard error, from `count` units of all texts masked alone."""
        units = [units_of(text.words, self.unit) for text in texts]
        ends = np.cumsum([len(each) for each in units])
        drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], min(count, ends[-1]), replace=False))
        owners = np.searchsorted(ends, drawn, side="right")
        chosen = [(i, units[i][place - ends[i]]) for i, place in zip(owners, drawn, strict=True)]  # counted from the end
        chosen.sort(key=lambda choice: len(texts[choice[0]].ids))
        exact = self.ask(Copy(texts[i], unit[None]) for i, unit in chosen)
        pairs = list(zip(chosen, exact, strict=True))
        differences = np.array([answers.sum() - estimates[i][begin:end].sum() for (i, (begin, end, _)), (_, answers) in pairs])
        sizes = np.array([len(answers) for _, (_, answers) in pairs])
        mean = differences.sum() / sizes.sum()
        # Of a ratio, by linearisation; nothing is left to chance where all units were drawn.
        spread = ((differences - mean * sizes) ** 2).sum() / max(len(drawn) - 1, 1)
        return float(mean), float(math.sqrt(spread / len(drawn) * (1 - len(drawn) / ends[-1])) / sizes.mean())


# --- texts ---


def error_over_documents(log_probabilities: np.ndarray, sizes: np.ndarray) -> float:
    """The standard error of a perplexity, had other documents been drawn: the jackknife, which leaves out each in turn.

    Args:
        log_probabilities: `(D,)`: the sum over a document's tokens, D > 1.
        sizes: `(D,)`: how many those are.
    """
    without_each = np.exp(-(log_probabilities.sum() - log_probabilities) / (sizes.sum() - sizes))
    return float(np.sqrt((len(sizes) - 1) * without_each.var()))


def unigram_perplexity(tokens: np.ndarray, counts: np.ndarray | None = None) -> float:
    """The perplexity of `tokens` under a unigram model.

    The model has the frequencies of `counts` `(V,)`, with one added for each entry. Without them it has the frequencies of
    `tokens` themselves. Then no unigram model has a lower perplexity, and for short texts it is far too low.
    """
    counts = np.bincount(tokens) if counts is None else counts + 1
    return float(np.exp(-np.log(counts[tokens] / counts.sum()).mean()))


def unigram_counts(tokenizer, texts: Iterable[str]) -> np.ndarray:
    """`(V,)`: how often each token stands in the texts."""
    counts, texts = np.zeros(len(tokenizer), dtype=np.int64), iter(texts)
    while batch := list(islice(texts, 1000)):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            counts += np.bincount(np.array(ids, dtype=np.int64), minlength=len(counts))
    return counts


def word_numbers(text: str, offsets: np.ndarray) -> np.ndarray:
    """`(P,)`: the number of each token's word, for `offsets` `(P, 2)` in characters. A part of a character starts no word."""
    try:
        from zh_modernbert.train.tokenizer.segment import word_boundaries
    except ImportError as error:
        raise InputError(
            f"pseudo_perplexity: a unit of words needs the segmenter: pip install '.[corpus]' ({error})"
        ) from error
    starts = word_boundaries(text)[offsets[:, 0]]
    starts[1:] &= offsets[1:, 0] >= offsets[:-1, 1]
    return np.cumsum(starts)


def count_in_no_token(text: str, tokens: list[str], offsets: np.ndarray) -> int:
    """How many characters no token holds, for `offsets` `(P, 2)` of tokens in characters."""
    held = np.zeros(len(text), dtype=bool)
    for token, (start, end) in zip(tokens, offsets, strict=True):
        after_space = start > 0 and token.startswith(AFTER_SPACE) and text[start - 1].isspace()
        held[start - after_space : end] = True
    return int((~held).sum())


def encode(tokenizer, document: dict, max_length: int, unit: str) -> Text:
    text = document["text"]
    encoded = tokenizer(
        text, truncation=True, max_length=max_length, return_offsets_mapping=True, return_special_tokens_mask=True
    )
    ids, offsets = np.array(encoded["input_ids"]), np.array(encoded["offset_mapping"])
    places = np.flatnonzero(np.array(encoded["special_tokens_mask"]) == 0)
    words = np.arange(len(places)) if unit == "token" else word_numbers(text, offsets[places])
    is_cut = bool(encoded.encodings[0].overflowing)  # where it is not, some tokenizers have no token of its last space
    content = text[: offsets[:, 1].max(initial=0)] if is_cut else text
    tokens = encoded.tokens()
    in_no_token = count_in_no_token(content, [tokens[place] for place in places], offsets[places])
    return Text(ids, places, words, content, document.get("script", ""), in_no_token)


def load(settings: Settings):
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise InputError(f"{settings.model}: the tokenizer must have [MASK] and [PAD]")
    if settings.random_init:
        set_seed(settings.seed)
        model: Any = load_with_head(AutoModelForMaskedLM, settings.model, settings.trust_remote_code, random_init=True)
    else:
        model = load_by_auto_class(
            AutoModelForMaskedLM, settings.model, trust_remote_code=settings.trust_remote_code, dtype=torch.float32
        )
    if model.get_output_embeddings() is None:
        raise InputError(f"{settings.model}: a model of type {model.config.model_type!r} names no layer that gives logits")
    if hasattr(model.config, "sparse_prediction"):  # logits at the asked tokens only
        model.config.sparse_prediction = True
        model.sparse_prediction = True  # stock ModernBERT reads a copy
    check_max_length(model.config, settings.max_length)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return tokenizer, model.eval()


# --- the table ---


def spread(texts: list[Text], count: int) -> list[Text]:
    """`count` of the texts, or all where there are fewer or `count` is 0."""
    count = min(count, len(texts)) or len(texts)
    return [texts[place * len(texts) // count] for place in range(count)]


def hash_texts(texts: Iterable[Text]) -> str:
    """A hash of the scored characters, whatever the order of the documents."""
    return hash_json(sorted(text.content for text in texts))[:16]


@dataclass
class Tally:
    """What is known of D documents.

    Args:
        log_probabilities: `(D,)`: the sum over a document's tokens.
        error: the standard error of the sum over all documents, by the chance of the masks; None where it is exact.
        uncorrected: the sum over all documents before its correction.
    """

    texts: list[Text]
    log_probabilities: np.ndarray
    error: float | None
    uncorrected: float

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate([text.tokens for text in self.texts])

    @property
    def text(self) -> str:
        return hash_texts(self.texts)

    def metrics(self, counts: np.ndarray | None) -> dict:
        tokens, characters = self.tokens, sum(len(text.content) for text in self.texts)
        in_no_token = sum(text.in_no_token for text in self.texts)
        total = float(self.log_probabilities.sum())
        perplexity = math.exp(-total / len(tokens))
        errors = {}
        if self.error is not None:
            errors["standard_error"] = round(perplexity * self.error / len(tokens), 3)
            errors["uncorrected"] = round(math.exp(-self.uncorrected / len(tokens)), 3)
        if len(self.texts) > 1:
            sizes = np.array([len(text.tokens) for text in self.texts])
            errors["standard_error_over_documents"] = round(error_over_documents(self.log_probabilities, sizes), 3)
        return {
            "pseudo_perplexity": round(perplexity, 3),
            **errors,
            "unigram_perplexity": round(unigram_perplexity(tokens, counts), 3),
            "bits_per_character": round(-total / math.log(2) / (characters - in_no_token), 4),
            "tokens": len(tokens),
            "characters": characters,
            "characters_in_no_token": in_no_token,
        }


def tally(scorer: Scorer, texts: list[Text], settings: Settings) -> Tally:
    """The documents of one script and length; of an estimate, corrected."""
    answers = scorer.score(texts, settings.seed)
    sums, sizes = np.array([each.sum() for each in answers]), np.array([len(each) for each in answers])
    shift, error = 0.0, None
    if settings.mask_share:
        shift, error = scorer.correction(texts, answers, settings.exact_units, settings.seed)
        error *= sizes.sum()
    return Tally(texts, sums + shift * sizes, error, float(sums.sum()))


def together(tallies: list[Tally]) -> Tally:
    """All documents of some tallies, whose errors are independent."""
    errors = [each.error for each in tallies if each.error is not None]
    return Tally(
        texts=[text for each in tallies for text in each.texts],
        log_probabilities=np.concatenate([each.log_probabilities for each in tallies]),
        error=math.hypot(*errors) if errors else None,
        uncorrected=sum(each.uncorrected for each in tallies),
    )


def main(settings: Settings) -> dict:
    started = time.perf_counter()
    if not settings.input:
        raise InputError("pseudo_perplexity: no input; give --input FILE ...")
    check_name(settings.name)
    row = row_name(settings.model, settings.random_init)
    said = {"unit": settings.unit, "max_length": settings.max_length}
    check_no_other(settings.results_dir, settings.name, SPLIT, [settings.seed], row, said)
    documents = read_held_out(settings.input, settings.held_out)
    tokenizer, model = load(settings)
    cells: dict[tuple[str, int], list[Text]] = defaultdict(list)
    for document in documents:
        text = encode(tokenizer, document, settings.max_length, settings.unit)
        if len(text.places):
            cells[text.cell].append(text)
    if not cells:
        raise InputError(f"{', '.join(settings.input)}: no text in it")
    cells = {cell: spread(cells[cell], settings.max_documents) for cell in sorted(cells)}
    said["text"] = hash_texts(chain(*cells.values()))
    check_no_other(settings.results_dir, settings.name, SPLIT, [settings.seed], row, said)
    counts = None
    if settings.unigram_input:
        training = (document for path in settings.unigram_input for document in read_source(Source(path=path)))
        known = (document["text"] for document in training if not is_held_out(document["id"], settings.held_out))
        counts = unigram_counts(tokenizer, known)
    results_folder(settings.results_dir)
    scorer = Scorer(model, tokenizer, settings)
    tallies = {cell: tally(scorer, texts, settings) for cell, texts in cells.items()}
    total = together(list(tallies.values()))
    unknown = int((total.tokens == tokenizer.unk_token_id).sum())
    notes = ["random weights"] if settings.random_init else []
    if unknown:
        notes.append(f"{unknown} tokens are {tokenizer.unk_token}: what they stand for is not predicted")
    metrics = total.metrics(counts)
    if dropped := metrics["characters_in_no_token"]:
        notes.append(f"{dropped} characters are in no token: they are not predicted, and no bits a character are for them")
    result = make_result(
        task=settings.name,
        split=SPLIT,
        model=settings.model,
        primary_metric="pseudo_perplexity",
        metrics=metrics,
        num_examples=len(total.texts),
        seed=settings.seed,
        hyperparameters={
            "model_hash": model_hash_of(settings.model, settings.random_init),
            "text": total.text,
            "input": settings.input,
            "held_out": settings.held_out,
            "max_documents": settings.max_documents,
            "max_length": settings.max_length,
            "unit": settings.unit,
            "mask_share": settings.mask_share,
            "exact_units": settings.exact_units,
            "unigram_input": settings.unigram_input,
            "random_init": settings.random_init,
            "dtype": "bfloat16" if scorer.bf16 else "float32",
        },
        notes=notes,
        seconds=time.perf_counter() - started,
    )
    result["cells"] = [
        {"script": script, "max_tokens": length, **each.metrics(counts), "documents": len(each.texts), "text": each.text}
        for (script, length), each in tallies.items()
    ]
    write_result(settings.results_dir, result)
    return result


if __name__ == "__main__":
    run(main, Settings)
