"""The notebook: thin, without outputs. That it runs is shown in test_pipeline.py, whose clone has run the pipeline."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path("notebooks/synthetic_brain_mri.ipynb")


@pytest.fixture
def notebook():
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_holds_no_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_calls_the_repositorys_commands_and_imports_none_of_its_code(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not re.search(r"(?:import|from) (?:synthmri|stages|commands)", code)
    named = set(re.findall(r"commands\.(\w+)", text))
    assert {"profile", "summary"} <= named and all(Path(f"commands/{name}.py").is_file() for name in named)
    for name in re.findall(r"a file of profiles/: ([\w, ]+), \.\.\.;", text)[0].split(", "):
        assert Path(f"profiles/{name}.yaml").is_file()
    assert len(code.splitlines()) < 60
