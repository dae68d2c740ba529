"""Corpus -> a byte-level BPE tokenizer, learned from words and served without a segmenter.

1. A sample is drawn in which both scripts have their share of the characters, and sources their weight. A list of words with
   their counts may come beside it, in both scripts (`train/tokenizer/words.py`).
2. The most frequent characters become tokens before any word does, so that text is hardly ever cut into bytes.
3. Merges of characters are learned on text that is cut into words (`train/tokenizer/segment.py`). No merge crosses a word
   boundary, because answers and entities start and end there.
4. Characters and merges are written as merges of bytes. No token holds the end of one character and the start of the next.

docs/tokenizer.md has figures for each step.

    python train/train_tokenizer.py --input_dir runs/mine/dedup --output_dir runs/mine/tokenizer --vocab_size 32768
    python train/train_tokenizer.py --input_dir runs/mine/dedup --output_dir runs/mine/tokenizer --word_list jieba:dict.txt
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

from tqdm import tqdm

from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.corpus.characters import CONVERTERS
from zh_modernbert.train.corpus.documents import read_corpus
from zh_modernbert.train.corpus.held_out import is_held_out
from zh_modernbert.train.tokenizer.learning import train
from zh_modernbert.train.tokenizer.words import draw_words, find_word_list, read_word_list, words_in_script

Stratum = tuple[str, str | None]  # source, script
LITTLE = 0.5  # of the characters; where less is left when the scripts are balanced, the user is told


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
    held_out: float = setting(0.0, "share of the documents never learned from, see train/corpus/held_out.py", least=0)
    word_list: str = setting("", "words to learn from too: a file of lines `word count`, or PACKAGE:FILE of an installed one")
    word_share: float = setting(0.3, "the words' share of the characters to learn from, in each script", least=0)
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
        if not self.word_share < 1:
            raise InputError(f"word_share is {self.word_share}; it must be below 1")
        for source, weight in self.source_weights.items():
            if not 0 <= weight <= 1:
                raise InputError(f"source_weights: {source} is {weight}; it must be from 0 to 1")


# --- the sample -------------------------------------------------------------------------------------------------------


def stratum_of(document: dict) -> Stratum:
    return document["source"], document.get("script")


def kept_fractions(
    characters: dict[Stratum, int], hans_share: float | None, source_weights: dict[str, float]
) -> dict[Stratum, float]:
    """The fraction of each stratum's `characters` to learn from.

    Sources get their weights first. Then all of one script is kept and less of the other, so that Simplified makes up
    `hans_share` of the characters of both.

    Raises:
        InputError: `source_weights` names a source that is not in the corpus.
    """
    sources = {source for source, _ in characters}
    if unknown := source_weights.keys() - sources:
        raise InputError(f"source_weights: no source {min(unknown)!r} in the corpus; it has {', '.join(sorted(sources))}")
    fractions = {stratum: source_weights.get(stratum[0], 1.0) for stratum in characters}
    weighed = defaultdict(float)
    for stratum, fraction in fractions.items():
        weighed[stratum[1]] += fraction * characters[stratum]
    if hans_share is not None and weighed["hans"] and weighed["hant"]:
        balance: dict[str | None, float] = {"hans": hans_share / weighed["hans"], "hant": (1 - hans_share) / weighed["hant"]}
        most = max(balance.values())
        fractions = {stratum: fraction * balance.get(stratum[1], most) / most for stratum, fraction in fractions.items()}
    return fractions


def warn_of_little(settings: Settings, characters: dict[Stratum, int], fractions: dict[Stratum, float]) -> None:
    """Says so on stderr where little of the corpus is left when its scripts are balanced: it has little of one of them."""
    weighed = sum(settings.source_weights.get(source, 1.0) * count for (source, _), count in characters.items())
    left = sum(fractions[stratum] * count for stratum, count in characters.items())
    if left < LITTLE * weighed:
        hans, hant = (sum(count for (_, own), count in characters.items() if own == script) for script in ("hans", "hant"))
        print(
            f"warning: hans_share is {settings.hans_share}, and {settings.input_dir} has {hans} characters of hans and "
            f"{hant} of hant: {left / weighed:.1%} is left to take sample_fraction of; --hans_share null keeps the scripts as "
            "they are",
            file=sys.stderr,
        )


def stratified_sample(documents: Iterable[dict], fractions: dict[Stratum, float]) -> Iterator[dict]:
    """The documents that are kept, in order: of each stratum its fraction of the characters, to within half a document."""
    credit = defaultdict(float)
    for document in documents:
        stratum, length = stratum_of(document), len(document["text"])
        credit[stratum] += fractions[stratum] * length
        if fractions[stratum] and credit[stratum] >= length / 2:
            credit[stratum] -= length
            yield document


def words_beside(settings: Settings, characters: dict[str | None, float]) -> Counter[str]:
    """How often to learn from each word of the list, beside a sample of so many `characters` in each script.

    Raises:
        InputError: the list cannot be read, or its share of the sample is less than a word.
    """
    words = Counter()
    if settings.word_list and settings.word_share:
        listed = read_word_list(find_word_list(settings.word_list))
        beside = settings.word_share / (1 - settings.word_share)
        for script in CONVERTERS:
            words.update(draw_words(words_in_script(listed, script), int(beside * characters[script])))
        if not words:
            raise InputError(
                f"word_share is {settings.word_share}: no room for a word beside {characters['hans']:.0f} characters of hans "
                f"and {characters['hant']:.0f} of hant"
            )
    return words


def build(settings: Settings, folder: Path) -> dict:
    def documents(what: str) -> Iterator[dict]:
        stream = tqdm(read_corpus(settings.input_dir), desc=what, unit=" documents")
        return (document for document in stream if not is_held_out(document["id"], settings.held_out))

    characters = Counter()
    for document in documents("weigh"):
        characters[stratum_of(document)] += len(document["text"])
    fractions = kept_fractions(characters, settings.hans_share, settings.source_weights)
    warn_of_little(settings, characters, fractions)
    fractions = {stratum: settings.sample_fraction * fraction for stratum, fraction in fractions.items()}
    by_script = defaultdict(float)
    for stratum, fraction in fractions.items():
        by_script[stratum[1]] += fraction * characters[stratum]
    words = words_beside(settings, by_script)
    learned = Counter()

    def texts() -> Iterator[str]:
        learned.clear()
        for document in stratified_sample(documents("learn"), fractions):
            learned["documents"] += 1
            learned["characters"] += len(document["text"])
            learned[f"characters_{document.get('script')}"] += len(document["text"])
            yield document["text"]

    tokenizer = train(
        texts,
        settings.vocab_size,
        words,
        settings.unused_tokens,
        settings.character_coverage,
        settings.boundary_dropout,
        settings.min_frequency,
        settings.max_token_length,
    )
    if not learned:
        raise InputError(f"sample_fraction is {settings.sample_fraction}: no document of {settings.input_dir} is in the sample")
    tokenizer.save_pretrained(folder)
    characters_of_words = sum(len(word) * times for word, times in words.items())
    return {**learned, "characters_of_words": characters_of_words, "vocab_size": len(tokenizer)}


def main(settings: Settings) -> dict:
    inputs = [find_word_list(settings.word_list)] if settings.word_list else []
    return run_stage(settings, partial(build, settings), inputs)


if __name__ == "__main__":
    run(main, Settings)
