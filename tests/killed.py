"""A reader whose worker is killed. Worker processes import it from here, since a test's own module is not on their path."""

import os
import signal

from zh_modernbert.train.corpus.engine import CorpusReader


class KilledAtShard(CorpusReader):
    """The kernel kills the worker at the third shard, as it does when memory runs out."""

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().run(data, rank, world_size)
