"""Packed rows -> a pretrained masked language model. This is the only loop of pretraining; a stage is a preset.

A run has one process or many. Updates of the same number of rows take the same rows with the same masks on any number of
processes. The loss of an update is the mean over all its masked tokens. A run that was killed goes on from its last checkpoint
with the same command, and ends with the same weights, on CPU to the bit. SIGTERM and SIGINT save a checkpoint and end the run.
On another number of processes a run goes on at the same row of the data.

Writes `checkpoints/`, `metrics.jsonl` and its plots in `metrics.png`, TensorBoard events in `tensorboard/`, and at the end
`model/`, a folder for `from_pretrained`. An update whose loss or gradient is not finite is skipped, and its rows are noted in
`skipped.jsonl`.

With `--dry_run true` it writes nothing, and prints what the run would take: sizes, work, time and disk. The number of processes
is that of those started, or WORLD_SIZE.

    accelerate launch train/pretrain.py train/configs/tiny/pretrain_1k.yaml
    accelerate launch train/pretrain.py train/configs/tiny/pretrain_8k.yaml --init_from runs/tiny/pretrain_1k/model
    WORLD_SIZE=8 python train/pretrain.py train/configs/system_a/pretrain_1k.yaml --dry_run true --tokens_per_second 1e6
"""

import contextlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.devices import check_environment
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.common.model_folder import save_model
from zh_modernbert.train.pretraining.checkpoint import Rotation, load_checkpoint, newest_undamaged, save_checkpoint, writing
from zh_modernbert.train.pretraining.optimizer import build_optimizer
from zh_modernbert.train.pretraining.parallel import (
    agree,
    end_processes,
    gather_model,
    on_main_process,
    prepare,
    recompute_in_backward,
)
from zh_modernbert.train.pretraining.plan import plan
from zh_modernbert.train.pretraining.run_folder import claim_run_folder
from zh_modernbert.train.pretraining.schedules import build_schedule, mlm_schedule_of
from zh_modernbert.train.pretraining.set_up import Draft, Parts, draft, set_up
from zh_modernbert.train.pretraining.signals import StopSignals
from zh_modernbert.train.pretraining.tracking import TRACKERS, Log, check_trackers
from zh_modernbert.train.pretraining.update import return_freed_memory, seed_update, skipped_rows, update
from zh_modernbert.train.rows.dataloader import MicroBatches, micro_batches
from zh_modernbert.train.rows.masking import Masking, special_ids_of


@dataclass
class Settings(BaseSettings):
    data_dir: str = setting(help="packed folder to read; with a mixture, the folder that the packed ones are in")
    output_dir: str = setting(help="run folder to write, or to go on with", running=True)
    model_config: str = setting("", "JSON file of ZhModernBertConfig's fields; vocab_size comes from the data where not given")
    init_from: str = setting(
        "", "model folder to start from, instead of random weights; tiled to the sizes of model_config, if given"
    )
    resume_from: str = setting("", "checkpoint of another run to go on from, such as the last one before its decay")
    mixture: dict[str, float] = setting({}, "packed folder in data_dir -> its share of the rows of every update")
    seq_len: int = setting(0, "most tokens of a row that data_dir has to be packed with; 0: any", least=0)
    global_rope_theta: float = setting(0.0, "RoPE base of the full layers in this stage; 0 keeps the model's", least=0)
    # What an update is.
    max_steps: int = setting(1000, "updates", least=1, most=10_000_000)
    per_device_batch_size: int = setting(16, "rows a process takes at once", least=1, running=True)
    gradient_accumulation_steps: int = setting(1, "times it does so for one update", least=1, running=True)
    tokens_per_update: int = setting(0, "tokens of full rows in an update, in place of gradient_accumulation_steps", least=0)
    num_batch_warmup_steps: int = setting(0, "updates over which their rows grow to the full number", least=0)
    warmup_batch_ratio: float = setting(1.0, "share of the full number that they start with", least=0, most=1)
    seed: int = setting(0, "of weights, order, masks and dropout", least=0, most=2**63 - 1)
    # Masking.
    masking: str = setting("whole_word", "what is masked together", ("whole_word", "ngram", "token"))
    mlm_probability: list[float] = setting([0.3], "share of tokens masked; or start, peak after warm-up, and end")
    mask_replace_prob: float = setting(0.8, "share of masked words that become [MASK]", least=0, most=1)
    random_replace_prob: float = setting(0.1, "share of masked words that become random tokens", least=0, most=1)
    # Optimizer.
    optimizer: str = setting("stable_adamw", "see train/pretraining/optimizer.py", ("stable_adamw", "adamw"))
    learning_rate: float = setting(8e-4, "the peak", least=0)
    adam_beta1: float = setting(0.9, "decay of the mean gradient", least=0, most=0.999999)
    adam_beta2: float = setting(0.95, "decay of the mean square", least=0, most=0.999999)
    adam_epsilon: float = setting(1e-8, "added to the root of the mean square", least=0)
    weight_decay: float = setting(0.1, "of matrices; norms and biases have none", least=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: they are not", least=0)
    # Schedule.
    schedule: str = setting("damped_cosine", "see train/pretraining/schedules.py", ("damped_cosine", "warmup_stable_decay"))
    num_warmup_steps: int = setting(0, "updates of linear warm-up", least=0)
    warmup_lr_ratio: float = setting(0.0, "where damped_cosine's warm-up starts, of learning_rate", least=0, most=1)
    min_lr_ratio: float = setting(0.0, "where the schedule ends, of learning_rate", least=0, most=1)
    num_decay_steps: int = setting(0, "warmup_stable_decay: updates of decay at the end", least=0)
    decay_type: str = setting("1-sqrt", "warmup_stable_decay: shape of the decay", ("linear", "cosine", "1-sqrt"))
    num_cycles: int = setting(1, "damped_cosine: valleys", least=1)
    damping: float = setting(0.5, "damped_cosine: what is left of the peak at the end, of learning_rate", least=0, most=1)
    # Running.
    mixed_precision: str = setting("no", "no computes in float32", ("no", "bf16"))
    attn_implementation: str = setting("sdpa", "attention backend")
    gradient_checkpointing: str = setting(
        "none",
        "what the backward pass computes again, to save memory: what is between the two products of an MLP, or whole layers",
        ("none", "mlp", "layers"),
        running=True,
    )
    compile: bool = setting(False, "torch.compile the layers; wants a C compiler", running=True)
    num_workers: int = setting(0, "processes that prepare batches", least=0, running=True)
    logging_steps: int = setting(10, "updates between lines of metrics.jsonl", least=1, running=True)
    save_steps: int = setting(500, "updates between checkpoints", least=1, running=True)
    save_total_limit: int = setting(2, "checkpoints kept: the newest", least=1, running=True)
    keep_every_steps: int = setting(
        0, "checkpoints of every so many updates are written and kept for good; 0: none", least=0, running=True
    )
    max_skipped_updates: int = setting(
        10, "so many updates in a row without a finite gradient end the run", least=1, running=True
    )
    # Showing.
    report_to: list[str] = setting(["tensorboard"], "trackers beside metrics.jsonl", ("none", *TRACKERS), running=True)
    peak_flops: float = setting(0.0, "of one device, in TFLOP/s: shows utilisation", least=0, running=True)
    validation_dir: str = setting("", "packed folder of held-out documents, scored at the end", running=True)
    eval_steps: int = setting(0, "updates between validations, beside the one at the end", least=0, running=True)
    eval_rows: int = setting(256, "most rows of validation_dir that are scored", least=1, running=True)
    dry_run: bool = setting(False, "print what the run would be, and do nothing", running=True)
    tokens_per_second: float = setting(0.0, "dry_run: speed of all devices together, for the hours", least=0, running=True)


def check(settings: Settings) -> None:
    """Checks that the settings do not contradict one another.

    Raises:
        InputError: two do, naming them.
    """

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"pretrain: {message}")

    s = settings
    require(
        bool(s.model_config or s.init_from),
        "give model_config (random weights), init_from, or both (the weights tiled to the sizes of model_config)",
    )
    require(
        not (s.tokens_per_update and s.gradient_accumulation_steps > 1),
        "tokens_per_update says how often to accumulate; leave gradient_accumulation_steps out",
    )
    require(len(s.mlm_probability) in (1, 3), f"mlm_probability has {len(s.mlm_probability)} values; it takes 1 or 3")
    require(all(0 < p < 1 for p in s.mlm_probability), f"mlm_probability is {s.mlm_probability}; each must be between 0 and 1")
    require(
        s.mask_replace_prob + s.random_replace_prob <= 1,
        "mask_replace_prob and random_replace_prob must be shares that sum to at most 1",
    )
    require(
        s.num_warmup_steps + s.num_decay_steps <= s.max_steps,
        f"num_warmup_steps + num_decay_steps is more than max_steps ({s.max_steps})",
    )
    require(s.num_batch_warmup_steps <= s.max_steps, f"num_batch_warmup_steps is more than max_steps ({s.max_steps})")
    require(bool(s.num_batch_warmup_steps) or s.warmup_batch_ratio == 1, "warmup_batch_ratio needs num_batch_warmup_steps")
    of_schedule = {
        "warmup_stable_decay": ("num_decay_steps", "decay_type"),
        "damped_cosine": ("num_cycles", "damping", "warmup_lr_ratio"),
    }
    for schedule, names in of_schedule.items():
        for name in names:
            is_default = getattr(s, name) == Settings.__dataclass_fields__[name].default
            require(schedule == s.schedule or is_default, f"{name} is for schedule {schedule}, not {s.schedule}")
    require(not s.eval_steps or bool(s.validation_dir), "eval_steps needs a validation_dir")
    require(
        not s.compile or s.dry_run or any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))),
        "compile needs a C compiler, and there is none; install gcc, or give --compile false",
    )
    require(not s.tokens_per_second or s.dry_run, "tokens_per_second is stated for dry_run only")
    require(s.report_to == ["none"] or "none" not in s.report_to, "report_to: 'none' excludes the others")
    check_trackers(s.report_to)


stopping = StopSignals()


def rotation_of(settings: Settings) -> Rotation:
    decay_start = settings.max_steps - settings.num_decay_steps if settings.schedule == "warmup_stable_decay" else 0
    return Rotation(settings.save_steps, settings.save_total_limit, settings.keep_every_steps, decay_start)


def dry_run(settings: Settings, found: Draft, num_processes: int) -> dict | None:
    """What the run would take; on stderr, what is not there yet."""
    if os.environ.get("RANK", "0") != "0":
        return None
    for path, there in ((settings.data_dir, found.rows), (settings.init_from, Path(settings.init_from).exists())):
        if path and not there:
            print(f"{path}: not there yet; see 'assumed', and what depends on more is null", file=sys.stderr)
    first_step = found.start["step"] if found.start else 0
    return plan(settings, found.model, found.rows, found.rows_per_update, rotation_of(settings), first_step, num_processes)


def join_processes(settings: Settings, num_processes: int) -> Accelerator:
    """Makes this process one of the run's.

    Raises:
        InputError: Accelerate sees another number of processes than were started.
    """
    # Accelerate starts no group of processes without a GPU unless it is told that there is none.
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=not torch.accelerator.is_available())
    if accelerator.num_processes != num_processes:
        raise InputError(
            f"{num_processes} processes were started, but Accelerate sees {accelerator.num_processes}; "
            "give them all a GPU, or none (ACCELERATE_USE_CPU=true)"
        )
    return accelerator


@dataclass(frozen=True)
class Learner:
    """A model and what changes it.

    Attributes:
        model: has the parameters.
        wrapped: the module to call in the model's place, see `prepare`.
        learning_rate: update (from 0) -> its learning rate.
    """

    model: ZhModernBertForMaskedLM
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]


def build_learner(settings: Settings, model: ZhModernBertForMaskedLM, accelerator: Accelerator) -> Learner:
    model.to(accelerator.device).train()
    recompute_in_backward(model, settings.gradient_checkpointing)
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        settings.learning_rate,
        (settings.adam_beta1, settings.adam_beta2),
        settings.adam_epsilon,
        settings.weight_decay,
        sharded=accelerator.is_fsdp2,
    )
    schedule = build_schedule(settings)
    wrapped = prepare(accelerator, model, optimizer, settings.compile)
    return Learner(model, wrapped, optimizer, lambda step: settings.learning_rate * schedule(step))


def build_dataset(settings: Settings, parts: Parts, accelerator: Accelerator) -> MicroBatches:
    masking = Masking(
        parts.rows.vocab_size,
        settings.masking,
        settings.mask_replace_prob,
        settings.random_replace_prob,
        parts.tokenizer.mask_token_id,
        special_ids_of(parts.tokenizer),
    )
    return MicroBatches(
        parts.rows,
        masking,
        mlm_schedule_of(settings),
        settings.per_device_batch_size,
        parts.rows_per_update,
        settings.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )


def restore(settings: Settings, parts: Parts, learner: Learner, dataset: MicroBatches, accelerator: Accelerator) -> dict:
    """Loads the run's newest checkpoint, else the one to resume from, if there is one; lets the data begin at its row.

    Returns:
        The position. `step`, `rows`, `tokens` and `skipped` count what is done, `sums` are what is not logged yet, `layout` is
        how many processes and rows an update has, `made_with` is what `describe_run` gives.
    """
    layout = {
        "processes": accelerator.num_processes,
        "per_device_batch_size": settings.per_device_batch_size,
        "rows_per_update": int(parts.rows_per_update[-1]),
    }
    position, note = {"step": 0, "rows": 0, "tokens": 0, "skipped": 0, "sums": {}}, ""
    found = on_main_process(accelerator, lambda: newest_undamaged(Path(settings.output_dir), parts.identity))
    (own,) = broadcast_object_list([found])
    if own:
        position = load_checkpoint(own, learner.model, learner.optimizer)
        if position["layout"] != layout:
            form = "{processes} processes x {per_device_batch_size} rows, {rows_per_update} an update"
            now, before = form.format(**layout), form.format(**position["layout"])
            note = f"note: {now}; before: {before}. The run goes on at the right row, but not to the bit"
    elif parts.start:
        load_checkpoint(Path(settings.resume_from), learner.model, learner.optimizer)
        position = parts.start
        row = position["rows"]
        where = f"row {row} of the same data" if row else "the first row of other data or another order"
        note = f"going on from {settings.resume_from} with {where}"
    if note and accelerator.is_main_process:
        print(note, file=sys.stderr)
    dataset.begin(position["step"], position["rows"])
    return position | {"layout": layout, "made_with": parts.made_with}


def leave(accelerator: Accelerator, log: Log | None, step: int, saved: bool) -> None:
    """Ends the process after a signal."""
    accelerator.wait_for_everyone()  # the main process may still be writing a checkpoint
    if log:
        log.close()
    stopping.leave(step, saved, accelerator.is_main_process)


def take_update(
    settings: Settings, step: int, learner: Learner, dataset: MicroBatches, stream: Iterator[dict], accelerator: Accelerator
) -> tuple[dict, bool, bool]:
    """One update. It changes nothing where its loss or its gradient is not finite.

    Returns:
        What `update` returns with `learning_rate`, and `bad_rows` where the update is skipped; whether it is skipped; whether
        one of the processes was told to stop.
    """
    seed_update(settings.seed, step, accelerator.process_index)
    learning_rate = learner.learning_rate(step)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate
    count, parameters = int(dataset.counts[step]), list(learner.model.parameters())
    result = update(accelerator, learner.wrapped, stream, count, parameters, settings.max_grad_norm)
    finite = math.isfinite(result["loss"]) and math.isfinite(result["grad_norm"])
    skip, stop = agree(accelerator, not finite, stopping.received > 0)
    bad_rows = skipped_rows(accelerator, dataset, step, result["losses"]) if skip else []
    if not skip:
        learner.optimizer.step()
    learner.optimizer.zero_grad()
    return result | {"learning_rate": learning_rate, "bad_rows": bad_rows}, skip, stop


def train(
    settings: Settings,
    parts: Parts,
    learner: Learner,
    dataset: MicroBatches,
    position: dict,
    log: Log | None,
    accelerator: Accelerator,
) -> dict:
    """The loop: from `position` to the last update, or to a signal, which ends the process.

    Args:
        log: of the main process; None on the others.

    Returns:
        The last position.

    Raises:
        InputError: max_skipped_updates updates in a row had a loss or gradient that was not finite.
    """
    output_dir, rotation, validation = Path(settings.output_dir), rotation_of(settings), parts.validation
    stream = iter(micro_batches(dataset, position["step"], settings.num_workers))
    if settings.compile and log:
        print("compile: the first updates take longer, a minute or more on a GPU", file=sys.stderr)
    skipped_in_a_row, stop = 0, False
    for step in range(position["step"], settings.max_steps):
        if stop:
            leave(accelerator, log, step, saved=not skipped_in_a_row)
        result, skip, stop = take_update(settings, step, learner, dataset, stream, accelerator)
        done, tokens, skipped = step + 1, position["tokens"] + result["tokens"], position["skipped"] + skip
        position |= {"step": done, "rows": int(dataset.first_rows[done]), "tokens": tokens, "skipped": skipped}
        if log:
            log.skip(done, result, result["bad_rows"]) if skip else log.add(result)
        skipped_in_a_row = skipped_in_a_row + 1 if skip else 0
        if skipped_in_a_row == settings.max_skipped_updates:
            raise not_finite(output_dir, done, skipped_in_a_row, result["bad_rows"], result["learning_rate"])
        validated = validation(learner.wrapped, accelerator) if validation and validation.due(done) else None
        if log and validated:
            log.write_validation(done, validated)
        if log and log.due(done):
            masked = mlm_schedule_of(settings).at(step)
            norm = None if skip else result["grad_norm"]
            log.write(done, learning_rate=result["learning_rate"], mlm_probability=masked, grad_norm=norm, skipped=skipped)
            return_freed_memory()
        # Not while updates are skipped: the weights may be what is not finite, and the rotation would delete the good ones.
        if (stop or rotation.due(done)) and done < settings.max_steps and not skipped_in_a_row:
            position["sums"] = log.sums if log else {}
            save_checkpoint(output_dir, position, learner.model, learner.optimizer, parts.identity, rotation)
            if log:
                log.draw()
    return position


def not_finite(output_dir: Path, done: int, in_a_row: int, rows: list[tuple[int, int]], learning_rate: float) -> InputError:
    """Why a run ends whose last updates were all skipped."""
    return InputError(
        f"updates {done + 1 - in_a_row} to {done}: the loss or its gradient is not finite; the rows are in "
        f"{output_dir / 'skipped.jsonl'}, (epoch, row) of the last ones: {str(rows[:4])[1:-1]}; "
        f"mend the data, or lower learning_rate (now {learning_rate:.2e})"
    )


def finish(
    settings: Settings,
    model: ZhModernBertForMaskedLM,
    tokenizer: ZhModernBertTokenizer,
    position: dict,
    log: Log | None,
    tokens_per_second: float,
) -> dict | None:
    """Writes `model/` and `result.json`, and returns the latter on the main process.

    Raises:
        InputError: all updates were skipped, or the folder cannot be written.
    """
    output_dir = Path(settings.output_dir)
    if position["skipped"] == settings.max_steps:
        raise InputError(f"no update had a finite loss and gradient; the rows are in {output_dir / 'skipped.jsonl'}")
    model = gather_model(model)
    if not log:
        return None
    log.close()
    result = {
        "steps": settings.max_steps,
        "loss": log.line.get("loss"),
        "masked_accuracy": log.line.get("masked_accuracy"),
        "tokens": position["tokens"],
        "skipped_updates": position["skipped"],
        "tokens_per_second": round(tokens_per_second, 1),
        "parameters": model.num_parameters(),
        "output_dir": settings.output_dir,
    }
    with writing(output_dir):
        write_json(output_dir / "result.json", result)
        save_model(output_dir / "model", model, tokenizer, "pretrain")
        (output_dir / ".lock").unlink(missing_ok=True)
    return result


@stopping
def main(settings: Settings) -> dict | None:
    check(settings)
    check_environment(settings.mixed_precision)
    num_processes, output_dir = int(os.environ.get("WORLD_SIZE", 1)), Path(settings.output_dir)
    if settings.dry_run:
        return dry_run(settings, draft(settings, num_processes), num_processes)
    parts = set_up(settings, num_processes)
    accelerator = join_processes(settings, num_processes)
    accelerator.wait_for_everyone()  # nobody writes the folder before all have checked it
    if (output_dir / "model").is_dir():
        return read_json(output_dir / "result.json") if accelerator.is_main_process else None
    lock = on_main_process(accelerator, lambda: claim_run_folder(output_dir, settings, parts.identity))
    with lock or contextlib.nullcontext():
        learner = build_learner(settings, parts.model, accelerator)
        dataset = build_dataset(settings, parts, accelerator)
        position = restore(settings, parts, learner, dataset, accelerator)
        log = None
        if accelerator.is_main_process:
            with writing(output_dir):
                log = Log(output_dir, settings, parts.model.config, position["step"], position["sums"])
        started, tokens_before = time.perf_counter(), position["tokens"]
        position = train(settings, parts, learner, dataset, position, log, accelerator)
        tokens_per_second = (position["tokens"] - tokens_before) / (time.perf_counter() - started)
        return finish(settings, learner.model, parts.tokenizer, position, log, tokens_per_second)


if __name__ == "__main__":
    run(main, Settings)
    end_processes()
