"""Tables of Markdown: read back by a parser of GitHub's kind, cell for cell."""

from markdown_it import MarkdownIt

from synthmri.reporting import tables


def test_a_table_is_read_back_cell_for_cell():
    head = ("model", "FD ↓", "with | bar")
    rows = [("VAE", "12.30", ""), ("*real*", "1e-3", "a | b"), (3, 4.50, "**bold** <i>")]
    text = tables.markdown(head, rows)
    tokens = MarkdownIt("commonmark", {"html": False}).enable("table").parse(text)
    cells = [token.content for token in tokens if token.type == "inline"]
    assert cells == [*head, *(str(cell) for row in rows for cell in row)]
    assert text.count("\n") == 4 and "  " not in text.replace("|  |", "")


def test_a_changed_cell_changes_its_own_line_alone():
    short, long = (tables.markdown(("a", "b"), [("1", cell), ("2", "x")]) for cell in ("y", "y" * 40))
    changed = [
        i for i, (one, other) in enumerate(zip(short.split("\n"), long.split("\n"), strict=True)) if one != other
    ]
    assert changed == [1, 2]  # and the dashes
