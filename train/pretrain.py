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

import contextlib
import ctypes
import inspect
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers.activations import ACT2FN

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.checkpoint import Rotation, checkpoints, load_checkpoint, newest_whole, save_checkpoint, writing
from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.dataloader import MicroBatches, micro_batches, micro_batches_of_updates, rows_of_updates
from zh_modernbert.train.files import read_json, replacing, require_folder, write_json
from zh_modernbert.train.masking import IGNORE_INDEX, Masking, mlm_probability_at, special_ids_of
from zh_modernbert.train.optimizer import build_optimizer
from zh_modernbert.train.parallel import end_processes, prepare, whole_model
from zh_modernbert.train.plan import plan
from zh_modernbert.train.row_stream import PackedStream
from zh_modernbert.train.run_folder import check_output, claim_output, made_with, run_identity, start_of
from zh_modernbert.train.schedules import build_schedule
from zh_modernbert.train.tile import check_sizes, tile_model
from zh_modernbert.train.tracking import TRACKERS, Log, check_trackers
from zh_modernbert.train.train_tokenizer import fingerprint, load_tokenizer
from zh_modernbert.train.validation import Validation


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
    optimizer: str = setting("stable_adamw", "see train/optimizer.py", ("stable_adamw", "adamw"))
    learning_rate: float = setting(8e-4, "the peak", least=0)
    adam_beta1: float = setting(0.9, "decay of the mean gradient", least=0, most=0.999999)
    adam_beta2: float = setting(0.95, "decay of the mean square", least=0, most=0.999999)
    adam_epsilon: float = setting(1e-8, "added to the root of the mean square", least=0)
    weight_decay: float = setting(0.1, "of matrices; norms and biases have none", least=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm; 0: they are not", least=0)
    # Schedule.
    schedule: str = setting("damped_cosine", "see train/schedules.py", ("damped_cosine", "warmup_stable_decay"))
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


def read_model_config(path: str, vocab_size: int, tokenizer: ZhModernBertTokenizer | None) -> ZhModernBertConfig:
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
    special = {role: getattr(tokenizer, role) for role in roles} if tokenizer else {}
    try:
        config = ZhModernBertConfig(**{"vocab_size": -(-vocab_size // 64) * 64, **fields, **special})
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: not a config: {error}; it has {', '.join(f'{k}={v!r}' for k, v in fields.items())}"
        ) from error
    if config.hidden_activation not in ACT2FN:
        raise InputError(f"{path}: unknown hidden_activation {config.hidden_activation!r}")
    return config


def require_model(settings: Settings, tokenizer: str | None) -> Path:
    """The folder `init_from`.

    Raises:
        InputError: there is no model of ours, or its tokenizer is not the data's, if that one's fingerprint is given.
    """
    folder = require_folder(settings.init_from, "config.json")
    if (kind := read_json(folder / "config.json").get("model_type")) != ZhModernBertConfig.model_type:
        raise InputError(f"{folder}: a model of type {kind!r}; make this project's of a stock ModernBERT with train/convert.py")
    if tokenizer and fingerprint(folder) != tokenizer:
        raise InputError(f"{folder}: its tokenizer does not match the data in {settings.data_dir}; encode with this tokenizer")
    return folder


def fit_model(settings: Settings, model: ZhModernBertForMaskedLM, rows: PackedStream) -> None:
    """Sets what this stage changes of a model, and checks it against the data.

    Raises:
        InputError: vocabulary or length of the rows are more than it has, or there is no such attention.
    """
    config, source = model.config, settings.model_config or settings.init_from
    if rows.vocab_size > config.vocab_size:
        raise InputError(f"{source}: vocab_size is {config.vocab_size}, but the data's tokenizer has {rows.vocab_size} entries")
    if rows.seq_len > config.max_position_embeddings:
        raise InputError(
            f"{settings.data_dir}: rows of {rows.seq_len} tokens are longer than max_position_embeddings "
            f"({config.max_position_embeddings}) of {source}; pack with a smaller seq_len, or raise it"
        )
    if settings.global_rope_theta:
        config.global_rope_theta = settings.global_rope_theta
    try:
        model.set_attn_implementation(settings.attn_implementation)
    except (ValueError, ImportError) as error:
        raise InputError(f"attn_implementation: {' '.join(str(error).split())}") from error


def load_model(folder: Path) -> ZhModernBertForMaskedLM:
    """The whole model in a folder, as float32.

    Raises:
        InputError: it cannot be loaded, lacks weights, or has some that are not finite.
    """
    try:
        model, report = ZhModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if report["missing_keys"]:
        raise InputError(f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{folder}: {name} holds values that are not finite; start from another model")
    return model


def build_model(settings: Settings, rows: PackedStream, tokenizer: ZhModernBertTokenizer) -> ZhModernBertForMaskedLM:
    """The model to train, from a config, from a folder or tiled from that to the config, checked against the data.

    Raises:
        InputError: vocabulary, tokenizer, row length or, for tiling, sizes do not fit.
    """
    if settings.init_from:
        start = load_model(require_model(settings, rows.tokenizer))
    if settings.model_config:
        model = ZhModernBertForMaskedLM(read_model_config(settings.model_config, rows.vocab_size, tokenizer))
        if settings.init_from:
            tile_model(start, model)
    else:
        model = start
    fit_model(settings, model, rows)
    return model


def rows_per_update(settings: Settings, seq_len: int, num_processes: int) -> np.ndarray:
    """`(max_steps,)`: rows of each update, of all processes together.

    Raises:
        InputError: tokens_per_update are not whole rows.
    """
    full = settings.per_device_batch_size * settings.gradient_accumulation_steps * num_processes
    if settings.tokens_per_update:
        full, rest = divmod(settings.tokens_per_update, seq_len)
        if rest:
            raise InputError(f"tokens_per_update is {settings.tokens_per_update}, no multiple of the rows' {seq_len} tokens")
    return rows_of_updates(full, settings.max_steps, settings.num_batch_warmup_steps, settings.warmup_batch_ratio)


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
            with accelerator.autocast():
                outputs = model(**batch, num_items_in_batch=max(masked, 1), return_logits=False)
            accelerator.backward(outputs.loss * accelerator.num_processes)  # DDP takes the mean over processes
        labels = batch["labels"][batch["labels"] != IGNORE_INDEX]
        correct = (outputs.predictions == labels).sum()
        losses.append(outputs.loss.detach())
        total += torch.stack((outputs.loss.detach().double() * max(masked, 1), correct.double()))
    loss, correct = accelerator.reduce(total, "sum").tolist()
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf))
    counts = {"masked": masked, "tokens": tokens}
    return {"loss": loss, "correct": correct, **counts, "grad_norm": norm, "losses": torch.stack(losses)}


PR_SET_PDEATHSIG = 1  # Linux: what a process is sent when its parent ends


class StopSignals(contextlib.ContextDecorator):
    """SIGTERM and SIGINT become a wish to stop, which the loop grants after the update; a second one kills at once.

    What follows within `SAME` seconds is no second one: a launcher passes on what its processes were sent themselves.
    """

    SAME = 2.0

    def __enter__(self):
        self.received, self.first = 0, 0.0
        if "ACCELERATE_MIXED_PRECISION" in os.environ:
            # accelerate launch, where it starts one process, does not pass signals on: it just ends.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
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
        end_processes()
        sys.exit(128 + number)


stopping = StopSignals()


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether each flag is up on any process: the same answer on all."""
    return [count > 0 for count in accelerator.reduce(torch.tensor(flags, device=accelerator.device).int(), "sum").tolist()]


def on_main_process(accelerator: Accelerator, function: Callable):
    """What the function gives on the main process, and None elsewhere.

    Raises:
        InputError: what it raises there, on all: the others would wait for the one that is gone.
    """
    result, error = None, [None]
    if accelerator.is_main_process:
        try:
            result = function()
        except InputError as raised:
            error = [str(raised)]
    broadcast_object_list(error)
    if error[0]:
        raise InputError(error[0])
    return result


def rotation_of(settings: Settings) -> Rotation:
    decay_start = settings.max_steps - settings.num_decay_steps if settings.schedule == "warmup_stable_decay" else 0
    return Rotation(settings.save_steps, settings.save_total_limit, settings.keep_every_steps, decay_start)


def compare_layout(before: dict, now: dict) -> None:
    """Says on stderr what it means that a run goes on with other processes or rows than before."""
    if before != now:
        form = "{processes} processes x {per_device_batch_size} rows, {rows_per_update} an update"
        note = f"{form.format(**now)}; before: {form.format(**before)}. The run goes on at the right row, but not to the bit"
        print(f"note: {note}", file=sys.stderr)


def skipped_rows(accelerator: Accelerator, dataset: MicroBatches, step: int, losses: torch.Tensor) -> list[tuple[int, int]]:
    """(epoch, row) of the micro-batches of an update whose loss is not finite, or of all where only the gradient is not.

    Args:
        losses: `(accumulation steps,)` of this process.
    """
    bad = (~torch.isfinite(accelerator.gather(losses))).tolist()
    return [row for number, is_bad in enumerate(bad) if is_bad or not any(bad) for row in dataset.share(step, number)]


def return_freed_memory() -> None:
    """Gives freed memory back to the system, where the C library (glibc) keeps it.

    Documents make every batch of other sizes; what glibc keeps of them grew by 1.3 MB an update on CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def save_model(folder: Path, model: ZhModernBertForMaskedLM, tokenizer: ZhModernBertTokenizer) -> None:
    """The trained model and its tokenizer, written aside and renamed."""
    tokenizer.model_max_length = model.config.max_position_embeddings
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def seed_update(seed: int, step: int, process: int) -> None:
    """Dropout's randomness as a function of the update alone."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))


def check_rows(settings: Settings, rows: PackedStream, num_processes: int) -> None:
    """
    Raises:
        InputError: they are of another length than the settings say, or there is not one for each process.
    """
    if settings.seq_len not in (0, rows.seq_len):
        raise InputError(
            f"{settings.data_dir}: packed with seq_len {rows.seq_len}, but this run is to have {settings.seq_len}; "
            f"pack with --seq_len {settings.seq_len}, or choose another preset"
        )
    if num_processes > len(rows):
        raise InputError(f"{settings.data_dir}: {len(rows)} rows for {num_processes} processes; start fewer, or pack more text")


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
