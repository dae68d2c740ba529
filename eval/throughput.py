"""Speed and memory of this encoder beside the models that people would take instead, side by side in one run, offline.

Every peer is transformers' own class with random weights. Stock ModernBERT has the same weights as this encoder, and outputs
are compared before anything is timed. `modernbert-onnxruntime` and `modernbert-openvino` are stock ModernBERT in those
runtimes. With `--runtime` this encoder is in one too.

First the backends are checked on the device. Then each peer and this encoder run by turns after a warm-up, and their medians
are compared. `ratio` is the peer's time divided by ours: above 1 this encoder is faster. The floor is the time in which the
device's own matrix product does as many floating-point operations as the real tokens need.

    python eval/throughput.py --device cpu
    python eval/throughput.py --device cpu --modes inference --runtime openvino --peers modernbert-openvino
    python eval/throughput.py --device cuda --minutes 5
    python eval/throughput.py --device cuda --modes pretraining
    python eval/throughput.py --workload collator

What says most comes first. Each result is a line on stderr, and in the file of results, as soon as it is there. A comparison
that fails is a line "failed: ..." and not the end; the file has its traceback. With `--minutes` the run ends in time with what
it has, and names what it has not.

A workload is `TxB`, B texts of T tokens, or `TxB-KIND`, B texts of at most T tokens whose lengths are even quantiles of a real
distribution: `questions`, `articles` or `documents`. The mode `training` is forward and backward, without an optimizer. The
mode `pretraining` is a whole update of train/pretrain.py on B full packed rows of T tokens, beside stock ModernBERT in
transformers' Trainer. The mode `preset` is the same with our side as system A's presets have it: compiled, and with
`gradient_checkpointing: mlp`. The workload `collator` is masking of whole words alone, beside transformers' collator on the
same rows.
"""

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import torch
import transformers
from matplotlib.figure import Figure

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.eval.speed.correctness import check_backends
from zh_modernbert.eval.speed.limits import Stopped, reason, time_limit
from zh_modernbert.eval.speed.measuring import clear, matmul_flops_per_second, synchronize
from zh_modernbert.eval.speed.peers import PACKED_ENCODERS, PEERS, PRETRAINING_PEERS, SHAPES
from zh_modernbert.eval.speed.runtimes import RUNTIMES
from zh_modernbert.eval.speed.steps import compare_steps, measure_alone
from zh_modernbert.eval.speed.training import MIXED_PRECISION, compare_collators, compare_updates
from zh_modernbert.eval.speed.workloads import PRETRAINING_WORKLOADS, WORKLOADS, Workload
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.files import aside, write_json

MODES = ("inference", "training", "curve", "pretraining", "preset")
# What is left to the device.
DTYPES = {"cpu": ["float32", "bfloat16"], "cuda": ["bfloat16"]}
DEVICE_MODES = {"cpu": ["inference", "training", "curve"], "cuda": list(MODES)}
REPEATS, SECONDS = {"cpu": 5, "cuda": 20}, {"cpu": 90.0, "cuda": 20.0}
# Mode, workload and peer of the comparisons that say most of a GPU, and come first.
FIRST = (
    ("pretraining", "1024x64", "modernbert-sdpa"),
    ("inference", "512x32-questions", "modernbert-sdpa"),
    ("inference", "8192x8-documents", "modernbert-packed"),
    ("training", "512x32-questions", "modernbert-sdpa"),
    ("preset", "1024x64", "modernbert-sdpa"),
    ("inference", "512x32-questions", PACKED_ENCODERS),
    ("training", "8192x8-documents", "modernbert-packed"),
    ("pretraining", "8192x8", "modernbert-sdpa"),
)
HEADER = (
    f"\n{'workload':<18}{'mode':<12}{'dtype':<9}{'peer':<30}{'ours ms':>11}{'peer ms':>11}{'ratio':>8}{'% floor':>8}"
    f"{'our MiB':>9}{'peer MiB':>9}"
)


@dataclass
class Settings(BaseSettings):
    device: str = setting("auto", "auto takes the GPU where there is one", choices=("auto", "cpu", "cuda"))
    dtypes: list[str] = setting(
        [],
        "empty: float32 and bfloat16 on CPU, bfloat16 on a GPU; int8 is for both sides in onnxruntime",
        ("float32", "bfloat16", "float16", "int8"),
    )
    runtime: str = setting("pytorch", "what our side runs in, on CPU", choices=("pytorch", *RUNTIMES))
    shape: str = setting("auto", "layers x width; auto: 12x768 on CPU, 28x1024 on a GPU", choices=("auto", *SHAPES))
    workload: list[str] = setting(
        [], "TxB or TxB-KIND, KIND one of questions, articles, documents; or collator; empty: those of the device"
    )
    modes: list[str] = setting(
        [], "curve: cost against length; pretraining, preset: whole updates; empty: the first three on CPU, all on a GPU", MODES
    )
    peers: list[str] = setting(list(PEERS), choices=tuple(PEERS))
    compile: bool = setting(False, "torch.compile for both sides")
    curve_lengths: list[int] = setting([128, 512, 2048, 8192, 32768], "tokens of the one text of the curve", least=1)
    repeats: int = setting(0, "timed runs a side, after the warm-up; 0: 5 on CPU, 20 on a GPU", least=0)
    seconds: float = setting(
        -1.0, "a comparison stops after so long, each side having run once at least; below 0: 90 on CPU, 20 on a GPU"
    )
    minutes: float = setting(0.0, "the run ends after so long with what it has; 0: when all is measured", least=0)
    threads: int = setting(0, "CPU threads; 0: as many as PyTorch takes", least=0)
    results_dir: str = setting("results", "where throughput-DEVICE.json and .png go")


# --- measuring --------------------------------------------------------------------------------------------------------


def compare(peer_name: str, workload: Workload, dtype_name: str, mode: str, settings: Settings) -> dict:
    """One row of the table. Where it has no figures, `skipped` or `failed` says why."""
    row = {"workload": workload.name, "mode": mode, "dtype": dtype_name, "peer": peer_name}
    torch.manual_seed(0)
    shape = SHAPES[settings.shape]
    try:
        if mode in ("pretraining", "preset"):
            backend, lengths = PEERS[peer_name].backend, workload.lengths
            return row | compare_updates(
                backend, lengths[0], len(lengths), dtype_name, shape, as_preset=mode == "preset", settings=settings
            )
        return row | compare_steps(peer_name, workload, dtype_name, mode == "training", shape, settings)
    except ImportError as error:  # a peer's package
        return row | {"skipped": reason(error)}
    except Exception as error:
        return row | {"failed": reason(error), "traceback": traceback.format_exc()}


def measure_curve(settings: Settings) -> Iterator[dict]:
    """One text of each length, shown as it comes: ours, and stock ModernBERT on sdpa until that is too slow."""
    dtype, slow = settings.dtypes[0], False
    for length in settings.curve_lengths:
        workload = Workload(f"{length}x1", [length])
        row: dict[str, Any] = {"skipped": "the shorter text took too long, or failed"}
        if not slow:
            row = compare("modernbert-sdpa", workload, dtype, "inference", settings)
        # Four times the length is up to sixteen times the work.
        slow = slow or "ratio" not in row or 16 * row["peer_seconds"] > settings.seconds
        if "ratio" not in row:
            try:
                row |= measure_alone(workload, dtype, SHAPES[settings.shape], settings.device)
            except Exception as error:
                row |= {"failed": reason(error), "traceback": traceback.format_exc()}
        free(settings.device)
        ours = f"{row['our_seconds']:.3f} s" if "our_seconds" in row else "no time"
        peer = f"{row['peer_seconds']:.3f} s" if "peer_seconds" in row else no_figures(row)
        show(f"one text of {length:,} tokens: ours {ours}, stock {peer}")
        yield {"length": length} | row


def draw_curve(curve: list[dict], path: Path, title: str) -> None:
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    for side, label in (("our_seconds", "zh-modernbert"), ("peer_seconds", "transformers' ModernBERT, sdpa")):
        points = [(row["length"], row[side] * 1e6 / row["length"]) for row in curve if side in row]
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="tokens in the text", ylabel="ms for 1,000 tokens", title=title)
    axes.set_xticks([row["length"] for row in curve], [f"{row['length']:,}" for row in curve])
    axes.grid(alpha=0.3)
    axes.legend()
    with aside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def no_figures(row: dict) -> str:
    return f"failed: {row['failed']}" if "failed" in row else f"skipped: {row['skipped']}"


def line_of(row: dict) -> str:
    """One line of the table."""
    name = f"{row['workload']:<18}{row['mode']:<12}{row['dtype']:<9}{row['peer']:<30}"
    if "ratio" not in row:
        return f"{name}{no_figures(row)}"
    memory = "".join(f"{row[key] / 2**20:>9,.0f}" if key in row else f"{'-':>9}" for key in ("our_memory", "peer_memory"))
    times = f"{row['our_seconds'] * 1e3:>11,.1f}{row['peer_seconds'] * 1e3:>11,.1f}{row['ratio']:>8.2f}"
    return f"{name}{times}{100 * row['flop_utilisation']:>8.0f}{memory}"


def pretraining_comparisons(modes: list[str], settings: Settings) -> list[tuple]:
    """Workload, mode, dtype and peer of each comparison of whole updates.

    Raises:
        InputError: it cannot be made of these settings.
    """

    def require(condition: bool, message: str):
        if not condition:
            raise InputError(f"throughput: the mode {modes[0]} {message}")

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
    return list(product(workloads, modes, settings.dtypes, peers))


def resolve(settings: Settings) -> Settings:
    """The settings with what was left to the device filled in.

    Raises:
        InputError: there is no such device.
    """
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        raise InputError("throughput: device is 'cuda', but PyTorch finds no GPU")
    device = settings.device if settings.device != "auto" else "cuda" if has_gpu else "cpu"
    shape = settings.shape if settings.shape != "auto" else {"cpu": "12x768", "cuda": "28x1024"}[device]
    return replace(
        settings,
        device=device,
        shape=shape,
        dtypes=settings.dtypes or DTYPES[device],
        modes=settings.modes or DEVICE_MODES[device],
        repeats=settings.repeats or REPEATS[device],
        seconds=settings.seconds if settings.seconds >= 0 else SECONDS[device],
    )


def plan_comparisons(settings: Settings) -> list[tuple]:
    """Workload, mode, dtype and peer of each comparison, those of `FIRST` first.

    Raises:
        InputError: a workload or a mode cannot be made of these settings.
    """
    steps = [mode for mode in settings.modes if mode in ("inference", "training")]
    updates = [mode for mode in settings.modes if mode in ("pretraining", "preset")]
    workloads = [Workload.parse(name) for name in settings.workload or WORKLOADS[settings.device]]
    comparisons = list(product(workloads, steps, settings.dtypes, settings.peers))
    comparisons += pretraining_comparisons(updates, settings) if updates else []
    rank = {named: number for number, named in enumerate(FIRST)}
    return sorted(comparisons, key=lambda comparison: rank.get((comparison[1], comparison[0].name, comparison[3]), len(FIRST)))


def describe_device(settings: Settings) -> dict:
    device = torch.cuda.get_device_name() if settings.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    kernel = settings.device == "cuda" and modeling.varlen_attn is not None
    show(f"{device}, {', '.join(f'{name} {version}' for name, version in versions.items())}, varlen kernel: {kernel}")
    return {
        "device": device,
        "versions": versions,
        "varlen_kernel": kernel,
        "shape": settings.shape,
        "compiled": settings.compile,
        "runtime": settings.runtime,
    }


def measure_device(settings: Settings) -> Iterator[dict]:
    """What is known of the device before anything is compared: the backends' errors, and the speed of its matrix product."""
    show(f"correctness on {settings.device}, largest error relative to the norm:")
    errors = check_backends(settings.device)
    for name, error in errors.items():
        show(f"  {name:<40}{error if isinstance(error, str) else f'{error:.2g}'}")
    yield {"correctness": errors}
    free(settings.device)
    # PyTorch has no such product of 8 bits; there the floor is that of float32.
    dtypes = {name: getattr(torch, "float32" if name == "int8" else name) for name in settings.dtypes}
    speeds = {name: matmul_flops_per_second(settings.device, dtype) for name, dtype in dtypes.items()}
    for name, speed in speeds.items():
        show(f"matrix product in {name}: {speed / 1e12:.3f} TFLOP/s")
    yield {"matmul_flops_per_second": speeds}


def free(device: str) -> None:
    """Frees what a comparison left.

    Raises:
        Stopped: the device is lost to this process, as after an access to memory that is not there.
    """
    try:
        synchronize(device)
        clear(device)
    except RuntimeError as error:
        raise Stopped(f"the device does not answer any more: {reason(error)}") from error


def measure_comparisons(comparisons: list[tuple], speeds: dict[str, float], settings: Settings) -> Iterator[dict]:
    """The row of each comparison, shown as it comes. What is measured is taken from the front of the list.

    Args:
        speeds: floating-point operations a second of the device's matrix product, by dtype: what the floor is counted with.
    """
    show(HEADER)
    started = time.perf_counter()
    while comparisons:
        workload, mode, dtype, peer = comparisons[0]
        show(f"{time.perf_counter() - started:6.0f} s: {workload.name} {mode} {dtype} {peer}")
        row = compare(peer, workload, dtype, mode, settings)
        if "ratio" in row:
            row["floor_seconds"] = row["flops"] / speeds[dtype]
            row["flop_utilisation"] = round(row["floor_seconds"] / row["our_seconds"], 3)
            if "peer_flops" in row:
                row["peer_flop_utilisation"] = round(row["peer_flops"] / speeds[dtype] / row["peer_seconds"], 3)
        del comparisons[0]
        show(line_of(row))
        yield row
        free(settings.device)


def name_of(row: dict) -> str:
    return " ".join(row[key] for key in ("workload", "mode", "dtype", "peer"))


def measure(comparisons: list[tuple], settings: Settings, result: dict, save: Callable[[], None]) -> None:
    """Fills `result`, and calls `save` whenever something new is in it.

    Raises:
        Stopped: see `free` and `time_limit`.
    """
    for found in measure_device(settings):
        result |= found
        save()
    result["failed"] += [f"correctness {name}" for name, error in result["correctness"].items() if isinstance(error, str)]
    for row in measure_comparisons(comparisons, result["matmul_flops_per_second"], settings):
        result["rows"].append(row)
        if "ratio" in row:
            result["ratio"][name_of(row)] = row["ratio"]
        elif "failed" in row:
            result["failed"].append(name_of(row))
        save()
    for row in measure_curve(settings) if "curve" in settings.modes else ():
        result["curve"].append(row)
        save()


def main(settings: Settings) -> dict:
    if "collator" in settings.workload:
        if len(settings.workload) > 1:
            raise InputError("throughput: the workload collator has no model; give it alone")
        return compare_collators(64, 1024, resolve(settings))
    settings = resolve(settings)
    comparisons = plan_comparisons(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    path = Path(settings.results_dir) / f"throughput-{settings.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = describe_device(settings) | {
        "lengths": {workload.name: workload.lengths for workload, *_ in comparisons if len(set(workload.lengths)) > 1},
        "rows": [],
        "curve": [],
        "ratio": {},
        "failed": [],
    }
    try:
        with time_limit(settings.minutes):
            measure(comparisons, settings, result, lambda: write_json(path, result))
    except Stopped as stopped:
        result["stopped"] = str(stopped)
        result["not_made"] = [f"{workload.name} {mode} {dtype} {peer}" for workload, mode, dtype, peer in comparisons]
        show(f"stopped: {stopped}; {len(comparisons)} comparisons have no figures: see not_made in {path}")
    if result["failed"]:
        show(f"failed: {', '.join(result['failed'])}; see {path}")
    write_json(path, result)
    if result["curve"]:
        title = f"One text, {settings.dtypes[0]}, {settings.shape}, {result['device']}"
        draw_curve(result["curve"], path.with_suffix(".png"), title)
    return result


if __name__ == "__main__":
    run(main, Settings)
