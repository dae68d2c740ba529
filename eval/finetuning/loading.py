"""Tokenizer and model for fine-tuning, through the Auto classes: this project's models, stock ones, any others."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zh_modernbert.train.common.cli import InputError, describe
from zh_modernbert.train.common.files import hash_file, sha256
from zh_modernbert.train.common.model_folder import load_by_auto_class, weight_files

# Files that are no part of the hash: documents, and weights, of which those that are read count on their own.
NO_PART = {".md", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".log"}
LARGEST = 2**27  # bytes of another file that counts


def load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """A fast tokenizer that pads and cuts on the right, as what reads the model's outputs counts tokens from the left.

    Raises:
        InputError: it cannot be loaded, is not a fast one, or knows no tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise InputError(f"{name}: cannot be loaded: {describe(error)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{name}: its tokenizer gives no character offsets; a fast one (tokenizer.json) is needed")
    check_vocabulary(tokenizer, name)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """transformers makes a tokenizer that knows special tokens alone, without a word, where the files of one are missing.

    Raises:
        InputError: it has made one.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(
            f"{name}: its tokenizer knows no tokens but special ones; are tokenizer.json and the like in the folder?"
        )


def load_config(name: str, trust_remote_code: bool, **options) -> Any:
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise InputError(f"{name}: cannot be loaded: {describe(error)}") from error


def load_with_head(auto_class, name: str, trust_remote_code: bool, random_init: bool = False, **options) -> PreTrainedModel:
    """A model in fp32 with the head of `auto_class`, whose weights are new where the model has none.

    Args:
        random_init: all weights are new; only the architecture is read.
        options: of the config, as `num_labels`.

    Raises:
        InputError: the model cannot be loaded, or there is no such head for its kind.
    """
    config = load_config(name, trust_remote_code, **options)
    if type(config) not in auto_class._model_mapping and auto_class.__name__ not in getattr(config, "auto_map", {}):
        raise InputError(f"{name}: a model of type {config.model_type!r} has no head that {auto_class.__name__} loads")
    if not random_init:
        loading = {"trust_remote_code": trust_remote_code, "dtype": torch.float32}
        return load_by_auto_class(auto_class, name, new_head=True, **loading, **options)
    try:
        return auto_class.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)
    except Exception as error:
        raise InputError(f"{name}: cannot be loaded: {describe(error)}") from error


def model_hash_of(name: str, random_init: bool = False) -> str:
    """What a run's file says of the model: a hash of the files in its folder; of a model on the Hub, the name.

    Weights count but where they are not read. So do config, vocabulary, code, and what else there is, as nothing says for sure
    which files a tokenizer or a model's code reads. Folders in the folder do not count, nor hidden files.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    others = (path for path in folder.iterdir() if path.suffix not in NO_PART and not path.name.startswith("."))
    files = sorted(path for path in others if path.is_file() and path.stat().st_size <= LARGEST)
    files += [] if random_init else weight_files(folder)
    return sha256(*(f"{path.name} {hash_file(path)}\n".encode() for path in files))[:16]
