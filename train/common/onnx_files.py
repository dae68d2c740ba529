"""A model -> ONNX files, in fp32 and in 8 bits, compared with it.

Needs `pip install '.[onnx]'`; the import fails without.
"""

import warnings
from pathlib import Path

import onnx
import onnxruntime
import onnxscript  # noqa: F401  # torch.onnx needs it
import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import PreTrainedModel

from zh_modernbert.train.common.cli import InputError, describe

TOLERANCE = 1e-4  # of the largest entry
LEAST_COSINE = 0.95  # of 8 bits
OPSET = 18


def make_batch(model: PreTrainedModel, lengths: tuple[int, ...], side: str = "right") -> dict[str, torch.Tensor]:
    """Random tokens, and the mask of rows of such lengths, padded on one side."""
    generator = torch.Generator().manual_seed(len(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(model.config.vocab_size, mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask.flip(1) if side == "left" else mask}


def write_onnx(model: PreTrainedModel, output: str, path: Path) -> None:
    """The model in fp32. Weights of more than 1.8 GB go into a file beside it, with `.data` at the end of its name."""
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
    """The model in 8 bits, by ONNX Runtime's own quantisation. Its weights are in a file beside it if the others are."""
    graph = onnx.load(path, load_external_data=False)
    del graph.graph.value_info[:]  # the shapes of weights that the quantiser turns round
    bare = path.with_name(f"{path.stem}_bare.onnx")  # beside the weights' file, so that they need not be in memory twice
    onnx.save(graph, bare)
    quantize_dynamic(bare, quantised, use_external_data_format=path.with_name(f"{path.name}.data").exists())
    bare.unlink()


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
