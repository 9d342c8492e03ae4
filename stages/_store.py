"""Which MLflow store is meant: a server, where one is named, or a file at the root of the repository."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from synthmri.registry import gate, mlflow_store


def root() -> Path:
    """The repository's root, where the store lies. DVC_ROOT names it where an experiment has a folder of its own."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def uri(p: gate.Registry) -> str:
    """Its address: what the environment says goes before params.yaml. A relative file is below `root`, or the versions
    of an experiment that runs in a folder of its own would go with that folder."""
    named = os.environ.get("MLFLOW_TRACKING_URI") or p.tracking_uri or "sqlite:///mlflow.db"
    return f"sqlite:///{root() / named.removeprefix('sqlite:///')}" if named.startswith("sqlite:///") else named


def connect(p: gate.Registry, experiment: str | None = None):
    """The client, and the id of `experiment` (None: the registry's own)."""
    return mlflow_store.connect(uri(p), experiment or p.prefix, root() / "mlruns")


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One at a time makes or fills the store of this repository: experiments may run side by side."""
    with open(root() / ".register.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def elsewhere(p: gate.Registry, client, experiment: str) -> bool:
    """Whether what goes into the experiment may leave this machine."""
    addresses = (uri(p), client.get_experiment(experiment).artifact_location)
    return not all(mlflow_store.local(address, root()) for address in addresses)
