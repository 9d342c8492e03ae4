"""Labels of people: the column `label` of a BIDS participants.tsv."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from synthmri.errors import UserError
from synthmri.scans.names import ID_FORM, Words, canonical, id_words

UNLABELLED = "participants.tsv has labels, but no row for this person"
TWO_LABELS = "participants.tsv gives this person two labels: none is taken"


def read_labels(path: Path) -> dict[Words, set[str]]:
    """Words of an id -> its labels; empty where there is no column of labels. Capitals and spaces are of no matter.

    Raises UserError where it is no table of participants.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = max("\t;,", key=lines[0].count) if lines else "\t"
        head, *rows = csv.reader(lines, delimiter=delimiter) if lines else [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as tab-separated text ({error}); mend or remove it") from None
    columns = {re.sub(r"[\W_]+", "_", cell.strip().casefold()).strip("_"): place for place, cell in enumerate(head)}
    if rows and "participant_id" not in columns:
        raise UserError(f"{path} has no column `participant_id`; add it, as BIDS asks, or remove the file")
    labels: dict[Words, set[str]] = {}
    for row in rows if "label" in columns else ():
        if len(row) > max(columns["participant_id"], columns["label"]) and row[columns["participant_id"]].strip():
            label = row[columns["label"]].strip()
            found = labels.setdefault(_bare(row[columns["participant_id"]].strip()), set())
            found |= {label} if label.casefold() not in ("", "n/a") else set()  # BIDS writes n/a for unknown
    return labels


def label_of(names: Iterable[str], labels: dict[Words, set[str]]) -> tuple[str, str]:
    """The label of a person who is known by these names ("" where there is none), and what is doubtful about it."""
    found = [labels[words] for words in map(_bare, names) if words in labels]
    if not found:
        return "", UNLABELLED if any(labels.values()) else ""
    together = set().union(*found)
    return (min(together), "") if len(together) == 1 else ("", TWO_LABELS if together else "")


def _bare(name: str) -> Words:
    """An id without `sub-`, visits, case and leading zeros, by which a row and a person's scans find each other."""
    match = ID_FORM.search(name)
    words = id_words(match[0]) if match else canonical(name)
    return words[1:] if words[:1] == ("sub",) and len(words) > 1 else words
