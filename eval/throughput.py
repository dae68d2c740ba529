"""Speed and memory of this encoder beside the models that people would take instead, side by side in one run, offline.

Every peer is transformers' own class with random weights. Stock ModernBERT has the same weights as this encoder, and outputs
are compared before anything is timed. First the backends are checked against each other on the device. Then each peer and this
encoder run by turns after a warm-up, and their medians are compared. `ratio` is the peer's time divided by ours: above 1 this
encoder is faster. The floor is the time in which the device's own matrix product does as many floating-point operations as the
real tokens need.

    python eval/throughput.py --device cpu
    python eval/throughput.py --device cuda
    python eval/throughput.py --device cuda --modes pretraining
    python eval/throughput.py --workload collator

A workload is `TxB`, B texts of T tokens, or `TxB-KIND`, B texts of at most T tokens whose lengths are even quantiles of a real
distribution: `questions`, `articles` or `documents`. The mode `training` is forward and backward, without an optimizer. The
mode `pretraining` is a whole update of train/pretrain.py on B full packed rows of T tokens, beside stock ModernBERT in
transformers' Trainer; it runs only when asked for. The workload `collator` is masking of whole words alone, beside
transformers' collator on the same rows.
"""

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import torch
import transformers
from matplotlib import pyplot
from torch import nn
from tqdm import tqdm

from zh_modernbert.eval.speed.correctness import check_backends, relative_difference
from zh_modernbert.eval.speed.measuring import matmul_flops_per_second, peak_memory, synchronize, take_turns
from zh_modernbert.eval.speed.peers import OTHER_PEERS, PEERS, PRETRAINING_PEERS, SHAPES, build_ours, build_peer
from zh_modernbert.eval.speed.training import MIXED_PRECISION, compare_collators, compare_updates
from zh_modernbert.eval.speed.workloads import PRETRAINING_WORKLOADS, WORKLOADS, Workload
from zh_modernbert.train.common.cli import BaseSettings, InputError, one_line, run, setting
from zh_modernbert.train.common.files import write_json

DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16"]}
MODES = ("inference", "training", "curve", "pretraining")
HEADER = (
    f"\n{'workload':<18}{'mode':<12}{'dtype':<9}{'peer':<30}{'ours ms':>11}{'peer ms':>11}{'ratio':>8}{'% floor':>8}"
    f"{'our MiB':>9}{'peer MiB':>9}"
)


@dataclass
class Settings(BaseSettings):
    device: str = setting("auto", "auto takes the GPU where there is one", choices=("auto", "cpu", "cuda"))
    dtypes: list[str] = setting([], "empty: float32 and bfloat16 on CPU, bfloat16 on a GPU", ("float32", "bfloat16", "float16"))
    shape: str = setting("auto", "layers x width; auto: 12x768 on CPU, 28x1024 on a GPU", choices=("auto", *SHAPES))
    workload: list[str] = setting(
        [], "TxB or TxB-KIND, KIND one of questions, articles, documents; or collator; empty: those of the device"
    )
    modes: list[str] = setting(
        ["inference", "training", "curve"], "curve: cost against length; pretraining: whole updates", choices=MODES
    )
    peers: list[str] = setting(list(PEERS), choices=PEERS)
    compile: bool = setting(False, "torch.compile for both sides")
    curve_lengths: list[int] = setting([128, 512, 2048, 8192, 32768], "tokens of the one text of the curve", least=1)
    repeats: int = setting(5, "timed runs a side, after the warm-up", least=1)
    seconds: float = setting(90.0, "a comparison stops after so long, each side having run once at least", least=0)
    threads: int = setting(0, "CPU threads; 0: as many as PyTorch takes", least=0)
    results_dir: str = setting("results", "where throughput-DEVICE.json and .png go")


class Contestant:
    """A model, the batch it is given, and one step of it."""

    def __init__(self, model: nn.Module, batch: dict, device: str, dtype: torch.dtype, training: bool, compiled: bool):
        self.model = model.to(device, dtype).train(training)
        self.step = torch.compile(self.model) if compiled else self.model
        self.batch, self.device, self.training = batch, device, training
        self.weights = None
        if training:  # pads have no part in the loss
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            self.weights = mask.unsqueeze(-1).to(dtype)

    def __call__(self) -> tuple[float, torch.Tensor]:
        """Seconds of one step, and its output `(B, T, H)`."""
        synchronize(self.device)
        started = time.perf_counter()
        with torch.set_grad_enabled(self.training):
            output = self.step(**self.batch).last_hidden_state
            if self.training:
                (output * self.weights).square().mean().backward()
        synchronize(self.device)
        seconds = time.perf_counter() - started
        self.model.zero_grad()
        return seconds, output.detach()


# --- measuring --------------------------------------------------------------------------------------------------------


def compare(peer_name: str, workload: Workload, dtype_name: str, mode: str, settings: Settings) -> dict:
    """One row of the table. Where the peer does not run here or memory does not suffice, `skipped` says why."""
    row = {"workload": workload.name, "mode": mode, "dtype": dtype_name, "peer": peer_name}
    torch.manual_seed(0)
    try:
        if mode == "pretraining":
            backend, lengths = peer_name.removeprefix("modernbert-"), workload.lengths
            shape = SHAPES[settings.shape]
            return row | compare_updates(backend, lengths[0], len(lengths), dtype_name, shape, settings)
        return row | compare_steps(peer_name, workload, dtype_name, mode == "training", settings)
    except torch.OutOfMemoryError as error:
        return row | {"skipped": f"out of memory: {str(error).splitlines()[0][:100]}"}
    finally:
        gc.collect()
        if settings.device == "cuda":
            torch.cuda.empty_cache()
        torch.compiler.reset()


def compare_steps(peer_name: str, workload: Workload, dtype_name: str, training: bool, settings: Settings) -> dict:
    """Steps of both sides on the same texts, warmed up, measured by turns; the outputs compared first where weights are shared.

    Raises:
        InputError: the outputs differ though the weights are the same.
    """
    device, dtype, shape = settings.device, getattr(torch, dtype_name), SHAPES[settings.shape]
    longest = max(workload.lengths)
    same_weights = peer_name not in OTHER_PEERS
    batch = workload.packed(device) if peer_name == "modernbert-packed" else workload.padded(device)
    try:
        peer_model, peer_longest = build_peer(peer_name, shape, longest)
        if longest > peer_longest:
            return {"skipped": f"a text of it has at most {peer_longest} tokens here"}
        theirs = batch_for(peer_model, workload, device) if peer_name in OTHER_PEERS else with_positions(batch)
        peer = Contestant(peer_model, theirs, device, dtype, training, settings.compile)
        peer_output = peer()[1]  # the warm-up
    except torch.OutOfMemoryError:
        raise
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:  # the peer's backend does not run here
        return {"skipped": f"{type(error).__name__}: {one_line(error)[:100]}"}
    our_model = build_ours(shape, longest, peer_model.state_dict() if same_weights else None)
    ours = Contestant(our_model, batch, device, dtype, training, settings.compile)
    our_output = ours()[1]
    found = {}
    if same_weights and not training:
        real = batch["attention_mask"].bool() if "attention_mask" in batch else slice(None)
        found["relative_difference"] = relative_difference(our_output[real].float(), peer_output[real].float())
        if not found["relative_difference"] <= (1e-4 if dtype == torch.float32 else 5e-2):
            where = f"{peer_name} on {workload.name} in {dtype_name}"
            raise InputError(f"throughput: {where}: outputs differ by {found['relative_difference']:.3g} of their norm")
    del our_output, peer_output
    if settings.compile:  # torch.compile may compile again when a shape comes a second time
        ours()
        peer()
    found["our_memory"], found["peer_memory"] = peak_memory(ours, device), peak_memory(peer, device)
    found["our_seconds"], found["peer_seconds"], found["runs"] = take_turns(ours, peer, settings.repeats, settings.seconds)
    found["ratio"] = round(found["peer_seconds"] / found["our_seconds"], 3)
    found["tokens_per_second"] = round(sum(workload.lengths) / found["our_seconds"])
    found["flops"] = workload.flops(shape) * (3 if training else 1)  # a backward has twice the matrix products of a forward
    return found


def batch_for(peer_model: transformers.PreTrainedModel, workload: Workload, device: str) -> dict:
    """The texts as one of `OTHER_PEERS` takes them: with its own pad token, and without a cache of keys and values."""
    batch = workload.padded(device, getattr(peer_model.config, "pad_token_id", None) or 0)
    return batch | ({"use_cache": False} if peer_model.config.model_type == "qwen3" else {})


def with_positions(batch: dict) -> dict:
    """The batch as stock ModernBERT takes it. In a packed row it does not count positions from each document's start itself."""
    if "cu_seqlens" not in batch:
        return batch
    starts = batch["cu_seqlens"][:-1].repeat_interleave(batch["cu_seqlens"].diff())
    return batch | {"position_ids": (torch.arange(len(starts), device=starts.device) - starts)[None]}


def measure_curve(settings: Settings) -> Iterator[dict]:
    """One text of each length, shown as it comes: ours, and stock ModernBERT on sdpa until that is too slow."""
    device, dtype, slow = settings.device, settings.dtypes[0], False
    for length in settings.curve_lengths:
        workload = Workload(f"{length}x1", [length])
        row: dict[str, Any] = {"skipped": "would take too long"}
        if not slow:
            row = compare("modernbert-sdpa", workload, dtype, "inference", settings)
        # Four times the length is up to sixteen times the work.
        slow = slow or "skipped" in row or 16 * row["peer_seconds"] > settings.seconds
        if "skipped" in row:
            batch = workload.padded(device)
            model = build_ours(SHAPES[settings.shape], length)
            ours = Contestant(model, batch, device, getattr(torch, dtype), training=False, compiled=False)
            row["our_memory"] = peak_memory(ours, device)  # the warm-up
            row["our_seconds"] = ours()[0]
        peer = f"{row['peer_seconds']:.3f} s" if "peer_seconds" in row else row["skipped"]
        print(f"one text of {length:,} tokens: ours {row['our_seconds']:.3f} s, stock {peer}", file=sys.stderr)
        yield {"length": length} | row


def draw_curve(curve: list[dict], path: Path, title: str) -> None:
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for side, label in (("our_seconds", "zh-modernbert"), ("peer_seconds", "transformers' ModernBERT, sdpa")):
        points = [(row["length"], row[side] * 1e6 / row["length"]) for row in curve if side in row]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens in the text", ylabel="ms for 1,000 tokens", title=title)
    axes.set_xticks([row["length"] for row in curve], [f"{row['length']:,}" for row in curve])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
    pyplot.close(figure)


def show(row: dict) -> str:
    """One line of the table."""
    name = f"{row['workload']:<18}{row['mode']:<12}{row['dtype']:<9}{row['peer']:<30}"
    if "skipped" in row:
        return f"{name}{row['skipped']}"
    memory = "".join(f"{row[key] / 2**20:>9,.0f}" for key in ("our_memory", "peer_memory"))
    times = f"{row['our_seconds'] * 1e3:>11,.1f}{row['peer_seconds'] * 1e3:>11,.1f}{row['ratio']:>8.2f}"
    return f"{name}{times}{100 * row['flop_utilisation']:>8.0f}{memory}"


def pretraining_comparisons(settings: Settings) -> list[tuple]:
    """Workload, mode, dtype and peer of each comparison of whole updates.

    Raises:
        InputError: it cannot be made of these settings.
    """

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"throughput: the mode pretraining {message}")

    workloads = [Workload.parse(name) for name in settings.workload or PRETRAINING_WORKLOADS[settings.device]]
    for workload in workloads:
        require("-" not in workload.name, f"has full rows: the workload is TxB, not {workload.name}")
    for dtype in settings.dtypes:
        require(dtype in MIXED_PRECISION, f"is in {' or '.join(MIXED_PRECISION)}, not in {dtype}")
    peers = [peer for peer in settings.peers if peer in PRETRAINING_PEERS]
    require(bool(peers), f"has no peers but {' and '.join(PRETRAINING_PEERS)}")
    require(
        settings.device == "cpu" or torch.cuda.device_count() == 1,
        "is of one GPU, and the Trainer would take all; set CUDA_VISIBLE_DEVICES=0",
    )
    return list(product(workloads, ["pretraining"], settings.dtypes, peers))


def resolve(settings: Settings) -> Settings:
    """The settings with what was left to the device filled in: `device`, `dtypes` and `shape`.

    Raises:
        InputError: there is no such device.
    """
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        raise InputError("throughput: device is 'cuda', but PyTorch finds no GPU")
    device = settings.device if settings.device != "auto" else "cuda" if has_gpu else "cpu"
    shape = settings.shape if settings.shape != "auto" else {"cpu": "12x768", "cuda": "28x1024"}[device]
    return replace(settings, device=device, dtypes=settings.dtypes or DTYPES[device], shape=shape)


def plan_comparisons(settings: Settings) -> list[tuple]:
    """Workload, mode, dtype and peer of each comparison.

    Raises:
        InputError: a workload or a mode cannot be made of these settings.
    """
    modes = [mode for mode in settings.modes if mode in ("inference", "training")]
    workloads = [Workload.parse(name) for name in settings.workload or WORKLOADS[settings.device]]
    comparisons = list(product(workloads, modes, settings.dtypes, settings.peers))
    return comparisons + (pretraining_comparisons(settings) if "pretraining" in settings.modes else [])


def measure_device(settings: Settings) -> dict:
    """What is known of the device before anything is compared: the backends' errors, and the speed of its matrix product."""
    print(f"correctness on {settings.device}, largest error relative to the norm:", file=sys.stderr)
    errors = check_backends(settings.device)
    for name, error in errors.items():
        print(f"  {name:<40}{error:.2g}", file=sys.stderr)
    speeds = {name: matmul_flops_per_second(settings.device, getattr(torch, name)) for name in settings.dtypes}
    for name, speed in speeds.items():
        print(f"matrix product in {name}: {speed / 1e12:.3f} TFLOP/s", file=sys.stderr)
    on_gpu = settings.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "shape": settings.shape,
        "compiled": settings.compile,
        "correctness": errors,
        "matmul_flops_per_second": speeds,
    }


def measure_comparisons(comparisons: list[tuple], speeds: dict[str, float], settings: Settings) -> Iterator[dict]:
    """The row of each comparison, shown as it comes.

    Args:
        speeds: floating-point operations a second of the device's matrix product, by dtype: what the floor is counted with.
    """
    print(HEADER, file=sys.stderr)
    with tqdm(comparisons, unit=" comparisons", leave=False) as progress:
        for workload, mode, dtype, peer in progress:
            progress.set_postfix_str(f"{workload.name} {mode} {dtype} {peer}")
            row = compare(peer, workload, dtype, mode, settings)
            if "ratio" in row:
                row["floor_seconds"] = row["flops"] / speeds[dtype]
                row["flop_utilisation"] = round(row["floor_seconds"] / row["our_seconds"], 3)
                if "peer_flops" in row:
                    row["peer_flop_utilisation"] = round(row["peer_flops"] / speeds[dtype] / row["peer_seconds"], 3)
            progress.write(show(row), file=sys.stderr)
            yield row


def main(settings: Settings) -> dict:
    if "collator" in settings.workload:
        if len(settings.workload) > 1:
            raise InputError("throughput: the workload collator has no model; give it alone")
        return compare_collators(64, 1024, settings)
    settings = resolve(settings)
    comparisons = plan_comparisons(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    path = Path(settings.results_dir) / f"throughput-{settings.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = measure_device(settings) | {
        "lengths": {workload.name: workload.lengths for workload, *_ in comparisons if len(set(workload.lengths)) > 1},
        "rows": [],
        "curve": [],
        "ratio": {},
    }
    for row in measure_comparisons(comparisons, result["matmul_flops_per_second"], settings):
        result["rows"].append(row)
        if "ratio" in row:
            result["ratio"][" ".join(row[key] for key in ("workload", "mode", "dtype", "peer"))] = row["ratio"]
        write_json(path, result)  # after each row, since a run is long
    for row in measure_curve(settings) if "curve" in settings.modes else ():
        result["curve"].append(row)
        write_json(path, result)
    if result["curve"]:
        title = f"One text, {settings.dtypes[0]}, {settings.shape}, {result['device']}"
        draw_curve(result["curve"], path.with_suffix(".png"), title)
    return result


if __name__ == "__main__":
    run(main, Settings)
