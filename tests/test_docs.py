"""What people read: it fits the screen, its links lead somewhere, its tables are those of the result files."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import copies, layouts, membership, repro, weighting

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


def block(page: str, name: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


@pytest.mark.parametrize(
    "module, page",
    [
        (repro, "docs/measurements.md"),
        (layouts, "docs/measurements.md"),
        (weighting, "docs/measurements.md"),
        (membership, "docs/utility_privacy.md"),
        (copies, "docs/evaluation.md"),
    ],
    ids=["repro", "layouts", "weighting", "membership", "copies"],
)
def test_tables_of_measurements_are_those_of_the_result_files(module, page):
    name = module.__name__.rsplit(".", 1)[1]
    result = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    assert block(page, name) == module.table(result)


def test_the_splits_have_one_name_each():
    """train, val and test; "held out" could be either of the latter."""
    written = [*WRITTEN, *(ROOT / name for name in ("dvc.yaml", "params.yaml", "stages/report.html"))]
    code = [
        file
        for room in ("commands", "stages", "synthmri", "reader_study", "benchmarks")
        for file in (ROOT / room).rglob("*.py")
    ]
    found = []
    for file in [*written, *code]:
        text = re.sub(r"<!-- comparison -->.*<!-- /comparison -->", "", file.read_text(encoding="utf-8"), flags=re.S)
        found += [f"{file.name}: {line}" for line in text.splitlines() if re.search(r"held[- _]out", line, re.I)]
    assert found == []
