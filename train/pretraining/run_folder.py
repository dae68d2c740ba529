"""The folder of a pretraining run: which run it belongs to, which process writes it, and from which checkpoint a run starts.

Two runs are the same one if they have the same settings, model config, data and weights to start from. The `running` settings
and the number of processes do not count: they say how and where the work is done. A folder belongs to one run, and one process
at a time writes it.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import IO

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError, recipe_of
from zh_modernbert.train.common.files import hash_file, read_json, require_folder, sha256, write_json
from zh_modernbert.train.common.model_folder import fields_that_count
from zh_modernbert.train.common.stage import lock_folder
from zh_modernbert.train.pretraining.checkpoint import verify_checkpoint, writing
from zh_modernbert.train.rows.row_stream import PackedStream


def describe_run(settings, model: ZhModernBertForMaskedLM, rows: PackedStream) -> dict:
    """What a run is made with. Its checkpoints repeat this as `made_with`.

    Only a run with the same `tokenizer`, `optimizer` and `config` can go on from a checkpoint. Only one with the same `rows`
    goes on at the same row.
    """
    return {
        "tokenizer": rows.tokenizer,
        "optimizer": settings.optimizer,
        "config": json.loads(json.dumps(fields_that_count(model.config))),  # as it will be when read back: lists for tuples
        "rows": [rows.content, settings.seed],
    }


def run_identity(settings, model: ZhModernBertForMaskedLM, made_with: dict) -> str:
    """A hash of all that makes two runs the same one; see the module's docstring.

    Args:
        made_with: what `describe_run` gives.
    """
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    start = []
    if settings.init_from:
        start.append({path.name: hash_file(path) for path in sorted(Path(settings.init_from).glob("*.safetensors"))})
    if settings.resume_from:
        start.append(read_json(require_folder(settings.resume_from, "state.json") / "state.json").get("sha256"))
    known = [recipe_of(settings), shapes, made_with, start]
    return sha256(json.dumps(known, sort_keys=True).encode())


def position_to_resume(settings, made_with: dict) -> dict | None:
    """The position in the checkpoint that `resume_from` names; None without that setting.

    The position's `rows` is 0 where this run reads other data than the checkpoint's run did, or reads it in another order or
    mixture: the new data is read from its first row.

    Args:
        made_with: what `describe_run` gives for this run.

    Raises:
        InputError: the checkpoint is missing or damaged, was made with something else, or is beyond max_steps.
    """
    if not settings.resume_from:
        return None
    path = require_folder(settings.resume_from, "state.json")
    position = verify_checkpoint(path, identity=None)
    before = position["made_with"]
    for name in ("tokenizer", "optimizer"):
        if before[name] != made_with[name]:
            raise InputError(f"resume_from: {path} was made with {name} {before[name]}, this run has {made_with[name]}")
    ours, theirs = made_with["config"], before["config"]
    if differing := sorted(field for field in ours | theirs if ours.get(field) != theirs.get(field)):
        field = differing[0]
        raise InputError(f"resume_from: {path} has {field} {theirs.get(field)} in its model config, this run {ours.get(field)}")
    if position["step"] >= settings.max_steps:
        raise InputError(f"resume_from: {path} is after update {position['step']}, but max_steps is {settings.max_steps}")
    return position | {"rows": position["rows"] if before["rows"] == made_with["rows"] else 0, "sums": {}}


def check_run_folder(output_dir: Path, settings, identity: str) -> None:
    """Checks that the folder is missing, empty, or this run's own.

    Raises:
        InputError: the folder holds another run, naming the settings that differ, or something that is no run.
    """
    if (output_dir / "run.json").is_file():
        if read_json(output_dir / "run.json").get("identity") == identity:
            return
        ours, theirs = recipe_of(settings), {}
        if (output_dir / "settings.json").is_file():
            theirs = read_json(output_dir / "settings.json")
        differing = [name for name, value in ours.items() if theirs.get(name) != json.loads(json.dumps(value))]
        what = f"other {', '.join(differing)}" if differing else "another model config, data or weights to start from"
        raise InputError(f"{output_dir}: holds another run ({what}); choose another output_dir")
    own = ("run.json.tmp", ".lock")
    if output_dir.is_file() or (output_dir.is_dir() and any(path.name not in own for path in output_dir.iterdir())):
        raise InputError(f"{output_dir}: exists and is no pretraining run; choose another output_dir")


def claim_run_folder(output_dir: Path, settings, identity: str) -> IO:
    """Makes the folder this run's, locks it, and clears checkpoints that a killed process left half written.

    Returns:
        The lock, an open file. The folder is free again when that is closed, or when the process ends.

    Raises:
        InputError: another process is writing the folder, it holds another run, or it cannot be written.
    """
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(output_dir)
        if not lock:
            raise InputError(f"{output_dir}: another process is writing it; wait for that to end, or stop it")
        check_run_folder(output_dir, settings, identity)  # again: only now can no other process change it
        write_json(output_dir / "run.json", {"identity": identity})
        write_json(output_dir / "settings.json", dataclasses.asdict(settings))
        for path in (output_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(path)
    return lock
