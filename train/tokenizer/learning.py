"""A byte-level BPE learned from words: merges of characters that cross no word boundary, written as merges of bytes."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS, SPLIT_PATTERN, ZhModernBertTokenizer, build_backend
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.characters import HAN
from zh_modernbert.train.tokenizer.segment import split_words
from zh_modernbert.train.tokenizer.spelling import spell

# Marks the places of training text that no merge may cross.
_BOUNDARY = "\x1f"


def frequent_characters(counts: Counter, coverage: float) -> list[str]:
    """The most frequent characters, in order, until they make up the share `coverage` of all that were counted."""
    chosen, covered = [], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= coverage * counts.total():
            break
        chosen.append(character)
        covered += count
    return chosen


def mark_words(text: str, dropout: float = 0.0, generator: random.Random | None = None) -> str:
    """`text` with a mark at each word boundary between two Han characters.

    Args:
        dropout: the share of the boundaries that get no mark, drawn from `generator`.
    """
    pieces = []
    for word in split_words(text):
        inside = pieces and HAN.match(word) and HAN.match(pieces[-1][-1])
        if inside and not (dropout and generator and generator.random() < dropout):
            pieces.append(_BOUNDARY)
        pieces.append(word)
    return "".join(pieces)


def set_apart(words: Counter[str]) -> Iterator[str]:
    """Marked texts of each word as often as `words` says, with a mark after each, so that no merge crosses to the next."""
    at_once = 1000  # bounds the memory that a frequent word takes
    for word, times in words.items():
        for done in range(0, times, at_once):
            yield _BOUNDARY.join([word] * min(at_once, times - done))


def learn_merges(texts: Iterable[str], count: int, min_frequency: int) -> list[list[str]]:
    """Merges of characters from marked texts, in order, until characters and merges are `count` tokens together."""
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


def merges_into(character: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that make `character` from its bytes, without those whose result is in `vocab` already."""
    spelled = spell(character)
    return [(spelled[:i], spelled[i]) for i in range(1, len(spelled)) if spelled[: i + 1] not in vocab]


def compose(
    first: list[str], characters: list[str], pairs: list[list[str]], size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary of at most `size` entries, and its merges.

    The entries are `first`, then `characters`, then the results of merging `pairs`. Characters get at most half of the room
    after `first`, so that a small vocabulary has words too. A pair adds the characters that it needs and the vocabulary lacks.
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
        if not add(merges_into(character, vocab), (len(first) + size) // 2):
            break
    for pair in pairs:
        alone = [part for part in pair if len(part) == 1]
        if all(spell(part) in vocab for part in pair if len(part) > 1):
            steps = [step for character in alone for step in merges_into(character, vocab)]
            left, right = map(spell, pair)
            add([*dict.fromkeys(steps), (left, right)], size)
    return vocab, merges


def train(
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    words: Counter[str] | None = None,
    unused_tokens: int = 0,
    character_coverage: float = 0.9999,
    boundary_dropout: float = 0.0,
    min_frequency: int = 2,
    max_token_length: int = 16,
) -> ZhModernBertTokenizer:
    """A tokenizer learned from texts.

    Args:
        texts: returns an iterator over all texts; called twice.
        words: how often to learn from each of them, beside the texts. Which characters come before words is for the texts alone
            to say: a dictionary has thousands of rare ones, which would take the room of words.

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
    words = words or Counter()
    generator = random.Random(0)
    marked = (mark_words(text, boundary_dropout, generator) for text in texts())
    alphabet = counts.keys() | set("".join(words))
    pairs = learn_merges(chain(marked, set_apart(words)), len(alphabet) + vocab_size, min_frequency)
    pairs = [pair for pair in pairs if len("".join(pair)) <= max_token_length]
    vocab, merges = compose(first, frequent_characters(counts, character_coverage), pairs, vocab_size)
    backend = build_backend()
    backend.model = models.BPE(vocab=vocab, merges=merges, unk_token="[UNK]")
    return ZhModernBertTokenizer.from_backend(backend)
