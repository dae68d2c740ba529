"""Variants of a pretraining run, several seeds each -> a table and a plot of what they are worth.

A variant is a list of arguments of train/pretrain.py. The others are compared with the first. All models score the same
held-out text, cut to the same number of characters, in bits per character. Unlike losses, these can be compared across
vocabularies and masks. A run or score that is there is not made again. A run that was killed goes on.

Writes `<variant>-<seed>/` (runs), `scores-<characters>-<hash>/`, and `ablation.md`, `ablation.json` and `ablation.png`: mean
and sample standard deviation over the seeds.

    python train/ablate.py train/configs/tiny/ablate.yaml
"""

import json
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from accelerate.state import AcceleratorState
from matplotlib.figure import Figure

from zh_modernbert.eval import pseudo_perplexity
from zh_modernbert.train import pretrain
from zh_modernbert.train.common.cli import BaseSettings, InputError, parse, run, setting
from zh_modernbert.train.common.figures import as_label
from zh_modernbert.train.common.files import read_json, sha256, write_json
from zh_modernbert.train.corpus.held_out import read_held_out
from zh_modernbert.train.pretraining.parallel import end_processes, is_main_process


@dataclass
class Settings(BaseSettings):
    output_dir: str = setting(help="folder of the runs and of the table")
    variants: dict[str, str] = setting(help="name -> arguments of train/pretrain.py; {seed} in them stands for the run's seed")
    text: list[str] = setting(help="text to score, given as for train/sources.py; no run may have been trained on it")
    held_out: float = setting(0.0, "only the documents that train/encode.py leaves out; 0: all", least=0, most=1)
    seeds: list[int] = setting([0, 1, 2], "of the runs of each variant", least=0)
    characters: list[int] = setting([128], "lengths that documents are cut to; shorter ones are left out", least=1, most=2000)
    max_documents: int = setting(200, "documents scored, evenly spread over those long enough", least=1)


def run_settings(settings: Settings, variant: str, seed: int) -> pretrain.Settings:
    """The settings of one run.

    Raises:
        InputError: the variant's arguments are wrong, naming it.
    """
    where = f"{settings.output_dir}/{variant}-{seed}"
    arguments = [argument.replace("{seed}", str(seed)) for argument in shlex.split(settings.variants[variant])]
    try:
        resolved = parse(pretrain.Settings, [*arguments, "--seed", str(seed), "--output_dir", where], "pretrain")
        pretrain.check(resolved)
    except InputError as error:
        raise InputError(f"variant {variant}: {error}") from error
    return resolved


def cut_documents(documents: list[dict], characters: int, max_documents: int) -> list[dict]:
    """Up to `max_documents` documents, cut to so many characters. They are spread evenly over those that are long enough.

    Raises:
        InputError: none is long enough.
    """
    long_enough = [document for document in documents if len(document["text"]) >= characters]
    if not long_enough:
        raise InputError(f"text: no document of {characters} characters or more among {len(documents)}; give fewer characters")
    count = min(max_documents, len(long_enough))
    chosen = [long_enough[place * len(long_enough) // count] for place in range(count)]
    return [{"id": document["id"], "text": document["text"][:characters]} for document in chosen]


def score(model_dir: str, name: str, folder: Path, text: Path) -> float:
    """Bits per character of the model on the documents in `text`, none of which may be longer than the model."""
    path, config = folder / f"{name}-all-0.json", Path(model_dir) / "config.json"
    if not path.exists() or path.stat().st_mtime_ns < config.stat().st_mtime_ns:  # or the score is of an older run
        path.unlink(missing_ok=True)  # of another length it would not be replaced
        longest = read_json(config)["max_position_embeddings"]
        scoring = {"model": model_dir, "trust_remote_code": True, "input": [str(text)], "max_length": longest}
        pseudo_perplexity.main(pseudo_perplexity.Settings(name=name, results_dir=str(folder), **scoring))
    return read_json(path)["metrics"]["bits_per_character"]


def summarise(scores: dict[str, dict[int, list[float]]]) -> list[dict]:
    """A row for each variant and length: mean and deviation of the scores, and of the differences to the first variant.

    A difference is between runs of the same seed, which have rows and more in common. So differences spread less than scores.

    Args:
        scores: variant -> length in characters -> the score of each seed.
    """
    first = next(iter(scores.values()))
    rows = []
    for variant, by_length in scores.items():
        for length, values in by_length.items():
            differences = [value - other for value, other in zip(values, first[length], strict=True)]
            rows.append({"variant": variant, "characters": length, "seeds": len(values)})
            for name, numbers in (("", values), ("difference_", differences)):
                rows[-1][f"{name}mean"] = statistics.mean(numbers)
                rows[-1][f"{name}std"] = statistics.stdev(numbers) if len(numbers) > 1 else None
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| Variant | Characters | Bits per character | Against the first | Seeds |", "|---|---|---|---|---|"]
    for row in rows:
        score, difference = f"{row['mean']:.3f}", f"{row['difference_mean']:+.3f}"
        if row["std"] is not None:
            score, difference = f"{score} ± {row['std']:.3f}", f"{difference} ± {row['difference_std']:.3f}"
        lines.append(f"| {row['variant']} | {row['characters']} | {score} | {difference} | {row['seeds']} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict]) -> Figure:
    """Means and standard deviations, with a panel for each length."""
    lengths = sorted({row["characters"] for row in rows})
    figure = Figure(figsize=(1 + 4 * len(lengths), 1 + 0.35 * len(rows) / len(lengths)), layout="tight")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for panel, length in zip(panels, lengths, strict=True):
        shown = [row for row in rows if row["characters"] == length][::-1]
        spread = [row["std"] or 0 for row in shown]
        panel.errorbar(
            [row["mean"] for row in shown], [as_label(row["variant"]) for row in shown], xerr=spread, fmt="o", capsize=3
        )
        panel.axvline(shown[-1]["mean"], color="grey", linewidth=0.8, linestyle=":")
        panel.set(xlabel="bits per character", title=f"{length} characters")
    return figure


def main(settings: Settings) -> dict | None:
    output_dir = Path(settings.output_dir)
    runs = {(name, seed): run_settings(settings, name, seed) for name in settings.variants for seed in settings.seeds}
    documents = read_held_out(settings.text, settings.held_out)
    texts = {length: cut_documents(documents, length, settings.max_documents) for length in settings.characters}
    for each in runs.values():
        AcceleratorState._reset_state()  # the next run may have another precision
        pretrain.main(each)
    if not is_main_process():
        return None
    scores = {name: {length: [] for length in texts} for name in settings.variants}
    for length, documents in texts.items():
        folder = output_dir / f"scores-{length}-{sha256(repr(documents).encode())[:8]}"
        folder.mkdir(exist_ok=True)
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        (folder / "held_out.jsonl").write_text("".join(lines), encoding="utf-8")
        for (name, seed), each in runs.items():
            bits = score(f"{each.output_dir}/model", f"{name}-{seed}", folder, folder / "held_out.jsonl")
            scores[name][length].append(bits)
    rows = summarise(scores)
    write_json(output_dir / "ablation.json", {"rows": rows, "scores": scores})
    (output_dir / "ablation.md").write_text(table(rows), encoding="utf-8")
    plot(rows).savefig(output_dir / "ablation.png", dpi=150)
    return {"variants": len(settings.variants), "runs": len(runs), "rows": rows, "output_dir": settings.output_dir}


if __name__ == "__main__":
    run(main, Settings)
    end_processes()
