"""Corpus -> the same corpus without duplicates and near-duplicates, across all sources.

MinHash over character 5-grams of the text without spaces, punctuation and case, 14 bands of 8 rows (datatrove's stages, rensa's
hashing): documents whose 5-grams overlap by 0.8 (Jaccard) are found with probability 0.92, by 0.9 with 0.9998. The first
document of each group stays. A text too short for a 5-gram is compared whole.

    python train/dedup.py --input_dir runs/mine/clean --output_dir runs/mine/dedup
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WhitespaceTokenizer
from rensa import RMinHash

from zh_modernbert.train.cli import InputError, run, setting
from zh_modernbert.train.files import corpus_shards
from zh_modernbert.train.pipeline import CorpusReader, CorpusWriter, ParallelSettings, run_pipeline
from zh_modernbert.train.stage import SCRATCH, run_stage

NGRAM = 5


@dataclass
class Settings(ParallelSettings):
    input_dir: str = setting(help="corpus folder to read")
    output_dir: str = setting(help="corpus folder to write")
    num_buckets: int = setting(14, "bands: more find more duplicates", least=1, most=256)
    hashes_per_bucket: int = setting(8, "rows of a band: more ask for more likeness", least=1, most=64)
    seed: int = setting(1, "of the hash functions", least=0, most=2**32 - 1)


def shingles(text: str) -> list[str]:
    """The character 5-grams of the text's letters and digits in lower case; the whole of a shorter text."""
    text = "".join(character for character in text.lower() if character.isalnum()) or text
    return [text[i : i + NGRAM] for i in range(max(len(text) - NGRAM, 0) + 1)]


class ShingleSignature(MinhashDedupSignature):
    """datatrove's first stage with this project's shingles; rensa hashes them."""

    def __init__(self, output_folder: str, config: MinhashConfig):
        # The tokenizer is never used; the default one would ask for spaCy.
        super().__init__(output_folder, config, language=WhitespaceTokenizer())

    def get_shingles(self, text: str) -> np.ndarray:
        return np.array(shingles(text), dtype=object)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        minhash = RMinHash(num_perm=self.num_hashes, seed=self.config.seed)
        minhash.update(shingles.tolist())
        return np.array(minhash.digest()).reshape(self.config.num_buckets, -1).tolist()


def build(settings: Settings, folder: Path) -> dict:
    shards = corpus_shards(settings.input_dir)
    config = MinhashConfig(
        n_grams=NGRAM,
        num_buckets=settings.num_buckets,
        hashes_per_bucket=settings.hashes_per_bucket,
        seed=settings.seed,
        hash_config=HashConfig(precision=32),
    )
    signatures, pairs, removals = (str(folder / SCRATCH / name) for name in ("signatures", "pairs", "removals"))
    reader = CorpusReader(settings.input_dir, folder)
    stages = (
        ("signatures", [reader, ShingleSignature(signatures, config)], len(shards)),
        ("pairs", [MinhashDedupBuckets(signatures, pairs, config=config)], settings.num_buckets),
        ("clusters", [MinhashDedupCluster(pairs, removals, config=config)], 1),
        ("filter", [reader, MinhashDedupFilter(removals), CorpusWriter(folder)], len(shards)),
    )
    for name, steps, tasks in stages:
        counts = run_pipeline(steps, tasks, settings, folder, f"dedup {name}")
    if not counts["forwarded"]:
        raise InputError(f"{settings.input_dir}: an empty corpus: no documents in it")
    return {
        "documents_in": counts["forwarded"] + counts["dropped"],
        "documents": counts["forwarded"],
        "quarantined": counts["quarantined"],
        "duplicates": counts["dropped"],
    }


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings))


if __name__ == "__main__":
    run(main, Settings)
