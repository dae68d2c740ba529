"""Corpus -> a byte-level BPE tokenizer whose merges never cross a Chinese word.

Han runs are cut into words (`train/segment.py`) only for training; what is written needs no segmenter. Answers and entities
then start and end on token edges far more often than with BPE over whole Han runs.

    python train/train_tokenizer.py --input_dir runs/mine/dedup --output_dir runs/mine/tokenizer --vocab_size 32768
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers, trainers
from tqdm import tqdm

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS, ZhModernBertTokenizer, build_backend
from zh_modernbert.train.characters import HAN
from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.files import read_corpus, read_json, require_folder, sha256
from zh_modernbert.train.segment import split_words
from zh_modernbert.train.stage import run_stage

# Marks a word boundary between two Han characters in training text; stands in no clean text.
_BOUNDARY = "\x1f"


@dataclass
class Settings(BaseSettings):
    input_dir: str = setting(help="corpus folder to read")
    output_dir: str = setting(help="tokenizer folder to write")
    vocab_size: int = setting(32768, "entries with special tokens; a multiple of 64", most=1 << 20)
    sample_fraction: float = setting(1.0, "share of the documents to learn from, the same of each source and script")
    min_frequency: int = setting(2, "a merge has to occur so often", least=1, most=1 << 40)


def stratified_sample(documents: Iterator[dict], fraction: float) -> Iterator[dict]:
    """Every 1/fraction-th document of each (source, script), so that each keeps its share exactly."""
    credit = defaultdict(float)
    for document in documents:
        stratum = document["source"], document.get("script")
        credit[stratum] += fraction
        if credit[stratum] >= 1 - 1e-9:
            credit[stratum] -= 1
            yield document


def mark_words(text: str) -> str:
    """`text` with a mark wherever a word ends inside a Han run."""
    pieces = []
    for word in split_words(text):
        if pieces and HAN.match(word) and HAN.match(pieces[-1][-1]):
            pieces.append(_BOUNDARY)
        pieces.append(word)
    return "".join(pieces)


def train(texts: Iterator[str], vocab_size: int, min_frequency: int = 2) -> ZhModernBertTokenizer:
    """A tokenizer from an iterator of texts.

    Raises:
        InputError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise InputError(f"vocab_size is {vocab_size}: too small for the alphabet of {smallest} bytes and special tokens")
    if vocab_size % 64:
        raise InputError(f"vocab_size is {vocab_size}; it must be a multiple of 64, such as {-(-vocab_size // 64) * 64}")
    backend = build_backend()
    serving = backend.pre_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_BOUNDARY), behavior="removed"), serving])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator((mark_words(text.replace(_BOUNDARY, "")) for text in texts), trainer)
    backend.pre_tokenizer = serving
    return ZhModernBertTokenizer.from_backend(backend)


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
    counts = defaultdict(int)

    def texts():
        for document in tqdm(stratified_sample(read_corpus(settings.input_dir), settings.sample_fraction), unit=" documents"):
            counts["documents"] += 1
            counts["characters"] += len(document["text"])
            yield document["text"]

    tokenizer = train(texts(), settings.vocab_size, settings.min_frequency)
    if not counts["documents"]:
        raise InputError(f"sample_fraction is {settings.sample_fraction}: no document of {settings.input_dir} is in the sample")
    tokenizer.save_pretrained(folder)
    return {**counts, "vocab_size": len(tokenizer)}


def main(settings: Settings) -> dict:
    if not 0 < settings.sample_fraction <= 1:
        raise InputError(f"sample_fraction is {settings.sample_fraction}; it must be above 0 and at most 1")
    return run_stage(settings, partial(build, settings))


if __name__ == "__main__":
    run(main, Settings)
