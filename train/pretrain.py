"""Packed rows -> a pretrained masked language model. The only loop there is; a stage is a preset.

Runs on one process or many. An update of as many rows takes the same ones with the same masks wherever it is computed; the
loss is the mean over all masked tokens of the update. Killed at any moment and started again with the same command, it goes on
from the last checkpoint and ends with the same weights, on CPU to the bit. SIGTERM or SIGINT save one first. On another number
of processes it goes on at the same row of the data.

Writes `checkpoints/`, `metrics.jsonl` and its plots in `metrics.png`, TensorBoard events in `tensorboard/`, and at the end
`model/`, a folder for `from_pretrained`. An update whose loss or gradient is not finite is skipped, and its rows are noted in
`skipped.jsonl`. With `--dry_run true` it writes nothing, and prints what the run would be: sizes, work, time and disk. That is
for as many processes as are started, or as WORLD_SIZE says.

    accelerate launch train/pretrain.py train/configs/tiny/pretrain_1k.yaml
    accelerate launch train/pretrain.py train/configs/tiny/pretrain_8k.yaml --init_from runs/tiny/pretrain_1k/model
    WORLD_SIZE=8 python train/pretrain.py train/configs/system_a/pretrain_1k.yaml --dry_run true --tokens_per_second 1e6
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.common.model_folder import save_model
from zh_modernbert.train.pretraining.checkpoint import (
    Rotation,
    checkpoints,
    load_checkpoint,
    newest_whole,
    save_checkpoint,
    writing,
)
from zh_modernbert.train.pretraining.optimizer import build_optimizer
from zh_modernbert.train.pretraining.parallel import agree, end_processes, on_main_process, prepare, whole_model
from zh_modernbert.train.pretraining.plan import plan
from zh_modernbert.train.pretraining.run_folder import check_output, claim_output, made_with, run_identity, start_of
from zh_modernbert.train.pretraining.schedules import build_schedule
from zh_modernbert.train.pretraining.set_up import (
    build_model,
    check_rows,
    fit_model,
    read_model_config,
    require_model,
    rows_per_update,
)
from zh_modernbert.train.pretraining.signals import StopSignals
from zh_modernbert.train.pretraining.tile import check_sizes
from zh_modernbert.train.pretraining.tracking import TRACKERS, Log, check_trackers
from zh_modernbert.train.pretraining.update import return_freed_memory, seed_update, skipped_rows, update
from zh_modernbert.train.pretraining.validation import Validation
from zh_modernbert.train.rows.dataloader import MicroBatches, micro_batches, micro_batches_of_updates
from zh_modernbert.train.rows.masking import Masking, mlm_probability_at, special_ids_of
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import load_tokenizer


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
    max_steps: int = setting(1000, "updates", least=1)
    per_device_batch_size: int = setting(16, "rows a process takes at once", least=1, running=True)
    gradient_accumulation_steps: int = setting(1, "times it does so for one update", least=1, running=True)
    tokens_per_update: int = setting(0, "in place of gradient_accumulation_steps: tokens of full rows in an update", least=0)
    num_batch_warmup_steps: int = setting(0, "updates over which their rows grow to the full number", least=0)
    warmup_batch_ratio: float = setting(1.0, "where that starts, of the full number", least=0, most=1)
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
        "what the backward pass computes again, for less memory: what the MLPs have between their products, or whole layers",
        ("none", "mlp", "layers"),
        running=True,
    )
    compile: bool = setting(False, "torch.compile the layers; wants a C compiler")
    num_workers: int = setting(0, "processes that prepare batches", least=0, running=True)
    logging_steps: int = setting(10, "updates between lines of metrics.jsonl", least=1, running=True)
    save_steps: int = setting(500, "updates between checkpoints", least=1, running=True)
    save_total_limit: int = setting(2, "checkpoints kept: the newest", least=1, running=True)
    keep_every_steps: int = setting(0, "beside them, those of every so many updates are kept; 0: none", least=0, running=True)
    max_skipped_updates: int = setting(10, "updates in a row without a finite gradient that end the run", least=1, running=True)
    # Showing.
    report_to: list[str] = setting(["tensorboard"], "trackers beside metrics.jsonl", ("none", *TRACKERS), running=True)
    peak_flops: float = setting(0.0, "of one device, in TFLOP/s: shows utilisation", least=0, running=True)
    validation_dir: str = setting("", "packed folder of held-out documents, scored at the end", running=True)
    eval_steps: int = setting(0, "updates between validations, beside the one at the end", least=0, running=True)
    eval_rows: int = setting(256, "most rows of validation_dir that are scored", least=1, running=True)
    dry_run: bool = setting(False, "print what the run would be, and do nothing", running=True)
    tokens_per_second: float = setting(0.0, "dry_run: speed of all devices together, for the hours", least=0, running=True)


def check(settings: Settings) -> None:
    """Contradictions between settings, before any work.

    Raises:
        InputError: one line that names the setting.
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
    require(not s.tokens_per_second or s.dry_run, "tokens_per_second is stated for dry_run only")
    require(s.report_to == ["none"] or "none" not in s.report_to, "report_to: 'none' excludes the others")
    check_trackers(s.report_to)


stopping = StopSignals()


def rotation_of(settings: Settings) -> Rotation:
    decay_start = settings.max_steps - settings.num_decay_steps if settings.schedule == "warmup_stable_decay" else 0
    return Rotation(settings.save_steps, settings.save_total_limit, settings.keep_every_steps, decay_start)


def compare_layout(before: dict, now: dict) -> None:
    """Says on stderr what it means that a run goes on with other processes or rows than before."""
    if before != now:
        form = "{processes} processes x {per_device_batch_size} rows, {rows_per_update} an update"
        note = f"{form.format(**now)}; before: {form.format(**before)}. The run goes on at the right row, but not to the bit"
        print(f"note: {note}", file=sys.stderr)


def dry_run(settings: Settings) -> dict | None:
    """What the run would be, with the checks that it makes before it reads weights. Reads what is there, and writes nothing."""
    rows = config = tokenizer = model = sizes = None
    num_processes, first_step = int(os.environ.get("WORLD_SIZE", 1)), 0
    if all((Path(settings.data_dir) / name).exists() for name in settings.mixture or [""]):
        rows = PackedStream(settings.data_dir, settings.mixture)
        tokenizer = load_tokenizer(rows.tokenizer_dir)
        check_rows(settings, rows, num_processes)
    if settings.init_from and Path(settings.init_from).exists():
        config = ZhModernBertConfig.from_pretrained(require_model(settings, rows.tokenizer if rows else None))
    if settings.model_config:
        start = config
        vocab_size = rows.vocab_size if rows else (start or ZhModernBertConfig()).vocab_size
        config = read_model_config(settings.model_config, vocab_size, tokenizer)
        if start:
            check_sizes(start, config)
    if config:
        with torch.device("meta"):
            model = ZhModernBertForMaskedLM(config)
    if seq_len := rows.seq_len if rows else settings.seq_len:
        sizes = rows_per_update(settings, seq_len, num_processes)
        micro_batches_of_updates(sizes, settings.per_device_batch_size, num_processes)
    if rows and model:
        fit_model(settings, model, rows)
        own = made_with(settings, model, rows)
        if not settings.init_from or Path(settings.init_from).exists():
            check_output(Path(settings.output_dir), settings, run_identity(settings, model, own))
        if start := start_of(settings, own):
            first_step = start["step"]
        if settings.validation_dir:
            Validation(settings, rows, tokenizer, model.config)
    if os.environ.get("RANK", "0") != "0":
        return None
    for path, there in ((settings.data_dir, rows), (settings.init_from, Path(settings.init_from).exists())):
        if path and not there:
            print(f"{path}: not there yet; see 'assumed', and what depends on more is null", file=sys.stderr)
    return plan(settings, model, rows, sizes, rotation_of(settings), first_step, num_processes)


@stopping
def main(settings: Settings) -> dict | None:
    check(settings)
    if settings.dry_run:
        return dry_run(settings)
    rows = PackedStream(settings.data_dir, settings.mixture)
    tokenizer = load_tokenizer(rows.tokenizer_dir)
    # Accelerate starts no group of processes without a GPU unless it is told that there is none.
    accelerator = Accelerator(mixed_precision=settings.mixed_precision, cpu=not torch.accelerator.is_available())
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != world_size:
        raise InputError(
            f"{world_size} processes were started, but Accelerate sees {accelerator.num_processes}; "
            "give them all a GPU, or none (ACCELERATE_USE_CPU=true)"
        )
    check_rows(settings, rows, accelerator.num_processes)
    main_process, output_dir = accelerator.is_main_process, Path(settings.output_dir)
    torch.manual_seed(settings.seed)
    model = build_model(settings, rows, tokenizer)
    rate = (settings.mlm_probability, settings.num_warmup_steps, settings.max_steps)
    dataset = MicroBatches(
        rows,
        Masking(
            rows.vocab_size,
            settings.masking,
            settings.mask_replace_prob,
            settings.random_replace_prob,
            tokenizer.mask_token_id,
            special_ids_of(tokenizer),
        ),
        rate,
        settings.per_device_batch_size,
        rows_per_update(settings, rows.seq_len, accelerator.num_processes),
        settings.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    own = made_with(settings, model, rows)
    identity = run_identity(settings, model, own)
    check_output(output_dir, settings, identity)
    # Of no use to a run with checkpoints of its own, and long to verify.
    start = None if checkpoints(output_dir) else start_of(settings, own)
    validation = Validation(settings, rows, tokenizer, model.config) if settings.validation_dir else None
    accelerator.wait_for_everyone()
    if (output_dir / "model").is_dir():
        return read_json(output_dir / "result.json") if main_process else None
    lock = on_main_process(accelerator, lambda: claim_output(output_dir, settings, identity))

    model.to(accelerator.device).train()
    if settings.gradient_checkpointing == "layers":
        model.gradient_checkpointing_enable()
    for layer in model.model.layers:
        layer.mlp.recompute = settings.gradient_checkpointing == "mlp"
    betas = (settings.adam_beta1, settings.adam_beta2)
    optimizer = build_optimizer(
        settings.optimizer,
        model,
        settings.learning_rate,
        betas,
        settings.adam_epsilon,
        settings.weight_decay,
        sharded=accelerator.is_fsdp2,
    )
    schedule = build_schedule(
        settings.schedule,
        settings.max_steps,
        settings.num_warmup_steps,
        settings.num_decay_steps,
        settings.decay_type,
        settings.warmup_lr_ratio,
        settings.min_lr_ratio,
        settings.num_cycles,
        settings.damping,
    )
    wrapped = prepare(accelerator, model, optimizer, settings.compile)
    layout = {
        "processes": accelerator.num_processes,
        "per_device_batch_size": settings.per_device_batch_size,
        "rows_per_update": int(dataset.first_rows[-1] - dataset.first_rows[-2]),
    }
    position = start or {"step": 0, "rows": 0, "tokens": 0, "skipped": 0, "layout": layout, "sums": {}}
    found = on_main_process(accelerator, lambda: newest_whole(output_dir, identity))
    (saved,) = broadcast_object_list([found])
    if saved:
        position = load_checkpoint(saved, model, optimizer)
        if main_process:
            compare_layout(position["layout"], layout)
    elif start:
        load_checkpoint(Path(settings.resume_from), model, optimizer)
        if main_process:
            where = f"row {start['rows']} of the same data" if start["rows"] else "the first row of other data or another order"
            print(f"going on from {settings.resume_from} with {where}", file=sys.stderr)
    first_step = position["step"]
    dataset.begin(first_step, position["rows"])
    stream = iter(micro_batches(dataset, first_step, settings.num_workers))
    log = None
    if main_process:
        with writing(output_dir):
            log = Log(output_dir, settings, model.config, first_step, position["sums"])
    started, first_token, line = time.perf_counter(), position["tokens"], {"loss": None, "masked_accuracy": None}
    rotation = rotation_of(settings)
    skipped_in_a_row, stop = 0, False
    for step in range(first_step, settings.max_steps):
        if stop:
            accelerator.wait_for_everyone()  # the main process may be saving still
            if main_process:
                log.close()
            stopping.leave(step, not skipped_in_a_row, main_process)
        seed_update(settings.seed, step, accelerator.process_index)
        learning_rate = settings.learning_rate * schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batches = [next(stream) for _ in range(dataset.counts[step])]
        result = update(accelerator, wrapped, batches, list(model.parameters()), settings.max_grad_norm)
        finite = math.isfinite(result["loss"]) and math.isfinite(result["grad_norm"])
        skip, stop = agree(accelerator, not finite, stopping.received)
        skipped_in_a_row = skipped_in_a_row + 1 if skip else 0
        rows_of_skipped = skipped_rows(accelerator, dataset, step, result["losses"]) if skip else []
        if not skip:
            optimizer.step()
        optimizer.zero_grad()
        position = {
            "step": step + 1,
            "rows": int(dataset.first_rows[step + 1]),
            "tokens": position["tokens"] + result["tokens"],
            "skipped": position["skipped"] + skip,
            "layout": layout,
            "made_with": own,
        }
        done = position["step"]
        if skip and main_process:
            log.skip(done, result, rows_of_skipped)
        if skipped_in_a_row == settings.max_skipped_updates:
            raise InputError(
                f"updates {step + 2 - skipped_in_a_row} to {done}: the loss or its gradient is not finite; the rows are in "
                f"{output_dir / 'skipped.jsonl'}, (epoch, row) of the last ones: {str(rows_of_skipped[:4])[1:-1]}; "
                f"mend the data, or lower learning_rate (now {learning_rate:.2e})"
            )
        validated = validation(wrapped, accelerator) if validation and validation.due(done) else None
        if main_process:
            if not skip:
                log.add(result, batches)
            if validated:
                log.write_validation(done, validated)  # before the clock starts anew
            if log.sums and (done % settings.logging_steps == 0 or done == settings.max_steps):
                line = log.write(
                    done,
                    learning_rate=learning_rate,
                    mlm_probability=mlm_probability_at(step, *rate),
                    grad_norm=None if skip else result["grad_norm"],
                    skipped=position["skipped"],
                )
                return_freed_memory()
        # Not while updates are skipped: if it is the weights that are not finite, rotation must not drop the good ones.
        if (stop or rotation.due(done)) and done < settings.max_steps and not skipped_in_a_row:
            position["sums"] = log.sums if main_process else {}
            save_checkpoint(output_dir, position, model, optimizer, identity, rotation)
            if main_process:
                log.draw()
    if position["skipped"] == settings.max_steps:
        raise InputError(f"no update had a finite loss and gradient; the rows are in {output_dir / 'skipped.jsonl'}")
    model = whole_model(model)
    if not main_process:
        return None
    log.close()
    result = {
        "steps": settings.max_steps,
        "loss": line["loss"],
        "masked_accuracy": line["masked_accuracy"],
        "tokens": position["tokens"],
        "skipped_updates": position["skipped"],
        "tokens_per_second": round((position["tokens"] - first_token) / (time.perf_counter() - started), 1),
        "parameters": model.num_parameters(),
        "output_dir": settings.output_dir,
    }
    with writing(output_dir):
        write_json(output_dir / "result.json", result)
        save_model(output_dir / "model", model, tokenizer)
        (output_dir / ".lock").unlink(missing_ok=True)
    lock.close()
    return result


if __name__ == "__main__":
    run(main, Settings)
    end_processes()
