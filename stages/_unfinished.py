"""Where a training that was interrupted goes on from."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stages import _files
from synthmri.training import distributed


@contextmanager
def checkpoints(root: Path, data: Sequence[Path], *settings: object) -> Iterator[Path]:
    """The folder for the checkpoints of a training; removed once the block, which writes the outputs, is through.

    It is named by a hash of `data`, files and folders made of people's slices, and one of `settings` (JSON-able values
    and Paths) with the code that is imported: what another version has half trained is not gone on with. Checkpoints
    of other data are removed at once, since they may hold what was learnt from people who are no longer among them.
    """
    whose = root / _files.digest(*data)
    folder = whose / _files.digest(_files.imported(), *settings)
    if distributed.is_main():
        for other in root.iterdir() if root.is_dir() else ():
            if other != whose:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if distributed.is_main():
        shutil.rmtree(folder)
