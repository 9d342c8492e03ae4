"""Which memory layout, batch and precision suit this processor: encoding, decoding and the UNet of the base.

python -m benchmarks.layouts --avx2

What `autoencoder.quicker`, `latent_diffusion.draw` and `finetuning.finetune` choose rests on these numbers; results of
the other instruction set stay in the file.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import measure
from benchmarks.repro import FORCED
from stages import _cli
from synthmri.generators import latent_diffusion
from synthmri.training.precision import autocast, native_bf16, slowdown

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES = 16  # in each measurement, whatever the batch


def main(
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = Path("pretrained/base"),
    avx2: Annotated[bool, typer.Option("--avx2", help="forbid torch and oneDNN all beyond AVX2")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="calls of each; the fastest counts")] = 2,
    show: Annotated[
        bool, typer.Option("--table", help="print the table of docs/measurements.md, and measure nothing")
    ] = False,
):
    """Write benchmarks/results/layouts.json: milliseconds an image."""
    if show:
        print(table(json.loads((measure.RESULTS / "layouts.json").read_text(encoding="utf-8"))))
        return
    if avx2 and any(os.environ.get(name) != value for name, value in FORCED.items()):
        os.environ.update(FORCED)  # read when torch is loaded, which it is already
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.layouts", *sys.argv[1:]])
    _cli.start()
    pipe = latent_diffusion.load(model)
    size, edge = latent_diffusion.image_size(pipe), pipe.unet.config.sample_size
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(IMAGES, 3, size, size, generator=generator) * 2 - 1
    z = torch.randn(IMAGES, pipe.unet.config.in_channels, edge, edge, generator=generator)
    states = torch.randn(IMAGES, 32, pipe.unet.config.cross_attention_dim, generator=generator)
    t = torch.full((IMAGES,), 500)
    precisions = ("fp32", "bf16") if native_bf16("cpu") else ("fp32",)  # emulated, it takes minutes
    rows = {"emulated bf16 / fp32": round(slowdown("bf16", "cpu"), 1)} if len(precisions) == 1 else {}
    for precision, (layout, order) in itertools.product(precisions, LAYOUTS.items()):
        pipe.vae.to(memory_format=order).disable_slicing()
        pipe.unet.to(memory_format=order)
        for batch in (1, 4, IMAGES):

            def encode(batch=batch, order=order):
                for part in x.split(batch):
                    pipe.vae.encode(part.contiguous(memory_format=order))

            def decode(batch=batch, order=order):
                for part in z.split(batch):
                    pipe.vae.decode(part.contiguous(memory_format=order))

            def denoise(batch=batch, order=order):
                for rows in torch.arange(IMAGES).split(batch):
                    pipe.unet(z[rows].contiguous(memory_format=order), t[rows], encoder_hidden_states=states[rows])

            def train(batch=batch, order=order, precision=precision):
                for rows in torch.arange(IMAGES).split(batch):
                    with autocast("cpu", precision):
                        y = pipe.unet(
                            z[rows].contiguous(memory_format=order), t[rows], encoder_hidden_states=states[rows]
                        ).sample
                    y.float().square().mean().backward()
                    pipe.unet.zero_grad(set_to_none=True)

            row = {}
            with torch.no_grad(), autocast("cpu", precision):
                for name, work in (("encode", encode), ("decode", decode), ("unet", denoise)):
                    row[name] = 1000 * measure.seconds(work, repeats) / IMAGES
            if batch == IMAGES:
                pipe.unet.requires_grad_(True)
                row["unet_training"] = 1000 * measure.seconds(train, repeats) / IMAGES
                pipe.unet.requires_grad_(False)
            rows[f"{precision} {layout} {batch}"] = {name: round(value, 1) for name, value in row.items()}
            print(f"{precision} {layout} {batch}", rows[f"{precision} {layout} {batch}"], file=sys.stderr, flush=True)
    file = measure.RESULTS / "layouts.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if result.pop("machine", None) != measure.machine():
        result = {}  # no side of a ratio comes from another machine
    measure.write("layouts", result | {"avx2" if avx2 else "native": rows})


def table(result: dict) -> str:
    """Markdown: milliseconds an image by layout and precision, of the fastest batch."""
    lines = ["| | encode | decode | UNet | UNet, training step |", "|---|---:|---:|---:|---:|"]
    for side, title in (("native", "native"), ("avx2", "AVX2 alone")):
        rows = {name: row for name, row in result.get(side, {}).items() if isinstance(row, dict)}
        for head in dict.fromkeys(name.rsplit(" ", 1)[0] for name in rows):
            cells = []
            for work in ("encode", "decode", "unet", "unet_training"):
                of = {
                    name.rsplit(" ", 1)[1]: row[work]
                    for name, row in rows.items()
                    if name.startswith(f"{head} ") and work in row
                }
                batch = min(of, key=of.get)
                cells.append(f"{of[batch]:.1f} (batch {batch})")
            lines.append(f"| {title}, {head.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    _cli.run(main)
