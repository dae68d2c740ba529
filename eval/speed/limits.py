"""What ends a comparison before it has figures, or a run before it has all comparisons: errors, memory, time, a lost device."""

import contextlib
import faulthandler
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from zh_modernbert.train.common.cli import InputError, describe

NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED", re.IGNORECASE)
# Seconds between the calls to stop, and from the first to the end of the process, if none is heard.
AGAIN, PATIENCE = 2.0, 30.0


class Stopped(BaseException):
    """The run ends with what it has; the text says why. No `except Exception` of a library takes it for an error of its own."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory did not suffice. Beside PyTorch's allocator, cuBLAS and the driver say so, and compilers wrap it."""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: Exception) -> str:
    """Why a comparison has no figures, as it stands in the table, with the place in the code."""
    if isinstance(error, InputError):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f", {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    return f"{'out of memory: ' if is_out_of_memory(error) else ''}{describe(error)[:150]}{where}"


@contextlib.contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """Raises `Stopped` in the block after so many minutes; 0: never.

    It is raised again and again, since what is raised while garbage is collected is lost. A call that does not come back to
    Python hears nothing. Then the process ends itself a little later, and prints where it was.
    """
    if not minutes:
        yield
        return

    def stop(number, frame):
        raise Stopped(f"the {minutes:g} minutes are over")

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(60 * minutes + PATIENCE, exit=True, file=sys.__stderr__ or sys.stderr)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
