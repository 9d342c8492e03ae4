"""Tables of Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in GitHub's Markdown, without padding, so that a changed cell changes its own line alone.

    Cells are written as `str` has them; a bar in a cell stays a bar.
    """
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    return tabulate(cells[1:], cells[0], tablefmt="github", stralign=None, numalign=None, disable_numparse=True)
