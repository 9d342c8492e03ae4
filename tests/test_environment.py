"""What the environment must import although torchvision comes with CUDA operators and torch may not."""

import subprocess
import sys

import pytest


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
