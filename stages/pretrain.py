"""Pretrain the base model on simulated heads; not part of `dvc repro`, which starts from the result in pretrained/base.

Resumable: killed at any moment, the same command goes on from its last checkpoint in .ckpt/pretrain. To train longer,
raise `pretrain.autoencoder.steps` or `pretrain.unet.steps` and run it again, or, where the checkpoint is gone, go on
from the weights: `--start pretrained/base --out new`.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import Progress

from stages import _cli, _files, _launch
from synthmri import params
from synthmri.errors import UserError
from synthmri.training import distributed


def main(
    out: Annotated[Path, typer.Option(help="folder of the pipeline, in Stable Diffusion format")] = Path(
        "pretrained/base"
    ),
    part: Annotated[Literal["all", "autoencoder", "decoder", "unet"], typer.Option(help="what to train")] = "all",
    start: Annotated[
        Path | None, typer.Option(help="pipeline whose weights training goes on from; without it, random ones")
    ] = None,
    checkpoints: Annotated[Path, typer.Option(help="where training goes on from")] = Path(".ckpt/pretrain"),
):
    """Train the autoencoder, then the UNet and text encoder on its latents, and write the pipeline.

    The decoder alone can be trained of a pipeline that is there: its latents, and so its UNet, stay as they are.
    """
    if part == "decoder" and start is None:
        raise UserError("--part decoder needs --start: the pipeline whose decoder it is")
    if out.exists() and any(out.iterdir()) and not (out / "model_index.json").is_file():
        raise UserError(f"{out} holds something else than a pipeline, which would be replaced; name another --out")
    runtime = _launch.start()
    precision = _cli.precision(runtime)
    from synthmri.generators import latent_diffusion
    from synthmri.simulation import pretraining
    from synthmri.training import loop

    run = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain)
    distributed.check(
        min(run.autoencoder.batch_size, run.unet.batch_size),
        "pretrain.autoencoder.batch_size or pretrain.unet.batch_size",
    )
    pipe = latent_diffusion.load(start, device=runtime.device) if start else None

    # Steps only say how far to go: every other parameter names another training. The code does not: it runs for hours.
    def key(section) -> str:
        shared = run.model_dump(include={"seed", "image_size"})
        origin = [start] if start else []
        return _files.digest(section.model_dump(exclude={"steps"}), shared, runtime.model_dump(), precision, *origin)

    first = checkpoints / f"{'decoder' if part == 'decoder' else 'autoencoder'}-{key(run.autoencoder)}.pt"
    # The UNet is one of latents, and these change with every step of the autoencoder, unless that is taken as it is.
    latents = _files.digest(key(run.autoencoder), 0 if start and part == "unet" else run.autoencoder.steps)
    second = checkpoints / f"unet-{key(run.unet)}-{latents}.pt"
    with _cli.bars(per_second=1) as progress:
        if part != "unet":
            from synthmri.evaluation import features

            tick = _ticker(progress, "autoencoder", run.autoencoder.steps, first.with_suffix(".csv"))
            vae = pretraining.fit_autoencoder(
                run.autoencoder, run, features.lpips_model(device=runtime.device), first, runtime.device, tick,
                precision=precision, start=pipe.vae if pipe else None, part="decoder" if part == "decoder" else "full",
            )  # fmt: skip
        elif pipe:
            vae = pipe.vae
        else:
            state = loop.load_checkpoint(first)
            if state is None:
                raise UserError(f"{first} is missing; run with --part autoencoder first, or name a pipeline by --start")
            if state["step"] < run.autoencoder.steps:
                raise UserError(
                    f"{first} has {state['step']} of pretrain.autoencoder.steps = {run.autoencoder.steps}; finish it "
                    "with --part autoencoder, or lower these"
                )
            vae = pretraining.new_autoencoder(run.autoencoder)
            vae.load_state_dict(state["vae"])
            vae.eval()
        if part == "autoencoder":
            return
        if pipe is None:
            from transformers import CLIPTokenizer

            # Learning a tokenizer twice may number rare pieces differently: one that is there is kept, and of several
            # processes one learns it.
            known = out / "tokenizer"
            new = distributed.spread(lambda _: pretraining.new_tokenizer(), [] if known.is_dir() else [0])
            tokenizer = new[0] if new else CLIPTokenizer.from_pretrained(known)
            pipe = pretraining.new_pipeline(run, vae, tokenizer)
        elif part == "all":
            pretraining.standardise(vae, run)  # its encoder has moved
        if part != "decoder":
            tick = _ticker(progress, "unet", run.unet.steps, second.with_suffix(".csv"))
            pretraining.fit_unet(pipe, run, second, runtime.device, tick, precision=precision)
    if not distributed.is_main():
        return
    with _files.replacing(out) as part_folder:
        _files.save_pipeline(pipe, part_folder, half=True)


def _ticker(progress: Progress, name: str, steps: int, log: Path):
    task = progress.add_task(name, total=steps)
    recent: list[float] = []

    def tick(step: int, loss: float) -> None:
        recent.append(loss)
        progress.update(task, completed=step + 1)
        if (step + 1) % 50 == 0 and distributed.is_main():
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{step + 1},{sum(recent) / len(recent):.5f}\n")
            recent.clear()

    return tick


if __name__ == "__main__":
    _cli.run(main)
