"""What the environment must import although torchvision comes with CUDA operators and torch may not."""

import re
import subprocess
import sys
import sysconfig
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


# As a build of torchvision that matches this torch would: its extension loads, and brings the operators. Of those that
# are not called here, the names.
MATCHING = """
import torch
loaded = []
def load_library(path):
    if not path.endswith("_C.so"):
        raise OSError("only the operators are imitated")
    library = torch.library.Library("torchvision", "DEF")
    library.define("_cuda_version() -> int")
    library.impl("_cuda_version", lambda: -1, "CompositeExplicitAutograd")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(name, lambda dets, scores, bound: scores.argsort(descending=True)[:1], "CPU")
    for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        library.define(name + "(Tensor x) -> Tensor")
        library.define("_" + name + "_backward(Tensor x) -> Tensor")
    library.define("qroi_align(Tensor x) -> Tensor")
    loaded.append(library)
torch.ops.load_library = load_library
"""
FAILING = """
import torch
def load_library(path):
    raise OSError("libcudart.so.13: cannot open shared object file")
torch.ops.load_library = load_library
"""
# The file as a new interpreter runs it, without the copy that .venv imports at its start.
HOOK = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if type(finder).__module__ != "zz_torchvision_cpu"]
exec(open({str(ROOT / "synthmri/torchvision_cpu.py")!r}).read())
"""
BARE = HOOK.replace("exec", "")


def python(*code: str) -> str:
    """What a new interpreter says on standard error; "" where all is well."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", "".join(code)], capture_output=True, text=True)
    return done.stderr


def test_torchvision_that_loads_its_operators_keeps_them():
    """Beside a build that matches, the hook does nothing."""
    look = """
from torchvision import extension, ops
assert extension._has_ops() and len(loaded) == 1
boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]]), torch.tensor([0.1, 0.9])
assert ops.nms(boxes, scores, 0.5).tolist() == [1]
"""
    assert python(BARE, MATCHING, look) == ""  # what is imitated works by itself
    assert python(HOOK, MATCHING, look) == ""


def test_torchvision_that_cannot_load_its_operators_is_imported_all_the_same():
    look = "import lpips, torchvision; assert not torchvision.extension._has_ops()"
    assert "operator torchvision::nms does not exist" in python(BARE, FAILING, look)  # else there were no need
    assert python(HOOK, FAILING, look) == ""


def test_the_copy_that_every_interpreter_imports_is_the_file():
    copy = Path(sysconfig.get_path("purelib"), "zz_torchvision_cpu.py")
    if not copy.exists():
        pytest.skip("no environment of `make install`")
    assert copy.read_text() == (ROOT / "synthmri/torchvision_cpu.py").read_text(), "run `make install`"


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
    assert re.search(r"^ENV .*\bUSER=", text, re.M)  # DVC and MLflow ask who runs, which a number alone does not tell
