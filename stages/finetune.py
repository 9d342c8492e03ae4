"""Fine-tune the base model on the latents of the training slices.

Resumable: after every epoch a checkpoint goes to .ckpt/finetune, under a hash of everything that the result depends on.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import common
from synthmri import imageset, ldm, params, plots


def main(
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices, for its manifest")],
    latents: Annotated[Path, typer.Option(help="folder that `encode` wrote")],
    base: Annotated[Path, typer.Option(help="pipeline to start from")],
    out: Annotated[Path, typer.Option(help="folder of the fine-tuned pipeline")],
    log: Annotated[Path, typer.Option(help="CSV: step, loss, learning rate")],
    picture: Annotated[Path, typer.Option(help="PNG of the loss")],
    checkpoints: Annotated[Path, typer.Option(help="where an interrupted run goes on from")] = Path(".ckpt/finetune"),
):
    """Train by section `finetune`, with prompts by section `prompt`."""
    runtime = common.start()
    p = params.read(common.PARAMS, "finetune", ldm.Finetune)
    prompt = params.read(common.PARAMS, "prompt", ldm.Prompt)
    mean, std = np.load(latents / "mean.npy"), np.load(latents / "std.npy")
    texts = ldm.prompts(imageset.read(images).manifest, prompt)
    key = common.digest(
        p.model_dump(), prompt.model_dump(), runtime.model_dump(), latents, base, images / "manifest.csv"
    )
    pipe = ldm.load(base, device=runtime.device)
    steps = p.epochs * -(-len(texts) // p.batch_size)
    with common.counter("fine-tuning steps", steps) as tick:
        history = ldm.finetune(
            pipe, mean, std, texts, p,
            checkpoint=checkpoints / f"{key}.pt", token=prompt.token, device=runtime.device, tick=tick,
        )  # fmt: skip
    pipe.unet.register_to_config(sample_size=mean.shape[-1])  # so that it draws this size unless told otherwise
    with common.replacing(out) as folder, common.replacing(log) as table, common.replacing(picture) as figure:
        common.save_pipeline(pipe, folder)
        lines = [f"{step},{loss:.6g},{rate:.6g}" for step, loss, rate in history]
        table.write_text("\n".join(["step,loss,learning_rate", *lines]) + "\n", encoding="utf-8")
        steps_done, losses = [step for step, _, _ in history], [loss for _, loss, _ in history]
        window = max(1, len(losses) // 30)
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid") if losses else []
        chart = plots.curve(
            [steps_done, steps_done[window - 1 :]], [losses, smooth], ["each step", f"mean of {window} steps"],
            x_label="step", y_label="weighted denoising loss", title="Fine-tuning",
        )  # fmt: skip
        plots.save(chart, figure)


if __name__ == "__main__":
    common.run(main)
