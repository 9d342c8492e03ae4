"""A stage of several processes: the second fails while the first waits for it, or all wait for ever."""

import os
import time

from stages import common, launch
from synthmri import parallel
from synthmri.errors import UserError


def main(forever: bool = False):
    launch.start()
    if forever:
        os.write(1, f"{os.getpid()}\n".encode())  # at once: print may write the number and the end of its line apart
        time.sleep(1000)
    if parallel.rank() == 1:
        raise UserError("the second process has failed")
    parallel.total(1.0)


if __name__ == "__main__":
    common.run(main)
