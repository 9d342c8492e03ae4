"""What people read: it fits the screen, its links lead somewhere, its tables are those of the result files."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import layouts, membership, repro

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if not page.name.startswith("real_")]  # the others a script writes


def prose(page: Path) -> list[str]:
    """Lines that are no table, code, picture or comment."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for line in text.splitlines() if not line.startswith(("|", "!", "<", "    "))]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_no_line_of_prose_is_longer_than_120(page):
    inside = page.name == "README.md"  # its block of the comparison is written by stage `compare`
    lines = prose(page)
    if inside:
        caption = (ROOT / "metrics/comparison.md").read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if line not in caption]
    assert [line for line in lines if len(line) > 120] == []


def test_the_readme_is_read_in_one_go():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert next(i for i, line in enumerate(lines) if line == "## Your own data") < 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    kept_by_dvc = ("metrics/report.html",)
    assert [to for to in targets if not (page.parent / to).exists() and to not in kept_by_dvc] == []


def block(name: str, page: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


@pytest.mark.parametrize(
    ("module", "page"),
    [(repro, "measurements.md"), (layouts, "measurements.md"), (membership, "utility_privacy.md")],
    ids=["repro", "layouts", "membership"],
)
def test_tables_of_measurements_are_those_of_the_result_files(module, page):
    name = module.__name__.rsplit(".", 1)[1]
    result = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    assert block(name, page) == module.table(result)
