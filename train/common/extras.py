"""Names the extra of a package that is missing, in one line in place of a traceback. Each script imports this first.

It changes nothing where this project's code is imported by another program.
"""

import sys
from pathlib import Path
from types import TracebackType

TRAIN = Path(__file__).resolve().parents[1]
CORPUS = ("sources", "clean", "dedup", "train_tokenizer", "transfer_tokenizer", "encode", "pack")
# Extras of pyproject.toml. A script that is not here needs the one that is named after its folder.
EXTRAS = {
    **dict.fromkeys(CORPUS, "corpus"),
    "ablate": "corpus,eval",
    "contrastive": "embeddings",
    "corpus_throughput": "benchmark",
    "dedup_recall": "corpus,eval",
    "export": "onnx",
    "quickstart": "quickstart",
    "sts": "embeddings",
}


def extra_of(script: Path) -> str | None:
    """The extra that a script of this project needs; None for any other program."""
    script = script.resolve()
    return EXTRAS.get(script.stem, script.parent.name) if script.parent in (TRAIN, TRAIN.parent / "eval") else None


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of a script."""
    script = Path(sys.argv[0])
    if issubclass(kind, ModuleNotFoundError):
        print(f"error: {script.stem}: {error}; pip install -c constraints.txt -e '.[{extra_of(script)}]'", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if extra_of(Path(sys.argv[0])):
    sys.excepthook = report
