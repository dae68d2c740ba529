"""Documents from wherever they are -> one corpus folder.

Reads JSONL, Parquet and text files (plain, gzip or zstd) and Hub datasets; writes `.jsonl.zst` shards of documents. Nothing is
changed or dropped here but texts without any character: cleaning is the next stage. A line that cannot be read stops the run
with its file and number, because a source that is broken in one place is worth a look.

    python train/sources.py --input my_texts/ more.jsonl.zst --output_dir runs/mine/sources
    python train/sources.py train/configs/system_a/data.yaml
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.files import read_jsonl, read_lines, write_corpus
from zh_modernbert.train.stage import run_stage

STAGE_FILES = {"settings.json", "manifest.json", "report.json"}  # what the stages put beside a corpus
SCRIPTS = ("hans", "hant", "mixed")
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "txt"}


@dataclass
class Source(BaseSettings):
    """One place that documents come from: a local `path`, or a Hub `dataset`."""

    path: str = setting("", "a file, or a folder searched for .jsonl, .json (lines), .parquet and .txt, plain, .gz or .zst")
    dataset: str = setting("", "a Hub dataset id, streamed")
    config: str | None = setting(None, "configuration of the Hub dataset")
    split: str = setting("train", "split of the Hub dataset")
    name: str = setting("", "what its documents' `source` says; the file's or dataset's name where not given")
    text_field: str = setting("text", "field that holds the text")
    script: str | None = setting(None, "hans or hant, where the source is known to be of one script", (None, "hans", "hant"))
    licence: str = setting("", "kept in settings.json beside the corpus")
    txt_documents: str = setting(
        "blank_line",
        "what ends a document of a .txt file: a blank_line, each line, or the file",
        ("blank_line", "line", "file"),
    )
    max_documents: int = setting(0, "read at most so many; 0 reads all", least=0)


@dataclass
class Settings(BaseSettings):
    output_dir: str = setting(help="corpus folder to write")
    input: list[str | Source] = setting([], "paths, or mappings with the fields of a Source")


def read_txt(path: Path, source: Source) -> Iterator[tuple[int, dict]]:
    """Text files have no fields: a document is what `txt_documents` says, its number that of its first line."""
    start, lines = 1, []
    for number, line in read_lines(path):
        ends = source.txt_documents == "line" or (source.txt_documents == "blank_line" and not line.strip())
        if source.txt_documents == "line":
            lines = [line]
        elif not ends:
            lines.append(line)
        if ends:
            yield (number if source.txt_documents == "line" else start), {source.text_field: "\n".join(lines)}
            start, lines = number + 1, []
    if lines:
        yield start, {source.text_field: "\n".join(lines)}


def read_parquet(path: Path, source: Source) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {error}") from error


def read_hub(source: Source) -> Iterator[tuple[int, dict]]:
    from datasets import load_dataset

    try:
        yield from enumerate(load_dataset(source.dataset, source.config, split=source.split, streaming=True), 1)
    except Exception as error:  # the hub client has many; all mean that this source cannot be read
        raise InputError(f"dataset {source.dataset}: cannot be loaded: {' '.join(str(error).split())}") from error


def name_and_format(path: Path) -> tuple[str, str | None]:
    """The file's name without its known endings, and the format that they tell."""
    packed = path.suffix in (".gz", ".zst")
    plain = path.with_suffix("") if packed else path
    kind = SUFFIXES.get(plain.suffix)
    return (plain.stem, None if packed and kind == "parquet" else kind) if kind else (path.name, None)


def files_of(source: Source) -> list[Path]:
    """The files of a local source, in order of their names.

    Raises:
        InputError: there is none, or its format is not known.
    """
    path = Path(source.path)
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*") if file.is_file() and name_and_format(file)[1] and file.name not in STAGE_FILES
        )
        if not files:
            raise InputError(f"{path}: no .jsonl, .json, .parquet or .txt file in this folder")
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if name_and_format(path)[1] is None:
        raise InputError(
            f"{path}: unknown format; it must end in {', '.join(SUFFIXES)}, all but Parquet also with .gz or .zst behind"
        )
    return [path]


def read_source(source: Source) -> Iterator[dict]:
    """The documents of one source.

    Raises:
        InputError: it cannot be read, or a row has no text in `text_field`.
    """
    if bool(source.path) == bool(source.dataset):
        raise InputError(f"input {source.name or source.path or source.dataset!r}: give either path or dataset")
    readers = {"jsonl": lambda path, _: read_jsonl(path), "parquet": read_parquet, "txt": read_txt}
    if source.dataset:
        parts = [(source.dataset, source.name or source.dataset, read_hub(source))]
    else:
        parts = []
        for path in files_of(source):
            name, kind = name_and_format(path)
            parts.append((path, source.name or name, readers[kind](path, source)))
    count = 0
    for place, name, rows in parts:
        for number, row in rows:
            text = row.get(source.text_field)
            if not isinstance(text, str):
                raise InputError(
                    f"{place}, line {number}: no string field {source.text_field!r}; it has {', '.join(map(str, row))}"
                )
            if not text.strip():
                continue
            identity = row.get("id")
            document = {"id": f"{name}-{number}" if identity is None else str(identity), "source": name, "text": text}
            script = source.script or row.get("script")
            if script in SCRIPTS:
                document["script"] = script
            if row.get("url"):
                document["url"] = row["url"]
            yield document
            count += 1
            if count == source.max_documents:
                return


def build(sources: list[Source], folder: Path) -> dict:
    per_source = Counter()

    def documents():
        for source in sources:
            for document in tqdm(read_source(source), desc=source.name or source.path or source.dataset, unit=" documents"):
                per_source[document["source"]] += 1
                yield document

    counts = write_corpus(folder, documents())
    if not counts["documents"]:
        raise InputError(f"{', '.join(s.path or s.dataset for s in sources)}: an empty corpus: no text in it")
    return {**counts, "per_source": dict(per_source)}


def main(settings: Settings) -> dict:
    sources = [Source(path=source) if isinstance(source, str) else source for source in settings.input]
    if not sources:
        raise InputError("sources: no input; give --input PATH ...")
    settings = replace(settings, input=sources)
    return run_stage(settings, partial(build, sources), [source.path for source in sources if source.path])


if __name__ == "__main__":
    run(main, Settings)
