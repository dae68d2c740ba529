"""Corpus -> the same corpus with its text normalised and bad documents dropped, each for a named and counted reason.

train/corpus/normalise.py normalises the text. Then the rules of train/corpus/filters.py drop documents; the first rule that
drops a document is the reason. Kept documents get their `script`: hans (Simplified), hant (Traditional), or mixed. `report.md`,
`report.png` and `report.json` have the documents and characters of each source before and after, the reasons of what was
dropped, and examples. Of many sources, only `report.json` has each.

    python train/clean.py --input_dir runs/mine/sources --output_dir runs/mine/clean
"""

import copy
import re
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

from datatrove.data import Document

from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.figures import as_label
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.common.manifest import SCRATCH
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.corpus.characters import CONVERTERS, convert_script, detect_script
from zh_modernbert.train.corpus.documents import corpus_shards
from zh_modernbert.train.corpus.engine import CorpusReader, CorpusWriter, Filter, ParallelSettings, raised, run_pipeline
from zh_modernbert.train.corpus.filters import FILTERS, Thresholds, drop_reason
from zh_modernbert.train.corpus.normalise import NORMALISERS, normalise
from zh_modernbert.train.corpus.rules import apply_rule

EXAMPLES, EXAMPLE_CHARACTERS = 3, 200
SHOWN = 40  # sources in report.md and report.png; report.json has all


@dataclass(kw_only=True)
class Settings(Thresholds, ParallelSettings):
    input_dir: str = setting(help="corpus folder to read")
    output_dir: str = setting(help="corpus folder to write")
    convert_to: str = setting("none", "convert what is kept to one script", ("none", *CONVERTERS))
    save_rejects: bool = setting(False, "keep dropped documents in rejects/, with their `filter_reason`")


# --- the report: nested counts, and lists of examples ---


def tally(document: Document, before: str, changed: list[str], reason: str | None) -> dict:
    """What one document adds to the report: `[documents, characters]` of its source, its normalisers, its text if dropped."""
    source: dict[str, Any] = {"in": [1, len(before)]}
    examples = {}
    if reason:
        source["dropped"] = {reason: [1, len(before)]}
        text = document.text[:EXAMPLE_CHARACTERS]
        examples[reason] = [{"id": document.id, "source": document.metadata["source"], "text": text}]
    else:
        source["out"] = [1, len(document.text)]
    return {"sources": {document.metadata["source"]: source}, "changed": dict.fromkeys(changed, 1), "examples": examples}


def merge(first, second) -> Any:
    """The sum of two tallies: `first`, with the second added. Only the first `EXAMPLES` of each reason are kept."""
    if isinstance(first, dict):
        for key, value in second.items():
            first[key] = merge(first[key], value) if key in first else copy.deepcopy(value)
        return first
    if isinstance(first, int):
        return first + second
    if isinstance(first[0], int):
        return [a + b for a, b in zip(first, second, strict=True)]
    return (first + second)[:EXAMPLES]


def make_report(tallies: list[dict]) -> dict:
    """The report, from the tallies of all shards in order."""
    total = reduce(merge, tallies, {"sources": {}, "changed": {}, "examples": {}})

    def figures(source: dict) -> dict:
        (documents_in, characters_in), (documents, characters) = source.get("in", (0, 0)), source.get("out", (0, 0))
        dropped = source.get("dropped", {})
        return {
            "documents_in": documents_in,
            "documents": documents,
            "characters_in": characters_in,
            "characters": characters,
            "dropped": {
                reason: {"documents": dropped[reason][0], "characters": dropped[reason][1]}
                for reason in FILTERS
                if reason in dropped
            },
        }

    return {
        **figures(reduce(merge, total["sources"].values(), {})),
        "changed": {name: total["changed"][name] for name in NORMALISERS if name in total["changed"]},
        "per_source": {name: figures(total["sources"][name]) for name in sorted(total["sources"])},
        "examples": {reason: total["examples"][reason] for reason in FILTERS if reason in total["examples"]},
    }


def shown(per_source: dict[str, dict]) -> dict[str, dict]:
    """The figures of the largest `SHOWN` sources, by name, and then of the others together, if there are more."""
    largest = set(sorted(per_source, key=lambda name: per_source[name]["characters_in"], reverse=True)[:SHOWN])
    others = [figures for name, figures in per_source.items() if name not in largest]
    together = {f"{len(others)} other sources": reduce(merge, others, {})} if others else {}
    return {name: figures for name, figures in per_source.items() if name in largest} | together


def plain(text: str) -> str:
    """A name as Markdown shows it: on one line, and without markup."""
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", " ".join(text.split()))


def markdown_report(report: dict) -> str:
    """The report as tables, and the examples."""

    def table(header: str, rows) -> list[str]:
        columns = header.count("|") + 1
        lines = (f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |" for row in rows)
        return [f"| {header} |", f"|{' --- |' + ' ---: |' * (columns - 1)}", *lines, ""]

    def row(name: str, figures: dict) -> list:
        share = f"{100 * figures['characters'] / max(figures['characters_in'], 1):.1f}%"
        return [name, *(figures[key] for key in ("documents_in", "documents", "characters_in", "characters")), share]

    rows = [row(plain(name), figures) for name, figures in shown(report["per_source"]).items()]
    lines = ["# Cleaning", "", "## Sources", ""]
    lines += table("source | documents in | out | characters in | out | kept", [*rows, row("**all**", report)])
    lines += [
        "## Dropped",
        "",
        *table("reason | documents | characters in", ((k, *v.values()) for k, v in report["dropped"].items())),
    ]
    lines += ["## Changed", "", *table("normaliser | documents", report["changed"].items())]
    lines += ["## Examples of what was dropped", ""]
    for reason, examples in report["examples"].items():
        lines += [f"### {reason}", ""]
        for example in examples:
            text = example["text"].replace("```", "'''")
            lines += [f"From {plain(example['source'])}, {plain(example['id'])}:", "", "```text", text, "```", ""]
    return "\n".join(lines)


def plot_report(report: dict, path: Path) -> None:
    """The share of each source's characters that each rule dropped."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    # matplotlib's default font has no Chinese characters.
    figures = shown(report["per_source"])
    names = [as_label(name) if name.isascii() else f"source {number} of report.md" for number, name in enumerate(figures, 1)]
    sources = {"all": report, **dict(zip(names, figures.values(), strict=True))}
    figure = Figure(figsize=(10, 2 + 0.25 * len(sources)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(sources)
    for index, reason in enumerate(report["dropped"]):
        shares = [
            100 * source["dropped"].get(reason, {}).get("characters", 0) / max(source["characters_in"], 1)
            for source in sources.values()
        ]
        axes.barh(list(sources), shares, left=left, label=reason, color=colormaps["tab20"](index % 20))
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("characters dropped, %")
    if report["dropped"]:
        axes.legend()
    figure.savefig(path)


# --- the stage ---


class CleanFilter(Filter):
    """Normalisers and rules as one filter. Task r writes the tally of its shard to `tallies`/0000r.json."""

    name = "clean"

    def __init__(self, settings: Settings, tallies: Path, folder: Path, rejects: CorpusWriter | None = None):
        super().__init__(folder, rejects)
        self.settings = settings
        self.tallies = tallies

    def drop_reason(self, document: Document) -> str | None:
        before = document.text
        document.text, changed = normalise(before)
        reason = drop_reason(document.text, self.settings)
        if not reason:
            document.metadata["script"] = apply_rule(detect_script, document.text)
            if self.settings.convert_to not in ("none", document.metadata["script"]):
                document.metadata["script"] = self.settings.convert_to
                document.text = apply_rule(convert_script, document.text, self.settings.convert_to)
        self.tally = merge(self.tally, tally(document, before, changed, reason))
        return reason

    def run(self, data, rank: int = 0, world_size: int = 1):
        self.tally = {}
        yield from super().run(data, rank, world_size)
        self.tallies.mkdir(parents=True, exist_ok=True)
        write_json(self.tallies / f"{rank:05d}.json", self.tally)


def build(settings: Settings, folder: Path) -> dict:
    tasks, tallies = len(corpus_shards(settings.input_dir)), folder / SCRATCH / "tallies"
    rejects = CorpusWriter(folder / "rejects") if settings.save_rejects else None
    steps = [CorpusReader(settings.input_dir, folder), CleanFilter(settings, tallies, folder, rejects), CorpusWriter(folder)]
    counts = run_pipeline(steps, tasks, settings, folder, "clean")
    report = make_report([read_json(tallies / f"{rank:05d}.json") for rank in range(tasks)])
    if not report["documents_in"]:
        raise InputError(f"{settings.input_dir}: an empty corpus: no documents in it")
    dropped = {reason: figures["documents"] for reason, figures in report["dropped"].items()}
    if not report["documents"]:
        raise InputError(f"{settings.input_dir}: cleaning drops every document: {dropped}")
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(markdown_report(report), encoding="utf-8")
    plot_report(report, folder / "report.png")
    result = {key: report[key] for key in ("documents_in", "documents", "characters_in", "characters")}
    quarantined = counts["quarantined"] + raised(counts).total()
    return result | {"quarantined": quarantined, "raised": raised(counts), "dropped": dropped}


def main(settings: Settings) -> dict:
    models = [settings.language_model] if settings.language_model else []
    return run_stage(settings, partial(build, settings), models)


if __name__ == "__main__":
    run(main, Settings)
