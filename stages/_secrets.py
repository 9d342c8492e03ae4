"""Files that are for their owner alone: random secrets, by which people get their pseudonyms."""

import os
import secrets
import stat
import sys
from pathlib import Path

from stages._replacing import replacing
from synthmri.errors import UserError

LEAST_SECRET = 16  # characters


def secret(file: Path) -> str:
    """The random secret in a file, made where there is none. Raises UserError for one that is too short."""
    if not os.path.lexists(file):
        with replacing(file) as part:
            part.touch(mode=0o600)
            part.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")
    try:
        found = file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = "is a folder" if file.is_dir() else f"cannot be read as text in UTF-8 ({error})"
        raise UserError(
            f"{file} {why}; put back the file that was there, or remove it for a new secret, with which people get "
            "other pseudonyms"
        ) from None
    warn_if_open(file)
    if len(found) < LEAST_SECRET:
        raise UserError(
            f"{file} holds {len(found)} characters, at least {LEAST_SECRET} are a secret; remove it for a new one"
        )
    return found


def warn_if_open(file: Path) -> None:
    """Say on standard error where others on this machine can read a file that is for its owner alone (mode 600).

    Those made here are; one of an earlier version, or copied by other means, may not be.
    """
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        print(f"warning: others on this machine can read {file}; close it with `chmod 600 {file}`", file=sys.stderr)
