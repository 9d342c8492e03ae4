"""How a stage starts that works in several processes: adaptation, fine-tuning, baselines, pretraining and sampling."""

import logging
import os
import sys

from pydantic import Field

from stages import _cli
from synthmri import params
from synthmri.errors import UserError
from synthmri.training import distributed

# A process of a group has one of these, from torchrun and `accelerate launch`, or from mpirun.
_IN_A_GROUP = ("LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Parallel(params.Section):
    """Section `parallel`."""

    processes: int = Field(ge=1, le=64)


def start() -> params.Runtime:
    """`_cli.start` in each of `parallel.processes` processes.

    This one starts them with its own command line, waits, and ends with their status. A process that
    `accelerate launch` has started is in a group already, whose size then counts.
    Raises UserError for more processes than there are GPUs.
    """
    processes = params.read(_cli.PARAMS, "parallel", Parallel).processes
    runtime = _cli.start()
    if any(name in os.environ for name in _IN_A_GROUP):
        _cli.end_with(os.getppid())
        distributed.join(runtime.device, runtime.threads)
    elif processes > 1:
        import torch

        if runtime.device != "cpu" and processes > torch.cuda.device_count():
            raise UserError(
                f"parallel.processes = {processes}, but torch sees {torch.cuda.device_count()} GPUs here, and each "
                "process wants one; lower it"
            )
        if runtime.device == "cpu" and processes * runtime.threads > (cores := os.cpu_count() or 1):
            print(
                f"warning: parallel.processes = {processes} of runtime.threads = {runtime.threads} each are more than "
                f"{cores} cores: such processes slow each other more than twofold; set runtime.threads to "
                f"{max(1, cores // processes)}",
                file=sys.stderr,
            )
        sys.exit(_run(processes))
    return runtime


def _run(processes: int) -> int:
    """This command line in a group of processes on this machine, by torch's launcher, as `accelerate launch` does.

    Returns 1 where one of them failed: it has told why, and torch has ended the others.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, local_addr="127.0.0.1",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", run_id="synthmri",
    )  # fmt: skip
    spec = sys.modules["__main__"].__spec__  # None where this is the command `synthmri`, whose word argv holds
    module = [spec.name] if spec else ["commands._console", sys.argv[0].split()[-1]]
    try:
        elastic_launch(config, sys.executable)("-m", *module, *sys.argv[1:])
    except ChildFailedError:
        return 1
    return 0
