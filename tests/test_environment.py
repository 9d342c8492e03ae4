"""What the environment must import although torchvision comes with CUDA operators and torch may not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import repro

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "line",
    [
        "import lpips",
        "from diffusers import StableDiffusionPipeline",
        "from transformers import CLIPTextModel, CLIPTokenizer",
        "from torchmetrics.image import StructuralSimilarityIndexMeasure",
    ],
)
def test_imports_in_a_plain_interpreter(line, tmp_path):
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_before_it_is_needed():
    code = "import synthmri, sys; assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_experiment_in_a_folder_of_its_own_runs_its_own_code(tmp_path):
    """DVC runs queued experiments in copies of the repository; what starts the interpreter must not import ours."""
    (tmp_path / "synthmri").mkdir()
    (tmp_path / "synthmri/__init__.py").write_text("print('own')", encoding="utf-8")
    out = subprocess.run([sys.executable, "-c", "import synthmri"], cwd=tmp_path, capture_output=True, text=True)
    assert out.stdout == "own\n", out.stderr


def test_the_workflow_calls_what_the_makefile_has():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    asked = {word for step in steps for word in re.findall(r"make (\w+)", step.get("run", ""))}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert asked == {"lint", "test", "quick"} and asked <= targets
    assert jobs["quick-avx2"]["env"] == repro.FORCED
    assert {step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")} == {"3.11"}


def test_the_image_gets_what_the_installation_needs_and_nothing_else():
    """The Dockerfile itself was built nowhere here: no machine of these has Docker."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert text.count("FROM python:3.11-slim") == 1
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()}
    admitted = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M))
    assert copied == admitted and all((ROOT / name).exists() for name in copied)
    assert not copied & {"data", "models", "metrics", "."}
