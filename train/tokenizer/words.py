"""A list of words with their counts, for a tokenizer to learn from beside the corpus.

A corpus of law and technology lacks words that a dictionary with frequencies has. The list is learned from in both scripts,
each word as often as its count has it.
"""

import importlib.util
from collections import Counter
from pathlib import Path

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import require_file
from zh_modernbert.train.corpus.characters import convert_script
from zh_modernbert.train.corpus.lines import read_lines


def find_word_list(name: str) -> Path:
    """The file that `name` stands for: a path, or `PACKAGE:FILE`, which lies in an installed package.

    The package is looked up and not imported.

    Raises:
        InputError: there is no such file, or no such package.
    """
    package, colon, file = name.rpartition(":")
    if not colon or Path(name).is_file():
        return require_file(name)
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"word_list is {name}: there is no file of that name, and no package {package!r} installed")
    return require_file(Path(spec.submodule_search_locations[0]) / file)


def read_word_list(path: Path) -> Counter[str]:
    """The words of a list and their counts.

    Lines are `word count` or, as jieba's are, `word count tag`. Blank ones are skipped. A word that stands twice has the sum.

    Raises:
        InputError: the file cannot be read, a line is not of that form, or there is no word in it.
    """
    counts = Counter()
    for number, line in read_lines(path):
        fields = line.split()
        if not fields:
            continue
        if len(fields) not in (2, 3):
            raise InputError(f"{path}, line {number}: expected `word count` or `word count tag`, got {line[:80]!r}")
        word, count = fields[:2]
        if not (count.isascii() and count.isdigit() and len(count) < 20 and int(count)):
            raise InputError(f"{path}, line {number}: the count {count[:80]!r} is no whole number above 0 and below 1e19")
        counts[word] += int(count)
    if not counts:
        raise InputError(f"{path}: a word list without a word")
    return counts


def words_in_script(counts: Counter[str], script: str) -> Counter[str]:
    """The same words in `script`, hans or hant; those that become one word have their counts added."""
    words = convert_script("\n".join(counts), script).split("\n")
    converted = Counter()
    for word, count in zip(words, counts.values(), strict=True):
        converted[word] += count
    return converted


def draw_words(counts: Counter[str], characters: int) -> Counter[str]:
    """How often to learn from each word, in proportion to its count, so that all together have about so many characters.

    A word takes the whole part of what is due to the list down to it and was not taken yet. Rare words, each due less than one
    time, so get together what is due to them.
    """
    total = counts.total()
    draws = characters * total // sum(len(word) * count for word, count in counts.items())
    drawn, place = Counter(), 0
    for word, count in counts.items():
        times = (place + count) * draws // total - place * draws // total
        place += count
        if times:
            drawn[word] = times
    return drawn
