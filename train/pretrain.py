"""Packed rows -> a pretrained masked language model. The only loop there is; a stage is a preset.

Runs on one process or many. Each update takes the same rows with the same masks wherever it is computed; the loss is the
mean over all masked tokens of the update. Killed at any moment and started again with the same command, it goes on from the
last checkpoint and ends with the same weights, on CPU to the bit. SIGTERM or SIGINT save one first. On another number of
processes it goes on at the same row of the data.

Writes `checkpoints/`, `metrics.jsonl`, TensorBoard events in `tensorboard/`, and at the end `model/`, a folder for
`from_pretrained`. An update whose loss or gradient is not finite is skipped, and its rows are noted in `skipped.jsonl`.

    accelerate launch train/pretrain.py train/configs/tiny/pretrain_1k.yaml
    accelerate launch train/pretrain.py train/configs/tiny/pretrain_8k.yaml --init_from runs/tiny/pretrain_1k/model
"""

import contextlib
import ctypes
import dataclasses
import inspect
import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers.activations import ACT2FN

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.checkpoint import load_checkpoint, newest_whole, save_checkpoint, writing
from zh_modernbert.train.cli import BaseSettings, InputError, recipe_of, run, setting
from zh_modernbert.train.dataloader import MicroBatches, micro_batches
from zh_modernbert.train.files import read_json, replacing, require_folder, sha256, write_json
from zh_modernbert.train.masking import IGNORE_INDEX, Masking, mlm_probability_at
from zh_modernbert.train.optimizer import build_optimizer
from zh_modernbert.train.pack import PackedRows
from zh_modernbert.train.schedules import build_schedule
from zh_modernbert.train.train_tokenizer import fingerprint, load_tokenizer


@dataclass
class Settings(BaseSettings):
    data_dir: str = setting(help="packed folder to read")
    output_dir: str = setting(help="run folder to write, or to go on with", running=True)
    model_config: str = setting("", "JSON file of ZhModernBertConfig's fields; vocab_size comes from the data where not given")
    init_from: str = setting("", "model folder to start from, instead of random weights")
    global_rope_theta: float = setting(0.0, "RoPE base of the full layers in this stage; 0 keeps the model's", least=0)
    # What an update is.
    max_steps: int = setting(1000, "updates", least=1)
    per_device_batch_size: int = setting(16, "rows a process takes at once", least=1, running=True)
    gradient_accumulation_steps: int = setting(1, "times it does so for one update", least=1, running=True)
    seed: int = setting(0, "of weights, order, masks and dropout", least=0)
    # Masking.
    masking: str = setting("whole_word", "what is masked together", ("whole_word", "ngram", "token"))
    mlm_probability: list[float] = setting([0.3], "share of tokens masked; or start, peak after warm-up, and end")
    mask_replace_prob: float = setting(0.8, "share of masked words that become [MASK]", least=0, most=1)
    random_replace_prob: float = setting(0.1, "share of masked words that become random tokens", least=0, most=1)
    # Optimizer.
    optimizer: str = setting("stable_adamw", "see train/optimizer.py", ("stable_adamw", "adamw"))
    learning_rate: float = setting(8e-4, "the peak", least=0)
    adam_beta1: float = setting(0.9, "decay of the mean gradient", least=0, most=0.999999)
    adam_beta2: float = setting(0.95, "decay of the mean square", least=0, most=0.999999)
    adam_epsilon: float = setting(1e-8, "added to the root of the mean square", least=0)
    weight_decay: float = setting(0.1, "of matrices; norms and biases have none", least=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", least=0)
    # Schedule.
    schedule: str = setting("damped_cosine", "see train/schedules.py", ("damped_cosine", "warmup_stable_decay"))
    num_warmup_steps: int = setting(0, "updates of linear warm-up", least=0)
    warmup_lr_ratio: float = setting(0.0, "where damped_cosine's warm-up starts, of learning_rate")
    min_lr_ratio: float = setting(0.0, "where the schedule ends, of learning_rate")
    num_decay_steps: int = setting(0, "warmup_stable_decay: updates of decay at the end", least=0)
    decay_type: str = setting("1-sqrt", "warmup_stable_decay: shape of the decay", ("linear", "cosine", "1-sqrt"))
    num_cycles: int = setting(1, "damped_cosine: valleys", least=1)
    damping: float = setting(0.5, "damped_cosine: what is left of the peak at the end, of learning_rate")
    # Running.
    mixed_precision: str = setting("no", "no computes in float32", ("no", "bf16"))
    attn_implementation: str = setting("sdpa", "attention backend")
    gradient_checkpointing: bool = setting(False, "recompute layers in the backward pass, for less memory")
    num_workers: int = setting(0, "processes that prepare batches", least=0, running=True)
    logging_steps: int = setting(10, "updates between lines of metrics.jsonl", least=1, running=True)
    save_steps: int = setting(500, "updates between checkpoints", least=1, running=True)
    save_total_limit: int = setting(2, "checkpoints kept: the newest", least=1, running=True)
    keep_every_steps: int = setting(0, "beside them, those of every so many updates are kept; 0: none", least=0, running=True)
    max_skipped_updates: int = setting(10, "updates in a row without a finite gradient that end the run", least=1, running=True)


def check(settings: Settings) -> None:
    """Contradictions between settings, before any work.

    Raises:
        InputError: one line that names the setting.
    """

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"pretrain: {message}")

    s = settings
    require(bool(s.model_config) != bool(s.init_from), "give either model_config (random weights) or init_from")
    require(len(s.mlm_probability) in (1, 3), f"mlm_probability has {len(s.mlm_probability)} values; it takes 1 or 3")
    require(all(0 < p < 1 for p in s.mlm_probability), f"mlm_probability is {s.mlm_probability}; each must be between 0 and 1")
    require(
        s.mask_replace_prob >= 0 and s.random_replace_prob >= 0 and s.mask_replace_prob + s.random_replace_prob <= 1,
        "mask_replace_prob and random_replace_prob must be shares that sum to at most 1",
    )
    require(
        s.num_warmup_steps + s.num_decay_steps <= s.max_steps,
        f"num_warmup_steps + num_decay_steps is more than max_steps ({s.max_steps})",
    )


def read_model_config(path: str, vocab_size: int, tokenizer: ZhModernBertTokenizer) -> ZhModernBertConfig:
    """The config in a JSON file of fields; a vocabulary that is not given is the data's, rounded up to a multiple of 64.

    The ids of the special tokens are the tokenizer's.

    Raises:
        InputError: the file cannot be read, or holds an unknown field or a value that is out of the question.
    """
    fields = read_json(path)
    known = set(inspect.signature(ZhModernBertConfig.__init__).parameters) - {"self", "kwargs"}
    for field in fields:
        if field not in known:
            raise InputError(f"{path}: unknown field {field!r}; see configuration_zh_modernbert.py for the known ones")
    roles = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    special = {role: getattr(tokenizer, role) for role in roles}
    try:
        return ZhModernBertConfig(**{"vocab_size": -(-vocab_size // 64) * 64, **fields, **special})
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: not a config: {error}; it has {', '.join(f'{k}={v!r}' for k, v in fields.items())}"
        ) from error


def build_model(settings: Settings, rows: PackedRows, tokenizer: ZhModernBertTokenizer) -> ZhModernBertForMaskedLM:
    """The model to train, from a config or from a folder, checked against the data.

    Raises:
        InputError: vocabulary, tokenizer or row length do not fit.
    """
    vocab_size, seq_len = rows.vocab_size, rows.seq_len
    if settings.init_from:
        folder = require_folder(settings.init_from, "config.json")
        if fingerprint(folder) != rows.tokenizer:
            raise InputError(
                f"{folder}: its tokenizer does not match the data in {settings.data_dir}; encode with this tokenizer"
            )
        try:
            model, report = ZhModernBertForMaskedLM.from_pretrained(folder, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        if report["missing_keys"]:
            raise InputError(f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
    else:
        config = read_model_config(settings.model_config, vocab_size, tokenizer)
        if config.hidden_activation not in ACT2FN:
            raise InputError(f"{settings.model_config}: unknown hidden_activation {config.hidden_activation!r}")
        model = ZhModernBertForMaskedLM(config)
    config, source = model.config, settings.init_from or settings.model_config
    if vocab_size > config.vocab_size:
        raise InputError(f"{source}: vocab_size is {config.vocab_size}, but the data's tokenizer has {vocab_size} entries")
    if seq_len > config.max_position_embeddings:
        raise InputError(
            f"{settings.data_dir}: rows of {seq_len} tokens are longer than max_position_embeddings "
            f"({config.max_position_embeddings}) of {source}; pack with a smaller seq_len, or raise it"
        )
    if settings.global_rope_theta:
        config.global_rope_theta = settings.global_rope_theta
    config.sparse_prediction = True
    try:
        model.set_attn_implementation(settings.attn_implementation)
    except (ValueError, ImportError) as error:
        raise InputError(f"attn_implementation: {' '.join(str(error).split())}") from error
    return model


def run_identity(settings: Settings, model: ZhModernBertForMaskedLM, rows: PackedRows) -> str:
    """What must be the same for a checkpoint to be this run's: settings, architecture, data."""
    # save_model switches sparse_prediction; the rest says who wrote the config, or is a setting.
    config = {
        k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "sparse_prediction", "dtype")
    }
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return sha256(json.dumps([recipe_of(settings), shapes, config, rows.content], sort_keys=True).encode())


def keep_metrics(path: Path, step: int) -> None:
    """Drops what was logged after update `step`, before a resumed run logs it again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines))
        temporary.replace(path)


def update(accelerator: Accelerator, model, batches: list[dict], parameters: list, max_grad_norm: float) -> dict:
    """Gradients of the mean loss over all masked tokens of `batches` on all processes, clipped.

    Returns:
        Sums over the processes: `loss` (nats), `correct` (predictions), `masked` and `tokens` (counts); `grad_norm` before
        clipping; and `losses`, what this process's batches add to the mean.
    """
    device = accelerator.device
    counts = [sum(int((b["labels"] != IGNORE_INDEX).sum()) for b in batches), sum(b["labels"].numel() for b in batches)]
    masked, tokens = accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
    total, losses = torch.zeros(2, device=device, dtype=torch.float64), []
    for number, batch in enumerate(batches, 1):
        batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        with contextlib.nullcontext() if number == len(batches) else accelerator.no_sync(model):
            outputs = model(**batch, num_items_in_batch=max(masked, 1))
            accelerator.backward(outputs.loss * accelerator.num_processes)  # DDP takes the mean over processes
        labels = batch["labels"][batch["labels"] != IGNORE_INDEX]
        correct = (outputs.logits.argmax(-1) == labels).sum()
        losses.append(outputs.loss.detach())
        total += torch.stack((outputs.loss.detach().double() * max(masked, 1), correct.double()))
    loss, correct = accelerator.reduce(total, "sum").tolist()
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm))
    counts = {"masked": masked, "tokens": tokens}
    return {"loss": loss, "correct": correct, **counts, "grad_norm": norm, "losses": torch.stack(losses)}


class StopSignals(contextlib.ContextDecorator):
    """SIGTERM and SIGINT become a wish to stop, which the loop grants after the update; a second one kills at once.

    What follows within `SAME` seconds is no second one: a launcher passes on what its processes were sent themselves.
    """

    SAME = 2.0

    def __enter__(self):
        self.received, self.first = 0, 0.0
        self.handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def receive(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self.first = number, now
        elif now - self.first > self.SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def leave(self, step: int, saved: bool, main_process: bool) -> None:
        """Ends the process with 128 + the signal's number, as a shell reports that signal.

        Status 0 would let Slurm start what waits for the finished run, and keep Kubernetes from starting this one again.
        """
        number = signal.Signals(self.received or signal.SIGTERM)  # another process may have got it
        if main_process:
            what = "saved" if saved else "not saved, as updates are being skipped"
            print(f"stopped by {number.name} after update {step}, {what}; the same command goes on", file=sys.stderr)
        sys.exit(128 + number)


stopping = StopSignals()


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether each flag is up on any process: the same answer on all."""
    return [count > 0 for count in accelerator.reduce(torch.tensor(flags, device=accelerator.device).int(), "sum").tolist()]


def find_checkpoint(accelerator: Accelerator, output_dir: Path, identity: str) -> Path | None:
    """What the main process finds to be the newest whole checkpoint, for all.

    Raises:
        InputError: as `newest_whole`.
    """
    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = newest_whole(output_dir, identity)
        except InputError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1]:
        raise InputError(found[1])
    return found[0]


def compare_layout(before: list[int], now: list[int]) -> None:
    """Says on stderr what it means that a run goes on with other `[processes, rows, accumulation steps]` than before."""
    if before != now:
        words = ["{} processes x {} rows x {} accumulation steps".format(*layout) for layout in (before, now)]
        print(f"note: {words[1]}, before: {words[0]}. The run goes on at the right row, but not to the bit", file=sys.stderr)
    if math.prod(before) != math.prod(now):
        print(f"warning: {math.prod(now)} rows per update, before: {math.prod(before)}", file=sys.stderr)


def skipped_rows(accelerator: Accelerator, dataset: MicroBatches, step: int, losses: torch.Tensor) -> list[tuple[int, int]]:
    """(epoch, row) of the micro-batches of an update whose loss is not finite, or of all where only the gradient is not.

    Args:
        losses: `(accumulation steps,)` of this process.
    """
    bad = (~torch.isfinite(accelerator.gather(losses))).tolist()
    return [row for number, is_bad in enumerate(bad) if is_bad or not any(bad) for row in dataset.share(step, number)]


class Log:
    """`metrics.jsonl` and TensorBoard: means over the updates since the last line.

    Args:
        sums: what a checkpoint caught between two lines, so that a resumed run logs what an unbroken one does.
    """

    def __init__(self, output_dir: Path, step: int, sums: dict):
        self.folder, self.skipped = output_dir, output_dir / "skipped.jsonl"
        for path in (output_dir / "metrics.jsonl", self.skipped):
            keep_metrics(path, step)
        self.file = (output_dir / "metrics.jsonl").open("a", encoding="utf-8")  # until `close`
        self.board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1)
        self.sums, self.started, self.timed_tokens = dict(sums), time.perf_counter(), 0

    def add(self, result: dict) -> None:
        for name in ("loss", "correct", "masked", "tokens"):
            self.sums[name] = self.sums.get(name, 0) + result[name]
        self.timed_tokens += result["tokens"]

    def skip(self, step: int, result: dict, rows: list[tuple[int, int]]) -> None:
        """Notes an update that was not made, and shows it."""
        self.timed_tokens += result["tokens"]
        line = {"step": step, "finite_loss": math.isfinite(result["loss"]), "epoch_and_row": rows}
        with writing(self.folder), self.skipped.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        tqdm.write(f"warning: update {step} skipped: its loss or gradient is not finite; see {self.skipped}", file=sys.stderr)

    def write(self, step: int, **values: float | None) -> dict:
        masked, tokens = max(self.sums["masked"], 1), self.sums["tokens"]
        line = {
            "step": step,
            "loss": self.sums["loss"] / masked,
            "masked_accuracy": self.sums["correct"] / masked,
            "masked_share": self.sums["masked"] / tokens,
            **values,
            "tokens_per_second": round(self.timed_tokens / (time.perf_counter() - self.started), 1),
        }
        with writing(self.folder):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        for name, value in line.items():
            if value is not None:
                self.board.add_scalar(name, value, step)
        self.sums, self.started, self.timed_tokens = {}, time.perf_counter(), 0
        return line

    def close(self) -> None:
        self.file.close()
        self.board.close()


def return_freed_memory() -> None:
    """Gives freed memory back to the system, where the C library (glibc) keeps it.

    Documents make every batch of other sizes; what glibc keeps of them grew by 1.3 MB an update on CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def save_model(folder: Path, model: ZhModernBertForMaskedLM, tokenizer: ZhModernBertTokenizer) -> None:
    """The trained model and its tokenizer, written aside and renamed."""
    model.config.sparse_prediction = False
    tokenizer.model_max_length = model.config.max_position_embeddings
    with writing(folder), replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def claim_output(output_dir: Path, identity: str) -> None:
    """Refuses a folder that holds anything but this run.

    Raises:
        InputError: it holds another run, or something else.
    """
    if (output_dir / "run.json").is_file():
        if read_json(output_dir / "run.json")["identity"] != identity:
            raise InputError(
                f"{output_dir}: holds another run (other settings, model config or data); choose another output_dir"
            )
    elif output_dir.is_file() or (output_dir.is_dir() and any(path.name != "run.json.tmp" for path in output_dir.iterdir())):
        raise InputError(f"{output_dir}: exists and is no pretraining run; choose another output_dir")


def seed_update(seed: int, step: int, process: int) -> None:
    """Dropout's randomness as a function of the update alone."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))


@stopping
def main(settings: Settings) -> dict | None:
    check(settings)
    rows = PackedRows(settings.data_dir)
    tokenizer = load_tokenizer(rows.tokenizer_dir)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    main_process, output_dir = accelerator.is_main_process, Path(settings.output_dir)
    torch.manual_seed(settings.seed)
    model = build_model(settings, rows, tokenizer)
    identity = run_identity(settings, model, rows)
    claim_output(output_dir, identity)
    accelerator.wait_for_everyone()
    if (output_dir / "model").is_dir():
        return read_json(output_dir / "result.json") if main_process else None
    if main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "run.json", {"identity": identity})
        write_json(output_dir / "settings.json", dataclasses.asdict(settings))

    model.to(accelerator.device).train()
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    betas = (settings.adam_beta1, settings.adam_beta2)
    optimizer = build_optimizer(
        settings.optimizer, model, settings.learning_rate, betas, settings.adam_epsilon, settings.weight_decay
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
    layout = [accelerator.num_processes, settings.per_device_batch_size, settings.gradient_accumulation_steps]
    position = {"step": 0, "rows": 0, "tokens": 0, "skipped": 0, "layout": layout, "sums": {}}
    if saved := find_checkpoint(accelerator, output_dir, identity):
        position = load_checkpoint(saved, model, optimizer)
        if main_process:
            compare_layout(position["layout"], layout)
    first_step = position["step"]
    rate = (settings.mlm_probability, settings.num_warmup_steps, settings.max_steps)
    dataset = MicroBatches(
        rows,
        Masking(
            rows.vocab_size,
            settings.masking,
            settings.mask_replace_prob,
            settings.random_replace_prob,
            tokenizer.mask_token_id,
            tuple(tokenizer.added_tokens_decoder),
        ),
        rate,
        settings.per_device_batch_size,
        settings.gradient_accumulation_steps,
        settings.seed,
        accelerator.process_index,
        accelerator.num_processes,
        (first_step, position["rows"]),
    )
    stream = iter(micro_batches(dataset, first_step, settings.num_workers))
    wrapped = accelerator.prepare_model(model)
    log = Log(output_dir, first_step, position["sums"]) if main_process else None
    progress = tqdm(total=settings.max_steps, initial=first_step, desc=output_dir.name, disable=not main_process)
    started, first_token, line = time.perf_counter(), position["tokens"], {"loss": None, "masked_accuracy": None}
    decay_start = settings.max_steps - settings.num_decay_steps if settings.schedule == "warmup_stable_decay" else 0
    skipped_in_a_row, stop = 0, False
    for step in range(first_step, settings.max_steps):
        if stop:
            accelerator.wait_for_everyone()  # the main process may be saving still
            progress.close()
            stopping.leave(step, not skipped_in_a_row, main_process)
        seed_update(settings.seed, step, accelerator.process_index)
        learning_rate = settings.learning_rate * schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batches = [next(stream) for _ in range(settings.gradient_accumulation_steps)]
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
            "rows": position["rows"] + dataset.rows_per_update,
            "tokens": position["tokens"] + result["tokens"],
            "skipped": position["skipped"] + skip,
            "layout": layout,
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
        progress.update()
        if not main_process:
            continue
        if not skip:
            log.add(result)
        if log.sums and (done % settings.logging_steps == 0 or done == settings.max_steps):
            line = log.write(
                done,
                learning_rate=learning_rate,
                mlm_probability=mlm_probability_at(step, *rate),
                grad_norm=None if skip else result["grad_norm"],
                skipped=position["skipped"],
            )
            shown = {"loss": "loss", "acc": "masked_accuracy", "lr": "learning_rate", "tokens/s": "tokens_per_second"}
            return_freed_memory()
            progress.set_postfix({short: f"{line[name]:.4g}" for short, name in shown.items()})
        due = stop or done == decay_start or any(e and done % e == 0 for e in (settings.save_steps, settings.keep_every_steps))
        # Not while updates are skipped: if it is the weights that are not finite, rotation must not drop the good ones.
        if due and done < settings.max_steps and not skipped_in_a_row:
            save_checkpoint(
                output_dir,
                position | {"sums": log.sums},
                model,
                optimizer,
                identity,
                settings.save_total_limit,
                settings.keep_every_steps,
                decay_start,
            )
    progress.close()
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
    write_json(output_dir / "result.json", result)
    save_model(output_dir / "model", model, tokenizer)
    return result


if __name__ == "__main__":
    run(main, Settings)
