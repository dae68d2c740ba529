"""How many planted duplicates train/dedup.py finds, and how many documents it removes wrongly, by their true Jaccard index.

Each piece of text gets one copy of a given likeness, with another end, other characters in places, or more text at the end.
There are also chains, in which each piece is a copy of the one before. The stage runs on all of them. Then likeness is computed
exactly, as the Jaccard index of the sets of 5-grams. A pair is found if the stage removed one of its documents. A removed
document is a false removal if its likeness to every document that stays is below `false_below`.

    python eval/dedup_recall.py
    python eval/dedup_recall.py --text my_texts/
"""

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import numpy as np

from zh_modernbert.train import dedup
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting, settings_from
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus
from zh_modernbert.train.corpus.ngrams import letters, ngram_hashes
from zh_modernbert.train.corpus.sketches import NGRAM
from zh_modernbert.train.corpus.source import Source, read_source

CHAIN_LINKS, CHAIN_LIKENESS = 5, 0.75


@dataclass
class Settings(BaseSettings):
    text: list[str] = setting([], "text files or folders, as for train/sources.py; random characters where empty")
    likeness: list[float] = setting(
        [0.4, 0.5, 0.55, 0.59, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], "of the pairs", least=0.1, most=0.99
    )
    pairs: int = setting(1000, "pairs of each likeness, and chains", least=1)
    min_length: int = setting(100, "letters of a piece, at least", least=20)
    max_length: int = setting(2000, "letters of a piece, at most", least=20)
    false_below: float = setting(0.6, "what is less alike is no duplicate", least=0, most=1)
    seed: int = setting(0, "of pieces and changes")
    dedup: dict[str, str] = setting({}, "settings of train/dedup.py")


def shingles(text: str) -> set[str]:
    return {text[i : i + NGRAM] for i in range(max(len(text) - NGRAM, 0) + 1)}


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def changed(text: str, foreign: str, likeness: float, generator: random.Random) -> str:
    """A copy of `text` with as much of `foreign` in it, in one of the three ways, as makes it most nearly that alike."""
    places = generator.sample(range(len(text)), len(text))
    way = generator.choice(["end", "scattered", "longer"])

    def copy(amount: int) -> str:
        if way == "end":
            return text[: len(text) - amount] + foreign[:amount]
        if way == "longer":
            return text + foreign[:amount]
        characters = list(text)
        for place in places[:amount]:
            characters[place] = foreign[place]
        return "".join(characters)

    def error(amount: int) -> float:
        return jaccard(shingles(text), shingles(copy(amount))) - likeness

    low, high = 0, len(foreign) if way == "longer" else len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if error(middle) >= 0 else (low, middle)
    return copy(min(low, high, key=lambda amount: abs(error(amount))))


def characters(paths: list[str], generator: random.Random) -> Iterator[str]:
    """The letters and digits of the given text; without paths, endless random Chinese characters."""
    while not paths:
        yield chr(0x4E00 + generator.randrange(3000))
    for path in paths:
        for document in read_source(Source(path)):
            yield from filter(str.isalnum, document["text"].lower())


def plant(settings: Settings) -> list[dict]:
    """Documents in random order. Copies have the id of their `original`, and as `kind` their likeness or "chain"."""
    generator = random.Random(settings.seed)
    source, documents = characters(settings.text, generator), []

    def piece(length: int) -> str:
        text = "".join(islice(source, length))
        if len(text) < length:
            raise InputError("dedup_recall: the text is too short; give more --text, or fewer --pairs")
        return text

    def add(text: str, **more) -> dict:
        documents.append({"id": str(len(documents)), "source": "planted", "text": text, **more})
        return documents[-1]

    def add_original() -> dict:
        ratio = settings.max_length / settings.min_length
        return add(piece(round(settings.min_length * ratio ** generator.random())))

    def add_copy(original: dict, likeness: float, kind: str) -> dict:
        text = original["text"]
        return add(changed(text, piece(round(len(text) / likeness)), likeness, generator), original=original["id"], kind=kind)

    for _ in range(settings.pairs):
        for likeness in settings.likeness:
            add_copy(add_original(), likeness, f"{likeness:g}")
        link = add_original()
        for _ in range(CHAIN_LINKS - 1):
            link = add_copy(link, CHAIN_LIKENESS, "chain")
    generator.shuffle(documents)
    return documents


def best_likeness(documents: list[dict], removed: set[str]) -> dict[str, float]:
    """For each removed document its exact likeness to the most similar document that stays."""
    sets = {document["id"]: np.unique(ngram_hashes(letters(document["text"]), NGRAM)) for document in documents}
    stays = [identity for identity in sets if identity not in removed]
    sizes = np.array([len(sets[identity]) for identity in stays])
    hashes, owners = np.concatenate([sets[identity] for identity in stays]), np.repeat(np.arange(len(stays)), sizes)
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    best = {}
    for identity in removed:
        first, last = (np.searchsorted(hashes, sets[identity], side) for side in ("left", "right"))
        shared = np.bincount(np.concatenate([owners[a:b] for a, b in zip(first, last, strict=True)]), minlength=len(stays))
        best[identity] = float((shared / (sizes + len(sets[identity]) - shared)).max())
    return best


def main(settings: Settings) -> dict:
    documents = plant(settings)
    with tempfile.TemporaryDirectory() as folder:
        corpus, output = Path(folder) / "corpus", Path(folder) / "dedup"
        corpus.mkdir()
        characters = write_corpus(corpus, documents)["characters"]
        stage = settings_from(
            dedup.Settings, {**settings.dedup, "input_dir": str(corpus), "output_dir": str(output)}, "dedup_recall: dedup"
        )
        start = time.perf_counter()
        dedup.main(stage)
        seconds = time.perf_counter() - start
        removed = {document["id"] for document in documents} - {document["id"] for document in read_corpus(output)}
    by_id = {document["id"]: document for document in documents}
    best = best_likeness(documents, removed)
    false = {identity for identity, likeness in best.items() if likeness < settings.false_below}
    result = {}
    for kind in [*(f"{likeness:g}" for likeness in settings.likeness), "chain"]:
        copies = [document for document in documents if document.get("kind") == kind]
        true = [jaccard(shingles(copy["text"]), shingles(by_id[copy["original"]]["text"])) for copy in copies]
        found = sum(bool({copy["id"], copy["original"]} & removed) for copy in copies)
        wrong = sum(bool({copy["id"], copy["original"]} & false) for copy in copies)
        result[kind] = {"jaccard": [min(true), max(true)], "pairs": len(copies), "found": found / len(copies), "falsely": wrong}
    unlike = [d for d in documents if d["id"] not in removed or best[d["id"]] < settings.false_below]
    return {
        "documents": len(documents),
        "characters": characters,
        "removed": len(removed),
        "false_removals": len(false),
        "false_removal_rate": len(false) / len(unlike),
        "by_likeness": result,
        "seconds": seconds,
    }


if __name__ == "__main__":
    run(main, Settings)
