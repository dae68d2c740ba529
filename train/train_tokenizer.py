"""Corpus -> a byte-level BPE tokenizer, learned from words and served without a segmenter.

1. A sample is drawn in which both scripts have their share of the characters, and sources their weight.
2. The most frequent characters become tokens before any word does, so that hardly one falls into bytes.
3. Merges of characters are learned on text that is cut into words (`train/segment.py`), and cross none of the boundaries, for
   there answers and entities start and end.
4. Both are written as merges of bytes. No token holds the end of one character and the start of the next.

`docs/tokenizer.md` has what each step brings.

    python train/train_tokenizer.py --input_dir runs/mine/dedup --output_dir runs/mine/tokenizer --vocab_size 32768
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS, SPLIT_PATTERN, ZhModernBertTokenizer, build_backend
from zh_modernbert.train.characters import HAN
from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.files import read_corpus, read_json, require_folder, sha256
from zh_modernbert.train.held_out import is_held_out
from zh_modernbert.train.segment import split_words
from zh_modernbert.train.stage import run_stage

# Stands in training text wherever no merge may cross.
_BOUNDARY = "\x1f"

Stratum = tuple[str, str | None]  # source, script


@dataclass
class Settings(BaseSettings):
    input_dir: str = setting(help="corpus folder to read")
    output_dir: str = setting(help="tokenizer folder to write")
    vocab_size: int = setting(32768, "entries with special tokens; a multiple of 64", most=1 << 20)
    unused_tokens: int = setting(0, "entries [unused0] and on that no text gives, for special tokens of one's own", least=0)
    sample_fraction: float = setting(1.0, "share of the documents to learn from", most=1)
    hans_share: float | None = setting(
        0.5, "Simplified among the characters of the sample that are of either script; null: as the corpus has it"
    )
    source_weights: dict[str, float] = setting({}, "source: share of it to learn from, before the scripts are balanced")
    held_out: float = setting(0.0, "share of the documents never learned from, see train/held_out.py", least=0)
    character_coverage: float = setting(
        0.9999, "the most frequent characters that make up so much of the sample are tokens", least=0, most=1
    )
    boundary_dropout: float = setting(
        0.0, "share of the word boundaries that merges may cross: 1 is BPE over whole Han runs", least=0, most=1
    )
    min_frequency: int = setting(2, "a merge has to occur so often", least=1, most=1 << 40)
    max_token_length: int = setting(16, "characters in a token, at most", least=1, most=1 << 20)

    def __post_init__(self):
        super().__post_init__()
        if not self.sample_fraction > 0:
            raise InputError(f"sample_fraction is {self.sample_fraction}; it must be above 0 and at most 1")
        if self.hans_share is not None and not 0 < self.hans_share < 1:
            raise InputError(f"hans_share is {self.hans_share}; it must be between 0 and 1, or null")
        if not self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; it must be below 1")
        for source, weight in self.source_weights.items():
            if not 0 <= weight <= 1:
                raise InputError(f"source_weights: {source} is {weight}; it must be from 0 to 1")


# --- the sample -------------------------------------------------------------------------------------------------------


def stratum_of(document: dict) -> Stratum:
    return document["source"], document.get("script")


def sampling_rates(
    characters: dict[Stratum, int], hans_share: float | None, source_weights: dict[str, float]
) -> dict[Stratum, float]:
    """The share of each stratum's `characters` to learn from: all of one script and less of the other, as `hans_share` wants.

    Raises:
        InputError: there is no such source as `source_weights` names.
    """
    sources = {source for source, _ in characters}
    if unknown := source_weights.keys() - sources:
        raise InputError(f"source_weights: no source {min(unknown)!r} in the corpus; it has {', '.join(sorted(sources))}")
    rates = {stratum: source_weights.get(stratum[0], 1.0) for stratum in characters}
    weighed = Counter()
    for stratum, rate in rates.items():
        weighed[stratum[1]] += rate * characters[stratum]
    if hans_share is not None and weighed["hans"] and weighed["hant"]:
        balance = {"hans": hans_share / weighed["hans"], "hant": (1 - hans_share) / weighed["hant"]}
        most = max(balance.values())
        rates = {stratum: rate * balance.get(stratum[1], most) / most for stratum, rate in rates.items()}
    return rates


def stratified_sample(documents: Iterable[dict], rates: dict[Stratum, float]) -> Iterator[dict]:
    """Documents of each stratum in order, so many that it keeps its rate of its characters, to half a document."""
    credit = Counter()
    for document in documents:
        stratum, length = stratum_of(document), len(document["text"])
        credit[stratum] += rates[stratum] * length
        if rates[stratum] and credit[stratum] >= length / 2:
            credit[stratum] -= length
            yield document


# --- learning ---------------------------------------------------------------------------------------------------------


def frequent_characters(counts: Counter, coverage: float) -> list[str]:
    """The characters that make up `coverage` of all, the most frequent first."""
    chosen, covered = [], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= coverage * counts.total():
            break
        chosen.append(character)
        covered += count
    return chosen


def mark_words(text: str, dropout: float = 0.0, generator: random.Random | None = None) -> str:
    """`text` with a mark wherever a word ends inside a Han run, but for a share of `dropout`."""
    pieces = []
    for word in split_words(text):
        inside = pieces and HAN.match(word) and HAN.match(pieces[-1][-1])
        if inside and not (dropout and generator.random() < dropout):
            pieces.append(_BOUNDARY)
        pieces.append(word)
    return "".join(pieces)


def learn_merges(texts: Iterable[str], count: int, min_frequency: int) -> list[list[str]]:
    """Merges of characters from marked texts, the most frequent first, until there are `count` tokens with the characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_BOUNDARY), behavior="removed"),
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=count, min_frequency=min_frequency, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return json.loads(backend.to_str())["model"]["merges"]


def spell(text: str) -> str:
    """`text` as byte-level tokens spell it, one character a byte."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def spell_character(character: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merges of bytes into `character` that `vocab` lacks."""
    spelled = spell(character)
    return [(spelled[:i], spelled[i]) for i in range(1, len(spelled)) if spelled[: i + 1] not in vocab]


def compose(
    first: list[str], characters: list[str], pairs: list[list[str]], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary of `size` entries and its merges: `first`, then `characters`, then what comes of merging `pairs`.

    Characters take half of the room at most, so that a small vocabulary has words too; pairs bring the others that they need.
    """
    vocab, merges = {token: i for i, token in enumerate(first)}, []

    def add(steps: list[tuple[str, str]], most: int) -> bool:
        made = [left + right for left, right in steps if left + right not in vocab]
        fits = len(vocab) + len(made) <= most
        if fits:
            merges.extend(steps)
            vocab.update({token: len(vocab) + i for i, token in enumerate(made)})
        return fits

    for character in characters:
        if not add(spell_character(character, vocab), (len(first) + size) // 2):
            break
    for pair in pairs:
        alone = [part for part in pair if len(part) == 1]
        if all(spell(part) in vocab for part in pair if len(part) > 1):
            steps = [step for character in alone for step in spell_character(character, vocab)]
            add([*dict.fromkeys(steps), tuple(map(spell, pair))], size)
    return vocab, merges


def train(
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    unused_tokens: int = 0,
    character_coverage: float = 0.9999,
    boundary_dropout: float = 0.0,
    min_frequency: int = 2,
    max_token_length: int = 16,
) -> ZhModernBertTokenizer:
    """A tokenizer from texts, which are gone through twice: `texts()` starts anew.

    Raises:
        InputError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    first = [*SPECIAL_TOKENS, *(f"[unused{i}]" for i in range(unused_tokens)), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if vocab_size < len(first):
        raise InputError(f"vocab_size is {vocab_size}: too small for the alphabet of {len(first)} bytes and special tokens")
    if vocab_size % 64:
        raise InputError(f"vocab_size is {vocab_size}; it must be a multiple of 64, such as {-(-vocab_size // 64) * 64}")
    counts = Counter()
    for text in texts():
        counts.update(text)
    generator = random.Random(0)
    marked = (mark_words(text, boundary_dropout, generator) for text in texts())
    pairs = learn_merges(marked, len(counts) + vocab_size, min_frequency)
    pairs = [pair for pair in pairs if len("".join(pair)) <= max_token_length]
    vocab, merges = compose(first, frequent_characters(counts, character_coverage), pairs, vocab_size)
    backend = build_backend()
    backend.model = models.BPE(vocab=vocab, merges=merges, unk_token="[UNK]")
    return ZhModernBertTokenizer.from_backend(backend)


# --- the stage --------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path) -> ZhModernBertTokenizer:
    """The tokenizer in a folder.

    Raises:
        InputError: there is none, or it lacks one of the special tokens.
    """
    folder = require_folder(folder, "tokenizer.json")
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{folder / 'tokenizer.json'}: not a tokenizer: {' '.join(str(error).split())}") from error
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for token in SPECIAL_TOKENS:
        if token not in special:
            raise InputError(f"{folder / 'tokenizer.json'}: {token} is no special token of it")
    return ZhModernBertTokenizer.from_backend(backend)


def fingerprint(folder: str | Path) -> str:
    """A hash of vocabulary and merges, the same for every spelling of the same tokenizer."""
    path = require_folder(folder, "tokenizer.json") / "tokenizer.json"
    model = read_json(path)["model"]
    vocab = sorted(model["vocab"].items(), key=lambda entry: entry[1])
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    return sha256(repr((vocab, merges)).encode())


def build(settings: Settings, folder: Path) -> dict:
    def documents(what: str) -> Iterator[dict]:
        stream = tqdm(read_corpus(settings.input_dir), desc=what, unit=" documents")
        return (document for document in stream if not is_held_out(document["id"], settings.held_out))

    characters = Counter()
    for document in documents("weigh"):
        characters[stratum_of(document)] += len(document["text"])
    rates = sampling_rates(characters, settings.hans_share, settings.source_weights)
    rates = {stratum: settings.sample_fraction * rate for stratum, rate in rates.items()}
    learned = Counter()

    def texts() -> Iterator[str]:
        learned.clear()
        for document in stratified_sample(documents("learn"), rates):
            learned["documents"] += 1
            learned["characters"] += len(document["text"])
            learned[f"characters_{document.get('script')}"] += len(document["text"])
            yield document["text"]

    tokenizer = train(
        texts,
        settings.vocab_size,
        settings.unused_tokens,
        settings.character_coverage,
        settings.boundary_dropout,
        settings.min_frequency,
        settings.max_token_length,
    )
    if not learned:
        raise InputError(f"sample_fraction is {settings.sample_fraction}: no document of {settings.input_dir} is in the sample")
    tokenizer.save_pretrained(folder)
    return {**learned, "vocab_size": len(tokenizer)}


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings))


if __name__ == "__main__":
    run(main, Settings)
