"""Runs modules as `python -m` does, each in a fork of this process, which has imported what is slow to import.

So a stage can be run, and killed, dozens of times in the time of one start. No tensor is computed here: torch's threads
do not survive a fork. Two ways in, both of forks.py:

`zygote.py WHAT`: one JSON line in: {"argv": [module, ...], "cwd": folder, "log": file}, where wanted with
"file_bytes", the limit of a file's size, and "plain", true to give up root's right to write anywhere. Two lines out:
the process id, and its status when it ends.

`zygote.py WHAT SOCKET`: any number at once, each asked for by a command that ask.py stands in for, with that command's
working folder, environment and standard streams. It ends when its own standard input does.
"""

import atexit
import ctypes
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import warnings

LIBRARIES = [
    "torchmetrics.image.lpip", "diffusers.pipelines.stable_diffusion", "diffusers.training_utils", "transformers",
    "accelerate", "nibabel", "nilearn.datasets", "pandas", "matplotlib.pyplot", "torch.utils.flop_counter",
]  # fmt: skip
DVC = ["dvc.cli", "dvc.repo", "dvc.api", "dvc.stage.run", "dvc.commands.repro"]
PRELOAD = {
    "stages": [*LIBRARIES, "prdc", "stages.adapt", "stages.evaluate", "stages.finetune", "commands.generate",
               "stages.preprocess", "stages.privacy", "stages.sweep", "stages.train", "stages.utility"],
    "dvc": [*DVC, "dvc_s3", "dvc_ssh", "s3fs"],
    # Nothing of the project's own: each clone runs its own code.
    "clones": [*DVC, "dvc.commands.experiments.run", *LIBRARIES, "typer", "pydantic", "rich.progress", "ruamel.yaml",
               "lpips", "efficientnet_lite_pytorch", "torchmetrics.image", "prdc", "scipy.stats", "scipy.ndimage",
               "skimage.transform", "peft", "mlflow.pyfunc", "mlflow.diffusers", "pydicom",
               "mlflow.store.tracking.sqlalchemy_store", "jinja2", "markdown_it", "diffusers.schedulers"],
}  # fmt: skip


def give_up_capabilities() -> None:
    """Of Linux: root then minds permissions as everyone does. Nothing happens to who has none."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)


def run(argv: list[str]) -> int:
    """A module, to its end. Returns its status."""
    sys.argv[:] = argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def child(job: dict) -> int:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setsid()  # what it starts dies with it: os.killpg
    os.chdir(job["cwd"])
    if job.get("file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)
    if job.get("plain"):
        give_up_capabilities()
    return run(job["argv"])


def one_by_one(answers) -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(child(job))
        print(pid, file=answers)
        print(os.waitpid(pid, 0)[1], file=answers)


def stand_in(asker: socket.socket) -> None:
    """Be the command that asks: its folder, environment, streams and module search; send its status."""
    _, streams, _, _ = socket.recv_fds(asker, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    job = json.loads(asker.makefile("rb").readline())
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["cwd"])
    sys.path[:0] = [job["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    status = run(job["argv"])
    threading._shutdown()  # as the interpreter ends: threads are waited for, exit functions called
    atexit._run_exitfuncs()
    sys.stdout.flush()
    asker.sendall(b"%d\n" % status)


def all_at_once(answers, address: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        print("ready", file=answers)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            asker, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                try:
                    stand_in(asker)
                finally:
                    os._exit(1)
            asker.close()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.filterwarnings("ignore", module="runpy")  # that a module was imported before it is run
    for name in PRELOAD[sys.argv[1]]:
        importlib.import_module(name)
    if sys.argv[2:]:
        all_at_once(answers, sys.argv[2])
    else:
        print("ready", file=answers)
        one_by_one(answers)


if __name__ == "__main__":
    main()
