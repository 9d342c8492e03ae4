"""Pretrain a model on simulated heads; not part of `dvc repro`, which starts from the results in pretrained.

Resumable: killed at any moment, the same command goes on from its last checkpoint in .ckpt/pretrain. To train longer,
raise the steps in pretrained/params.yaml and run it again, or, where the checkpoint is gone, go on from the weights:
`--start pretrained/base --out new`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import Progress

from commands import draw
from stages import _cli, _files, _launch, _watch
from synthmri import params
from synthmri.errors import UserError
from synthmri.training import distributed

STARTS = "name a pipeline in Stable Diffusion format, or with --part autoencoder or unet an autoencoder's folder"
SHOWN, POINTS = 16, 20  # slices in a picture of a baseline's samples, and such pictures over its training


def main(
    model: Annotated[str, typer.Option(help="latent_diffusion, or a model of section baselines")] = "latent_diffusion",
    images: Annotated[Path, typer.Option(help="ImageSet of heads, of `synthmri draw`")] = Path(".ckpt/heads"),
    out: Annotated[
        Path | None, typer.Option(help="folder of the weights; without it, pretrained/base, /autoencoder or /MODEL")
    ] = None,
    part: Annotated[
        Literal["all", "autoencoder", "decoder", "unet"], typer.Option(help="what to train of latent_diffusion")
    ] = "all",
    start: Annotated[
        Path | None,
        typer.Option(help="weights that training goes on from: a folder of its kind, or for the UNet an autoencoder"),
    ] = None,
    checkpoints: Annotated[Path, typer.Option(help="where training goes on from")] = Path(".ckpt/pretrain"),
):
    """Train a baseline, or the autoencoder and then the UNet and text encoder on its latents, and write the weights.

    The autoencoder alone is written as a folder of its own, from which another run goes on, or a UNet starts. The
    decoder alone can be trained of a pipeline that is there: its latents, and so its UNet, stay as they are.
    """
    if model != "latent_diffusion":
        if part != "all":
            raise UserError(f"--part {part} is of latent_diffusion; {model} is trained whole")
        return _baseline(model, images, out or Path("pretrained") / model, start, checkpoints)
    out = out or Path("pretrained/autoencoder" if part == "autoencoder" else "pretrained/base")
    if part == "decoder" and start is None:
        raise UserError("--part decoder needs --start: the pipeline whose decoder it is")
    kind, marker = ("an autoencoder", "config.json") if part == "autoencoder" else ("a pipeline", "model_index.json")
    if out.exists() and any(out.iterdir()) and not (out / marker).is_file():
        raise UserError(f"{out} holds something else than {kind}, which would be replaced; name another --out")
    runtime = _launch.start()
    precision = _cli.precision(runtime)
    from synthmri.generators import autoencoder, latent_diffusion
    from synthmri.simulation import pretraining
    from synthmri.training import loop

    run = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain)
    distributed.check(
        min(run.autoencoder.batch_size, run.unet.batch_size),
        "pretrain.autoencoder.batch_size or pretrain.unet.batch_size",
    )
    pipe = begun = None
    if start and (start / "model_index.json").is_file():
        pipe = latent_diffusion.load(start, device=runtime.device)
        begun = pipe.vae
    elif start and part in ("autoencoder", "unet") and (start / "config.json").is_file():
        begun = autoencoder.load(start, device=runtime.device)
    elif start:
        raise UserError(f"--start {start} is no {'folder' if not start.is_dir() else 'pipeline'}; {STARTS}")

    # Steps only say how far to go: every other parameter names another training. The code does not: it runs for hours.
    def key(section) -> str:
        shared = run.model_dump(include={"seed", "image_size"})
        origin = [start] if start else []
        return _files.digest(section.model_dump(exclude={"steps"}), shared, runtime.model_dump(), precision, *origin)

    first = checkpoints / f"{'decoder' if part == 'decoder' else 'autoencoder'}-{key(run.autoencoder)}.pt"
    # The UNet is one of latents, and these change with every step of the autoencoder, unless that is taken as it is.
    latents = _files.digest(key(run.autoencoder), 0 if start and part == "unet" else run.autoencoder.steps)
    second = checkpoints / f"unet-{key(run.unet)}-{latents}.pt"
    work: dict[str, int] = {}  # floating-point operations
    with _cli.bars(per_second=1) as progress:
        if part != "unet":
            from synthmri.training import perceptual

            with _ticking(progress, "autoencoder", run.autoencoder.steps, first.with_suffix(".csv")) as tick:
                vae, work["autoencoder"] = pretraining.fit_autoencoder(
                    run.autoencoder, run, perceptual.lpips_model(device=runtime.device), first, runtime.device, tick,
                    precision=precision, start=begun,
                    part="decoder" if part == "decoder" else "full",
                )  # fmt: skip
        elif begun:
            vae = begun
        else:
            state = loop.load_checkpoint(first)
            if state is None:
                raise UserError(
                    f"{first} is missing; run with --part autoencoder first, or name an autoencoder, or a pipeline, by "
                    "--start"
                )
            if state["step"] < run.autoencoder.steps:
                raise UserError(
                    f"{first} has {state['step']} of pretrain.autoencoder.steps = {run.autoencoder.steps}; finish it "
                    "with --part autoencoder, or lower these"
                )
            vae = pretraining.new_autoencoder(run.autoencoder)
            vae.load_state_dict(state["vae"])
            work["autoencoder"] = state["operations"]["total"]
            vae.eval()
        if part == "autoencoder":
            if distributed.is_main():
                with _files.replacing(out) as folder:
                    vae.half().save_pretrained(folder, safe_serialization=True)
                    _files.forget_origin(folder)
                    _effort(folder, start, 0, work["autoencoder"])
            return
        heads = None if part == "decoder" else draw.drawn(images, run)
        if pipe is None:
            from transformers import CLIPTokenizer

            # Learning a tokenizer twice may number rare pieces differently, and what the UNet learns is of these
            # numbers: the one of its checkpoint is kept, else one that is in `out`; of several processes one learns it.
            beside = second.with_suffix(".tokenizer")
            known = beside if beside.is_dir() else out / "tokenizer"
            new = distributed.map_items(lambda _: pretraining.new_tokenizer(), [] if known.is_dir() else [0])
            tokenizer = new[0] if new else CLIPTokenizer.from_pretrained(known)
            distributed.total(0.0)  # all have looked
            if distributed.is_main() and known != beside:
                with _files.replacing(beside) as folder:
                    tokenizer.save_pretrained(folder)
            pipe = pretraining.new_pipeline(run, vae, tokenizer)
            pretraining.standardise(vae, heads)
        elif part == "all":  # its encoder has moved
            pretraining.standardise(vae, heads)
        if part != "decoder":
            with _ticking(progress, "unet", run.unet.steps, second.with_suffix(".csv")) as tick:
                work["unet"] = pretraining.fit_unet(pipe, heads, run, second, runtime.device, tick, precision=precision)
    if not distributed.is_main():
        return
    seen = {name: getattr(run, name).steps * getattr(run, name).batch_size for name in work}
    with _files.replacing(out) as part_folder:
        _files.save_pipeline(pipe, part_folder, half=True)
        _effort(part_folder, start, seen.get("unet", 0), sum(work.values()))


def _baseline(model: str, images: Path, out: Path, start: Path | None, checkpoints: Path) -> None:
    """By section baselines.`model` of pretrained/params.yaml; pictures of its samples lie beside the checkpoint."""
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UserError(f"{out} holds something else than a model, which would be replaced; name another --out")
    runtime = _launch.start()
    precision = _cli.precision(runtime)
    from synthmri import generators
    from synthmri.reporting import plots
    from synthmri.simulation import pretraining
    from synthmri.training import sampling, views

    run = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain)
    generator = generators.find(model)
    p = params.read(_cli.PRETRAINING, f"baselines.{model}", generator.Params)
    distributed.check(p.batch_size, f"baselines.{model}.batch_size")
    heads = draw.drawn(images, run)
    named = p.model_dump(exclude={"steps"}), runtime.model_dump(), precision, heads.meta, len(heads), run.baselines_px
    checkpoint = checkpoints / f"{model}-{_files.digest(*named, *[start] if start else [])}.pt"
    drawing = sampling.Sample(n=SHOWN, seed=0, steps=1, guidance_scale=1.0, scheduler="ddpm", batch_size=SHOWN)

    def snapshot(point: int, trained) -> None:
        drawn = trained.sample(range(SHOWN), drawing, precision=precision)
        if distributed.is_main():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            plots.save(plots.contact_sheet(drawn, 8), checkpoint.with_name(f"{checkpoint.stem}-{point:02d}.png"))
            watch.show(drawn)

    with (
        _watch.watching(f"pretraining: {model}") as watch,
        _cli.counter(f"pretraining {model}", p.steps, watch.tick) as tick,
    ):
        trained, _, operations = generator.fit(
            heads.images, p, seed=run.seed, points=POINTS, checkpoint=checkpoint, start=start, device=runtime.device,
            precision=precision, tick=tick, snapshot=snapshot, image_px=run.baselines_px,
            mirrors=views.mirrors(heads.manifest),
        )  # fmt: skip
    if distributed.is_main():
        with _files.replacing(out) as folder:
            trained.save(folder, beside=True)
            _effort(folder, start, p.steps * p.batch_size, operations)


def _effort(folder: Path, start: Path | None, seen: int, operations: int) -> None:
    """pretraining.json: slices seen, crops of the autoencoder not among them, and operations; with those of `start`."""
    before = _files.pretraining(start) if start else {}
    effort = {"images_seen": seen, "teraflop": operations / 1e12}
    total = {key: value + before.get(f"pretraining_{key}", 0) for key, value in effort.items()}
    _files.write_metrics(folder / _files.PRETRAINING, total)


@contextmanager
def _ticking(progress: Progress, name: str, steps: int, log: Path) -> Iterator[Callable]:
    """A `loop.Tick` that moves a bar and writes the mean loss of every 50 steps."""
    task = progress.add_task(name, total=steps)
    recent: list[float] = []

    def tick(step: int, loss: float, rate: float) -> None:
        watch.tick(step, loss, rate)
        recent.append(loss)
        progress.update(task, completed=step + 1)
        if (step + 1) % 50 == 0 and distributed.is_main():
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{step + 1},{sum(recent) / len(recent):.5f}\n")
            recent.clear()

    with _watch.watching(f"pretraining: {name}") as watch:
        yield tick


if __name__ == "__main__":
    _cli.run(main)
