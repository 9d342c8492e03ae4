"""Lines for the screen: alike things are one line, with a count and three names."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from synthmri.scans.names import read_name
from synthmri.scans.scan import BadFile, LeftOut, Source

NAMES = 3


def some(names: Iterable[str]) -> str:
    """The first names, each once, and that there are more."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:NAMES]) + (", ..." if len(names) > NAMES else "")


def skipped(errors: Iterable[BadFile]) -> list[str]:
    """A line for each reason; reasons that differ in numbers alone are one."""
    alike: dict[tuple, list[BadFile]] = defaultdict(list)
    for error in errors:
        alike[error.category, re.sub(r"\d+(\.\d+)?", "#", _reason(error))].append(error)
    lines = []
    for found in alike.values():
        word = "left out" if isinstance(found[0], LeftOut) else "skipped"
        reason, names = _reason(found[0]), some(error.name for error in found)
        lines.append(
            f"{word} {names}: {reason}" if len(found) == 1 else f"{word} {len(found)} files: {reason} ({names})"
        )
    return lines


def _reason(error: BadFile) -> str:
    return (str(error).partition(": ")[2] or str(error)).removeprefix("is left out: ")


def doubts(sources: Iterable[Source]) -> list[str]:
    """A line for each doubt, with the people whose scans it is about; where nobody is known, with the files."""
    about: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        for doubt in source.doubts:
            about[doubt].append(source.subject or source.name)
    return [f"{doubt}: {len(names)} scans ({some(names)})" for doubt, names in about.items()]


def classes(sources: Iterable[Source], declared: Collection[str]) -> str:
    """A word on folders that look like classes and are not declared so; "" where there are none."""
    folders = {part for source in sources for part in PurePosixPath(source.name).parts[:-1]} - set(declared)
    found = sorted(folder for folder in folders if read_name(folder).role == "class")
    return (
        f"folders that look like classes: {some(found)}; name them in data.classes to use them as labels"
        if found
        else ""
    )
