"""What a process does at the end of the one that started it."""

import contextlib
import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def signal_at_parents_end(number: signal.Signals) -> None:
    """Has Linux send this process a signal when its parent ends, however that ends; elsewhere does nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
