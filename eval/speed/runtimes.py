"""Models in the runtimes that people serve them with on CPU: ONNX Runtime and OpenVINO."""

import importlib
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.eval.speed.peers import Peer, build_ours, build_peer
from zh_modernbert.train.common.cli import InputError

RUNTIMES = ("onnxruntime", "openvino")
# What each computes in here. OpenVINO runs the 8 bits of ONNX Runtime's quantiser slower than fp32.
RUNTIME_DTYPES = {
    "pytorch": ("float32", "bfloat16", "float16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16"),
}


class Served:
    """A model in a runtime, the batch it is given, and one step of it."""

    def __init__(self, path: Path, runtime: str, dtype: str, batch: dict):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        self.batch = {"input_ids": batch["input_ids"].numpy(), "attention_mask": mask.numpy()}
        self.run = {"onnxruntime": open_in_onnxruntime, "openvino": open_in_openvino}[runtime](path, dtype)

    def __call__(self) -> tuple[float, torch.Tensor]:
        """Seconds of one step, and its output `(B, T, H)`."""
        started = time.perf_counter()
        output = self.run(self.batch)
        return time.perf_counter() - started, torch.from_numpy(output)

    def warm_up(self) -> torch.Tensor:
        self()
        return self()[1]


def open_in_onnxruntime(path: Path, dtype: str) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, batch)[0]


def open_in_openvino(path: Path, dtype: str) -> Callable:
    openvino = importlib.import_module("openvino")  # an extra
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda batch: compiled(batch)[0].copy()


@cache
def folder() -> tempfile.TemporaryDirectory:
    """Where the files are. It vanishes with the process."""
    return tempfile.TemporaryDirectory(prefix="zh-modernbert-speed-")


def serve(side: str, runtime: str, shape: dict, dtype: str, batch: dict) -> Served:
    """The contestant "ours" or "stock" of `compare_steps`, exported for texts as long as those of the batch.

    Raises:
        ImportError: a package is not installed.
        InputError: the file has not the model's numbers.
    """
    for package in ("onnx", "onnxruntime", "onnxscript", runtime):
        importlib.import_module(package)  # each is of an extra, and the export takes minutes
    width = batch["input_ids"].shape[1]
    longest = modeling.SHORT_TEXTS if width <= modeling.SHORT_TEXTS else max(width, 8192)
    path = write_file(side, tuple(shape.items()), longest)
    return Served(write_eight_bits(path) if dtype == "int8" else path, runtime, dtype, batch)


@cache
def write_file(side: str, shape: tuple, longest: int) -> Path:
    onnx_files = importlib.import_module("zh_modernbert.train.common.onnx_files")  # its packages are an extra
    torch.manual_seed(0)
    model = build_peer(Peer("sdpa"), dict(shape), longest)[0].eval()
    if side == "ours":
        model = build_ours(dict(shape), longest, model.state_dict()).eval()
    model.config.max_position_embeddings = longest
    path = Path(folder().name) / f"{side}-{longest}-{abs(hash(shape))}.onnx"
    with torch.no_grad():
        onnx_files.write_onnx(model, "last_hidden_state", path)
    difference, _ = onnx_files.compare(model, path)
    if not difference <= onnx_files.TOLERANCE:
        raise InputError(f"throughput: the ONNX file of {side} differs from its model by {difference:.2g}")
    return path


@cache
def write_eight_bits(path: Path) -> Path:
    onnx_files = importlib.import_module("zh_modernbert.train.common.onnx_files")
    quantised = path.with_stem(f"{path.stem}-int8")
    onnx_files.write_int8(path, quantised)
    return quantised
