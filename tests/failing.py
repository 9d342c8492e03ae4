"""A stage of several processes: the second fails while the first waits for it, or all wait for ever."""

import os
import time

from stages import _cli, _launch
from synthmri.errors import UserError
from synthmri.training import distributed


def main(forever: bool = False):
    _launch.start()
    if forever:
        os.write(1, f"{os.getpid()}\n".encode())  # at once: print may write the number and the end of its line apart
        time.sleep(1000)
    if distributed.rank() == 1:
        raise UserError("the second process has failed")
    distributed.total(1.0)


if __name__ == "__main__":
    _cli.run(main)
