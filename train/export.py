"""A model folder -> `onnx/model.onnx` and `onnx/model_int8.onnx` in it, for runtimes without PyTorch.

Inputs are `input_ids` and `attention_mask`. The output of a classifier is `logits`, of any other model `last_hidden_state`.
These are the names that text-embeddings-inference and sentence-transformers' ONNX backend read. Weights are in fp32, and by
ONNX Runtime's own dynamic quantisation in 8 bits. Both are run and compared with the model before they are put in place.
With `--max_length` of 256 or less, windows are masks, which is faster for short texts; longer ones have exact outputs, too.
`onnx/export.json` says of which model they were made: train/publish.py takes them along with that model, and with no other.
Needs `pip install '.[onnx]'`.

    python train/export.py --model_dir runs/published
    python train/export.py --model_dir runs/published --max_length 256
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from transformers import PreTrainedModel

from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.files import read_json, replacing, write_json
from zh_modernbert.train.common.manifest import describe_files
from zh_modernbert.train.common.model_folder import hash_model, load_as_written, read_config
from zh_modernbert.train.common.onnx_files import LEAST_COSINE, TOLERANCE, compare, write_int8, write_onnx

CLASSIFIERS = ("ZhModernBertForSequenceClassification", "ZhModernBertForTokenClassification")
WITH_LOGITS = (*CLASSIFIERS, "ZhModernBertForMaskedLM")
KNOWN = (*WITH_LOGITS, "ZhModernBertModel")
OUTPUTS = ("", "logits", "last_hidden_state")


@dataclass
class Settings(BaseSettings):
    model_dir: str = setting(help="model folder: published, of sentence-transformers, or as training left it")
    output: str = setting("", "logits or last_hidden_state; empty: what the kind of model is for", choices=OUTPUTS)
    int8: bool = setting(True, "also write the model in 8 bits")
    max_length: int = setting(
        0, "tokens of the longest text to be served; up to 256 it is faster for short texts; 0: the model's", least=0
    )


def load(folder: Path, output: str) -> tuple[PreTrainedModel, str, str]:
    """The model in fp32, the name of its output, and the hash of the model as it lies in the folder.

    Raises:
        InputError: the folder holds no model of this project, or one without such an output.
    """
    name = (read_config(folder).architectures or [""])[0]
    output = output or ("logits" if name in CLASSIFIERS else "last_hidden_state")
    known = WITH_LOGITS if output == "logits" else KNOWN
    if name not in known:
        raise InputError(f"{folder}: the model is {name or 'of no kind'}; for {output} it must be one of {', '.join(known)}")
    model: Any = load_as_written(folder)
    identity = hash_model(model)
    return (model if output == "logits" else model.base_model).float(), output, identity


def check_own(folder: Path) -> None:
    """Checks that what is in a model's `onnx/` was written here, so that it may be replaced.

    Raises:
        InputError: there is something else, naming it.
    """
    made = read_json(folder / "export.json") if (folder / "export.json").is_file() else {}
    for path in sorted(folder.rglob("*")):
        if path.name != "export.json" and path.relative_to(folder).as_posix() not in made.get("files", {}):
            raise InputError(f"{path}: this script did not write it, and would delete it; move it or the folder away")


def main(settings: Settings) -> dict:
    folder = Path(settings.model_dir).absolute()
    check_own(folder / "onnx")
    model, output, identity = load(folder, settings.output)
    longest = model.config.max_position_embeddings
    if settings.max_length and not 64 <= settings.max_length <= longest:
        raise InputError(f"export: max_length is {settings.max_length}; for {folder} it must be from 64 to {longest}, or 0")
    model.config.max_position_embeddings = settings.max_length or longest
    result: dict = {"output": output, "bytes": {}}
    with replacing(folder / "onnx") as written:
        full, quantised = written / "model.onnx", written / "model_int8.onnx"
        write_onnx(model, output, full)
        result["difference"], _ = compare(model, full)
        if not result["difference"] <= TOLERANCE:
            raise InputError(f"{folder}: the ONNX file differs from it by {result['difference']:.2g}; nothing is written")
        if settings.int8:
            write_int8(full, quantised)
            _, result["int8_cosine"] = compare(model, quantised)
            if not result["int8_cosine"] >= LEAST_COSINE:
                raise InputError(
                    f"{folder}: in 8 bits, its cosine with the model's is {result['int8_cosine']:.3f}; nothing is written; "
                    "give --int8 false"
                )
        files = describe_files(written)
        result["bytes"] = {name: file["bytes"] for name, file in files.items()}
        write_json(written / "export.json", {"model": identity, "output": output, "files": files})
    return {**result, "output_dir": str(Path(settings.model_dir) / "onnx")}


if __name__ == "__main__":
    run(main, Settings)
