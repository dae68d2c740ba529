"""How the threads of a computation on CPU wait for one another. Import this before torch.

PyTorch's OpenMP on Linux (libgomp) reads its settings when it is loaded. By itself it lets a thread that waits for others spin
300,000 turns, some milliseconds, before it sleeps. Beside another busy process that is slow: a thread that spins keeps the core
from the thread that it waits for. 1,000 turns, some 20 microseconds, outlast most waits from one operation to the next.

OMP_WAIT_POLICY or GOMP_SPINCOUNT in the environment is the user's own setting, and wins.
"""

import os

SPIN_COUNT = 1000

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
