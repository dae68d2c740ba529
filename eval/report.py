"""Result files -> one Markdown table and one plot a benchmark, beside published scores, and the model-index of a model's card.

A column is a task, its split, its script where that was converted, whose scorer it is, the most tokens of an example, what is
measured, on how many examples, and how many were trained on where that is not all. Nothing else is put into it: dev and test, a
substitute for official files, titles and full texts, two scorers of one task are columns of their own. A published score stands
beside one's own where all that its source states agrees; it is marked where the length is not stated. Of several seeds, which
must be of the same settings, mean and standard deviation are shown.

    python eval/report.py --results runs/a/results runs/b/results --output_dir runs/report
    python eval/report.py --results results --model runs/published  # and model_index.json, for train/publish.py
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

from matplotlib.figure import Figure

from zh_modernbert.eval.reporting.columns import (
    CORRELATIONS,
    Cell,
    Cells,
    Column,
    baseline_cells,
    check_models,
    column_of,
    own_cells,
    published_cells,
    read_results,
    table,
    within,
)
from zh_modernbert.eval.reporting.perplexity import perplexity_sections
from zh_modernbert.eval.reporting.published import PUBLISHED
from zh_modernbert.eval.tasks.registry import TASKS
from zh_modernbert.eval.tasks.results import row_of
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.figures import as_label
from zh_modernbert.train.common.files import write_json

# Benchmark -> its tasks. Other tasks go by the kind that the table of tasks gives them.
BENCHMARKS = {
    "CLUE": "afqmc tnews iflytek cmnli ocnli cluewsc2020 csl c3 chid",
    "Reading comprehension": "cmrc2018 drcd",
    "Pairs": "xnli snli cinlid lcqmc bq atec paws_x bustm qbqtc",
    "Similarity and retrieval": "sts_b t2ranking",
    "Coreference": "coreference",
    "Long documents": "lsht mldr_zh nanomldr_zh",
}
LONG = "_long_"  # in the names of tasks that eval/long_documents.py makes of shorter ones
# Kind of task -> its benchmark, and the Hub's name of it.
KINDS = {
    "classification": ("Texts", "text-classification"),
    "regression": ("Similarity and retrieval", "sentence-similarity"),
    "choice": ("Choice", "multiple-choice"),
    "cloze": ("Choice", "multiple-choice"),
    "tagging": ("Entities and words", "token-classification"),
    "segmentation": ("Entities and words", "token-classification"),
    "reading": ("Reading comprehension", "question-answering"),
    "similarity": ("Similarity and retrieval", "sentence-similarity"),
    "retrieval": ("Similarity and retrieval", "text-ranking"),
    "coreference": ("Coreference", "token-classification"),
}
OTHER = ("Other tasks", "other")
MARKERS = "_ov^sDx+*<>pP"


@dataclass
class Settings(BaseSettings):
    results: list[str] = setting(["results"], "folders with result files")
    output_dir: str = setting("results", "where report.md and its plots go")
    model: str = setting("", "model whose scores go into model_index.json; no such file where empty")


def kind_of(task: str) -> tuple[str, str]:
    """The benchmark that a task belongs to, and what the Hub calls its kind."""
    source, long, _ = task.partition(LONG)
    suffix = source.rpartition("_")[2]  # of what eval/sts.py scores: similarity, retrieval
    benchmark, name = KINDS.get(TASKS[source].kind if source in TASKS else suffix, OTHER)
    named = next((title for title, tasks in BENCHMARKS.items() if source in tasks.split()), benchmark)
    return "Long documents" if long else named, name


def draw(path: Path, columns: list[Column], own: Cells, others: Cells) -> None:
    """The first metric of each column, in %, of the rows that have it.

    One's own are bars, with the seeds' deviation. What stands beside them are marks.
    """
    scales = [100.0 if column.metrics[0] in CORRELATIONS else 1.0 for column in columns]
    figure = Figure(figsize=(max(5.0, 1.6 * len(columns)), 4.5))
    axes = figure.subplots()
    width = 0.8 / max(len(own), 1)

    def places_of(found: dict[Column, Cell]) -> list[int]:
        return [place for place, column in enumerate(columns) if column in found and found[column].scores[0]]

    for number, (row, found) in enumerate(own.items()):
        places = places_of(found)
        seeds = [[scales[place] * score for score in found[columns[place]].scores[0]] for place in places]
        axes.bar(
            [place + (number - (len(own) - 1) / 2) * width for place in places],
            [mean(values) for values in seeds],
            width,
            yerr=[stdev(values) if len(values) > 1 else 0.0 for values in seeds],
            label=as_label(row),
        )
    for number, (row, found) in enumerate(others.items()):
        places = places_of(found)
        values = [scales[place] * found[columns[place]].scores[0][0] for place in places]
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(places, values, linestyle="", marker=marker, color="black", label=as_label(row))
    axes.set_xticks(range(len(columns)), [as_label(column.title().replace(", ", "\n")) for column in columns], fontsize=6)
    axes.set_ylabel("%, correlations x 100")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, bbox_inches="tight")


def notes_of(results: list[dict], columns: list[Column], published: Cells) -> list[str]:
    """What the results in `columns` say of themselves, and where published rows are from."""
    notes = sorted(
        {f"- {row_of(each)}, {each['task']}, {each['split']}: {each['notes']}" for each in results if each.get("notes")}
    )
    sources = {each.model: f"- {each.model}: {each.source}{f'; {each.chosen}' if each.chosen else ''}" for each in PUBLISHED}
    notes += [sources[row] for row in published]
    if any(cell.mark for found in published.values() for column, cell in found.items() if column in columns):
        notes.append("- \\* the source does not state the most tokens of an example")
    return [*notes, ""] if notes else []


def benchmark_sections(results: list[dict], folder: Path) -> list[str]:
    """A table, a plot and notes for each benchmark."""
    own = own_cells(results)
    columns = {column for found in own.values() for column in found}
    baselines, published = baseline_cells(results), published_cells(columns)
    columns |= {column for found in published.values() for column in found}
    benchmarks: dict[str, list[Column]] = defaultdict(list)
    for column in sorted(columns):
        benchmarks[kind_of(column.base_task)[0]].append(column)
    lines = []
    for benchmark, inside in sorted(benchmarks.items()):
        ours, theirs = within(own, inside), within(published, inside)
        beside = {**within(baselines, inside), **theirs}
        name = f"report-{benchmark.lower().replace(' ', '-')}.png"
        draw(folder / name, inside, ours, beside)
        lines += [f"## {benchmark}", "", *table(inside, {**ours, **beside}), "", f"![{benchmark}]({name})", ""]
        lines += notes_of([result for result in results if column_of(result) in inside], inside, theirs)
    return lines


def model_index(results: list[dict]) -> list[dict]:
    """One model's results as entries of a card's model-index, but substitutes and parts: they are not the benchmark."""
    columns: dict[Column, list[dict]] = defaultdict(list)
    for result in results:
        columns[column_of(result)].append(result)
    entries = []
    for column, seeds in sorted(columns.items(), key=lambda item: item[0]):
        if not column.whole:
            continue
        hub = TASKS[column.task].hub if column.task in TASKS else None
        place = {"type": hub.repository, "config": hub.config or "default"} if hub else {"type": column.task}
        over = f", mean of {len(seeds)} seeds" if len(seeds) > 1 else ""
        entries.append(
            {
                "task": {"type": kind_of(column.task)[1]},
                "dataset": {"name": column.title(), "split": column.split, **place},
                "metrics": [
                    {"type": name, "name": f"{name}{over}", "value": round(mean(each["metrics"][name] for each in seeds), 4)}
                    for name in column.metrics
                ],
            }
        )
    return entries


def main(settings: Settings) -> dict:
    results, others = read_results(settings.results)
    own = [result for result in results if settings.model and row_of(result) == settings.model]
    if settings.model and not own:
        known = ", ".join(sorted({row_of(result) for result in results}))
        raise InputError(f"report: no result of the model {settings.model!r}; there are those of {known}")
    check_models(results)
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    perplexities = [result for result in results if result["primary_metric"] == "pseudo_perplexity"]
    scored = [result for result in results if result["primary_metric"] != "pseudo_perplexity"]
    lines = ["# Results", "", *benchmark_sections(scored, folder), *perplexity_sections(perplexities, folder)]
    (folder / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    if own:
        write_json(folder / "model_index.json", {"results": model_index([result for result in own if result in scored])})
    return {"results": len(results), "other_files": others, "report": str(folder / "report.md")}


if __name__ == "__main__":
    run(main, Settings)
