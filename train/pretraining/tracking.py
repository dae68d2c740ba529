"""What a run shows of itself: the progress line, `metrics.jsonl`, trackers by name, and plots.

`metrics.jsonl` is the record. It has a line for every `logging_steps` updates, and one for each validation, whose fields begin
with `eval_`. A resumed run writes the same lines as an unbroken one.
"""

import importlib.util
import json
import math
import operator
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import tracking
from matplotlib.figure import Figure
from tqdm import tqdm

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.checkpoint import writing
from zh_modernbert.train.pretraining.flops import training_flops

TRACKERS = ("tensorboard", "trackio", "wandb")
# Field -> its name in the progress line.
SHOWN = {
    "loss": "loss",
    "masked_accuracy": "acc",
    "learning_rate": "lr",
    "mlm_probability": "mask",
    "tokens_per_second": "tokens/s",
    "utilisation": "utilisation",
}


def check_trackers(names: list[str]) -> None:
    """Checks that the trackers are installed.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise InputError(f"report_to names {name}, which is not installed; pip install {name}")


def start_trackers(names: list[str], output_dir: Path, step: int) -> list[tracking.GeneralTracker]:
    """Starts Accelerate's trackers of these names. Their packages are imported here and not before.

    None needs a network: wandb writes into the run's folder (and sends it with WANDB_MODE=online), trackio into its own.
    """
    project, run = output_dir.resolve().parent.name, output_dir.resolve().name
    makers = {
        "tensorboard": lambda: tracking.TensorBoardTracker("tensorboard", logging_dir=output_dir, purge_step=step + 1),
        "trackio": lambda: tracking.TrackioTracker(project, name=run, resume="allow"),
        "wandb": lambda: tracking.WandBTracker(
            project, name=run, dir=str(output_dir), mode=os.environ.get("WANDB_MODE", "offline")
        ),
    }
    trackers = [makers[name]() for name in names if name != "none"]
    for tracker in trackers:
        tracker.start()
    return trackers


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`. A last line that a kill left half written is left out.

    Raises:
        InputError: any other line is damaged.
    """
    if not path.exists():
        return []
    lines, found = path.read_text(encoding="utf-8", errors="replace").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
            operator.index(found[-1]["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise InputError(
                    f"{path}, line {number}: not a line of a run's record; mend it, or take the file away"
                ) from error
            found = found[: number - 1]
    return found


def keep_metrics(path: Path, step: int) -> None:
    """Deletes the lines of updates after `step`, which a resumed run is going to write again."""
    if not path.exists():
        return
    lines = [line for line in read_metrics(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)


def draw_metrics(lines: list[dict], path: Path) -> None:
    """Loss, rates and speed over the updates, as a PNG that is written aside and renamed."""
    panels = {
        "nats per masked token": ["loss", "eval_loss"],
        "share of masked tokens right": ["masked_accuracy", "eval_masked_accuracy"],
        "learning rate": ["learning_rate"],
        "share of tokens masked": ["mlm_probability"],
        "tokens per second": ["tokens_per_second"],
        "share of the device's peak": ["utilisation"],
    }
    series = {
        label: {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}
        for label, names in panels.items()
    }
    series = {label: drawn for label, drawn in series.items() if any(drawn.values())}
    figure = Figure(figsize=(8, 2.4 * max(len(series), 1)), layout="constrained")
    axes = figure.subplots(max(len(series), 1), sharex=True, squeeze=False)[:, 0]
    for axis, (label, drawn) in zip(axes, series.items(), strict=False):
        for name, points in drawn.items():
            if points:
                axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=name)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if len(drawn) > 1:
            axis.legend()
    axes[-1].set_xlabel("updates")
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=100)
    temporary.replace(path)


class Log:
    """The progress line, `metrics.jsonl`, `metrics.png` and the trackers. A line has means over the updates since the last.

    Args:
        settings: of train/pretrain.py.
        step: updates that are done already.
        sums: those of a checkpoint that was written between two lines: what the updates before it add to the next line.

    Attributes:
        line: the last line of training, empty before there is one.
    """

    def __init__(self, output_dir: Path, settings, config: ZhModernBertConfig, step: int, sums: dict):
        self.path, self.config, self.peak_flops = output_dir / "metrics.jsonl", config, settings.peak_flops * 1e12
        self.logging_steps, self.max_steps = settings.logging_steps, settings.max_steps
        self.skipped = output_dir / "skipped.jsonl"
        for path in (self.path, self.skipped):
            keep_metrics(path, step)
        self.trackers = start_trackers(settings.report_to, output_dir, step)
        self.progress = tqdm(total=settings.max_steps, initial=step, desc=output_dir.name)
        self.sums, self.line = dict(sums), {}
        self.restart_clock()

    def restart_clock(self) -> None:
        self.started, self.timed_tokens, self.timed_flops = time.perf_counter(), 0, 0.0

    def add(self, result: dict) -> None:
        """Adds an update to the next line.

        Args:
            result: what `update` gives.
        """
        for name in ("loss", "correct", "masked", "tokens"):
            self.sums[name] = self.sums.get(name, 0) + result[name]
        self.timed_tokens += result["tokens"]
        if self.peak_flops:
            for bounds, masked in result["work"]:
                self.timed_flops += training_flops(torch.diff(bounds), masked, self.config)
        self.progress.update()

    def skip(self, step: int, result: dict, rows: list[tuple[int, int]]) -> None:
        """Notes a skipped update in `skipped.jsonl` and on stderr."""
        self.timed_tokens += result["tokens"]
        self.progress.update()
        line = {"step": step, "finite_loss": math.isfinite(result["loss"]), "epoch_and_row": rows}
        with writing(self.path.parent), self.skipped.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write(f"warning: update {step} skipped: its loss or gradient is not finite; see {self.skipped}", file=sys.stderr)

    def due(self, step: int) -> bool:
        """Whether update `step` ends a line. No line is written for updates that were all skipped."""
        return bool(self.sums) and (step % self.logging_steps == 0 or step == self.max_steps)

    def write(self, step: int, **values: float | None) -> None:
        """Writes the line of the updates since the last line, with `values` of the latest update."""
        masked, tokens, seconds = max(self.sums["masked"], 1), self.sums["tokens"], time.perf_counter() - self.started
        line = {
            "step": step,
            "loss": self.sums["loss"] / masked,
            "masked_accuracy": self.sums["correct"] / masked,
            "masked_share": self.sums["masked"] / tokens,
            **values,
            "tokens_per_second": round(self.timed_tokens / seconds, 1),
        }
        if self.peak_flops:
            line["utilisation"] = round(self.timed_flops / seconds / self.peak_flops, 6)
        self.progress.set_postfix({short: f"{line[name]:.4g}" for name, short in SHOWN.items() if name in line})
        self.record(line)
        self.sums, self.line = {}, line
        self.restart_clock()

    def write_validation(self, step: int, found: dict) -> None:
        """Writes the line of a validation, whose time does not count for training's speed."""
        self.started += found["eval_runtime"]
        self.record({"step": step, **found})

    def record(self, line: dict) -> None:
        with writing(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        known = {name: value for name, value in line.items() if name != "step" and value is not None}
        for tracker in self.trackers:
            tracker.log(known, step=line["step"])

    def draw(self) -> None:
        try:
            draw_metrics(read_metrics(self.path), self.path.with_suffix(".png"))
        except OSError as error:  # it can be drawn again any time
            tqdm.write(f"warning: {self.path.with_suffix('.png')}: not drawn: {error}", file=sys.stderr)

    def close(self) -> None:
        self.progress.close()
        for tracker in self.trackers:
            tracker.finish()
        self.draw()
