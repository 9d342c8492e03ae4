"""`synthmri`, the command that a person types."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_parameters

from commands import _console

ROOT = Path(__file__).parent.parent


def synthmri(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """As pip installs it: a script beside the interpreter."""
    command = [Path(sys.executable).with_name("synthmri"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_every_command(tmp_path, words):
    done = synthmri(tmp_path, *words)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in _console.COMMANDS)


def test_an_unknown_command_is_named_with_those_there_are(tmp_path):
    done = synthmri(tmp_path, "train")
    assert done.returncode == 2 and "'train' is no command; use one of generate, profile" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", _console.COMMANDS)
def test_every_command_has_a_command_line(name, monkeypatch, capsys):
    module = importlib.import_module(_console.COMMANDS[name][0])
    assert any(hasattr(module, entry) for entry in ("cli", "COMMANDS", "main"))
    monkeypatch.setattr(sys, "argv", ["synthmri", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        _console.main()
    assert ended.value.code == 0 and f"synthmri {name}" in capsys.readouterr().out


def test_a_profile_goes_into_the_files_that_hold_its_sections(tmp_path):
    copy_parameters(tmp_path)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/a.yaml").write_text("cohort: {subjects: 7}\nsample: {n: 9}\n")
    done = synthmri(tmp_path, "profile", "a")
    assert done.returncode == 0 and "data/cohort.yaml and params.yaml" in done.stdout
    assert "subjects: 7 " in (tmp_path / "data/cohort.yaml").read_text()
    assert "n: 9 " in (tmp_path / "params.yaml").read_text()
    (tmp_path / "profiles/a.yaml").write_text("cohort: {people: 7}\n")
    done = synthmri(tmp_path, "profile", "a")
    assert done.returncode == 1 and "cohort.people, which data/cohort.yaml does not have" in done.stderr
