"""A model folder -> `onnx/model.onnx` and `onnx/model_int8.onnx` in it, for runtimes without PyTorch.

Inputs are `input_ids` and `attention_mask`. The output of a classifier is `logits`, of any other model `last_hidden_state`.
These are the names that text-embeddings-inference and sentence-transformers' ONNX backend read. Weights are in fp32, and by
ONNX Runtime's own dynamic quantisation in 8 bits. Both are run and compared with the model before they are put in place.
`onnx/export.json` says of which model they were made: train/publish.py takes them along with that model, and with no other.
Needs `pip install '.[onnx]'`.

    python train/export.py --model_dir runs/published
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import torch
from transformers import PreTrainedModel

from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.files import replacing, write_json
from zh_modernbert.train.common.model_folder import hash_model, load_as_written, read_config

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  # torch.onnx needs it
    from onnxruntime.quantization import quantize_dynamic
except ImportError as error:
    print(f"export: a package is missing: pip install '.[onnx]' ({error})", file=sys.stderr)
    raise SystemExit(2) from error

CLASSIFIERS = ("ZhModernBertForSequenceClassification", "ZhModernBertForTokenClassification")
WITH_LOGITS = (*CLASSIFIERS, "ZhModernBertForMaskedLM")
KNOWN = (*WITH_LOGITS, "ZhModernBertModel")
OUTPUTS = ("", "logits", "last_hidden_state")
TOLERANCE = 1e-4  # of the largest entry
LEAST_COSINE = 0.95  # of 8 bits
OPSET = 18


@dataclass
class Settings(BaseSettings):
    model_dir: str = setting(help="model folder: published, of sentence-transformers, or as training left it")
    output: str = setting("", "logits or last_hidden_state; empty: what the kind of model is for", choices=OUTPUTS)
    int8: bool = setting(True, "also write the model in 8 bits")


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


def make_batch(model: PreTrainedModel, lengths: tuple[int, ...], side: str = "right") -> dict[str, torch.Tensor]:
    """Random tokens, and the mask of rows of such lengths, padded on one side."""
    generator = torch.Generator().manual_seed(len(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(model.config.vocab_size, mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask.flip(1) if side == "left" else mask}


def write_onnx(model: PreTrainedModel, output: str, path: Path) -> None:
    tokens = torch.export.Dim("tokens", max=model.config.max_position_embeddings)
    example = make_batch(model, (50, 37, 5))
    shapes = {name: {0: torch.export.Dim("rows", max=4096), 1: tokens} for name in example}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            *(model, ()),
            kwargs=example,
            input_names=list(example),
            output_names=[output],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only where a file is given
    program.save(path)


def write_int8(path: Path, quantised: Path) -> None:
    graph = onnx.load(path)
    del graph.graph.value_info[:]  # the shapes of weights that the quantiser turns round
    quantize_dynamic(graph, quantised)


@torch.no_grad()
def compare(model: PreTrainedModel, path: Path) -> tuple[float, float]:
    """The largest difference to the model, as a share of its largest entry, and the lowest cosine of a batch.

    Raises:
        InputError: ONNX Runtime cannot run the file.
    """
    difference, cosine = 0.0, 1.0
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        longest = min(model.config.max_position_embeddings, 300)
        for lengths, side in (((1,), "right"), ((longest, 7, longest // 2), "right"), ((30, 64), "left")):
            batch = make_batch(model, lengths, side)
            expected = model(**batch)[0]
            found = torch.tensor(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])
            if expected.ndim == 3:  # what stands at pads is of no account
                real = batch["attention_mask"].bool()
                expected, found = expected[real], found[real]
            difference = max(difference, float((found - expected).abs().max() / expected.abs().max()))
            cosine = min(cosine, float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)))
    except Exception as error:  # ONNX Runtime has many kinds
        raise InputError(f"{path.name}: ONNX Runtime cannot run it: {describe(error)}") from error
    return difference, cosine


def main(settings: Settings) -> dict:
    folder = Path(settings.model_dir).absolute()
    model, output, identity = load(folder, settings.output)
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
        result["bytes"] = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
        write_json(written / "export.json", {"model": identity, "output": output})
    return {**result, "output_dir": str(Path(settings.model_dir) / "onnx")}


if __name__ == "__main__":
    run(main, Settings)
