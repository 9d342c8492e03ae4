"""MLflow: runs, registered versions and aliases. What it is told comes from files, so that it can always be made anew.

MLflow is imported when it is used: that takes seconds.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

from synthmri.errors import UserError

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is not there is told at once

BATCH = 1000  # metrics that a server takes in one call
LINEAGE = "lineage/lineage.json"  # the hashes of a version, an artifact of its run
EXAMPLE, SERVED_EXAMPLE = "input_example.json", "serving_input_example.json"  # as MLflow names them
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Entry:
    """One trained model as it is to stand in the registry.

    identity: a hash that makes it this version and no other, tag `lineage`; lineage: all hashes, of which `scores` are
    what it was scored as; tags: for people; scores: metrics that stand for it; curves: metric -> (step, value) pairs;
    datasets: (name, digest, use); files: (file or folder, artifact folder); artifacts, config: what the served model
    opens; example: a request. adapters: folder of low-rank adapters, and the base model that they belong to, where
    there are any. trained: when the training began and ended, Unix time, where that is known.
    """

    name: str
    title: str
    identity: str
    lineage: dict
    tags: dict[str, str]
    params: dict[str, str]
    scores: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    datasets: list[tuple[str, str, str]]
    files: list[tuple[Path, str | None]]
    artifacts: dict[str, str]
    config: dict
    example: list[dict]
    requirements: list[str] = field(default_factory=list)
    adapters: tuple[str, str] | None = None
    trained: tuple[float, float] | None = None


def connect(uri: str, experiment: str, artifacts: Path):
    """The client, and the id of the experiment (made if absent). artifacts: where a store without a server puts files.

    Raises UserError where the store cannot be reached.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _told(uri):
        if uri.startswith("sqlite:///"):
            _make_sqlite(Path(uri.removeprefix("sqlite:///")), artifacts)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if found is None:
            location = None if uri.startswith("http") else artifacts.resolve().as_uri()
            try:
                # The kind decides which of its pages MLflow opens: those of training, not of chat.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return client, client.create_experiment(experiment, artifact_location=location, tags=kind)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(experiment)  # someone else has just made it
        return client, found.experiment_id


def local(address: str, root: Path) -> bool:
    """Whether what goes to the address of a store, or of its files, is known to stay on this machine.

    SQLite and files below `root`, and servers on loopback (where these put it is their owner's matter). Whatever else
    there is, a disk elsewhere or a data base by its name too, may be another machine's.
    """
    url = urlsplit(address)
    if url.scheme in ("http", "https"):
        return url.hostname in LOOPBACK
    if url.scheme == "mlflow-artifacts":  # by the server that has told it
        return url.hostname in (None, *LOOPBACK)
    if url.scheme == "sqlite" and not url.netloc and url.path.startswith("/") and not url.query:
        return Path(url.path[1:]).resolve().is_relative_to(root.resolve())
    plain = url.scheme == "" and address.startswith(("/", "."))  # "databricks" is no folder
    if (plain or url.scheme == "file") and url.hostname in (None, "localhost"):
        return Path(unquote(url.path)).resolve().is_relative_to(root.resolve())
    return False


def shown(uri: str) -> str:
    """An address without the password that may be in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


@contextmanager
def _told(uri: str):
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the MLflow store {shown(uri)} cannot be used: {reason}\n  remedies: start its server, correct "
            "registry.tracking_uri or MLFLOW_TRACKING_URI, or leave both empty for mlflow.db; a damaged mlflow.db may "
            "be deleted, the next sync makes it anew"
        ) from None


def _make_sqlite(file: Path, artifacts: Path) -> None:
    """Make the tables under another name first: a kill in between leaves no half of a database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if file.exists():
        return
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{part}", artifacts.resolve().as_uri())
    store.engine.dispose()
    os.replace(part, file)


def versions(client, name: str) -> list:
    """All versions of a registered model, oldest first; none where there is no such model."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found, token = found + list(page), page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def find(client, name: str, identity: str):
    """The version of this identity, or None."""
    return next((v for v in versions(client, name) if v.tags.get("lineage") == identity), None)


def lineage(run: str) -> dict:
    """The hashes of a run's version; nothing where its file is lost or damaged, as by a kill: it is then made again."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.artifacts.load_dict(f"runs:/{run}/{LINEAGE}")
    except (MlflowException, OSError):
        return {}


def register(client, experiment: str, entry: Entry, code: Path, package: Path, tick: Callable[[str], None]):
    """Bring `entry` into the registry and return its version; what is there already is left, or brought up to date.

    The version is made last, in one transaction and with its identity; a run without one is the rest of an interrupted
    sync and is made again. code: the file that serves; package: the code it draws with, kept beside the model.
    """
    import mlflow

    version = find(client, entry.name, entry.identity)
    if version is not None:
        _update(client, version, entry)
        return version
    tick(f"registering {entry.name}")
    _remove_rest(client, experiment, entry)
    tags = entry.tags | {"lineage": entry.identity}
    # What it took is the training's time, or nothing: this here is no part of it.
    began, ended = (round(1000 * moment) for moment in entry.trained or [time.time()] * 2)
    made = client.create_run(experiment, start_time=began, run_name=entry.title, tags=tags)
    with mlflow.start_run(run_id=made.info.run_id) as run:
        mlflow.log_dict(entry.lineage, LINEAGE)
        mlflow.log_params(entry.params)
        for name, digest, use in entry.datasets:
            mlflow.log_input(_dataset(name, digest), context=use)
        _log_metrics(client, run.info.run_id, entry.scores, entry.curves)
        for file, folder in entry.files:
            (mlflow.log_artifacts if file.is_dir() else mlflow.log_artifact)(str(file), folder)
        info = _log_model(entry, code, package)
        if entry.adapters is not None:  # what is served has them in its weights; these can be shared alone
            import mlflow.diffusers

            folder, base = entry.adapters
            mlflow.diffusers.log_model(folder, base, name="adapters", pip_requirements=entry.requirements)
    client.set_terminated(run.info.run_id, end_time=ended)
    with _nothing_if_there():
        client.create_registered_model(entry.name, description=f"{entry.title}. Synthetic images, research only.")
    return client.create_model_version(entry.name, info.model_uri, run.info.run_id, tags=tags, model_id=info.model_id)


def _update(client, version, entry: Entry) -> None:
    """The same model may have been scored anew; its hashes are written last, so that a kill in between is made good."""
    there = lineage(version.run_id)
    if there == entry.lineage:
        return
    if there.get("scores") != entry.lineage["scores"]:
        _log_metrics(client, version.run_id, entry.scores, {})
        for file, folder in entry.files:
            (client.log_artifacts if file.is_dir() else client.log_artifact)(version.run_id, str(file), folder)
    client.log_dict(version.run_id, entry.lineage, LINEAGE)


def _remove_rest(client, experiment: str, entry: Entry) -> None:
    for run in client.search_runs([experiment], f"tags.lineage = '{entry.identity}'"):
        for model in client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'"):
            client.delete_logged_model(model.model_id)
        client.delete_run(run.info.run_id)


def _dataset(name: str, digest: str):
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    return MetaDataset(CodeDatasetSource({"dvc": name}), name=name, digest=digest[:36])


def _log_metrics(client, run: str, scores: dict[str, float], curves: dict[str, list[tuple[int, float]]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(name, value, now, 0) for name, value in scores.items()]
    points += [Metric(name, value, now, step) for name, curve in curves.items() for step, value in curve]
    for start in range(0, len(points), BATCH):
        client.log_batch(run, metrics=points[start : start + BATCH])


def _log_model(entry: Entry, code: Path, package: Path):
    import warnings

    import mlflow
    from mlflow.models import Model, convert_input_example_to_serving_input

    def save_model(path, mlflow_model, **rest):
        # The example not by save_model: given one, it draws it twice, and that takes longer than all the rest.
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **rest)
        (Path(path) / EXAMPLE).write_text(json.dumps(entry.example), encoding="utf-8")
        served = convert_input_example_to_serving_input(entry.example)
        (Path(path) / SERVED_EXAMPLE).write_text(served, encoding="utf-8")
        mlflow_model.saved_input_example_info = {
            "artifact_path": EXAMPLE, "type": "json_object", "serving_input_path": SERVED_EXAMPLE,
        }  # fmt: skip
        mlflow_model.save(Path(path) / "MLmodel")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that pictures are of no type that it could check
        return Model.log(
            None, SimpleNamespace(save_model=save_model), name="model", flavor_name="mlflow.pyfunc",
            python_model=str(code), code_paths=[str(package)], artifacts=entry.artifacts, model_config=entry.config,
            pip_requirements=entry.requirements,
        )  # fmt: skip


@contextmanager
def _nothing_if_there():
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def describe(client, version, text: str) -> None:
    """Set what a person reads first about a version and about its run; what is as it should be is left."""
    if version.description != text:  # the version last: it is what is looked at, so a kill in between is mended
        client.set_tag(version.run_id, "mlflow.note.content", text)
        client.update_model_version(version.name, version.version, text)


def tag(client, version, tags: dict[str, str | None]) -> None:
    """Set the tags of a version and of its run, or remove those that are None; what is as it should be is left."""
    for key, value in tags.items():
        if version.tags.get(key) == value:
            continue
        if value is None:  # the version last, as in `describe`
            if key in client.get_run(version.run_id).data.tags:
                client.delete_tag(version.run_id, key)
            client.delete_model_version_tag(version.name, version.version, key)
        else:
            client.set_tag(version.run_id, key, value)
            client.set_model_version_tag(version.name, version.version, key, value)


def pointed(client, names: list[str], alias: str) -> str | None:
    """The run of the version that has the alias, of whichever of these registered models; None where none has."""
    there = [version for name in names for version in versions(client, name)]
    found = {name: client.get_registered_model(name).aliases.get(alias) for name in {v.name for v in there}}
    return next((v.run_id for v in there if str(found[v.name]) == str(v.version)), None)


def point(client, names: list[str], alias: str, target) -> None:
    """Let `alias` name this version, or nothing (None), and no version of any other of the registered models."""
    from mlflow.exceptions import MlflowException

    for name in names:
        try:
            there = client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue
        if target is not None and target.name == name:
            if there is None or str(there) != str(target.version):
                client.set_registered_model_alias(name, alias, target.version)
        elif there is not None:
            client.delete_registered_model_alias(name, alias)
