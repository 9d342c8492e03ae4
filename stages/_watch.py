"""Watching a training: how long it takes, and, with SYNTHMRI_WATCH=1, its curves and samples in MLflow while it runs.

No stage depends on this file: it reads what a training tells and changes nothing of it, and times go into no output of
DVC. What MLflow is told goes through a queue to a thread, a point a second at most; where its server is slow, points
are lost, and where it is dead, that is said once.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from stages import _files

KEPT = Path(".ckpt/trained")  # beside the checkpoints: git-ignored, and no output
SHOWN = 8  # samples in a strip
EVERY_S = 1.0  # between two points of the live curves
POINTS = 200  # of the figures that are kept
PATIENCE_S = 5.0  # for a server, at the end of the training


class Watch:
    """`tick` and `show` are called by one training; `keep` once its model stands."""

    def __init__(self, live: "Live | None"):
        self._live, self._process = live, psutil.Process()
        self._first = self._began = self._last = self._sent = None
        self._figures: list[tuple[int, float, float]] = []  # (step, seconds a step, GB) of every `_stride`th step
        self._stride = 1
        self._losses: list[float] = []
        self.step = 0

    def tick(self, step: int, loss: float, rate: float) -> None:
        """After a step: its number, loss and learning rate."""
        now = time.perf_counter()
        if self._began is None:
            self._first, self._began, self._last, self._sent = step, now, now, now
        took, self._last, self.step = now - self._last, now, step + 1
        if self.step % self._stride == 0 and step > self._first:  # the first step holds what is set up once
            self._figures.append((self.step, took, self._memory_gb()))
            if len(self._figures) > POINTS:
                self._figures, self._stride = self._figures[1::2], 2 * self._stride
        if not self._live:
            return
        self._losses.append(loss)
        if now - self._sent >= EVERY_S or step == self._first:
            figures = {"loss": float(np.mean(self._losses)), "learning_rate": rate}
            figures["system/memory_gb"] = self._memory_gb()
            if step > self._first:
                figures["system/seconds_a_step"] = (now - self._sent) / len(self._losses)
            self._live.tell(self.step, figures | _gpu())
            self._losses, self._sent = [], now

    def _memory_gb(self) -> float:
        return self._process.memory_info().rss / 1e9

    def show(self, images: np.ndarray) -> None:
        """Samples of now, uint8 (N, H, W), of which the first go out as a strip."""
        if self._live:
            self._live.tell(self.step, images[:SHOWN].copy())

    def keep(self, model: Path) -> None:
        """Write down what the training took, under the hash of the model, so that `kept` finds it.

        Not of one that went on from a checkpoint: its time is not known.
        """
        if self._first != 0:
            return
        steps = [took for _, took, _ in self._figures]
        seconds = self._last - self._began + (float(np.median(steps)) if steps else 0.0)
        tree = {"seconds": seconds, "ended": time.time(), "figures": self._figures} | _gpu()
        with _files.replacing(KEPT / f"{_files.digest(model)}.json") as part:
            part.write_text(json.dumps(tree), encoding="utf-8")


def experiment(p) -> str:
    """Of MLflow, where trainings are shown while they run. p: section `registry`."""
    return f"{p.prefix}-live"


def kept(model: Path) -> dict:
    """What `keep` wrote of this very model: `seconds`, `ended` (Unix time), `figures` (step, seconds a step, GB); or
    nothing, as of one that DVC restored."""
    file = KEPT / f"{_files.digest(model)}.json"
    return _files.read_json(file) if file.is_file() else {}


def _gpu() -> dict[str, float]:
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    return {"system/gpu_memory_gb": torch.cuda.max_memory_allocated() / 1e9}


@contextmanager
def watching(name: str) -> Iterator[Watch]:
    """A training called `name`. Of several processes that work as one, the first tells MLflow."""
    wanted = os.environ.get("SYNTHMRI_WATCH", "") not in ("", "0") and os.environ.get("RANK", "0") == "0"
    live = Live(name) if wanted else None
    how = "FAILED"
    try:
        yield Watch(live)
        how = "FINISHED"
    finally:
        if live:
            live.end(how)


class Live:
    """A run of MLflow, made by a thread when it is first told something."""

    def __init__(self, name: str):
        self._name, self._dead = name, False
        self._told: queue.Queue = queue.Queue(maxsize=100)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def tell(self, step: int, what: dict[str, float] | np.ndarray) -> None:
        """Metrics or a strip of samples. Returns at once; what the queue does not hold is lost."""
        if not self._thread.is_alive() and not self._dead:
            self._thread.start()
        self._put((step, what, int(time.time() * 1000)))

    def end(self, how: str) -> None:
        """Close the run; a server that does not answer is not waited for."""
        if self._thread.is_alive():
            self._put(how)
            self._thread.join(PATIENCE_S)

    def _put(self, item) -> None:
        try:
            self._told.put_nowait(item)
        except queue.Full:
            if isinstance(item, str):  # the end, for which a point may go
                self._told.get_nowait()
                self._told.put_nowait(item)

    def _work(self) -> None:
        try:
            self._log()
        except Exception as error:  # whatever it is, the training goes on
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"SYNTHMRI_WATCH: MLflow is told no more of this training ({reason})", file=sys.stderr)
        finally:
            self._dead = True

    def _log(self) -> None:
        from mlflow.entities import Metric

        from stages import _cli, _store
        from synthmri import params
        from synthmri.registry import gate
        from synthmri.reporting import plots

        p = params.read(_cli.PARAMS, "registry", gate.Registry)
        with _store.lock():
            client, number = _store.connect(p, experiment(p))
        stays = not _store.elsewhere(p, client, number)
        run = client.create_run(number, run_name=self._name).info.run_id
        if not stays:
            print("SYNTHMRI_WATCH: the store may be on another machine, so it gets no samples", file=sys.stderr)
        while not isinstance(item := self._told.get(), str):
            step, what, when = item
            if isinstance(what, dict):
                client.log_batch(run, [Metric(name, value, when, step) for name, value in what.items()])
            elif stays:
                client.log_image(run, plots.contact_sheet(what, columns=len(what)), key="samples", step=step)
        client.set_terminated(run, item)
