"""The test's side of zygote.py."""

import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Forks:
    """Runs modules in `cwd`, each in a fork of one process that has imported them already."""

    def __init__(self, preload: str, cwd: Path, log: Path):
        self.cwd, self.log = cwd, log
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        self.process = None
        self.preload = preload

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests/zygote.py", self.preload],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=self.environment, cwd=self.cwd,
        )  # fmt: skip
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self, *argv: object, cwd: Path | None = None, kill=None, **limits) -> tuple[int, str, float]:
        """Status (-9: killed), what it wrote, and seconds.

        kill: seconds after which the process and all it started get SIGKILL, or a function that returns True when it
        is time.
        """
        self.log.unlink(missing_ok=True)
        heard: list[str] = []
        if "file_bytes" in limits:  # through a pipe, which has no size: a limit on files must not cut what is told
            os.mkfifo(self.log)
            listener = threading.Thread(target=lambda: heard.append(self.log.read_text(errors="replace")), daemon=True)
            listener.start()
        job = {"argv": [str(a) for a in argv], "cwd": str(cwd or self.cwd), "log": str(self.log)} | limits
        start = time.perf_counter()
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        pid = int(self.process.stdout.readline())
        if kill is not None:
            self._kill(pid, kill if callable(kill) else lambda: time.perf_counter() - start >= kill)
        status = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        if "file_bytes" in limits:
            listener.join(timeout=60)
            told = "".join(heard)
        else:
            told = self.log.read_text(errors="replace") if self.log.exists() else ""
        return status, told, time.perf_counter() - start

    def _kill(self, pid: int, now) -> None:
        while not now():
            if select.select([self.process.stdout], [], [], 0.002)[0]:
                return  # it has ended
        for target in (os.killpg, os.kill):  # the group is there once setsid has run
            with suppress(ProcessLookupError):
                target(pid, signal.SIGKILL)


@contextmanager
def stand_ins(preload: str) -> Iterator[Path]:
    """A folder for the PATH: its `python -m` and `dvc` run in forks of one process that has imported much already."""
    home = Path(tempfile.mkdtemp())  # not pytest's: the address of a socket has at most 107 bytes
    python = shlex.quote(sys.executable)
    ask = f"exec {python} -IS {shlex.quote(f'{ROOT}/tests/ask.py')} {shlex.quote(f'{home}/socket')}"
    (home / "python").write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec {python} "$@"\nshift\n{ask} "$@"\n')
    (home / "dvc").write_text(f'#!/bin/sh\n{ask} dvc "$@"\n')
    for name in ("python", "dvc"):
        (home / name).chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [sys.executable, "-P", ROOT / "tests/zygote.py", preload, home / "socket"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=home,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b"ready\n"
        yield home
    finally:
        process.stdin.close()
        process.wait()
        shutil.rmtree(home)
