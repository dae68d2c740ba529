"""How fast the corpus stages are beside the same work in datatrove and datasets, and how their memory grows.

Stages and peers run over the same documents, one after the other, each in a new process, which is timed from its first document
to its last file. The peers:

- of `clean`, datatrove's quality filters: Gopher's repetition and quality rules, and FineWeb's quality rules;
- of `dedup`, datatrove's MinHash over word 5-grams;
- of `encode`, `datasets.map` of the tokenizer.

datatrove's run twice, with its own Chinese words (spaCy with jieba) and with rjieba's. Needs `pip install '.[benchmark]'`.

    python eval/corpus_throughput.py --input_dir runs/mine/sources --tokenizer_dir runs/mine/tokenizer
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import rjieba
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer
from matplotlib.figure import Figure

from zh_modernbert.train import clean, dedup, encode, pack
from zh_modernbert.train.common.cli import BaseSettings, run, setting
from zh_modernbert.train.common.files import write_json
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus
from zh_modernbert.train.tokenizer.loading import load_tokenizer

STOP_CHARACTERS = tuple("。！？；：…」』”’）》】")
STOP_WORDS = ["的", "了", "是", "在", "和", "不", "有", "我", "他", "這", "这"]


@dataclass
class Settings(BaseSettings):
    input_dir: str = setting(help="corpus folder, as train/sources.py writes it")
    tokenizer_dir: str = setting(help="tokenizer folder")
    max_documents: int = setting(5000, "take so many of its documents, spread over all of it", least=1)
    sizes: list[int] = setting([1, 2, 4], "memory is measured with the documents so many times over", least=1)
    results_dir: str = setting("results", "where corpus_throughput.json and .png go")


# --- peers ---


class RjiebaWords(WordTokenizer):
    """rjieba, the fastest segmenter of Chinese, behind datatrove's interface to words."""

    def word_tokenize(self, text: str) -> list[str]:
        return [word for word in rjieba.cut(text) if word.strip()]

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no peer asks for sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("no peer asks for sentences")


def words_of(name: str) -> Any:
    """What datatrove takes as a language, whatever it says: a `WordTokenizer`."""
    return RjiebaWords() if name == "rjieba" else load_word_tokenizer("cmn_Hani")


def execute(steps: list, tasks: int, logs: Path) -> None:
    LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(logs)).run()


def datatrove_filters(words: str, corpus: Path, folder: Path) -> None:
    """The quality filters of datatrove, with Chinese stop words, stop characters and word lengths."""
    language = words_of(words)
    steps = [
        JsonlReader(str(corpus), glob_pattern="*.jsonl.zst"),
        GopherRepetitionFilter(language=language),
        GopherQualityFilter(min_avg_word_length=1, max_avg_word_length=10, stop_words=STOP_WORDS, language=language),
        FineWebQualityFilter(stop_chars=STOP_CHARACTERS, language=language),
        JsonlWriter(str(folder / "out"), compression="zstd"),
    ]
    execute(steps, len(list(corpus.glob("*.jsonl.zst"))), folder / "logs")


def datatrove_dedup(words: str, corpus: Path, folder: Path) -> None:
    """The MinHash of datatrove with its own settings."""
    # datatrove's default hash, xxhash, fails with the newest xxhash package. SHA-1 was the default before.
    tasks, config = len(list(corpus.glob("*.jsonl.zst"))), MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    reader = JsonlReader(str(corpus), glob_pattern="*.jsonl.zst")
    signatures, pairs, removals = (str(folder / name) for name in ("signatures", "pairs", "removals"))
    writer = JsonlWriter(str(folder / "out"), compression="zstd")
    stages = (
        ([reader, MinhashDedupSignature(signatures, config, language=words_of(words))], tasks),
        ([MinhashDedupBuckets(signatures, pairs, config=config)], config.num_buckets),
        ([MinhashDedupCluster(pairs, removals, config=config)], 1),
        ([reader, MinhashDedupFilter(removals), writer], tasks),
    )
    for number, (steps, tasks) in enumerate(stages):
        execute(steps, tasks, folder / f"logs_{number}")


def datasets_map(tokenizer_dir: str, corpus: Path, folder: Path) -> None:
    """The token ids alone, as a user of the tokenizer would compute them; no word starts."""
    import datasets

    tokenizer = load_tokenizer(tokenizer_dir)
    datasets.disable_progress_bars()
    shards = sorted(map(str, corpus.glob("*.jsonl.zst")))
    texts = datasets.load_dataset("json", data_files=shards, split="train", cache_dir=str(folder / "cache"))
    encoded = texts.map(
        lambda batch: {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        remove_columns=texts.column_names,
    )
    encoded.save_to_disk(str(folder / "out"))


# --- stages ---


def stage(name: str, inputs: dict, corpus: Path, folder: Path) -> dict:
    module = {"clean": clean, "dedup": dedup, "encode": encode, "pack": pack}[name]
    return module.main(module.Settings(output_dir=str(folder / "out"), **{"input_dir": str(corpus), **inputs}))


def in_child(connection, function: Callable) -> None:
    with open(os.devnull, "w") as silence:  # of datatrove's logs
        os.dup2(silence.fileno(), sys.stderr.fileno())
    started = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - started
    # The peak of getrusage would include the memory of the process that started this one.
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    connection.send((result, seconds, int(peak) / 1024))


def measure(function: Callable) -> tuple[Any, float, float]:
    """Calls `function` in a new process. Returns its result, its seconds, and the peak memory of the process in MiB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=in_child, args=(sender, function))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError("a measured process failed; see above") from error
    finally:
        process.join()


def draw(memory: dict[str, dict[int, float]], path: Path) -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for name, peaks in memory.items():
        axes.plot([int(size) for size in peaks], list(peaks.values()), marker="o", label=name)
    axes.set(
        xlabel="corpus, times the measured one",
        ylabel="peak memory of one worker, MiB",
        ylim=(0, None),
        title="Memory of the stages",
    )
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(settings: Settings) -> dict:
    step = -(-sum(1 for _ in read_corpus(settings.input_dir)) // settings.max_documents)
    documents = list(islice(read_corpus(settings.input_dir), 0, None, step))
    size = sum(len(document["text"].encode()) for document in documents)
    characters = sum(len(document["text"]) for document in documents)
    results_dir = Path(settings.results_dir)
    results_dir.mkdir(parents=True, exist_ok=True)
    rows, memory = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        corpora = {}
        for times in settings.sizes:
            corpora[times] = scratch / f"corpus_{times}"
            corpora[times].mkdir()
            for copy in range(times):
                write_corpus(corpora[times], documents, f"{copy}-")
        tokenizer = {"tokenizer_dir": settings.tokenizer_dir}
        stages = {
            "clean": partial(stage, "clean", {}),
            "dedup": partial(stage, "dedup", {}),
            "encode": partial(stage, "encode", tokenizer),
            "pack": partial(stage, "pack", {"input_dir": str(scratch / "encode-1" / "out")}),
        }
        peers = {
            "clean": {f"datatrove, {w}": partial(datatrove_filters, w) for w in ("spacy", "rjieba")},
            "dedup": {f"datatrove, {w}": partial(datatrove_dedup, w) for w in ("spacy", "rjieba")},
            "encode": {"datasets.map": partial(datasets_map, settings.tokenizer_dir)},
            "pack": {},
        }
        first = min(corpora)
        for name, function in stages.items():
            rows[name] = {}
            for who, candidate in {"ours": function, **peers[name]}.items():
                folder = scratch / (f"{name}-1" if who == "ours" else f"{name}-{who}")
                result, seconds, peak = measure(partial(candidate, corpora[first], folder))
                mb_per_second = size * first / seconds / 1e6
                rows[name][who] = {
                    "seconds": round(seconds, 2),
                    "mb_per_second": round(mb_per_second, 3),
                    "peak_mib": round(peak),
                }
                if who == "ours":
                    rows[name][who]["result"] = {key: value for key, value in result.items() if isinstance(value, int)}
                    memory[name] = {first: round(peak)}
                print(f"{name:8}{who:20}{seconds:9.1f} s{mb_per_second:9.2f} MB/s{peak:8.0f} MiB", file=sys.stderr)
            if name != "pack":
                for times in sorted(corpora)[1:]:
                    _, _, peak = measure(partial(function, corpora[times], scratch / f"{name}-{times}"))
                    memory[name][times] = round(peak)
    ratio = {
        f"{name}, {who}": round(row["seconds"] / of_name["ours"]["seconds"], 2)
        for name, of_name in rows.items()
        for who, row in of_name.items()
        if who != "ours"
    }
    result = {
        "documents": len(documents),
        "characters": characters,
        "bytes": size,
        "ratio": ratio,
        "stages": rows,
        "peak_mib": memory,
    }
    write_json(results_dir / "corpus_throughput.json", result)
    draw(memory, results_dir / "corpus_throughput.png")
    return result


if __name__ == "__main__":
    run(main, Settings)
