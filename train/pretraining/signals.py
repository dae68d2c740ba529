"""Signals that ask a run to stop."""

import contextlib
import ctypes
import os
import signal
import sys
import time

from zh_modernbert.train.pretraining.parallel import end_processes

PR_SET_PDEATHSIG = 1  # Linux: what a process is sent when its parent ends


class StopSignals(contextlib.ContextDecorator):
    """SIGTERM and SIGINT become a wish to stop, which the loop grants after the update; a second one kills at once.

    What follows within `SAME` seconds is no second one: a launcher passes on what its processes were sent themselves.
    """

    SAME = 2.0

    def __enter__(self):
        self.received, self.first = 0, 0.0
        if "ACCELERATE_MIXED_PRECISION" in os.environ:
            # accelerate launch, where it starts one process, does not pass signals on: it just ends.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        self.handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def receive(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self.first = number, now
        elif now - self.first > self.SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def leave(self, step: int, saved: bool, main_process: bool) -> None:
        """Ends the process with 128 + the signal's number, as a shell reports that signal.

        Status 0 would let Slurm start what waits for the finished run, and keep Kubernetes from starting this one again.
        """
        number = signal.Signals(self.received or signal.SIGTERM)  # another process may have got it
        if main_process:
            what = "saved" if saved else "not saved, as updates are being skipped"
            print(f"stopped by {number.name} after update {step}, {what}; the same command goes on", file=sys.stderr)
        end_processes()
        sys.exit(128 + number)
