"""Training checkpoints: weights, optimizer and position, as safetensors and JSON, each folder whole or absent.

`checkpoints/step-00000100/` holds `model.safetensors`, `optimizer.safetensors` and `state.json`. Nothing is pickled. Order,
masks and dropout are functions of the update's number, so that number is all the position there is.
"""

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from zh_modernbert.train.cli import InputError
from zh_modernbert.train.files import read_json, replacing, write_json
from zh_modernbert.train.parallel import is_main_process, shard_like, whole


def checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((output_dir / "checkpoints").glob("step-*"))


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict]:
    """An optimizer's state as tensors named `index.key`, and whatever is not a tensor as `{index: {key: value}}`."""
    tensors, values = {}, {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if torch.is_tensor(value):
                tensors[f"{index}.{key}"] = whole(value).contiguous()
            else:
                values.setdefault(str(index), {})[key] = value
    for index, group in enumerate(optimizer.state_dict()["param_groups"]):  # StableAdamW counts its steps here
        tensors |= {f"group{index}.{key}": value for key, value in group.items() if torch.is_tensor(value)}
        values[f"group{index}"] = {k: v for k, v in group.items() if k != "params" and not torch.is_tensor(v)}
    return tensors, values


def tied_names(model: nn.Module) -> set[str]:
    """Names in the state dict whose tensor is another one's too."""
    state = model.state_dict(keep_vars=True)
    return {name for name, source in (getattr(model, "_tied_weights_keys", None) or {}).items() if state[name] is state[source]}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], values: dict) -> None:
    state = {index: dict(entries) for index, entries in values.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if index.isdigit() and tensor.shape == parameters[int(index)].shape:
            tensor = shard_like(tensor, parameters[int(index)])
        state.setdefault(index, {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    groups = [group | state.pop(f"group{index}") for index, group in enumerate(groups)]
    optimizer.load_state_dict({"state": {int(index): entries for index, entries in state.items()}, "param_groups": groups})


def save_checkpoint(
    output_dir: Path, position: dict, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str, save_total_limit: int
) -> Path:
    """Writes `step-NNNNNN` aside and renames it, then drops the oldest beyond `save_total_limit`.

    The main process writes; where tensors are sharded, every process has to call this.

    Args:
        position: `step`, the updates done, and whatever else of plain numbers the loop needs back.
        identity: what the run is (its settings, model and data); only a run with the same one may resume from this.
    """
    final = output_dir / "checkpoints" / f"step-{position['step']:08d}"
    tied = tied_names(model)
    weights = {name: whole(tensor).contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    tensors, values = flatten_optimizer(optimizer)
    if not is_main_process():
        return final
    with replacing(final) as folder:
        save_file(weights, folder / "model.safetensors")
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "state.json", {"position": position, "identity": identity, "optimizer": values})
    for old in checkpoints(output_dir)[:-save_total_limit]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> dict:
    """Restores weights and optimizer, and returns the position.

    Raises:
        InputError: the checkpoint belongs to another run, or is damaged.
    """
    state = read_json(path / "state.json")
    if not {"identity", "position", "optimizer"} <= state.keys():
        raise InputError(f"{path / 'state.json'}: not the state of a checkpoint; delete the folder to fall back")
    if state["identity"] != identity:
        raise InputError(
            f"{path}: a checkpoint of another run: its settings, model config or data differ from this one's; "
            "choose another output_dir, or delete this folder to start anew"
        )
    try:
        own, weights = model.state_dict(), load_file(path / "model.safetensors")
        weights = {name: shard_like(tensor, own.get(name)) for name, tensor in weights.items()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        tied = tied_names(model)
        if set(missing) - tied or unexpected:
            raise InputError(f"{path}: its weights are of another model: {(sorted(set(missing) - tied) + unexpected)[:3]}")
        restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"), state["optimizer"])
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be loaded: {' '.join(str(error).split())}; delete it to fall back") from error
    return state["position"]
