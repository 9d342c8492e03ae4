"""Show whose the scans below data/raw are and what they show, by names and headers: `synthmri check --help`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stages import _cli, _files
from synthmri import params
from synthmri.errors import UserError
from synthmri.scans import inventory, scan, slicing, wording

SHOWN = 60  # people


def main(
    raw: Annotated[Path, typer.Option(help="folder of scans")] = Path("data/raw"),
    if_used: Annotated[bool, typer.Option("--if-used", help="only where data.source is raw")] = False,
) -> None:
    """Show people, scans, contrasts, labels, what is left out and every doubt; write them to subjects.csv beside.

    Edit that table where it is wrong: it rules from then on. Status 1 where something would stop a run.
    """
    data = params.read(_cli.PARAMS, "data", slicing.Data)
    if if_used and data.source != "raw":
        return
    held = inventory.take(raw, data)
    if not held.rows:
        raise UserError(f"{raw} holds no scans; put there {scan.FORMATS}")
    # What was confirmed is not changed behind the back of whom confirmed it: the next run would take it for confirmed.
    kept = held.stale and not held.edited and data.subjects == "confirmed"
    if not held.edited and not kept:  # a kill between the two leaves a new one of what was written beside no table of
        (raw / inventory.TABLE).unlink(missing_ok=True)  # before, which would look as if a person had edited it
    for name in () if kept else (inventory.TABLE,) if held.edited else (inventory.WRITTEN, inventory.TABLE):
        with _files.replacing(raw / name) as part:
            part.write_text(inventory.text(held.rows), encoding="utf-8")

    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(_table(held.sources))
    for line in wording.skipped(held.bad):
        console.print(line)
    if held.unused:
        console.print(f"{inventory.TABLE}: {len(held.unused)} rows fit nothing ({wording.some(held.unused)})")
    if classes := wording.classes(held.sources, data.classes):
        console.print(classes)
    asked = data.model_copy(update={"source": "raw"})
    reasons = inventory.unsettled(held, asked)
    for line in wording.doubts(held.sources):
        console.print(f"? {line}")
    if kept:
        console.print(f"not written: {raw / inventory.TABLE}, which was confirmed and is of other files")
    else:
        console.print(f"written: {raw / inventory.TABLE}" + (", with the rows that you edited" if held.edited else ""))
    stopping = [error.name for error in held.bad if error.category == "special"]
    if stopping:
        raise UserError(f"`dvc repro` would stop or wait without end at {wording.some(stopping)}; remove these")
    if reasons:
        raise UserError(
            f"a run would stop at what is marked with `?`; mend {raw / inventory.TABLE}, or, if it is right, set "
            "data.subjects to confirmed in params.yaml"
        )


def _table(sources: list[scan.Source]) -> Table:
    """A row a person, those in doubt first."""
    of: dict[str, list[scan.Source]] = {}
    for source in sources:
        of.setdefault(source.subject or inventory.UNKNOWN, []).append(source)
    order = sorted(of, key=lambda person: not any(source.doubts for source in of[person]))
    title = f"{len(of) - (inventory.UNKNOWN in of)} people, {len(sources)} scans or pictures"
    table = Table(title=title, title_justify="left")
    for column in ("", "person", "scans", "contrasts", "labels", "first"):
        table.add_column(column)
    for person in order[:SHOWN]:
        found = of[person]
        mark = "?" if any(source.doubts for source in found) else ""
        contrasts = _counts(source.contrast or inventory.UNKNOWN for source in found)
        labels = _counts(source.label for source in found if source.label)
        table.add_row(mark, person, str(len(found)), contrasts, labels, found[0].name)
    if len(order) > SHOWN:
        table.add_row("", f"... {len(order) - SHOWN} more", "", "", "", "")
    return table


def _counts(values) -> str:
    return ", ".join(f"{value} {count}" for value, count in sorted(Counter(values).items()))


if __name__ == "__main__":
    _cli.run(main)
