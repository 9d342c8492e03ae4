"""A piece of work that kills its process: for test_workers.py, and light, as every worker imports it."""

import os
import signal
from pathlib import Path


def square(x: int, marks: Path, deadly: dict[int, int]) -> int:
    """x * x; the process that has x in `deadly` is killed, that many times."""
    for time in range(deadly.get(x, 0)):
        mark = marks / f"{x}-{time}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return x * x
