"""Seconds a stage of the whole pipeline in a fresh clone, as this processor is and with AVX2 alone.

python -m benchmarks.repro --avx2

Clones what is committed, without any cache, and runs `dvc repro` there with this environment: after the installation,
that is what `make repro` does. Results of the other instruction set stay in the file, if this machine made them.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import measure
from stages import _cli
from synthmri.errors import UserError

FORCED = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PROFILE = "default"  # the name of params.yaml as it is committed


def main(
    avx2: Annotated[bool, typer.Option("--avx2", help="forbid torch and oneDNN all beyond AVX2")] = False,
    profile: Annotated[str, typer.Option(help="a file of profiles/, without .yaml; '' = params.yaml as it is")] = "",
    test: Annotated[bool, typer.Option("--test", help="time the tests instead, as `make test` runs them")] = False,
    keep: Annotated[Path | None, typer.Option(help="folder to make for the clone, which then stays")] = None,
    show: Annotated[
        bool, typer.Option("--table", help="print the table of docs/measurements.md, and measure nothing")
    ] = False,
):
    """Write benchmarks/results/repro.json: seconds of every stage, their sum, and the largest process."""
    file = measure.RESULTS / "repro.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if show:
        print(table(result))
        return
    if result.pop("machine", None) != measure.machine():
        result = {}  # no side of a ratio comes from another machine
    if keep is not None and keep.exists():
        raise UserError(f"{keep} exists already; name another folder with --keep, or remove it")
    with tempfile.TemporaryDirectory() as folder:
        clone = keep.absolute() if keep else Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ".", str(clone)], check=True)
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(clone),
        }  # fmt: skip
        environment |= FORCED if avx2 else {}
        python = [sys.executable, "-m"]
        if profile:
            subprocess.run([*python, "commands.profile", profile], cwd=clone, env=environment, check=True)
        code = "from stages import _cli; _cli.precision(_cli.start())"
        said = subprocess.run([sys.executable, "-c", code], cwd=clone, env=environment, capture_output=True, text=True)
        if test:
            command = [*python, "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
            seconds, closing = timed_tests(command, clone, environment)
            found = {"seconds": round(seconds), "closing_line": closing}
        else:
            stages = timed_stages(clone, environment)
            started = time.perf_counter()
            for module in (["stages.register", "--sync"], ["commands.summary"]):
                subprocess.run([*python, *module], cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
            stages["register --sync, summary"] = time.perf_counter() - started
            largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            found = {
                "seconds": round(sum(stages.values())), "largest_process_gib": round(largest, 2),
                "stages": {name: round(value, 1) for name, value in stages.items()},
            }  # fmt: skip
    key = "test" if test else profile or PROFILE
    found |= {"precision": said.stderr.strip(), "commit": commit()}
    result.setdefault(key, {})["avx2" if avx2 else "native"] = found
    measure.write("repro", result)


def table(result: dict) -> str:
    """What the file holds, as Markdown: a row a stage, its seconds natively and with AVX2 alone, and their ratio."""
    native, avx2 = (result[PROFILE].get(key, {}).get("stages", {}) for key in ("native", "avx2"))
    rows = ["| stage | native, s | AVX2 alone, s | ratio |", "|---|---:|---:|---:|"]
    groups = list(dict.fromkeys(name.split("@")[0] for name in native))
    for group in groups:
        pair = [
            sum(seconds for name, seconds in side.items() if name.split("@")[0] == group) for side in (native, avx2)
        ]
        times = sum(name.split("@")[0] == group for name in native)
        title = f"`{group}`" + (f", {times} times" if times > 1 else "") if " " not in group else group
        other = f"{pair[1]:.0f} | {pair[1] / pair[0]:.1f}" if group in {name.split("@")[0] for name in avx2} else " | "
        rows.append(f"| {title} | {pair[0]:.0f} | {other} |")
    for key, title in ((PROFILE, "all of `make repro`"), ("quick", "`make quick`"), ("test", "`make test`")):
        pair = [result.get(key, {}).get(side, {}).get("seconds") for side in ("native", "avx2")]
        cells = [f"{value // 60} min {value % 60:02d} s" if value else "" for value in pair]
        ratio = f"{pair[1] / pair[0]:.1f}" if all(pair) else ""
        if any(pair):
            rows.append(f"| **{title}** | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(rows)


def timed_stages(clone: Path, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of every stage of `dvc repro`, the bookkeeping of DVC in that of the stage before."""
    started, begun, found = time.perf_counter(), [], {}
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    )  # fmt: skip
    last = []
    for line in process.stdout:
        last = [*last[-30:], line]
        if match := re.match(r"Running stage '(.*)':", line):
            print(f"{time.perf_counter() - started:7.1f} s  {match[1]}", file=sys.stderr)
            begun.append((match[1], time.perf_counter()))
    if process.wait() != 0:
        raise UserError(f"`dvc repro` failed in the clone; its last lines:\n{''.join(last)}")
    ends = [moment for _, moment in begun[1:]] + [time.perf_counter()]
    found["start of dvc"] = begun[0][1] - started
    return found | {name: end - moment for (name, moment), end in zip(begun, ends, strict=True)}


def timed_tests(command: list[str], clone: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Seconds of the tests, and the line that they close with."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    print(done.stdout[-3000:], file=sys.stderr)
    return time.perf_counter() - started, done.stdout.strip().splitlines()[-1].strip("= ")


def commit() -> str:
    """What was cloned. Raises UserError where something is not committed, which would not be in it."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
    ).stdout
    if changed.strip():
        print(f"not in the clone, since it is not committed:\n{changed}", file=sys.stderr)
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    _cli.run(main)
