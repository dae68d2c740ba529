"""A grid of settings times seeds: each run is done once and kept, and what is reported was not chosen on what it scores.

A run leaves one file in `<results_dir>/runs/`, named after its task, split, seed and the hash of all that decides its outcome.
A run whose file is there is not repeated, so a killed grid goes on where it was. A model that is to be saved
is always trained.

Each run scores dev after each epoch. A candidate is a setting of the grid and an epoch. The best score of all candidates is
`best_on_dev`, the figure that papers give: it is too high, as it was chosen on the examples that it scores. For the score of a
seed, each half of dev is scored by the candidate that is best on the other half for the other seeds, or where there are
none, for itself. Where the scored split is not dev, all of dev chooses.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

from zh_modernbert.eval.finetuning.training import Hyperparameters, Metrics
from zh_modernbert.eval.tasks.results import results_folder
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import aside, hash_json, read_json, write_json

Candidate = tuple[int, int]  # number of the setting in the grid, number of the epoch, from 0


@dataclass
class Outcome:
    """What one run gives.

    Attributes:
        epochs: scores on dev after each epoch, as `fine_tune` gives them; empty where there is no dev.
        metrics: scores of other splits, by the best epoch's weights: split -> metrics.
        answers: what goes into official files of predictions: split -> entries.
    """

    epochs: list[dict] = field(default_factory=list)
    metrics: dict[str, Metrics] = field(default_factory=dict)
    answers: dict[str, list | dict] = field(default_factory=dict)


def run_all(
    results_dir: str | Path,
    name: str,
    recipe: dict,
    grid: list[Hyperparameters],
    seeds: list[int],
    run_one: Callable[[Hyperparameters, int], Outcome],
    repeat: bool = False,
) -> dict[int, list[Outcome]]:
    """The outcomes of each seed, in the order of the grid.

    Args:
        name: of the task and its split, with which the files begin.
        recipe: all that decides an outcome but setting and seed: hashes of model, data and code, lengths, what is scored.
        repeat: runs that are there are done again, for what else they leave.

    Raises:
        InputError: there can be no files in `results_dir`, or one is not what a run left.
    """
    folder = results_folder(Path(results_dir) / "runs")
    outcomes = {seed: [] for seed in seeds}
    for number, (setting, seed) in enumerate(((setting, seed) for setting in grid for seed in seeds), 1):
        whole = {**recipe, **asdict(setting), "seed": seed}
        path = folder / f"{name}-{seed}-{hash_json(whole)[:16]}.json"
        progress = f"{name}: run {number} of {len(grid) * len(seeds)}"
        if path.is_file() and not repeat:
            print(f"{progress}: done before, {path}", file=sys.stderr)
            kept = read_json(path)
            if kept.get("recipe") != whole or not isinstance(kept.get("outcome"), dict):
                raise InputError(f"{path}: not what a run left; delete it")
            outcomes[seed].append(Outcome(**kept["outcome"]))
            continue
        print(f"{progress}: {asdict(setting)}, seed {seed}", file=sys.stderr)
        outcome = run_one(setting, seed)
        with aside(path) as temporary:
            write_json(temporary, {"recipe": whole, "outcome": asdict(outcome)})
        outcomes[seed].append(outcome)
    return outcomes


def candidates(outcomes: list[Outcome]) -> dict[Candidate, dict]:
    return {(i, j): epoch for i, outcome in enumerate(outcomes) for j, epoch in enumerate(outcome.epochs)}


def best(scores: dict[Candidate, float]) -> Candidate:
    """The candidate of the highest score; of equals, the first."""
    return max(scores, key=lambda candidate: scores[candidate])


@dataclass
class Figure:
    """What is reported of one seed, and the settings and epochs that it comes from: one, or one for each half of dev."""

    metrics: Metrics
    chosen: list[Candidate]


def mean_metrics(parts: list[Metrics]) -> Metrics:
    """The means of the metrics that all parts have: a part may lack the examples that one of them is of."""
    return {name: mean(part[name] for part in parts) for name in parts[0] if all(name in part for part in parts)}


def figures_on_dev(outcomes: dict[int, list[Outcome]], primary_metric: str) -> dict[int, Figure]:
    """The figure of each seed on dev. A half's candidate is chosen on the other half, by other seeds where there are any."""
    tables = {seed: candidates(runs) for seed, runs in outcomes.items()}
    figures = {}
    for seed, table in tables.items():
        choosing = [other for name, other in tables.items() if name != seed] or [table]
        chosen = [
            best({key: mean(other[key]["halves"][half][primary_metric] for other in choosing) for key in table})
            for half in (1, 0)
        ]
        if len(set(chosen)) == 1:
            figures[seed] = Figure(table[chosen[0]]["metrics"], chosen[:1])
        else:
            figures[seed] = Figure(mean_metrics([table[key]["halves"][half] for half, key in enumerate(chosen)]), chosen)
    return figures


def figures_elsewhere(outcomes: dict[int, list[Outcome]], split: str, primary_metric: str) -> dict[int, Figure]:
    """The figure of each seed on a split that is not dev: the setting of the best mean on dev, each seed's best epoch."""
    tables = [candidates(runs) for runs in outcomes.values()]
    figures = {}
    setting = 0
    if all(tables):
        settings = range(len(next(iter(outcomes.values()))))
        peaks = {
            (i, 0): mean(max(epoch["metrics"][primary_metric] for epoch in runs[i].epochs) for runs in outcomes.values())
            for i in settings
        }
        setting = best(peaks)[0]
    for seed, runs in outcomes.items():
        scores = [epoch["metrics"][primary_metric] for epoch in runs[setting].epochs]
        epoch = scores.index(max(scores)) if scores else -1
        figures[seed] = Figure(runs[setting].metrics[split], [(setting, epoch)])
    return figures


def best_on_dev(runs: list[Outcome], primary_metric: str) -> float:
    """The best score of any candidate of one seed, chosen on what it scores."""
    return max(epoch["metrics"][primary_metric] for epoch in candidates(runs).values())


def summary(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; 0 for one) and best of the seeds' scores."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(mean(values), 4), "std": round(deviation, 4), "best": max(values)}
