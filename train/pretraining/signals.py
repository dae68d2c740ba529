"""Signals that ask a run to stop."""

import contextlib
import os
import signal
import sys
import time

from zh_modernbert.train.common.processes import signal_at_parents_end
from zh_modernbert.train.pretraining.parallel import end_processes


class StopSignals(contextlib.ContextDecorator):
    """The first SIGTERM or SIGINT asks the loop to stop after its update; a second one kills the process at once.

    A signal within `SAME` seconds of the first counts as the same one: a launcher passes on a signal that its processes got
    themselves.

    Attributes:
        received: number of the first signal, 0 before there is one.
    """

    SAME = 2.0

    def __enter__(self):
        self.received, self.first = 0, 0.0
        if "ACCELERATE_MIXED_PRECISION" in os.environ:
            # `accelerate launch` of one process does not pass signals on: it ends, and leaves the process running.
            signal_at_parents_end(signal.SIGTERM)
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
        number = signal.Signals(self.received or signal.SIGTERM)  # none here: another process was told to stop
        if main_process:
            what = "saved" if saved else "not saved, as updates are being skipped"
            print(f"stopped by {number.name} after update {step}, {what}; the same command goes on", file=sys.stderr)
        end_processes()
        sys.exit(128 + number)
