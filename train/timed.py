"""Pretrains a model in a given time: stage one, stage two, and a decay at its end.

Both stages run at a constant rate until their time is over. The decay has as many updates as fit into the rest. After each of
the three, `model/` holds the model in bfloat16, so that whatever ends the run leaves one. Another run may begin there, with
--init_from among the arguments of stage one.

Writes `stage_one/`, `stage_two/` and `decay/`, which are runs of train/pretrain.py, and `model/`.

    python train/timed.py train/configs/mini/timed.yaml --minutes 8
"""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import torch

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train import pretrain
from zh_modernbert.train.common.cli import BaseSettings, InputError, parse, run, setting
from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.common.model_folder import build_model, load_model, read_weights, save_model
from zh_modernbert.train.pretraining.checkpoint import checkpoints, step_of
from zh_modernbert.train.pretraining.set_up import check_rows
from zh_modernbert.train.pretraining.tracking import read_metrics
from zh_modernbert.train.rows.packed import PackedRows
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import load_tokenizer

PATIENCE = 60.0  # seconds that a run is waited for when it was asked to stop
CLOSING = 5.0  # seconds that a run takes from its last update to its end
STOPPED = 128 + signal.SIGTERM  # what train/pretrain.py returns after a signal that it was asked to stop by


@dataclass
class Settings(BaseSettings):
    stage_one: str = setting(help="arguments of train/pretrain.py, with more updates than there is time for")
    stage_two: str = setting(help="the same; it goes on from the last checkpoint of stage one")
    output_dir: str = setting(help="folder to write")
    minutes: float = setting(help="of everything, from the start of the script", least=0)
    stage_two_share: float = setting(0.15, "share of the time for stage two before its decay", least=0, most=1)
    decay_share: float = setting(0.2, "share of the time for the decay", least=0, most=1)


@dataclass(frozen=True)
class Pace:
    """How fast a run was.

    Attributes:
        start_up: seconds before its first update, without what its first updates took longer than later ones.
        update: seconds of an update.
    """

    start_up: float
    update: float


def arguments_of(stage: str, output_dir: Path, *flags: str) -> list[str]:
    """The arguments of train/pretrain.py for a stage that writes `output_dir`."""
    return [*shlex.split(stage), *flags, "--output_dir", str(output_dir)]


def going_on(output_dir: Path, checkpoint: Path) -> tuple[str, ...]:
    """The flags of a run that goes on from a checkpoint, whose model `keep` has written."""
    return "--init_from", str(output_dir / "model"), "--resume_from", str(checkpoint)


def decaying(last: int, updates: int) -> tuple[str, ...]:
    """The flags of a run that ends at update `last`, and decays in its last `updates`."""
    return "--max_steps", str(last), "--num_decay_steps", str(updates)


def check(settings: Settings) -> ZhModernBertTokenizer:
    """The tokenizer of both stages. Their arguments and data are checked before any time is spent, with the flags added later.

    Raises:
        InputError: the shares leave nothing, a stage's arguments or data are wrong, or output_dir is taken, naming it.
    """
    if settings.stage_two_share + settings.decay_share >= 1:
        raise InputError("stage_two_share + decay_share leave no time for stage one")
    output_dir = Path(settings.output_dir)
    later = going_on(output_dir, output_dir)
    tokenizers = {}
    for stage, flags, decay in (
        ("stage_one", (), 0),
        ("stage_two", later, 0),
        ("stage_two", (*later, *decaying(10**7, 1)), 1),
    ):
        try:
            arguments = arguments_of(getattr(settings, stage), output_dir, *flags)
            resolved = parse(pretrain.Settings, arguments, "pretrain")
            pretrain.check(resolved)
            if resolved.schedule != "warmup_stable_decay" or resolved.num_decay_steps != decay:
                raise InputError("needs schedule warmup_stable_decay with num_decay_steps 0; the decay comes at the end")
            rows = PackedStream(resolved.data_dir, resolved.mixture)
            check_rows(resolved, rows, 1)
            if resolved.validation_dir:
                PackedRows(resolved.validation_dir)
        except InputError as error:
            raise InputError(f"{stage}: {error}") from error
        tokenizers[rows.tokenizer] = rows.tokenizer_dir
    if len(tokenizers) > 1:
        raise InputError("stage_two: its data_dir was encoded with another tokenizer than that of stage_one; encode it anew")
    if (output_dir / "stage_one").exists():
        raise InputError(f"{settings.output_dir}: holds a timed run; choose another output_dir, and --init_from its model/")
    return load_tokenizer(*tokenizers.values())


def updates_done(output_dir: Path) -> int:
    """The update of the last line of metrics.jsonl, 0 where there is none."""
    lines = read_metrics(output_dir / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


def run_until(end: float, output_dir: Path, arguments: str, *flags: str) -> tuple[int, Pace | None]:
    """Runs train/pretrain.py, and asks it to stop at `end` (of `time.monotonic`) if it has not ended by itself.

    Returns:
        Its exit status, and its pace; None where it logged less than twice.
    """
    command = [sys.executable, "-m", "zh_modernbert.train.pretrain", *arguments_of(arguments, output_dir, *flags)]
    started, before, logged = time.monotonic(), updates_done(output_dir), []
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
            if (step := updates_done(output_dir)) > (logged[-1][0] if logged else before):
                logged.append((step, time.monotonic()))
        process.terminate()
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        status = -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    if len(logged) < 2:
        return status, None
    (first, then), (last, now) = logged[0], logged[-1]
    update = (now - then) / (last - first)
    return status, Pace(max(then - started - update * (first - before), 0.0), update)


def run_part(name: str, end: float, output_dir: Path, arguments: str, *flags: str) -> tuple[Path, Pace]:
    """Runs a stage until `end`.

    Returns:
        Its last checkpoint, and its pace.

    Raises:
        InputError: it failed, ended by itself, or was too slow to be measured.
    """
    status, pace = run_until(end, output_dir, arguments, *flags)
    if status not in (STOPPED, -signal.SIGTERM):  # the latter before it listens to signals
        what = "made all its updates; raise max_steps" if status == 0 else f"failed with exit status {status}, see above"
        raise InputError(f"{name} {what}")
    found = checkpoints(output_dir)
    if not found or pace is None:
        raise InputError(f"{name} was stopped before its second line of metrics; give more minutes, or lower logging_steps")
    return found[-1], pace


def keep(source: Path, output_dir: Path, tokenizer: ZhModernBertTokenizer) -> None:
    """Writes the model of a checkpoint, or of a model folder, to `model/`, in bfloat16."""
    if (source / "config.json").exists():
        model = load_model(source)
    else:
        config = ZhModernBertConfig(**read_json(source / "state.json")["position"]["made_with"]["config"])
        model = build_model(ZhModernBertForMaskedLM, config, read_weights(source), source)
    model = model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    save_model(output_dir / "model", model, tokenizer, "pretrain")


def main(settings: Settings) -> dict:
    started, output_dir = time.monotonic(), Path(settings.output_dir)
    tokenizer = check(settings)
    end = started + 60 * settings.minutes
    decay = 60 * settings.minutes * settings.decay_share
    stage_two = 60 * settings.minutes * settings.stage_two_share

    checkpoint, pace = run_part("stage_one", end - decay - stage_two, output_dir / "stage_one", settings.stage_one)
    keep(checkpoint, output_dir, tokenizer)
    start = going_on(output_dir, checkpoint)
    checkpoint, pace = run_part("stage_two", end - decay, output_dir / "stage_two", settings.stage_two, *start)
    keep(checkpoint, output_dir, tokenizer)

    # The decay has to end in time, also where it is a tenth slower than the stage before.
    updates = int((end - time.monotonic() - 1.2 * pace.start_up - CLOSING) / (1.1 * pace.update))
    if updates < 1:
        raise InputError(f"no time is left for the decay; {output_dir / 'model'} is the model before it")
    flags = (*going_on(output_dir, checkpoint), *decaying(step_of(checkpoint) + updates, updates))
    # A decay that is late is worth more than its time.
    status, _ = run_until(float("inf"), output_dir / "decay", settings.stage_two, *flags)
    if status:
        raise InputError(
            f"the decay failed with exit status {status}, see above; {output_dir / 'model'} is the model before it"
        )
    keep(output_dir / "decay" / "model", output_dir, tokenizer)
    minutes = round((time.monotonic() - started) / 60, 2)
    return read_json(output_dir / "decay" / "result.json") | {"output_dir": settings.output_dir, "minutes": minutes}


if __name__ == "__main__":
    run(main, Settings)
