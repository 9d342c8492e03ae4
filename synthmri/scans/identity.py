"""Whose a scan is: the person that names of files and folders tell of, and the pseudonym that outputs hold."""

import csv
import hashlib
import hmac
import re
from pathlib import Path

from synthmri.errors import UserError
from synthmri.scans.contrast import contrast_of

SUBJECT = re.compile(r"(?:^|[/_])(sub-[a-z0-9]+|(?:sub|subj|subject|pat|patient|case)[-_ ]?\d+)(?![a-z0-9])", re.I)
VISIT = re.compile(r"(ses|session|visit|study|timepoint|tp|run)\d*")
LEAST_PEOPLE = 3  # fewer folders or tensors with a number in their name are no people: a split wants three


def person(name: str) -> str:
    """Name of a folder or file less contrast and visit: T1w and FLAIR, first and second visit are of one subject."""
    words = re.split(r"[^A-Za-z0-9]+", re.sub(r"\.(nii(\.gz)?|dcm|ima)$", "", name, flags=re.I))
    return "_".join(word for word in words if not contrast_of(word) and not VISIT.fullmatch(word.lower()))


def participants(path: Path) -> dict[str, str]:
    """Subject -> label of a BIDS participants.tsv; empty where there is none. Raises UserError where it is no table."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as tab-separated text ({error}); mend or remove it") from None
    if rows and "participant_id" not in rows[0]:
        raise UserError(f"{path} has no column `participant_id`; add it, as BIDS asks, or remove the file")
    labels = {row["participant_id"]: (row.get("label") or "").strip() for row in rows}
    return {name: label for name, label in labels.items() if label not in ("", "n/a")}  # BIDS writes n/a for unknown


def pseudonym(subject: str, salt: str) -> str:
    """The name under which a subject appears in outputs: who does not know the salt cannot try ids one by one."""
    return f"sub-{hmac.new(salt.encode(), subject.encode(), hashlib.sha256).hexdigest()[:16]}"
