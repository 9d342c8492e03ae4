"""Write the few numbers that experiments are compared by: `dvc metrics diff`, `dvc exp show`."""

from pathlib import Path
from typing import Annotated

import typer

from stages import _cli, _files
from synthmri.reporting import headline


def main(
    comparison: Annotated[Path, typer.Option(help="JSON of all models and references, of stage `compare`")],
    privacy: Annotated[Path, typer.Option(help="JSON of stage `privacy`")],
    utility: Annotated[Path, typer.Option(help="JSON of stage `utility`")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
) -> None:
    """Nothing is measured here but two shares: of the floor, and of what fine-tuning took away."""
    scores = _files.read_json(comparison)
    tree = headline.numbers(
        scores["models"], scores["references"], _files.read_json(privacy), _files.read_json(utility)
    )
    with _files.replacing(metrics) as part:
        _files.write_metrics(part, tree)


if __name__ == "__main__":
    _cli.run(main)
