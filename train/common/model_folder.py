"""A model's folder: weights, config and tokenizer, with this project's code or without.

Every script that reads a model reads it here. Weights come from safetensors alone, and all of them: a tensor that is missing,
left over, of another shape, not finite or damaged is an error that names it.
"""

import shutil
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import AUTO_MAP, ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM, ZhModernBertPreTrainedModel
from zh_modernbert.train.common.cli import InputError, describe
from zh_modernbert.train.common.files import (
    hash_file,
    hash_json,
    read_json,
    replacing,
    require_file,
    require_folder,
    sha256,
    write_json,
)
from zh_modernbert.train.common.manifest import describe_files

PROJECT = Path(__file__).resolve().parents[2]
ROOT_FILES = [PROJECT / f"{name}_zh_modernbert.py" for name in ("configuration", "modeling", "tokenization")]
LARGEST_SHARD = "5GB"
# Name of each of this project's models -> its class.
CLASSES = {
    reference.partition(".")[2]: getattr(modeling, reference.partition(".")[2])
    for auto_class, reference in AUTO_MAP.items()
    if auto_class != "AutoConfig"
}


# --- reading ---


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a model's weights: one, or the shards that an index lists.

    Raises:
        InputError: there are none, or a shard is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise InputError(
            f"{folder}: no model.safetensors; pickled weights (pytorch_model.bin) are not read, for they can run any code: "
            "load them with transformers if you trust them, and save_pretrained writes them as safetensors"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: no weight_map in it")
    return [require_file(folder / name) for name in sorted(set(map(str, weight_map.values())))]


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors in a model's folder, all of one dtype and finite.

    Raises:
        InputError: a file is missing or damaged, or a tensor is of another kind, naming it.
    """
    written = read_json(folder / "manifest.json").get("files", {}) if (folder / "manifest.json").is_file() else {}
    tensors = {}
    for path in weight_files(folder):
        if path.name in written and written[path.name].get("sha256") != hash_file(path):
            raise InputError(f"{path}: damaged or changed: its hash is not the one in manifest.json; take a whole copy")
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: damaged: {describe(error)}") from error
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        raise InputError(
            f"{folder}: the weights are of {', '.join(sorted(map(str, dtypes)))}; "
            "save them in one of float32, float16 and bfloat16"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{folder}: {name} holds values that are not finite; take another model")
    return tensors


Model = TypeVar("Model", bound=PreTrainedModel)


def build_model(model_class: type[Model], config: ZhModernBertConfig, tensors: dict[str, torch.Tensor], folder: Path) -> Model:
    """A model of this project with the weights that `read_weights` found in `folder`, in their dtype.

    Raises:
        InputError: a tensor is missing, has another shape, or is none of the model's, naming it.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:  # each layer of PyTorch has its own kind for sizes that cannot be
        raise InputError(f"{folder / 'config.json'}: no model can be built of it: {describe(error)}") from error
    kind = model_class.__name__.removeprefix("Zh")
    tensors, expected = dict(tensors), {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and expected.pop("decoder.weight", None):
        embeddings = tensors.get("model.embeddings.tok_embeddings.weight")
        decoder = tensors.pop("decoder.weight", embeddings)
        if embeddings is not None and decoder is not None and not torch.equal(decoder, embeddings):
            # transformers 4 would tie them all the same, transformers 5 would not.
            raise InputError(f"{folder}: decoder.weight is not the embeddings, but tie_word_embeddings is True")
    for name in sorted(expected.keys() | tensors.keys()):
        found = list(tensors[name].shape) if name in tensors else "missing"
        if found != expected.get(name):
            raise InputError(f"{folder}: tensor {name} is {found}; {kind} has {expected.get(name, 'no such tensor')}")
    # Copies: what was read is the file itself, mapped into memory.
    model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def read_config(folder: str | Path) -> ZhModernBertConfig:
    """The config in a folder of a model of this project.

    Raises:
        InputError: the folder holds no such model, or its config cannot be read.
    """
    path = require_folder(folder, "config.json") / "config.json"
    if (kind := read_json(path).get("model_type")) != ZhModernBertConfig.model_type:
        raise InputError(
            f"{path}: a model of type {kind!r}, not {ZhModernBertConfig.model_type!r}; "
            "make one of a stock ModernBERT with train/convert.py"
        )
    try:
        return ZhModernBertConfig.from_pretrained(folder)
    except Exception as error:  # wrong types of fields fail wherever they are used first
        raise InputError(f"{path}: not a config: {describe(error)}") from error


def load_model(folder: str | Path) -> ZhModernBertForMaskedLM:
    """The masked language model in a folder, in the dtype of its weights.

    Raises:
        InputError: see `read_config`, `read_weights` and `build_model`.
    """
    config = read_config(folder)
    return build_model(ZhModernBertForMaskedLM, config, read_weights(Path(folder)), Path(folder))


def load_as_written(folder: str | Path) -> ZhModernBertPreTrainedModel:
    """The model in a folder, of the class that its config names, in the dtype of its weights.

    Raises:
        InputError: the config names no class of this project; or see `read_config`, `read_weights` and `build_model`.
    """
    config = read_config(folder)
    name = (config.architectures or [""])[0]
    if name not in CLASSES:
        raise InputError(f"{folder}: the model is {name or 'of no kind'}; it must be one of {', '.join(CLASSES)}")
    return build_model(CLASSES[name], config, read_weights(Path(folder)), Path(folder))


def load_by_auto_class(auto_class, name: str, new_head: bool = False, **options) -> PreTrainedModel:
    """A model of any kind, from a folder or the Hub, as a user loads it: by one of transformers' Auto classes.

    Args:
        new_head: what is behind the encoder may be missing, and gets random weights.

    Raises:
        InputError: the model cannot be loaded, lacks weights or has some for layers that it lacks, or some are not finite.
    """
    if Path(name).is_dir():
        weight_files(Path(name))
    try:
        model, report = auto_class.from_pretrained(name, use_safetensors=True, output_loading_info=True, **options)
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{name}: cannot be loaded: {describe(error)}") from error
    encoder = f"{model.base_model_prefix}."
    within = encoder if hasattr(model, model.base_model_prefix) else ""  # what the names of its own weights begin with
    # A pooler belongs to the head, although it is within the encoder. Old files have position_ids, which is no weight.
    outside = [key for key in report["missing_keys"] if "pooler" in key or not key.startswith(within)]
    missing = sorted(set(report["missing_keys"]) - set(outside if new_head else ()))
    extra = sorted(
        key
        for key in report["unexpected_keys"]
        if key.startswith(encoder) and "pooler" not in key and not key.endswith("position_ids")
    )
    for what, keys in (("weights are missing", missing), ("weights of layers that its config has not", extra)):
        if keys:
            raise InputError(f"{name}: {what}: {', '.join(keys[:3])}")
    for key, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{name}: {key} holds values that are not finite; take another model")
    return model


def fields_that_count(config: ZhModernBertConfig) -> dict:
    """A config's fields but those that say who wrote it and where."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("transformers_version", "dtype", "_name_or_path")
    }


def hash_model(model: ZhModernBertPreTrainedModel) -> str:
    """A hash of what a model computes: class, config and weights, however they lie in files."""
    tensors = sorted(model.state_dict().items())
    weights = {name: sha256(tensor.float().contiguous().numpy().tobytes()) for name, tensor in tensors}
    return hash_json([type(model).__name__, fields_that_count(model.config) | {"architectures": None}, weights])


# --- writing ---


def check_max_length(config, max_length: int) -> None:
    """Checks that a model takes texts of so many tokens.

    Raises:
        InputError: they are longer than its positions, or have no room for a token between [CLS] and [SEP].
    """
    if max_length < 3:
        raise InputError(f"max_length is {max_length}; it must be 3 or more: a token between two special ones")
    longest = getattr(config, "max_position_embeddings", max_length)
    if max_length > longest:
        raise InputError(f"max_length is {max_length}, longer than the model's max_position_embeddings ({longest})")


def check_output(folder: Path, stage: str) -> None:
    """Checks that `save_model` may replace `folder`: it is missing, empty, or all that `stage` wrote there.

    Raises:
        InputError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    if manifest.get("stage") != stage or {path.name for path in folder.iterdir()} - {"manifest.json", *manifest["files"]}:
        raise InputError(f"{folder}: exists and is not what this script wrote; choose another output_dir")


def save_weights(folder: Path, model: PreTrainedModel) -> None:
    """Weights, in shards if they are large, and config."""
    model.save_pretrained(folder, max_shard_size=LARGEST_SHARD)


def write_model(folder: Path, model: PreTrainedModel) -> None:
    """Weights, config and code: all of a published folder but tokenizer and card."""
    model.config.auto_map = dict(AUTO_MAP)
    save_weights(folder, model)
    for path in ROOT_FILES:
        shutil.copyfile(path, folder / path.name)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stage: str) -> None:
    """What `stage` made: a model, its tokenizer, and `manifest.json` with their hashes, written aside and renamed."""
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "manifest.json", {"stage": stage, "files": describe_files(temporary)})
