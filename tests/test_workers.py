"""Work shared out: the same bytes by one process, by several and by a cluster, also when workers are killed."""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from deadly import square
from test_preprocess import cohort, contents, parameters
from test_preprocess import run as preprocessed

from stages import _workers, features
from synthmri import imageset
from synthmri.errors import UserError


def squares(folder: Path, address: str = "", count: int = 2, **deadly: int):
    """The squares of 0 to 11; x3=1: one process that has 3 is killed."""
    function = partial(square, marks=folder, deadly={int(x[1:]): times for x, times in deadly.items()})
    return _workers.ordered(function, range(12), count, address, name=lambda x: f"volume {x}")


@pytest.fixture(scope="module")
def cluster():
    """The address of a scheduler with two workers on this machine, which tries an item on two of them at the most."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs="CRITICAL",
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
        ) as local,
    ):  # fmt: skip
        yield local.scheduler_address


def squares_until_an_error(*arguments, message: str, **deadly: int) -> list[int]:
    found = []
    with pytest.raises(UserError, match=message):
        for value in squares(*arguments, **deadly):
            found.append(value)
    return found


def test_a_killed_worker_is_survived_and_what_kills_all_is_named(tmp_path):
    message = r"volume 8: its worker was killed 3 times.* want of memory"
    assert squares_until_an_error(tmp_path, x3=1, x8=99, message=message) == [x * x for x in range(8)]


def test_so_it_is_on_a_cluster(tmp_path, cluster):
    message = r"volume 8: every worker of tcp://.* was killed"
    assert squares_until_an_error(tmp_path, cluster, x3=1, x8=99, message=message) == [x * x for x in range(8)]


def test_one_process_is_this_one(tmp_path):
    assert list(squares(tmp_path, "", 1)) == [x * x for x in range(12)]


def test_preprocessing_gives_the_same_bytes_anywhere(tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    cohort(4)
    Path("raw/patient0/broken_FLAIR.nii").write_bytes(b"x" * 400)
    for name, settings in {"one": {}, "two": {"workers": 2}, "cluster": {"cluster": cluster}}.items():
        parameters(max_bad_fraction=0.5, **settings)
        preprocessed(name)
    assert contents("one") == contents("two") == contents("cluster")


def test_features_are_the_same_bytes_anywhere(tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "PIECE", 1)  # 16 images of batches of 1
    images = np.random.default_rng(0).integers(0, 256, (20, 40, 40), np.uint8)
    imageset.write(Path("set"), imageset.ImageSet(images, pd.DataFrame({"subject": ["a"] * 20}), {}))
    evaluate = yaml.safe_load(Path(__file__).parents[1].joinpath("params.yaml").read_text())["evaluate"]
    for name, count, address in (("one", 1, ""), ("two", 2, ""), ("cluster", 1, cluster)):
        tree = {"runtime": {"threads": 1}, "evaluate": evaluate | {"batch_size": 1}}
        Path("params.yaml").write_text(yaml.safe_dump(tree))
        monkeypatch.setenv("SYNTHMRI_WORKERS", str(count))
        monkeypatch.setenv("SYNTHMRI_CLUSTER", address)
        features.main(Path("set"), Path("extractors"), Path(name))
    assert contents("one") == contents("two") == contents("cluster")
    monkeypatch.setattr(features, "PIECE", 4096)  # all at once
    features.main(Path("set"), Path("extractors"), Path("whole"))
    assert contents("whole") == contents("one")


def test_a_cluster_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "CONNECT_S", 1)
    with pytest.raises(UserError, match=r"no dask scheduler answers at tcp://127.0.0.1:9 .*unset it"):
        list(squares(tmp_path, "tcp://127.0.0.1:9"))
    monkeypatch.setitem(sys.modules, "distributed", None)  # not installed
    with pytest.raises(UserError, match=r"needs dask; `pip install -c constraints.txt -e .\[cluster\]`"):
        list(squares(tmp_path, "tcp://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("name", "value"), [("WORKERS", "0"), ("WORKERS", "257"), ("WORKERS", "two"), ("CLUSTER", "host:8786")]
)
def test_values_that_are_no_workers_are_told(monkeypatch, name, value):
    monkeypatch.setenv(f"SYNTHMRI_{name}", value)
    with pytest.raises(UserError, match=f"SYNTHMRI_{name} = '{value}'.*set"):
        _workers.shared(1)


def test_the_processor_says_how_many_where_nobody_does(monkeypatch):
    monkeypatch.delenv("SYNTHMRI_WORKERS")
    for cores, threads, count in ((6, 1, 6), (6, 2, 3), (2, 4, 1), (64, 1, 8)):
        monkeypatch.setattr(_workers.os, "cpu_count", lambda cores=cores: cores)
        assert _workers.shared(threads) == (count, "")
