"""A page to play with, on this machine alone: `synthmri demo`."""

import socket
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from commands import _shield
from commands.generate import CHOSEN, MODEL
from stages import _cli, _files
from synthmri import generators, imageset, params
from synthmri.demo import app
from synthmri.errors import UserError
from synthmri.reporting import comparison
from synthmri.scans import prompts
from synthmri.training import sampling

VERDICTS = Path("metrics/gate.json")


def main(
    port: Annotated[int, typer.Option(help="0 takes any that is free", min=0, max=65535)] = 8643,
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = MODEL,
    slices: Annotated[
        Path, typer.Option(help="folder of the ImageSets train and val, which the shield compares with")
    ] = _shield.SLICES,
    features: Annotated[Path, typer.Option(help="folder of their features")] = _shield.FEATURES,
) -> None:
    """Prompt, seed and steps in; eight slices out, each with its likeness to the nearest training slice and what the
    shield says of it. No real slice leaves this process. End with Ctrl-C.
    """
    import uvicorn

    listener = _listen(port)
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "sample", sampling.Sample)
    words = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
    if CHOSEN.is_file() and model == MODEL:
        p = sampling.with_choice(p, _files.read_json(CHOSEN))
    if model == MODEL and slices == _shield.SLICES:
        _shield.check(model)
    known = _shield.known(slices, features)
    train = imageset.read(slices / "train")
    trained = generators.find(comparison.FINE_TUNED).load(model, device=runtime.device)
    size = train.images.shape[1]

    def draw(text: str, seeds: list[int], steps: int):
        # A batch of eight, whose size changes the rounding: the pixels are those of `synthmri generate` but for that.
        settings = p.model_copy(update={"steps": steps, "batch_size": app.EIGHT})
        return trained.sample_with_masks(seeds, settings, texts=[text] * len(seeds), size=size, precision=precision)

    def prompt(asked: app.Asked) -> str:
        row = asked.model_dump(include={"contrast", "plane", "label"})
        row["depth_mm"] = "" if asked.level is None else str(10 * asked.level)
        return prompts.prompts(pd.DataFrame([row]), words)[0]

    verdict = _files.read_json(VERDICTS)[comparison.FINE_TUNED] if VERDICTS.is_file() and model == MODEL else None
    page = app.create(
        draw, prompt, known,
        words=_words(train.manifest), steps=p.steps,
        simulated=train.meta.get("data", {}).get("source") == "simulated",
        refused=verdict is not None and not (verdict["passed"] or verdict.get("override")),
    )  # fmt: skip
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/   for this machine alone; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(page, access_log=False, server_header=False, log_level="warning", limit_concurrency=50)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        raise UserError(f"cannot listen on port {port} ({error.strerror}); choose another --port") from None
    return listener


def _words(manifest: pd.DataFrame) -> dict[str, list]:
    """What the training slices have of each field of a prompt."""
    found = {
        name: sorted(set(manifest[name]) - {"", "unknown"}) if name in manifest else []
        for name in ("contrast", "plane", "label")
    }
    depths = [float(depth) for depth in manifest.get("depth_mm", []) if depth]
    return found | {"level": sorted({prompts.level(depth) for depth in depths})}


if __name__ == "__main__":
    _cli.run(main)
