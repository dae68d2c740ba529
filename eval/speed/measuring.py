"""How speed and memory are measured: texts of real lengths, turns, peaks, and the speed of the device's matrix product."""

import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler, whose lines would break up the table

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

# Lengths of real texts in tokens of 1.4 characters: the 5%, 15%, ... 95% quantiles.
LENGTHS = {
    # C3's mixed development set: passage, question and longest choice; 1,991 questions. Cut at 512, their mean is 44% of 512.
    "questions": (33, 55, 82, 113, 184, 230, 283, 335, 402, 530),
    # Chinese Wikipedia, 851 articles. Cut at 512, their mean is 58% of 512.
    "articles": (98, 121, 146, 176, 217, 288, 385, 576, 902, 2151),
    # Mixed pretraining text, 58,873 documents of 52 sources in both scripts. Cut at 8,192, their mean is 23% of 8,192.
    "documents": (142, 252, 372, 518, 731, 1035, 1565, 2489, 4331, 8578),
}


def lengths_at(kind: str, quantiles: np.ndarray | float) -> np.ndarray:
    """The lengths in tokens of the texts of a kind at `quantiles`, numbers from 0 to 1."""
    return np.rint(np.interp(quantiles, (np.arange(10) + 0.5) / 10, LENGTHS[kind])).astype(int)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def clear(device: str) -> None:
    """Frees what a side left in memory and in the compiler's state, before another takes its turn."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def compiled_graphs() -> int:
    """How many graphs `torch.compile` has made in this process. It grows in a step that compiles, whose time is no figure."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils.counters["stats"]["unique_graphs"] if utils else 0


@contextlib.contextmanager
def kept_precision() -> Iterator[None]:
    """Gives float32 products the precision back that they had before: the Trainer sets tf32 for the whole process."""
    if hasattr(torch.backends, "fp32_precision"):  # from PyTorch 2.9; the older switches must not be read beside it
        places, name = (torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn), "fp32_precision"
    else:
        places, name = (torch.backends.cuda.matmul, torch.backends.cudnn), "allow_tf32"
    before = [getattr(place, name) for place in places]
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)


def peak_memory(function: Callable, device: str) -> int:
    """The most bytes of tensors that a call holds at once, without those held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    recorded: Any = profiled.profiler  # it has no types of what it records
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())), default=0)


def matmul_flops_per_second(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of this device's matrix product: the best of three shapes and ten runs of each."""
    best = 0.0
    size = 8192 if device == "cuda" else 2048
    for rows, inner, columns in ((size, 768, 2304), (size, size, size), (size, 1024, 5248)):
        left, right = torch.randn(rows, inner, device=device).to(dtype), torch.randn(columns, inner, device=device).to(dtype)
        for _ in range(10):
            synchronize(device)
            started = time.perf_counter()
            F.linear(left, right)
            synchronize(device)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started))
    return best


def take_turns(ours: Callable, peer: Callable, repeats: int, seconds: float) -> tuple[float, float, int]:
    """Median seconds of both sides, and how often each ran. They run by turns; who goes first alternates.

    Args:
        ours, peer: return the seconds of one run as the first item.
        seconds: no turn starts after so long.
    """
    times, started = ([], []), time.perf_counter()
    for turn in range(repeats):
        for side in (0, 1) if turn % 2 else (1, 0):
            times[side].append((ours, peer)[side]()[0])
        if time.perf_counter() - started > seconds:
            break
    return statistics.median(times[0]), statistics.median(times[1]), len(times[0])
