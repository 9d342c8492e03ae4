"""Where a training that was interrupted goes on from."""

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stages import _files
from synthmri.errors import UserError
from synthmri.training import distributed

LOCK = ".lock"
WAIT_S = 10  # for another process: one whose launcher was killed ends by itself


@contextmanager
def checkpoints(root: Path, data: Sequence[Path], *settings: object) -> Iterator[Path]:
    """The folder for the checkpoints of a training; removed once the block, which writes the outputs, is through.

    It is named by a hash of `data`, files and folders made of people's slices, and one of `settings` (JSON-able values
    and Paths) with the code that is imported: what another version has half trained is not gone on with. Checkpoints
    of other data are removed at once, since they may hold what was learnt from people who are no longer among them.
    Raises UserError while another process is at work below `root`.
    """
    whose = root / _files.digest(*data)
    folder = whose / _files.digest(_files.imported(), *settings)
    with _alone(root) if distributed.is_main() else contextlib.nullcontext():
        if distributed.is_main():
            for other in root.iterdir():
                if other.name not in (whose.name, LOCK):
                    _discard(other)
            for left in whose.glob(".*.part"):  # by a kill in the middle of the removal below
                _discard(left)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        if distributed.is_main():
            _discard(folder)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Let no second process in: a stage lives on where DVC alone was killed, and two would write one checkpoint."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / LOCK, "wb") as file:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UserError(
                        f"another process trains by the checkpoints in {root} (`fuser {root / LOCK}` tells which); "
                        "wait for it, or end it, then run this again"
                    ) from None
                time.sleep(0.1)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield


def _discard(path: Path) -> None:
    """Remove it under another name: killed on the way, what is left of it is not taken for a training to go on with."""
    if path.suffix != ".part":
        part = path.with_name(f".{path.name}.part")
        if part.is_dir():  # of a removal that was killed
            shutil.rmtree(part)
        path = path.replace(part)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
