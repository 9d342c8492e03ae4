"""A training is watched while it runs, and whatever becomes of that, it goes on and ends with the same bytes."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from stages import _watch, train
from synthmri import imageset

STRIP = np.arange(9 * 16 * 16).reshape(9, 16, 16).astype(np.uint8)


@pytest.fixture
def project(tmp_path, monkeypatch):
    tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    tree["baselines"]["dcgan"] |= {"width": 4, "latent_dim": 4, "steps": 4, "batch_size": 4}
    tree["progression"] |= {"n": 3, "baseline_points": 2}
    tree["train"]["pretrained"] = False
    tree["runtime"] |= {"precision": "fp32", "threads": 1}
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    rows = np.random.default_rng(0).integers(0, 255, (8, 32, 32)).astype(np.uint8)
    manifest = pd.DataFrame({"subject": list("aabbccdd"), "plane": "axial"})
    imageset.write(Path("slices"), imageset.ImageSet(rows, manifest))
    monkeypatch.setattr(_watch, "EVERY_S", 0.0)  # every step a point
    monkeypatch.setattr(_watch, "PATIENCE_S", 60.0)
    return folder


def fit(out: str) -> dict[str, bytes]:
    """A training of four steps by its stage: every output, by name."""
    paths = [Path("slices"), *(Path(out, name) for name in ("model", "snapshots.npy", "log.csv", "effort.json"))]
    train.main("dcgan", *paths, Path("nowhere"))
    return {str(file.relative_to(out)): file.read_bytes() for file in Path(out).rglob("*") if file.is_file()}


def run_of(project, uri=None):
    """The client and the only run of experiment synthmri-live."""
    import mlflow

    client = mlflow.MlflowClient(uri or f"sqlite:///{project}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("synthmri-live").experiment_id])
    assert len(found) == 1
    return client, found[0]


def test_a_watched_training_shows_curves_and_samples_and_has_the_same_bytes(project, monkeypatch):
    plain = fit("plain")
    assert not Path("mlflow.db").exists()  # off unless asked for
    monkeypatch.setenv("SYNTHMRI_WATCH", "1")
    assert fit("watched") == plain and len(plain) == 5
    client, run = run_of(project)
    assert (run.info.run_name, run.info.status) == ("dcgan", "FINISHED")
    table = pd.read_csv("plain/log.csv")
    seen = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
    assert seen == {step + 1: pytest.approx(loss, rel=1e-4) for step, loss in enumerate(table["loss"])}
    rates = [m.value for m in client.get_metric_history(run.info.run_id, "learning_rate")]
    assert len(rates) == 4 and min(rates) > 0 and rates[0] != rates[-1]
    assert 0.01 < run.data.metrics["system/memory_gb"] < 100 and run.data.metrics["system/seconds_a_step"] > 0
    files = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    steps = {int(re.search(r"samples\Wstep\W(\d+)\W", path)[1]) for path in files}
    assert steps == {0, 2, 4}


def watched(steps: int = 3, then=None) -> float:
    """Seconds of a training that does nothing but tell."""
    began = time.perf_counter()
    with _watch.watching("toy") as watch:
        watch.show(STRIP)
        for step in range(steps):
            watch.tick(step, 1.0, 0.1)
        if then:
            raise then
    return time.perf_counter() - began


def test_a_training_that_fails_is_a_failed_run(project, monkeypatch):
    monkeypatch.setenv("SYNTHMRI_WATCH", "1")
    with pytest.raises(KeyboardInterrupt):
        watched(then=KeyboardInterrupt())
    assert run_of(project)[1].info.status == "FAILED"


def test_a_dead_server_is_told_once(project, monkeypatch, capfd):
    monkeypatch.setenv("SYNTHMRI_WATCH", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    plain = fit("plain")
    said = capfd.readouterr().err
    assert said.count("MLflow is told no more") == 1 and "http://127.0.0.1:9 cannot be used" in said
    assert "Traceback" not in said and len(plain) == 5


def test_a_server_that_never_answers_is_not_waited_for(project, monkeypatch):
    """It takes connections and says nothing: the queue fills, points are lost, and the end waits as long as it says."""
    monkeypatch.setattr(_watch, "PATIENCE_S", 0.3)
    monkeypatch.setenv("SYNTHMRI_WATCH", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert watched(steps=1000) < 5


def test_samples_stay_on_this_machine(project, monkeypatch, capfd):
    """A store that cannot be proven to be here gets numbers alone."""
    monkeypatch.setenv("SYNTHMRI_WATCH", "1")
    uri = f"sqlite:///{project.parent}/share.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    watched()
    client, run = run_of(project, uri)
    assert run.data.metrics["loss"] == 1 and not client.list_artifacts(run.info.run_id)
    assert "it gets no samples" in capfd.readouterr().err


def test_of_several_processes_the_first_tells(project, monkeypatch):
    monkeypatch.setenv("SYNTHMRI_WATCH", "1")
    monkeypatch.setenv("RANK", "1")
    watched()
    assert not Path("mlflow.db").exists()


def test_what_a_training_took_is_kept_for_that_very_model(project, monkeypatch):
    Path("model").mkdir()
    Path("model/weights").write_bytes(b"a")
    with _watch.watching("toy") as watch:
        for step in range(500):
            watch.tick(step, 1.0, 0.1)
            time.sleep(0.0005)
        watch.keep(Path("model"))
    found = _watch.kept(Path("model"))
    assert 0.25 < found["seconds"] < 60 and abs(found["ended"] - time.time()) < 60
    assert len(found["figures"]) <= _watch.POINTS and found["figures"][-1][0] > 450
    Path("model/weights").write_bytes(b"b")
    assert _watch.kept(Path("model")) == {}
    with _watch.watching("toy") as watch:  # from a checkpoint: how long the rest took is not known
        watch.tick(7, 1.0, 0.1)
        watch.keep(Path("model"))
    assert _watch.kept(Path("model")) == {}


def test_watching_imports_no_mlflow_unless_asked(project):
    code = (
        "import sys; from stages import train, finetune, _watch\nwith _watch.watching('x') as w: w.tick(0, 1.0, 0.1)\n"
    )
    code += "print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
