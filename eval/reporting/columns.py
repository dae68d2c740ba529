"""Results in columns of what may be compared, and what stands beside them there: baselines and published scores."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

from zh_modernbert.eval.reporting.published import METRICS, PUBLISHED, Published
from zh_modernbert.eval.tasks.results import row_of
from zh_modernbert.eval.tasks.rows import PART
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import read_any_json

FIELDS = {"task", "split", "model", "primary_metric", "metrics", "num_examples", "seed", "hyperparameters"}
CORRELATIONS = {"pearson", "spearman"}
SUBSTITUTE = "_substitute"
# What the name of a result's task says beside the task.
NAME = re.compile(rf"(?P<task>.+?)(_(?P<script>hans|hant))?(?P<substitute>{SUBSTITUTE})?(_by_(?P<scorer>\w+))?")
# Hyperparameters in which seeds of one row may differ, alone and where a grid chose them.
CHOSEN, CHOSEN_BY_GRID = {"epochs"}, {"epochs", "learning_rate", "batch_size"}


@dataclass(frozen=True, order=True)
class Column:
    """What compares. `max_length` and `examples` are 0 where a source does not state them.

    `part`: not all examples were scored. `training`: how many were trained on, where that is not all of them, or 0.
    """

    task: str
    split: str
    script: str
    scorer: str
    max_length: int
    metrics: tuple[str, ...]
    examples: int
    part: bool = False
    training: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is the benchmark's own: official files, all of them."""
        return not (self.part or self.training or self.task.endswith(SUBSTITUTE))

    @property
    def base_task(self) -> str:
        return self.task.removesuffix(SUBSTITUTE)

    def title(self) -> str:
        parts = [self.task, self.split, self.script, self.scorer, "/".join(self.metrics)]
        parts += [f"{number:,} {unit}" for number, unit in ((self.max_length, "tokens"), (self.examples, "examples")) if number]
        parts += ["of more"] if self.part else []
        parts += [f"trained on {self.training:,} of more"] if self.training else []
        return ", ".join(filter(None, parts))

    def admits(self, other: "Column") -> bool:
        """Whether a published score of column `other` may stand in this one: all that is stated agrees, of whole splits."""
        stated = {name: getattr(other, name) or getattr(self, name) for name in ("max_length", "examples")}
        return replace(other, **stated) == self


# --- result files ---


def read_results(folders: Iterable[str]) -> tuple[list[dict], list[str]]:
    """The results in folders, each with its `file`, and the names of other JSON files there.

    Raises:
        InputError: a folder or a file cannot be read, or there is no result at all.
    """
    found, others = [], []
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder")
        for path in sorted(Path(folder).glob("*.json")):
            result = read_any_json(path)
            is_result = isinstance(result, dict) and result.keys() >= FIELDS
            is_result = is_result and bool(result["task"]) and result["primary_metric"] in result["metrics"]
            found += [{**result, "file": str(path)}] if is_result else []
            others += [] if is_result else [str(path)]
    if not found:
        raise InputError(f"{', '.join(folders)}: no result file there")
    return found, others


def detail(result: dict, name: str, default):
    """What a result says of itself, in its own right or among its hyperparameters."""
    return result.get(name) or result["hyperparameters"].get(name) or default


def column_of(result: dict) -> Column:
    named = NAME.fullmatch(result["task"])
    assert named  # any text that is not empty
    metrics = METRICS.get(named["task"], ())
    shown = metrics if metrics and set(metrics) <= result["metrics"].keys() else (result["primary_metric"],)
    scorer, max_length = detail(result, "scorer", named["scorer"] or ""), int(detail(result, "max_length", 0))
    task = named["task"] + (named["substitute"] or "")
    used = {found["split"]: int(found["used"]) for found in PART.finditer(result.get("notes", ""))}
    part, training = result["split"] in used, used.get("train", 0)
    return Column(
        task, result["split"], named["script"] or "", scorer, max_length, shown, result["num_examples"], part, training
    )


# --- cells ---


@dataclass
class Cell:
    """The scores of a row in a column: for each of its metrics, the scores of the seeds; none where they are not known."""

    scores: tuple[list[float], ...]
    mark: str = ""

    def text(self, metrics: tuple[str, ...]) -> str:
        return " / ".join(map(score_text, self.scores, metrics)) + self.mark


def score_text(values: list[float], metric: str) -> str:
    if not values:
        return "–"
    digits = 4 if metric in CORRELATIONS else 2
    spread = f" ± {stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


Cells = dict[str, dict[Column, Cell]]  # row -> column -> cell


def check_seeds(first: dict, other: dict) -> None:
    """Checks that results of two seeds of a row and column are of the same settings.

    Raises:
        InputError: they are not.
    """
    settings = [result["hyperparameters"] for result in (first, other)]
    free = CHOSEN_BY_GRID if all(said.get("grid") for said in settings) else CHOSEN
    for name in sorted((settings[0].keys() | settings[1].keys()) - free):
        one, two = (said.get(name, "not stated") for said in settings)
        if one != two:
            files = f"{first['file']} and {other['file']}"
            raise InputError(f"{files}: seeds of one model and task, but {name} is {one} and {two}; leave one out")


def check_models(results: list[dict]) -> None:
    """Checks that the results of a row, of whatever tasks, are of one model: one name may have had several, one after another.

    Raises:
        InputError: they are not.
    """
    first: dict[str, dict] = {}
    for result in results:
        if found := result["hyperparameters"].get("model_hash"):
            other = first.setdefault(row := row_of(result), result)
            if (expected := other["hyperparameters"]["model_hash"]) != found:
                raise InputError(
                    f"{other['file']} and {result['file']}: results of two models that are called {row}: their model_hash is "
                    f"{expected} and {found}; score one of them again, or leave one out"
                )


def own_cells(results: list[dict]) -> Cells:
    """A row a model, over all seeds.

    Raises:
        InputError: two results are of the same model, column and seed, or of two seeds with other settings.
    """
    grouped: dict[tuple[str, Column], dict[int, dict]] = defaultdict(dict)
    for result in results:
        seeds = grouped[row_of(result), column_of(result)]
        if (other := seeds.setdefault(result["seed"], result)) is not result:
            raise InputError(f"{other['file']} and {result['file']}: two results of one model, task and seed; leave one out")
    cells: Cells = defaultdict(dict)
    for (row, column), seeds in grouped.items():
        first, *others = seeds.values()
        for other in others:
            check_seeds(first, other)
        metrics = [result["metrics"] for result in seeds.values()]
        cells[row][column] = Cell(tuple([each[name] for each in metrics] for name in column.metrics))
        if all("best_on_dev" in each for each in metrics):  # of one metric
            (chosen_by,) = {result["primary_metric"] for result in seeds.values()}
            best = [each["best_on_dev"] for each in metrics]
            cells[f"{row}, best on dev"][column] = Cell(tuple(best if name == chosen_by else [] for name in column.metrics))
    return cells


def baseline_cells(results: list[dict]) -> Cells:
    """What is possible without a model: the majority class and, of pairs, the overlap of characters."""
    cells: Cells = defaultdict(dict)
    for result in results:
        column = column_of(result)
        found = {
            "majority class": [result["metrics"].get("majority_class")] if column.metrics == ("accuracy",) else [None],
            "character overlap": [result["metrics"].get(f"overlap_{name}") for name in column.metrics],
        }
        for row, values in found.items():
            if all(value is not None for value in values):
                cells[row][column] = Cell(tuple([value] for value in values))
    return cells


def published_columns(published: Published) -> dict[Column, Cell]:
    columns = {}
    for task, score in published.scores.items():
        values = score if isinstance(score, tuple) else (score,)
        metrics = published.metrics.get(task) or METRICS.get(task, ("accuracy",))
        told = published.script, published.scorers.get(task, ""), published.lengths.get(task, 0)
        columns[Column(task, published.split, *told, metrics, 0)] = Cell(tuple([value] for value in values))
    return columns


def published_cells(columns: set[Column]) -> Cells:
    """Published scores in the columns that admit them, and else in their own, where there are results of the task at all."""
    tasks, cells = {column.base_task for column in columns}, defaultdict(dict)
    for published in PUBLISHED:
        for column, cell in published_columns(published).items():
            if column.task not in tasks:
                continue
            places = [place for place in columns if place.admits(column)]
            for place in places or [column]:
                unstated = bool(places) and not column.max_length
                cells[published.model][place] = replace(cell, mark="\\*" if unstated else "")
    return cells


def markdown_table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def table(columns: list[Column], cells: Cells) -> list[str]:
    """The lines of a table with a row for each row of `cells`."""
    rows = (
        [row, *(found[column].text(column.metrics) if column in found else "–" for column in columns)]
        for row, found in cells.items()
    )
    return markdown_table(["Model", *(column.title() for column in columns)], rows)


def within(cells: Cells, columns: Iterable[Column]) -> Cells:
    """The rows that have something in `columns`."""
    kept = set(columns)
    return {row: found for row, found in cells.items() if kept & found.keys()}
