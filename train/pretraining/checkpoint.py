"""Training checkpoints: weights, optimizer and position, as safetensors and JSON. Each folder is complete or not there.

`checkpoints/step-00000100/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`, which has the hashes of all
three. Nothing is pickled. The position is a few numbers: the order of rows, their masks and dropout are computed from row and
update.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from optimi import StableAdamW
from safetensors.torch import load_file, save_file
from torch import nn

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import WRITE_ERRORS, hash_json, read_json, reason, replacing, write_json
from zh_modernbert.train.common.manifest import describe_files
from zh_modernbert.train.pretraining.parallel import gather, is_main_process, shard_like

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what optimizers keep of a parameter from update to update


class DamagedError(InputError):
    """A checkpoint whose files are not what was written."""


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Folders with other names do not count."""
    names = (output_dir / "checkpoints").glob("step-*")
    return sorted(path for path in names if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir())


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the error of a full or broken disk into one line that names `folder`.

    Raises:
        InputError: the block could not write.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        raise InputError(
            f"{folder}: cannot be written: {reason(error)}; "
            "make room and give the same command again, to go on from the last checkpoint"
        ) from error


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of files, is on the disk and would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state in two parts: tensors by `index.key`, and all other values as `{index: {key: value}}`.

    An index is a parameter's number, or `group0`, `group1` for what the optimizer keeps of a parameter group.
    """
    tensors, values = {}, {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{key}"] = gather(value).contiguous()
            else:
                values.setdefault(str(index), {})[key] = value
    for index, group in enumerate(optimizer.state_dict()["param_groups"]):  # StableAdamW counts its steps here
        tensors |= {f"group{index}.{key}": value for key, value in group.items() if torch.is_tensor(value)}
        values[f"group{index}"] = {k: v for k, v in group.items() if k != "params" and not torch.is_tensor(v)}
    return tensors, values


def tied_names(model: nn.Module) -> dict[str, str]:
    """Name of a tied tensor in the state dict -> name of the tensor that it shares its memory with."""
    state = model.state_dict(keep_vars=True)
    tied = getattr(model, "_tied_weights_keys", None) or {}
    return {name: source for name, source in tied.items() if state[name] is state[source]}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict) -> None:
    """Gives the optimizer the moments and step counts of a checkpoint.

    All else stays the run's own: betas, weight decay, and the kernels for this machine with what they keep for each parameter.
    """
    state = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if index.isdigit() and key in MOMENTS:
            like = parameters[int(index)]
            state.setdefault(int(index), {})[key] = shard_like(tensor, like) if tensor.shape == like.shape else tensor
    groups = optimizer.state_dict()["param_groups"]
    for index, group in enumerate(groups):
        if (step := tensors.get(f"group{index}.step")) is not None:  # StableAdamW counts its steps here
            group |= {"step": step, "setup": values[f"group{index}"]["setup"]}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if isinstance(optimizer, StableAdamW):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if moments := optimizer.state.pop(parameter, {}):
                    optimizer._init_state(group, own := {}, parameter)
                    optimizer.state[parameter] = own | {key: value for key, value in moments.items() if key in MOMENTS}


@dataclass(frozen=True)
class Rotation:
    """After which updates a checkpoint is written, and which checkpoints are kept.

    Attributes:
        save_steps: a checkpoint is written every so many updates.
        save_total_limit: the newest so many are kept.
        keep_every_steps: a checkpoint is written every so many updates, and is kept for good; 0: none.
        decay_start: the update before which the learning rate begins to decay. A checkpoint is written here, and the newest one
            up to here is kept for good, so that another decay can start from it; 0: none.
    """

    save_steps: int
    save_total_limit: int
    keep_every_steps: int = 0
    decay_start: int = 0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after update `step`."""
        return step == self.decay_start or any(
            every and step % every == 0 for every in (self.save_steps, self.keep_every_steps)
        )

    def kept(self, steps: list[int]) -> set[int]:
        """Those of the updates `steps`, oldest first, whose checkpoints are kept."""
        kept = {*steps[-self.save_total_limit :], *[step for step in steps if step <= self.decay_start][-1:]}
        return kept | {step for step in steps if self.keep_every_steps and step % self.keep_every_steps == 0}


def rotate(output_dir: Path, newest: int, rotation: Rotation) -> None:
    """Deletes the checkpoints that the rotation does not keep.

    Checkpoints of updates after `newest` are deleted too: they are damaged, and the run went on from an earlier one.
    """
    there = {step_of(path): path for path in checkpoints(output_dir)}
    for step in there.keys() - rotation.kept([step for step in there if step <= newest]):
        shutil.rmtree(there[step])


def save_checkpoint(
    output_dir: Path,
    position: dict,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    rotation: Rotation,
) -> Path:
    """Writes the checkpoint of an update, and then deletes the older ones that the rotation does not keep.

    The folder is written under another name, and renamed when its files are on the disk. Every process has to call this; the
    main one writes.

    Args:
        position: `step`, the number of updates done, and other plain values that the loop needs back.
        identity: of the run; only a run with the same one goes on from this checkpoint by itself.
        rotation: which older checkpoints are kept.

    Raises:
        InputError: the checkpoint cannot be written. The older ones are still there.
    """
    final = output_dir / "checkpoints" / f"step-{position['step']:08d}"
    tied = tied_names(model)
    weights = {name: gather(tensor).contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    tensors, values = flatten_optimizer(optimizer)
    if not is_main_process():
        return final
    with writing(output_dir):
        with replacing(final) as folder:
            save_file(weights, folder / "model.safetensors")
            save_file(tensors, folder / "optimizer.safetensors")
            state = {"position": position, "identity": identity, "optimizer": values, "files": describe_files(folder)}
            write_json(folder / "state.json", state | {"sha256": hash_json(state)})
            for path in (*folder.iterdir(), folder):
                sync(path)
        sync(final.parent)
        rotate(output_dir, position["step"], rotation)
    return final


def verify_checkpoint(path: Path, identity: str | None) -> dict:
    """Reads a checkpoint, compares its files with their hashes, and returns its position.

    Args:
        identity: of the run that must have written it; None: any.

    Raises:
        DamagedError: a file is not what was written.
        InputError: another run wrote the checkpoint.
    """
    try:
        state = read_json(path / "state.json")
        if state.pop("sha256", None) != hash_json(state):
            raise DamagedError(f"{path / 'state.json'}: not what was written")
        files = describe_files(path)
    except (InputError, OSError) as error:
        raise DamagedError(str(error)) from error
    if identity and state["identity"] != identity:
        raise InputError(
            f"{path}: a checkpoint of another run: its settings, model config, data or first weights differ from this one's; "
            "choose another output_dir, or delete this folder to start anew"
        )
    for name, written in state["files"].items():
        if files.get(name) != written:
            raise DamagedError(f"{path / name}: not what was written")
    return state["position"]


def newest_undamaged(output_dir: Path, identity: str) -> Path | None:
    """The newest checkpoint that is not damaged; None where there is no checkpoint at all.

    Damaged ones that are newer are named on stderr.

    Raises:
        InputError: all are damaged, or another run wrote one.
    """
    paths = checkpoints(output_dir)
    for path in reversed(paths):
        try:
            verify_checkpoint(path, identity)
            return path
        except DamagedError as error:
            print(f"warning: damaged checkpoint: {error}; going on from the one before", file=sys.stderr)
    if paths:
        raise InputError(f"{paths[0].parent}: no checkpoint is whole; delete this folder to start anew from the first update")
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restores weights and optimizer from a checkpoint that was verified, and returns its position."""
    state, weights = read_json(path / "state.json"), load_file(path / "model.safetensors")
    weights |= {name: weights[source] for name, source in tied_names(model).items()}
    own = model.state_dict()
    model.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in weights.items()})
    restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"), state["optimizer"])
    return state["position"]
