"""Work shared out among processes of this machine (joblib's loky) or of a dask cluster.

Results come in order, and the work of a process that is killed is done again.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import TypeVar

from stages import _cli, _files
from synthmri.errors import UserError

MOST, BY_ITSELF = 256, 8  # processes: that can be asked for, and that are taken unasked, for memory's sake
ATTEMPTS = 3  # of one item whose worker is killed each time
CONNECT_S = 10  # for a cluster to answer
PATIENCE_S = 60  # how long a cluster may be without workers

Item = TypeVar("Item")
Result = TypeVar("Result")


def shared(threads: int) -> tuple[int, str]:
    """How many processes share the work, and the address of the dask cluster that does instead, or "".

    The environment says so, and not the parameters, since it changes no byte of the results: SYNTHMRI_WORKERS and
    SYNTHMRI_CLUSTER. Without them, as many processes as the processor has room for, at `threads` each.
    Raises UserError for values that are neither.
    """
    wanted, cluster = (os.environ.get(name, "") for name in ("SYNTHMRI_WORKERS", "SYNTHMRI_CLUSTER"))
    if wanted and not (wanted.isdecimal() and 1 <= int(wanted) <= MOST):
        raise UserError(f"SYNTHMRI_WORKERS = {wanted!r} is no number of processes; set it to 1 to {MOST}, or unset it")
    if cluster and not re.fullmatch(r"(tcp|tls|ws|wss)://[^\s/]+:\d+", cluster):
        raise UserError(
            f"SYNTHMRI_CLUSTER = {cluster!r} is no address of a dask scheduler such as tcp://host:8786; mend it, or "
            "unset it to work on this machine"
        )
    return int(wanted) if wanted else min(BY_ITSELF, max(1, (os.cpu_count() or 1) // threads)), cluster


def ordered(
    function: Callable[[Item], Result], items: Sequence[Item], count: int, cluster: str, name: Callable[[Item], str]
) -> Iterator[Result]:
    """function(item) of each item, in order, by `count` processes, or by the dask cluster at the address `cluster`.

    At most two items a worker are under way, which bounds the results that wait in memory. What a killed worker had
    is done again. Raises UserError with `name` of the item whose worker was killed ATTEMPTS times.
    """
    if cluster:
        yield from _on_cluster(function, items, cluster, name)
    elif count == 1 or len(items) == 1:
        yield from map(function, items)
    else:
        yield from _here(function, items, count, name)


def _here(function, items, count, name) -> Iterator:
    from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

    first = killed = 0
    while first < len(items):
        # Numpy's own threads would only get in each other's way; torch's are set by each task.
        environment = {"OMP_NUM_THREADS": "1"}
        pool = ProcessPoolExecutor(count, initializer=_cli.end_with, initargs=(os.getpid(),), env=environment)
        pending = deque()
        try:
            while first < len(items):
                # A dead worker takes the pool with it, and nobody knows whose fault it was: the oldest item alone next.
                while len(pending) < (1 if killed else 2 * count) and first + len(pending) < len(items):
                    pending.append(pool.submit(function, items[first + len(pending)]))
                result = pending.popleft().result()
                first, killed = first + 1, 0
                yield result
        except BrokenProcessPool:
            killed += 1
            if killed == ATTEMPTS:
                raise UserError(
                    f"{name(items[first])}: its worker was killed {killed} times, likely for want of memory; free "
                    "memory, have fewer workers (the variable SYNTHMRI_WORKERS), or take it away"
                ) from None
        finally:
            pool.shutdown(kill_workers=True)


def _on_cluster(function, items, address, name) -> Iterator:
    remedy = "mend the variable SYNTHMRI_CLUSTER, or unset it to work on this machine"
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError(
            f"SYNTHMRI_CLUSTER = {address} needs dask; `pip install -c constraints.txt -e .[cluster]`, or {remedy}"
        ) from None
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        raise UserError(f"no dask scheduler answers at {address} ({error}); {remedy}") from None
    with client:
        slots = sum(_checked(client, address, remedy).values())
        first, alone, pending = 0, False, deque()
        while first < len(items):
            while len(pending) < (1 if alone else 2 * slots) and first + len(pending) < len(items):
                pending.append(client.submit(function, items[first + len(pending)], pure=False))
            try:
                result = _result(client, pending[0], address, remedy)
            except KilledWorker:
                if alone:
                    raise UserError(
                        f"{name(items[first])}: every worker of {address} that had it was killed, likely for want of "
                        "memory; give the workers more, or take it away"
                    ) from None
                # Dask blames all that a dead worker had: only an item that ran alone is surely at fault.
                client.cancel(list(pending))
                pending.clear()
                alone = True
                continue
            pending.popleft()
            first, alone = first + 1, False
            yield result


def _checked(client, address: str, remedy: str) -> dict[str, int]:
    """Threads of each worker. Raises UserError where there are none, or one that has another version of this code."""
    end = time.monotonic() + PATIENCE_S
    while not client.nthreads() and time.monotonic() < end:
        time.sleep(0.2)
    if not client.nthreads():
        raise UserError(
            f"the dask scheduler at {address} has no workers; start some (`dask worker {address}`), or {remedy}"
        )
    try:
        versions = client.run(_files.code)
    except Exception as error:  # whatever an import may raise over there
        raise UserError(
            f"the workers of {address} cannot run this project ({error}); install it there, or {remedy}"
        ) from None
    other = [worker for worker, version in versions.items() if version != _files.code()]
    if other:
        raise UserError(f"{other[0]} of {address} has another version of this project; update it there, or {remedy}")
    return client.nthreads()


def _result(client, future, address: str, remedy: str):
    end = None
    while True:
        try:
            return future.result(timeout=1)
        except CancelledError:
            raise UserError(f"the dask scheduler at {address} is gone; start it again, or {remedy}") from None
        except TimeoutError:
            if client.nthreads():
                end = None
            elif (end := end or time.monotonic() + PATIENCE_S) < time.monotonic():
                raise UserError(f"all workers of {address} are gone; start some, or {remedy}") from None
