"""How outputs appear, whole or not at all, and what is said where the file system refuses."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthmri.errors import UserError

# Where the file system refuses, what its owner can do about it.
REMEDIES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room: the quota of its disk is used up",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`), or use a file system that holds larger ones",
    errno.EROFS: "its file system is mounted read-only; mount it for writing",
    errno.EACCES: "give yourself the right to read and write there (`ls -ld` shows whose it is)",
    errno.EPERM: "give yourself the right to read and write there (`ls -ld` shows whose it is)",
    errno.ENOENT: "it is not there; `dvc repro` makes what it depends on",
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` to write to (file or folder); it takes the place of `path` only on success.

    Raises UserError naming `path` and the remedy where the file system refuses to hold it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, old = (path.with_name(f".{path.name}.{end}") for end in ("part", "old.part"))
    _remove(part)
    try:
        yield part
        if part.is_dir() or path.is_dir():  # a file takes the place of another in one move, a folder does not
            _remove(old)
            if os.path.lexists(path):
                os.replace(path, old)
        os.replace(part, path)
        _remove(old)
    except UserError:
        raise
    except Exception as error:
        if reason := _refusal(error, part):
            raise UserError(refused(path, reason)) from error
        raise
    finally:
        _remove(part)


def _refusal(error: Exception, part: Path) -> OSError | None:
    """Why the file system refused to write to `part`; None where it did not.

    numpy loses the reason when a disk is full, so it is asked once more; safetensors has it in its text alone.
    """
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        error = OSError(int(number[1]), os.strerror(int(number[1])))
        return error if error.errno in REMEDIES else None
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return error if Path(error.filename).is_relative_to(part) and error.errno in REMEDIES else None
    files = [file for file in [part, *part.rglob("*")] if file.is_file()]
    if not files:
        return None
    try:
        with open(max(files, key=lambda file: file.stat().st_size), "ab") as file:
            file.write(bytes(2**20))
    except OSError as again:
        return again if again.errno in REMEDIES else None
    return None


def refused(path: Path | str, error: OSError) -> str:
    """What is said of a path that the file system refuses, with the remedy."""
    return f"{path}: {error.strerror[0].lower()}{error.strerror[1:]}; {REMEDIES[error.errno]}, then run it again"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # on a read-only disk even the removal of nothing fails
        path.unlink()
