"""The model folder that is published: what training, fine-tuning or sentence-transformers left, or a checkpoint of a run."""

import json
import re
from pathlib import Path

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM, ZhModernBertPreTrainedModel
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import read_json, require_file, require_folder
from zh_modernbert.train.common.model_folder import build_model, load_as_written, read_weights
from zh_modernbert.train.pretraining.checkpoint import verify_checkpoint
from zh_modernbert.train.tokenizer.loading import fingerprint

# Of a folder of sentence-transformers, beside the files of its modules.
SENTENCE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
MODULE_PATH = re.compile(r"\d+_\w+")
MODULE_FILES = ("config.json", "model.safetensors")


def is_checkpoint(folder: Path) -> bool:
    """Whether train/pretrain.py wrote a folder as a checkpoint."""
    return (folder / "state.json").is_file()


def load_source(folder: Path) -> tuple[ZhModernBertPreTrainedModel, Path]:
    """The model in a folder, and the folder with its tokenizer, which is another one for a checkpoint.

    Raises:
        InputError: there is no model of this project, or it is damaged.
    """
    if not is_checkpoint(folder):
        require_file(require_folder(folder, "config.json") / "tokenizer.json")
        return load_as_written(folder), folder
    made_with = verify_checkpoint(folder, identity=None)["made_with"]
    config = ZhModernBertConfig.from_dict(made_with["config"])
    model = build_model(ZhModernBertForMaskedLM, config, read_weights(folder), folder)
    return model, tokenizer_of_run(folder.absolute().parents[1], made_with["tokenizer"])


def tokenizer_of_run(run_dir: Path, wanted: str) -> Path:
    """The folder with the tokenizer of a pretraining run: the run's model, or the packed rows that it reads.

    Args:
        wanted: the tokenizer's fingerprint.

    Raises:
        InputError: neither has it.
    """
    settings = read_json(run_dir / "settings.json")
    packed = Path(settings["data_dir"], next(iter(settings["mixture"]), ""))
    for folder in (run_dir / "model", packed / "tokenizer"):
        if (folder / "tokenizer.json").is_file() and fingerprint(folder) == wanted:
            return folder
    raise InputError(f"{run_dir}: its tokenizer is neither in model/ nor in {packed}; run this where the packed rows are")


def modules_in(folder: Path) -> dict[str, Path]:
    """Name -> file, of what makes a folder one of sentence-transformers; nothing where it is none.

    Raises:
        InputError: a module brings code, pickled weights or files of its own, which are not published.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    try:
        modules = [(module["path"], module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
        names = [*SENTENCE_FILES, *(f"{place}/{name}" for place, _ in modules if place for name in MODULE_FILES)]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not one of sentence-transformers: {error!r}") from error
    for place, kind in modules:
        if not kind.startswith("sentence_transformers.") or (place and not MODULE_PATH.fullmatch(place)):
            raise InputError(f"{path}: {kind} in {place!r} is no module of sentence-transformers itself, and is not published")
        if place and (folder / place / "pytorch_model.bin").is_file():
            raise InputError(f"{folder / place}: pickled weights are not published; save the model again as safetensors")
        if place and (others := {file.name for file in (folder / place).glob("*")} - set(MODULE_FILES)):
            raise InputError(f"{folder / place / min(others)}: only {' and '.join(MODULE_FILES)} of a module are published")
    return {name: folder / name for name in names if (folder / name).is_file()}
