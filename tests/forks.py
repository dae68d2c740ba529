"""A process of its own for what a test kills: a fork, which has imported everything, so it starts at once."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm


def fork(run: Callable[[], object], log: str | Path = os.devnull) -> int:
    """The id of a process, the leader of a group, that runs something and ends with the status of a script.

    Args:
        log: where its output goes.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)  # pytest's would keep it
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the other processes: who is killed may hold it
        run()
        leave(0)
    except SystemExit as error:
        # Not later: a group of processes that the error's frames hold may wait for the others for ever when it is freed.
        leave(int(error.code or 0))
    except BaseException:
        traceback.print_exc()
        leave(1)


def leave(status: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(status)
