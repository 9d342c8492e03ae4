"""How a command starts, shows its progress, and fails."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stages._replacing import REMEDIES, refused
from synthmri import params
from synthmri.errors import UserError

PARAMS = Path("params.yaml")
COHORT, PRETRAINING = Path("data/cohort.yaml"), Path("pretrained/params.yaml")  # of simulation alone
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def run(*commands: Callable) -> None:
    """Run a function as a command line, or several as its subcommands.

    A UserError ends with its text and status 1, and so does what the file system refuses.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    for command in commands:
        app.command()(command)
    guarded(app)


def guarded(app: typer.Typer) -> None:
    """Run a command line that is made already; errors as in `run`."""
    try:
        app(standalone_mode=True)
    except Exception as error:
        if not _first_to_fail():
            sys.exit(1)
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, OSError) and error.errno in REMEDIES:
            print(f"error: {refused(error.filename or 'a file', error)}", file=sys.stderr)
        else:
            raise
        sys.exit(1)


def _first_to_fail() -> bool:
    """Whether the error of this process is news: where several work as one, the others fail because of the first."""
    if "RANK" not in os.environ:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("failures", 1) == 1
    except RuntimeError:  # it went with the process that failed
        return False


def bars(*, per_second: int) -> Progress:
    """Progress bars on standard error; of several processes that work as one, the first shows them."""
    shown = os.environ.get("RANK", "0") == "0"
    return Progress(*BAR, console=Console(stderr=True), refresh_per_second=per_second, disable=not shown)


def start() -> params.Runtime:
    """Read section `runtime` and set torch's threads: their number changes the rounding of sums."""
    runtime = params.read(PARAMS, "runtime", params.Runtime)
    import torch

    set_threads(runtime.threads)
    if runtime.device != "cpu" and int(runtime.device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"runtime.device = {runtime.device}, but torch sees {torch.cuda.device_count()} GPUs here; set it to cpu, "
            "or install a torch with CUDA"
        )
    if ":" in runtime.device:
        torch.cuda.set_device(runtime.device)  # accelerate takes the current one
    return runtime


def seed() -> int:
    """The key `seed` of params.yaml."""
    return params.read_seed(PARAMS)


def precision(runtime: params.Runtime, *, scaler: bool = False) -> str:
    """The format that networks compute in here (`synthmri.training.precision`), told on standard error with the reason.

    scaler: whether a loss scaler is in the loop. Warns, with what it costs, of one that the hardware only emulates.
    """
    from synthmri.training import precision as formats

    chosen, why = formats.choose(runtime.precision, runtime.device, scaler=scaler)
    if os.environ.get("RANK", "0") == "0":
        print(f"precision {chosen}: {why}", file=sys.stderr)
        if chosen == "bf16" and not formats.native_bf16(runtime.device):
            import torch

            with torch.random.fork_rng(devices=[]):  # what measures draws weights, and a training must not notice
                factor = formats.slowdown(chosen, runtime.device)
            print(
                f"warning: emulated bf16 takes {factor:.1f} times as long as float32 (a convolution, measured now); "
                "set runtime.precision to auto",
                file=sys.stderr,
            )
    return chosen


def set_threads(threads: int) -> None:
    """Set the threads of torch, here or in a worker: their number changes the rounding of sums.

    No stage depends on this file, so that its messages may change: after an edit of this function run `dvc repro
    --force`.
    """
    import torch

    torch.set_num_threads(threads)
    # MKL's vector functions are set up by their first call: where threads share it, one of them may compute its part in
    # lower accuracy (1e-4), in some runs and not in others. A first call of one number is made by one thread alone.
    for function in (torch.exp, torch.log, torch.sin, torch.cos, torch.tanh, torch.erf):
        function(torch.ones(1))


def end_with(parent: int) -> None:
    """End this process when that one, which started it, has ended: those of a stage that was killed would work on."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def progress(items: Iterable, title: str, total: int | None = None) -> Iterator:
    """Pass `items` on, with a progress bar on standard error."""
    with bars(per_second=2) as bar:
        yield from bar.track(items, total=total, description=title)


@contextmanager
def counter(title: str, total: int, also: Callable = lambda *_: None) -> Iterator[Callable]:
    """A progress bar for training: a `loop.Tick`, which passes on to another."""
    with bars(per_second=2) as bar:
        task = bar.add_task(title, total=total)

        def tick(step: int, loss: float, rate: float) -> None:
            bar.update(task, completed=step + 1, description=f"{title} (loss {loss:.3f})")
            also(step, loss, rate)

        yield tick
