"""What there is: whose each scan is and what it shows, as found, and as the table subjects.csv corrects it.

The table has a row a scan, or a folder of pictures or DICOM; a path may be a folder or hold wildcards. Of all rows that
fit a scan the last cell that is filled in rules; where there is none, what was found stays. `unknown` says that nobody
knows. Beside the table lies the same one as it was written from what was found: a table that differs was edited by a
person, and rules; one that nobody edited changes nothing. Rows that are added to a person's table for later files say
`yes?` where something is in doubt, until that person takes the question mark away.
"""

import csv
import fnmatch
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from synthmri.errors import UserError
from synthmri.scans import masks, read, wording
from synthmri.scans.names import Words, canonical
from synthmri.scans.scan import BadFile, LeftOut, Source
from synthmri.scans.slicing import CONTRASTS, Data

TABLE, WRITTEN = "subjects.csv", ".subjects.csv"
UNKNOWN = "unknown"
USES = {"yes": True, "y": True, "true": True, "1": True, "no": False, "n": False, "false": False, "0": False}


class Row(NamedTuple):
    """One row of the table, all of it text. use: `yes`, `yes?` where nobody has looked yet, or `no` and why."""

    path: str
    subject: str = ""
    contrast: str = ""
    label: str = ""
    use: str = ""

    @property
    def used(self) -> bool | None:
        """None: as found."""
        return USES.get(re.split(r"\W", self.use.casefold())[0])

    @property
    def open(self) -> bool:
        """Whether nobody has looked at it yet."""
        return self.use.endswith("?")


class Inventory(NamedTuple):
    """sources: what is used. bad: what cannot be, or is left out. rows: the table as it should stand.
    edited: whether a person's table ruled. stale: whether the table lacks what is found now, or tells otherwise, or has
    rows that nobody has looked at.
    unused: paths of rows that fit nothing."""

    sources: list[Source]
    bad: list[BadFile]
    rows: list[Row]
    edited: bool
    stale: bool
    unused: list[str]


def take(root: Path, data: Data) -> Inventory:
    """All below a folder, by names, headers and the table. Raises UserError for a table that cannot be understood."""
    root = Path(root)
    table = read_rows(root / TABLE)
    edited = bool(table) and table != read_rows(root / WRITTEN)
    ruler = _Ruler(table if edited else [])
    sources, bad = read.find(root, data.classes, taken=ruler.takes)
    sources = [_assumed(source, data) for source in sources]
    found = _rows(sources, bad)
    if not edited:
        return Inventory(sources, bad, found, False, bool(table) and table != found, [])
    used = []
    for source in sources:
        row = ruler.row(source.name)
        if row and row.used is False:
            bad.append(LeftOut("table", f"{source.name}: is not used, as {TABLE} says"))
        else:
            used.append(_corrected(source, row) if row else source)
    used = _one_spelling(used)
    doubtful = {name for source in sources if source.doubts for name in (source.name, _folder(source.name))}
    new = [
        row._replace(use="yes?") if row.path in doubtful else row
        for row in found
        if not ruler.row(row.path)  # also marks the rows of what is left out
    ]
    unused = [row.path for row in table if row not in ruler.fitted]
    return Inventory(used, bad, [*table, *new], True, any(row.open for row in [*table, *new]) or bool(new), unused)


def unsettled(held: Inventory, data: Data) -> list[str]:
    """What is in doubt and stops a run of real data: lines for the screen; none where all is certain or confirmed."""
    reasons = wording.doubts(held.sources)
    if not reasons or data.source != "raw" or (data.subjects == "confirmed" and not held.stale):
        return []
    if data.subjects == "confirmed":
        reasons.append(
            f"{TABLE} is not that of what is found now, or has rows that say `yes?`, so that data.subjects = confirmed "
            "does not hold: set it to check, run `synthmri check`, look, and confirm anew"
        )
    return reasons


class _Ruler:
    """All rows that fit a name, as one."""

    def __init__(self, table: Sequence[Row]):
        self._exact: dict[str, int] = {}
        self._patterns: list[tuple[int, re.Pattern]] = []
        self._table = table
        self.fitted: set[Row] = set()
        for number, row in enumerate(table):
            path = _plain(row.path)
            self._exact[path] = number
            if re.search(r"[*?[]", path):
                self._patterns.append((number, re.compile(fnmatch.translate(path))))

    def row(self, name: str) -> Row | None:
        path = PurePosixPath(name)
        fitting = [self._exact[part] for part in map(str, [path, *path.parents]) if part in self._exact]
        fitting += [number for number, pattern in self._patterns if pattern.match(name)]
        rows = [self._table[number] for number in sorted(fitting)]
        self.fitted.update(rows)
        cells = {column: cell for row in rows for column, cell in row._asdict().items() if cell}
        return Row(**cells) if rows else None

    def takes(self, name: str) -> bool:
        """Whether the table says that this is to be used, whatever it looks like."""
        row = self.row(name)
        return bool(row and row.used)


def _plain(path: str) -> str:
    """As names are compared: `data\\raw\\anna\\` and `anna` are one."""
    path = path.strip().replace("\\", "/").rstrip("/")
    return re.sub(r"^(\./)?(data/raw/)?", "", path) or "."


def _assumed(source: Source, data: Data) -> Source:
    """With data.assume in place of what pictures cannot tell."""
    if source.kind not in ("picture", "tensor"):
        return source
    return replace(source, contrast=source.contrast or data.assume.contrast, plane=data.assume.plane)


def _corrected(source: Source, row: Row) -> Source:
    """As the row says; what a person wrote, or left as it was, is in doubt no longer. Masks are not told of."""
    named = {contrast.casefold(): contrast for contrast in CONTRASTS} | {UNKNOWN: ""}
    subject, contrast = row.subject, row.contrast.casefold()
    return replace(
        source,
        subject=None if subject.casefold() == UNKNOWN else subject or source.subject,
        contrast=named[contrast] if contrast else source.contrast,
        label="" if row.label.casefold() == UNKNOWN else row.label or source.label,
        doubts=source.doubts if row.open else tuple(doubt for doubt in source.doubts if doubt == masks.SEVERAL),
    )


def _one_spelling(sources: list[Source]) -> list[Source]:
    """Whom tables and names spell in two ways, as where a spreadsheet took zeros away, is one person: the first's."""
    first: dict[Words, str] = {}
    return [
        replace(source, subject=first.setdefault(canonical(source.subject) or (source.subject,), source.subject))
        if source.subject
        else source
        for source in sources
    ]


# The table ------------------------------------------------------------------------------------------------------------


def _rows(sources: Iterable[Source], bad: Iterable[BadFile]) -> list[Row]:
    """A row a scan or what was left out; one a folder of pictures or DICOM where all in it have the same answers."""
    answers = [
        Row(source.name, source.subject or UNKNOWN, source.contrast or UNKNOWN, source.label, "yes")
        for source in sources
    ]
    answers += [Row(error.name, use=f"no: {error.category}") for error in bad if isinstance(error, LeftOut)]
    inside, kinds = defaultdict(set), defaultdict(set)
    for row in answers:
        inside[PurePosixPath(row.path).parent].add(row[1:])
    for source in sources:
        kinds[PurePosixPath(source.name).parent].add(source.kind)
    rows = {}
    for row in answers:
        folder = PurePosixPath(row.path).parent
        whole = len(inside[folder]) == 1 and kinds[folder] <= {"picture", "dicom"} and folder.name
        rows[_folder(row.path) if whole else row.path] = row
    return [row._replace(path=path) for path, row in sorted(rows.items(), key=lambda item: read.natural(item[0]))]


def _folder(name: str) -> str:
    """As a row names the folder of a path."""
    return f"{PurePosixPath(name).parent}/"


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, [] where there is none. Capitals and spaces of its first row are of no matter.

    Raises UserError naming the line, the value and what is taken in its place.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        lines = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=head.count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); save it as CSV in UTF-8, or remove it") from None
    columns = [cell.strip().casefold() for cell in lines[0]] if lines else []
    if "path" not in columns:
        raise UserError(f"{path} has no column `path`; its first row is {','.join(Row._fields)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = {name: cell.strip() for name, cell in zip(columns, line, strict=False) if name in Row._fields}
        row = Row(**({"path": ""} | cells))
        if not any(row):
            continue
        allowed = [*CONTRASTS, UNKNOWN]
        if row.contrast and row.contrast.casefold() not in {name.casefold() for name in allowed}:
            raise UserError(f"{path}, line {number}: contrast {row.contrast!r}; write one of {', '.join(allowed)}")
        if row.use and row.used is None:
            raise UserError(f"{path}, line {number}: use {row.use!r}; write yes or no")
        if not row.path:
            raise UserError(f"{path}, line {number}: no path; write a file, a folder or a pattern such as anna/*.png")
        rows.append(row)
    return rows


def text(rows: Iterable[Row]) -> str:
    """The table as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([Row._fields, *rows])
    return out.getvalue()
