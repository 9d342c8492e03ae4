"""Runs modules as `python -m` does, each in a fork of this process, which has imported what is slow to import.

So a stage can be run, and killed, dozens of times in the time of one start. No tensor is computed here: torch's threads
do not survive a fork. One JSON line in: {"argv": [module, ...], "cwd": folder, "log": file}, where wanted with
"file_bytes", the limit of a file's size, and "plain", true to give up root's right to write anywhere. Two lines out:
the process id, and its status when it ends.
"""

import ctypes
import importlib
import json
import os
import resource
import runpy
import sys
import traceback
import warnings

PRELOAD = {
    "stages": ["torchmetrics.image.lpip", "diffusers.pipelines.stable_diffusion", "diffusers.training_utils",
               "transformers", "accelerate", "nibabel", "nilearn.datasets", "pandas", "matplotlib.pyplot",
               "torch.utils.flop_counter",
               "stages.adapt", "stages.finetune", "stages.generate", "stages.preprocess", "stages.train"],
    "dvc": ["dvc.cli", "dvc.repo", "dvc.api", "dvc.stage.run", "dvc.commands.repro", "dvc_s3", "dvc_ssh", "s3fs"],
}  # fmt: skip


def give_up_capabilities() -> None:
    """Of Linux: root then minds permissions as everyone does. Nothing happens to who has none."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, none)


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
    sys.argv[:] = job["argv"]
    try:
        runpy.run_module(job["argv"][0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.filterwarnings("ignore", module="runpy")  # that a module was imported before it is run
    for name in PRELOAD[sys.argv[1]]:
        importlib.import_module(name)
    print("ready", file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(child(job))
        print(pid, file=answers)
        print(os.waitpid(pid, 0)[1], file=answers)


if __name__ == "__main__":
    main()
