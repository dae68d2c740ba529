"""What a run would take: sizes, work, time and disk, computed from settings, model, data and rows per update."""

import dataclasses
from pathlib import Path

import numpy as np

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.pretraining.checkpoint import Rotation
from zh_modernbert.train.pretraining.flops import training_flops
from zh_modernbert.train.pretraining.schedules import mlm_schedule_of
from zh_modernbert.train.rows.row_stream import PackedStream

BYTES_PER_WEIGHT = 4  # float32, whatever the precision of the computation
BYTES_PER_STATE = 12  # of a checkpoint: the weight and the optimizer's two moments


def plan(
    settings,
    model: ZhModernBertForMaskedLM | None,
    stream: PackedStream | None,
    rows_per_update: np.ndarray | None,
    rotation: Rotation,
    first_step: int,
    num_processes: int,
) -> dict:
    """What `--dry_run` prints. A value that needs data or a model that is not there yet is None.

    The number of operations depends on the lengths of documents, of which only the mean is known. `flops` is for documents that
    all have the mean length; no others of that mean take fewer. `flops_at_most` is for rows of one document each. Before the
    data is there, rows are assumed to be full and of one document, and the vocabulary to have its default size: see `assumed`.

    Args:
        settings: of train/pretrain.py.
        model: its weights need no memory.
        stream: the data.
        rows_per_update: `(max_steps,)`.
        first_step: updates that are done already.
    """
    s, steps = settings, range(first_step, settings.max_steps)
    found = {
        "settings": dataclasses.asdict(s),
        "num_processes": num_processes,
        "updates": len(steps),
        **dict.fromkeys(("rows_per_update", "rows", "tokens_per_update", "tokens", "epochs", "hours")),
        **dict.fromkeys(("parameters", "embedding_share", "flops", "flops_at_most", "checkpoint_bytes", "disk_bytes")),
        "assumed": {},
    }
    tokens_per_row, documents_per_row = s.seq_len, 1.0
    if stream:
        tokens_per_row, documents_per_row = stream.mean("tokens"), stream.mean("documents")
    else:
        if tokens_per_row:
            found["assumed"] |= {"tokens_per_row": tokens_per_row, "documents_per_row": documents_per_row}
        if model and not Path(s.init_from or "-").exists() and "vocab_size" not in read_json(s.model_config):
            found["assumed"]["vocab_size"] = model.config.vocab_size
    if rows_per_update is not None:
        found["rows_per_update"], found["rows"] = int(rows_per_update[-1]), int(rows_per_update[first_step:].sum())
        found["tokens_per_update"] = round(found["rows_per_update"] * tokens_per_row)
        found["tokens"] = round(found["rows"] * tokens_per_row)
        if s.tokens_per_second:
            found["hours"] = round(found["tokens"] / s.tokens_per_second / 3600, 2)
    if stream:
        found["epochs"] = {name: round(found["rows"] * share, 4) for name, share in stream.epochs_per_row().items()}
    if model:
        found["parameters"] = parameters = model.num_parameters()
        found["embedding_share"] = round(model.model.embeddings.tok_embeddings.weight.numel() / parameters, 4)
        found["checkpoint_bytes"] = BYTES_PER_STATE * parameters
        # One more: a new checkpoint is complete before the oldest is deleted.
        checkpoints = len(rotation.kept([step for step in steps if step > first_step and rotation.due(step)])) + 1
        found["disk_bytes"] = checkpoints * found["checkpoint_bytes"] + BYTES_PER_WEIGHT * parameters
    if model and rows_per_update is not None:
        mlm_schedule = mlm_schedule_of(s)
        masked_rows = sum(int(rows_per_update[step]) * mlm_schedule.at(step) for step in steps)
        for name, documents in (("flops", found["rows"] * documents_per_row), ("flops_at_most", found["rows"])):
            lengths, masked = [found["tokens"] / documents], masked_rows * tokens_per_row / documents
            found[name] = documents * training_flops(lengths, masked, model.config)
    return found
