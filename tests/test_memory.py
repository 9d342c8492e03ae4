"""Peak memory does not grow with the number of slices: each is asked of a file of twice the bound."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Not getrusage's peak: that of a process begins with its parent's.
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
BOUND_MIB = 250
PEAK = """
import numpy as np
import pandas as pd
from synthmri import imageset
from synthmri.evaluation import copies, distances, pairs, scorecard, uncertainty
images = np.load("images.npy", mmap_mode="r")
features = np.load("features.npy", mmap_mode="r")

def work():
    {work}

def peak():
    line, = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10

before = peak()
work()
print(peak() - before)
"""
WORK = {
    "gaussian": "distances.gaussian(features)",
    "nearest_distances": "copies.nearest_distances(np.array(features[:20]), features)",
    "closest_by_pixels": "copies.closest_by_pixels(np.array(images[:4]), images)",
    "likeness": "copies.likeness(np.array(images[:4]), images)",
    "rows": "imageset.rows(images, np.arange(0, 7800, 3))",
    "write": "imageset.write('set', imageset.ImageSet(images, pd.DataFrame({'n': ['0'] * len(images)}), {}))",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """500 MiB of images and 490 of features, most of it holes: zeros that take no disk, but memory when read."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for name, shape, dtype in (("images", (8000, 256, 256), np.uint8), ("features", (500_000, 256), np.float32)):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        file[:300] = rng.integers(0, 255, (300, *shape[1:]))
        file.flush()
    return folder


def grown_mib(folder, work: str) -> float:
    """By how much a process of its own comes to hold more at its peak than before the work."""
    script = PEAK.format(work=work)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("name", WORK)
def test_peak_memory_is_that_of_a_piece(files, name):
    assert grown_mib(files, WORK[name]) < BOUND_MIB


def test_the_bound_tells_what_reads_all_at_once(files):
    assert grown_mib(files, "np.array(images)") > BOUND_MIB
    assert grown_mib(files, "np.array(features)") > BOUND_MIB
    assert grown_mib(files, "images[np.arange(0, 7800, 3)]") > BOUND_MIB
