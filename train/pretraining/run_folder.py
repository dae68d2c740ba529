"""The folder of a pretraining run: whose it is, who writes it, and from where a run starts.

Two runs are the same if settings, model config, data, and the weights they start from are; how and where the work is done (the
`running` settings, the processes) is no part of that. A folder belongs to one run, and one process at a time writes it.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import IO

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError, recipe_of
from zh_modernbert.train.common.files import hash_file, read_json, require_folder, sha256, write_json
from zh_modernbert.train.common.stage import take_over
from zh_modernbert.train.pretraining.checkpoint import verify, writing
from zh_modernbert.train.rows.row_stream import PackedStream


def made_with(settings, model: ZhModernBertForMaskedLM, rows: PackedStream) -> dict:
    """What a checkpoint is good for: a run with the same tokenizer, optimizer and model config; and what rows it was fed."""
    # What is left out says who wrote the config and where, or is a setting.
    own = ("transformers_version", "dtype", "_name_or_path")
    config = {k: v for k, v in model.config.to_dict().items() if k not in own}
    return {
        "tokenizer": rows.tokenizer,
        "optimizer": settings.optimizer,
        "config": json.loads(json.dumps(config)),  # as it is read back
        "rows": [rows.content, settings.seed],
    }


def run_identity(settings, model: ZhModernBertForMaskedLM, own: dict) -> str:
    """What must be the same for a checkpoint to be this run's, as a hash; `own` is what it is made with."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    start = []
    if settings.init_from:
        start.append({path.name: hash_file(path) for path in sorted(Path(settings.init_from).glob("*.safetensors"))})
    if settings.resume_from:
        start.append(read_json(require_folder(settings.resume_from, "state.json") / "state.json").get("sha256"))
    known = [recipe_of(settings), shapes, own, start]
    return sha256(json.dumps(known, sort_keys=True).encode())


def start_of(settings, own: dict) -> dict | None:
    """The position in the checkpoint `resume_from`, None where that is not set.

    Of other rows, or of the same in another order or mixture, a run takes the first.

    Args:
        own: what this run is made with.

    Raises:
        InputError: there is no whole checkpoint, it is made with something else, or it is beyond max_steps.
    """
    if not settings.resume_from:
        return None
    path = require_folder(settings.resume_from, "state.json")
    position = verify(path, identity=None)
    before = position["made_with"]
    for name in ("tokenizer", "optimizer"):
        if before[name] != own[name]:
            raise InputError(f"resume_from: {path} was made with {name} {before[name]}, this run has {own[name]}")
    ours, theirs = own["config"], before["config"]
    if differing := sorted(field for field in ours | theirs if ours.get(field) != theirs.get(field)):
        field = differing[0]
        raise InputError(f"resume_from: {path} has {field} {theirs.get(field)} in its model config, this run {ours.get(field)}")
    if position["step"] >= settings.max_steps:
        raise InputError(f"resume_from: {path} is after update {position['step']}, but max_steps is {settings.max_steps}")
    return position | {"rows": position["rows"] if before["rows"] == own["rows"] else 0, "sums": {}}


def check_output(output_dir: Path, settings, identity: str) -> None:
    """Refuses a folder that holds anything but this run.

    Raises:
        InputError: it holds another run, naming the settings that differ, or something else.
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


def claim_output(output_dir: Path, settings, identity: str) -> IO:
    """Makes the folder this run's, clears what a killed process left half written, and locks it until this one ends.

    Raises:
        InputError: another process is writing it, it holds another run, or it cannot be written.
    """
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = take_over(output_dir)
        if not lock:
            raise InputError(f"{output_dir}: another process is writing it; wait for that to end, or stop it")
        check_output(output_dir, settings, identity)  # once more: only now is it this process's alone
        write_json(output_dir / "run.json", {"identity": identity})
        write_json(output_dir / "settings.json", dataclasses.asdict(settings))
        for path in (output_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(path)
    return lock
