"""What a run is made of, checked before anything is written: data, tokenizer, model, and the rows of its updates.

`settings` are those of train/pretrain.py.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.activations import ACT2FN

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.common.cli import InputError, one_line
from zh_modernbert.train.common.files import read_json, require_folder
from zh_modernbert.train.common.model_folder import load_model, read_config
from zh_modernbert.train.pretraining.checkpoint import checkpoints
from zh_modernbert.train.pretraining.run_folder import check_run_folder, describe_run, position_to_resume, run_identity
from zh_modernbert.train.pretraining.tile import tile_model
from zh_modernbert.train.pretraining.validation import Validation
from zh_modernbert.train.rows.dataloader import micro_batches_of_updates, rows_of_updates
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import fingerprint, load_tokenizer

MOST_ROWS = 2**53  # that rows are counted to


def read_model_config(path: str, vocab_size: int, tokenizer: ZhModernBertTokenizer | None) -> ZhModernBertConfig:
    """The config whose fields are in a JSON file.

    Args:
        vocab_size: of the data's tokenizer; rounded up to a multiple of 64, it is the config's where the file has none.
        tokenizer: the ids of the special tokens are taken from it.

    Raises:
        InputError: the file cannot be read, or has an unknown field or an impossible value.
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


def require_model(settings, tokenizer: str | None) -> Path:
    """The folder `init_from`.

    Args:
        tokenizer: fingerprint of the data's tokenizer; None where the data is not there yet.

    Raises:
        InputError: there is no model, or its tokenizer is not the data's.
    """
    folder = require_folder(settings.init_from, "config.json")
    if tokenizer and fingerprint(folder) != tokenizer:
        raise InputError(f"{folder}: its tokenizer does not match the data in {settings.data_dir}; encode with this tokenizer")
    return folder


def starting_model(
    settings, start: ZhModernBertForMaskedLM | None, vocab_size: int, tokenizer: ZhModernBertTokenizer | None
) -> ZhModernBertForMaskedLM:
    """The model of a run's first update: `start`, or one as `model_config` says, tiled from `start` or of random weights.

    Raises:
        InputError: config or sizes are wrong, see `read_model_config`, `check_sizes`.
    """
    if start and not settings.model_config:
        return start
    model = ZhModernBertForMaskedLM(read_model_config(settings.model_config, vocab_size, tokenizer))
    if start:
        tile_model(start, model)
    return model


def fit_model(settings, model: ZhModernBertForMaskedLM, rows: PackedStream) -> None:
    """Sets the model's RoPE base and attention to this stage's, and checks the model against the data.

    Raises:
        InputError: the model's vocabulary or length is too small for the rows, or the attention is unknown.
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
        raise InputError(f"attn_implementation: {one_line(error)}") from error


def rows_per_update(settings, seq_len: int, num_processes: int) -> np.ndarray:
    """`(max_steps,)`: rows of each update, of all processes together.

    Raises:
        InputError: tokens_per_update is no multiple of the rows' length, the rows are too many to count, or too few for the
            processes.
    """
    full = settings.per_device_batch_size * settings.gradient_accumulation_steps * num_processes
    if settings.tokens_per_update:
        full, rest = divmod(settings.tokens_per_update, seq_len)
        if rest:
            raise InputError(f"tokens_per_update is {settings.tokens_per_update}, no multiple of the rows' {seq_len} tokens")
    if full * settings.max_steps > MOST_ROWS:
        raise InputError(f"{full} rows an update and {settings.max_steps} updates are too many; lower one of the two")
    rows = rows_of_updates(full, settings.max_steps, settings.num_batch_warmup_steps, settings.warmup_batch_ratio)
    micro_batches_of_updates(rows, settings.per_device_batch_size, num_processes)
    return rows


def check_rows(settings, rows: PackedStream, num_processes: int) -> None:
    """Checks that the data has rows of the length that the settings ask for, and at least one row for each process.

    Raises:
        InputError: it has not.
    """
    if settings.seq_len not in (0, rows.seq_len):
        raise InputError(
            f"{settings.data_dir}: packed with seq_len {rows.seq_len}, but this run is to have {settings.seq_len}; "
            f"pack with --seq_len {settings.seq_len}, or choose another preset"
        )
    if num_processes > len(rows):
        raise InputError(f"{settings.data_dir}: {len(rows)} rows for {num_processes} processes; start fewer, or pack more text")


def open_rows(settings, num_processes: int) -> PackedStream:
    """The rows of `data_dir`, as `check_rows` has checked them."""
    rows = PackedStream(settings.data_dir, settings.mixture)
    check_rows(settings, rows, num_processes)
    return rows


@dataclass(frozen=True)
class Parts:
    """All that a run is made of.

    Attributes:
        rows_per_update: `(max_steps,)`, of all processes together.
        start: the position in the checkpoint of another run that this one goes on from, None where it does not.
        made_with, identity: see train/pretraining/run_folder.py.
        validation: None where the settings ask for none.
    """

    rows: PackedStream
    tokenizer: ZhModernBertTokenizer
    model: ZhModernBertForMaskedLM
    rows_per_update: np.ndarray
    start: dict | None
    made_with: dict
    identity: str
    validation: Validation | None


def set_up(settings, num_processes: int) -> Parts:
    """Reads and checks all that a run is made of, and writes nothing.

    Raises:
        InputError: something is missing, or does not fit the rest.
    """
    output_dir = Path(settings.output_dir)
    rows = open_rows(settings, num_processes)
    tokenizer = load_tokenizer(rows.tokenizer_dir)
    torch.manual_seed(settings.seed)
    given_model = load_model(require_model(settings, rows.tokenizer)).float() if settings.init_from else None
    model = starting_model(settings, given_model, rows.vocab_size, tokenizer)
    sizes = rows_per_update(settings, rows.seq_len, num_processes)
    fit_model(settings, model, rows)
    made_with = describe_run(settings, model, rows)
    identity = run_identity(settings, model, made_with)
    check_run_folder(output_dir, settings, identity)
    # A run with checkpoints of its own does not need that of another, which takes long to verify.
    start = None if checkpoints(output_dir) else position_to_resume(settings, made_with)
    validation = Validation(settings, rows, tokenizer, model.config) if settings.validation_dir else None
    return Parts(rows, tokenizer, model, sizes, start, made_with, identity, validation)


@dataclass(frozen=True)
class Draft:
    """What a dry run finds, as in `Parts`. A part is None where the data or the model that it needs is not there yet."""

    rows: PackedStream | None
    model: ZhModernBertForMaskedLM | None
    rows_per_update: np.ndarray | None
    start: dict | None


def draft(settings, num_processes: int) -> Draft:
    """Reads and checks what is there of a run that `set_up` would set up, without memory for weights.

    Raises:
        InputError: something does not fit the rest.
    """
    rows = tokenizer = given_model = model = sizes = start = None
    waits_for_model = settings.init_from and not Path(settings.init_from).exists()
    if all((Path(settings.data_dir) / name).exists() for name in settings.mixture or [""]):
        rows = open_rows(settings, num_processes)
        tokenizer = load_tokenizer(rows.tokenizer_dir)
    with torch.device("meta"):
        if settings.init_from and not waits_for_model:
            given_model = ZhModernBertForMaskedLM(read_config(require_model(settings, rows.tokenizer if rows else None)))
        if given_model or settings.model_config:
            vocab_size = (rows or (given_model.config if given_model else ZhModernBertConfig())).vocab_size
            model = starting_model(settings, given_model, vocab_size, tokenizer)
    if seq_len := rows.seq_len if rows else settings.seq_len:
        sizes = rows_per_update(settings, seq_len, num_processes)
    if rows and tokenizer and model:
        fit_model(settings, model, rows)
        made_with = describe_run(settings, model, rows)
        if not waits_for_model:
            check_run_folder(Path(settings.output_dir), settings, run_identity(settings, model, made_with))
        start = position_to_resume(settings, made_with)
        if settings.validation_dir:
            Validation(settings, rows, tokenizer, model.config)
    return Draft(rows, model, sizes, start)
