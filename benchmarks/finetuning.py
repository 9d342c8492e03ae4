"""Slices a second in fine-tuning: this project's loop against one that encodes images and prompts at every step, as
diffusers' text-to-image example does; same model, batch size and precision.

python -m benchmarks.finetuning

The whole of our side is timed: encoding all slices and their mirror images once is part of it, spread over the epochs
of params.yaml.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.generators import autoencoder, finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.training.precision import autocast


def textbook(pipe, images: np.ndarray, texts: list[str], p: finetuning.Finetune, steps: int, precision) -> float:
    """Seconds a step of the loop of the example: VAE and text encoder run on every batch; plain loss; AdamW and EMA."""
    from diffusers.training_utils import EMAModel

    pipe.vae.disable_slicing()  # which `latent_diffusion.load` set, as it does the layout
    pipe.vae.to(memory_format=torch.contiguous_format)
    unet = pipe.unet.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=p.learning_rate)
    ema = EMAModel(unet.parameters(), decay=p.ema_decay)
    noise_scheduler = latent_diffusion.new_scheduler(pipe, "ddpm")
    generator = torch.Generator().manual_seed(0)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        rows = torch.randint(len(images), (p.batch_size,), generator=generator).numpy()
        x = autoencoder.to_tensor(images[rows])
        ids = latent_diffusion.tokens(pipe, [texts[row] for row in rows])
        with autocast("cpu", precision):
            with torch.no_grad():
                latents = autoencoder.posterior(pipe.vae.encode(x))[0].float() * pipe.vae.config.scaling_factor
                states = pipe.text_encoder(ids)[0]
            noise = torch.randn(latents.shape, generator=generator)
            t = torch.randint(noise_scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
            noisy = noise_scheduler.add_noise(latents, noise, t)
            target = (
                noise_scheduler.get_velocity(latents, noise, t)
                if noise_scheduler.config.prediction_type == "v_prediction"
                else noise
            )
            loss = F.mse_loss(unet(noisy, t, encoder_hidden_states=states).sample.float(), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), finetuning.MAX_GRAD_NORM)
        optimizer.step()
        ema.step(unet.parameters())
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def ours(
    pipe, mean: np.ndarray, std: np.ndarray, texts: list[str], p: finetuning.Finetune, steps: int, precision
) -> float:
    """Seconds a step of finetuning.finetune."""
    ticks = []
    rows = np.resize(np.arange(len(texts)), steps * p.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        finetuning.finetune(
            pipe, finetuning.Lessons(mean[rows], std[rows], [texts[row] for row in rows]),
            p.model_copy(update={"epochs": 1}), seed=0, checkpoint=Path(folder) / "c.pt", precision=precision,
            tick=lambda step, loss, rate: ticks.append(time.perf_counter()),
        )  # fmt: skip
    return float(np.median(np.diff(ticks)[1:]))


def main(
    base: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = Path("pretrained/base"),
    images: Annotated[Path, typer.Option(help="ImageSet to train on")] = Path("data/slices/train"),
    steps: Annotated[int, typer.Option(min=6, help="steps of each side")] = 16,
    compiled: Annotated[bool, typer.Option("--compiled", help="time our side with finetune.compile too")] = False,
):
    """Write benchmarks/results/finetuning.json."""
    precision = _cli.precision(_cli.start())
    # The textbook trains the UNet alone, so both sides do.
    p = params.read(_cli.PARAMS, "finetune", finetuning.Finetune).model_copy(update={"train_text_encoder": False})
    train = imageset.read(images)
    texts = prompts.prompts(train.manifest, params.read(_cli.PARAMS, "prompt", prompts.Prompt))
    pipe = latent_diffusion.load(base)
    some, once = np.array(train.images[:64]), params.read(_cli.PARAMS, "encode", autoencoder.Encode)

    def encode():
        return autoencoder.encode(pipe.vae, some, batch_size=16, precision=precision)

    mean, std = encode()
    one = measure.seconds(encode) / len(some)
    views = once.views
    encode_once = one * views * p.batch_size / p.epochs  # a step's share of it
    our_step = ours(pipe, mean[:, None], std[:, None], texts[: len(some)], p, steps, precision) + encode_once
    their_step = textbook(latent_diffusion.load(base), some, texts[: len(some)], p, steps, precision)
    extra = {}
    if compiled:
        again = p.model_copy(update={"compile": True})
        step = (
            ours(latent_diffusion.load(base), mean[:, None], std[:, None], texts[: len(some)], again, steps, precision)
            + encode_once
        )
        extra["ours_compiled"] = {"slices_per_second": p.batch_size / step}
    measure.write(
        "finetuning",
        {
            "ratio": their_step / our_step,
            "ours": {"slices_per_second": p.batch_size / our_step, "encoding_share": encode_once / our_step},
            **extra,
            "textbook": {"slices_per_second": p.batch_size / their_step},
            "batch": p.batch_size,
            "precision": precision,
            "epochs": p.epochs,
        },
    )


if __name__ == "__main__":
    _cli.run(main)
