"""What a run is set up with, checked against its data: the model it starts from, and the rows of its updates.

`settings` are those of train/pretrain.py.
"""

import inspect
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers.activations import ACT2FN

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.common.cli import InputError, one_line
from zh_modernbert.train.common.files import read_json, require_folder
from zh_modernbert.train.pretraining.tile import tile_model
from zh_modernbert.train.rows.dataloader import rows_of_updates
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import fingerprint


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


def require_model(settings, tokenizer: str | None) -> Path:
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


def fit_model(settings, model: ZhModernBertForMaskedLM, rows: PackedStream) -> None:
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
        raise InputError(f"attn_implementation: {one_line(error)}") from error


def load_model(folder: Path) -> ZhModernBertForMaskedLM:
    """The whole model in a folder, as float32.

    Raises:
        InputError: it cannot be loaded, lacks weights, or has some that are not finite.
    """
    try:
        model, report = ZhModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be loaded: {one_line(error)}") from error
    if report["missing_keys"]:
        raise InputError(f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{folder}: {name} holds values that are not finite; start from another model")
    return model


def build_model(settings, rows: PackedStream, tokenizer: ZhModernBertTokenizer) -> ZhModernBertForMaskedLM:
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


def rows_per_update(settings, seq_len: int, num_processes: int) -> np.ndarray:
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


def check_rows(settings, rows: PackedStream, num_processes: int) -> None:
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
