"""What people read: it fits the screen, its links lead somewhere, its tables are those of the result files."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from benchmarks import copies, layouts, membership, repro, weighting
from commands import _console

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if not page.name.startswith("real_")]  # the others a script writes


def prose(page: Path) -> list[str]:
    """Lines that are no table, code, picture or comment."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for line in text.splitlines() if not line.startswith(("|", "!", "<", "    "))]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_no_line_of_prose_is_longer_than_120(page):
    assert [line for line in prose(page) if len(line) > 120] == []


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


def typed() -> list[tuple[str, str]]:
    """(page, command) of every line of a shell block; lines that go on are joined, several commands taken apart."""
    found = []
    for page in PAGES:
        for lines in re.findall(r"^ *```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
            joined = lines.replace("\\\n", " ").splitlines()
            found += [(page.name, part.strip()) for line in joined for part in line.partition("#")[0].split("&&")]
    return [(page, line) for page, line in found if line]


COMMANDS = [(page, line) for page, line in typed() if re.match(r"(synthmri|make|dvc) ", line)]


def test_there_are_commands_to_look_at():
    assert {"README.md", "generate.md"} <= {page for page, _ in COMMANDS} and len(COMMANDS) > 15


@pytest.mark.parametrize("page, line", COMMANDS, ids=[f"{page}: {line[:40]}" for page, line in COMMANDS])
def test_what_pages_tell_to_type_is_there(page, line, monkeypatch, capsys):
    """Words and options of `synthmri` are in its help, targets in the Makefile, parameters in params.yaml."""
    program, *words = shlex.split(line)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words if "=" not in word and not word.startswith("-")]
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    elif program == "dvc":
        get_main_parser().parse_args(words)  # raises for a word or an option that DVC does not have
        tree = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for changed in (words[i + 1] for i, word in enumerate(words) if word == "-S"):
            place = tree
            for name in changed.partition("=")[0].split("."):
                place = place[name]
    else:
        named = [word for word in words[:2] if not word.startswith("-")]
        assert named[0] in _console.COMMANDS
        module = importlib.import_module(_console.COMMANDS[named[0]][0])
        deeper = named if hasattr(module, "COMMANDS") or hasattr(module, "cli") else named[:1]
        monkeypatch.setattr(sys, "argv", ["synthmri", *deeper, "--help"])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            _console.main()
        said = capsys.readouterr().out
        assert ended.value.code == 0
        assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in said] == []
