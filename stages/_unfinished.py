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
                _discard(other)
        for left in whose.glob(".*.part"):  # by a kill in the middle of the removal below
            _discard(left)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if distributed.is_main():
        _discard(folder)


def _discard(path: Path) -> None:
    """Remove it under another name: killed on the way, what is left of it is not taken for a training to go on with."""
    if path.suffix != ".part":
        part = path.with_name(f".{path.name}.part")
        if part.is_dir():  # of a removal that was killed
            shutil.rmtree(part)
        path = path.replace(part)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
