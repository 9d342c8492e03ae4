"""What every benchmark shares: time and memory of a piece of work, and the file that they end in.

Both sides of a ratio come from one run on one machine, so that its speed cancels out.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from synthmri.reporting import tables

RESULTS = Path("benchmarks/results")


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The least wall-clock seconds of `repeats` calls, after one that does not count; the rest is other load."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, object]:
    """Processor and cores, without anything that names the machine."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {"processor": names[0] if names else platform.processor(), "cores": os.cpu_count()}


def columns(first: str, sets: dict[str, dict[str, float]], titles: dict[str, str]) -> str:
    """Markdown: a row for each of `sets`, a column for each score in `titles`."""
    rows = [(name, *(f"{scores[column]:g}" for column in titles)) for name, scores in sets.items()]
    return tables.markdown((first, *titles.values()), rows)


def write(name: str, result: dict) -> None:
    """benchmarks/results/<name>.json, and the same on the screen."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result | {"machine": machine()}, indent=1, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
