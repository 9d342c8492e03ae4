"""The latent diffusion model: any pipeline in Stable Diffusion format, opened, marked and drawn from.

Scheduler, prediction type, betas and latent scaling are read from the checkpoint, never assumed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators import autoencoder
from synthmri.generators.base import Generator
from synthmri.training import denoising_loss, distributed, sampling
from synthmri.training.precision import Precision, autocast


def load(model: str | Path, *, device: str = "cpu"):
    """Open a StableDiffusionPipeline in float32 from a directory, or a hub id, or id@revision; safetensors only.

    Its safety checker and what belongs to it stay out: they judge photographs. Where half-precision files are all there
    is (`*.fp16.safetensors`), these are opened. Raises UserError with the remedies when it is missing, gated, or not in
    that format.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):  # what goes wrong is raised below
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
    name = str(model)
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise UserError(f"{name} is no Stable Diffusion directory: model_index.json is missing")
    source, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    failures = []
    for variant in (None, "fp16"):
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                source, revision=revision or None, variant=variant, safety_checker=None, requires_safety_checker=False,
                feature_extractor=None, image_encoder=None, dtype=torch.float32, use_safetensors=True,
            )  # fmt: skip
            break
        except (OSError, ValueError, KeyError, TypeError) as error:
            failures.append(str(error).strip().partition("\n")[0] or type(error).__name__)
    else:
        raise UserError(
            f"the model {name!r} cannot be opened: {failures[0]}\n"
            "  remedies: set finetune.base_model to a local directory in Stable Diffusion format with weights in "
            "*.safetensors\n  (pretrained/base is in the repository), or, for a private or gated model of the hub, log "
            "in first with `hf auth login`"
        )
    unet = pipe.unet.config
    if unet.in_channels != pipe.vae.config.latent_channels or unet.addition_embed_type is not None:
        raise UserError(
            f"the UNet of {name!r} wants more than latents and a prompt, as that of an inpainting model or of Stable "
            "Diffusion XL does; choose a finetune.base_model in the format of Stable Diffusion 1 or 2"
        )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.requires_grad_(False).eval()
    pipe.to(device, torch.float32)  # a text encoder would keep the precision of its file
    autoencoder.quicker(pipe.vae)
    return pipe


@torch.no_grad()
def embed(pipe, texts: Sequence[str]) -> torch.Tensor:
    """Text states (len(texts), L, D) float32."""
    return pipe.text_encoder(tokens(pipe, texts).to(pipe.text_encoder.device))[0].float()


def tokens(pipe, texts: Sequence[str]) -> torch.Tensor:
    """Token ids (len(texts), L), padded and cut to the length of the text encoder."""
    length = pipe.tokenizer.model_max_length
    return pipe.tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def mark_labels(pipe, labels: Sequence[str]) -> None:
    """Say in the UNet's config, which diffusers writes and reads and ignores, which words of prompts are labels."""
    pipe.unet.register_to_config(labels=sorted(set(labels) - {"", "unknown"}))


def labels(pipe) -> Sequence[str]:
    """Words of prompts that are labels, of a pipeline that was fine-tuned here; of others, none."""
    return pipe.unet.config.get("labels") or ()


def scaled(pipe, latents: torch.Tensor) -> torch.Tensor:
    """Latents as they come from the encoder -> as the UNet knows them."""
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    return (latents - shift) * pipe.vae.config.scaling_factor


def new_scheduler(pipe, name: str):
    """The sampler `name` on the noise schedule and prediction type that the checkpoint was trained with."""
    import diffusers

    cls, settings = sampling.SCHEDULERS[name]
    return getattr(diffusers, cls).from_config(pipe.scheduler.config, **settings)


def image_size(pipe) -> int:
    """px that the pipeline draws unless told otherwise."""
    return pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@torch.no_grad()
def draw(
    pipe,
    texts: Sequence[str],
    seeds: Sequence[int],
    p: sampling.Sample,
    *,
    size: int,
    precision: Precision = "fp32",
    progress: Callable = lambda batches, total: batches,
) -> np.ndarray:
    """uint8 (N, P, size, size): the image, and where the autoencoder draws masks, that of its lesions, 255 inside.

    Each image has a generator of its own, and every batch the same shape (the last is filled up), so that neither N nor
    the company in its batch changes an image; several processes draw the same batches, each some of them. Guidance
    above 1 asks the UNet twice, in one batch of double size, unless it changes nothing (see `sampling.guidance`). It is
    against the prompt without its label, or an empty one where that is none of `labels`.
    """
    scheduler = new_scheduler(pipe, p.scheduler)
    sampling.set_steps(scheduler, p.steps)
    pipe.unet.to(memory_format=torch.channels_last)
    device, masked, known = pipe.unet.device, autoencoder.draws_masks(pipe.vae), labels(pipe)

    def one(start: int) -> np.ndarray:
        rows = [min(start + k, len(seeds) - 1) for k in range(p.batch_size)]
        with autocast(device, precision):
            decoded = pipe(
                prompt=[texts[i] for i in rows],
                negative_prompt=[sampling.unlabelled(texts[i], known) for i in rows],
                generator=[streams.of_image(int(seeds[i])) for i in rows],
                num_inference_steps=p.steps,
                guidance_scale=sampling.guidance(texts, p.guidance_scale),
                height=size,
                width=size,
                output_type="pt",
            ).images
        if not torch.isfinite(decoded).all():
            raise UserError("the model draws values that are not finite; train it again with a lower learning rate")
        return autoencoder.to_planes(decoded, masked)[: len(seeds) - start]

    own, pipe.scheduler = pipe.scheduler, scheduler
    try:
        return np.concatenate(distributed.map_items(one, range(0, len(seeds), p.batch_size), progress))
    finally:  # also where the images are not finite, or the one who asked has gone: a server draws again
        pipe.scheduler = own


@torch.no_grad()
def denoising_errors(
    pipe, images: np.ndarray, texts: Sequence[str], timesteps: Sequence[int], *, seed: int, batch_size: int,
    precision: Precision = "fp32",
) -> np.ndarray:  # fmt: skip
    """Of the UNet and in latents: see `Generator`."""
    denoising_loss.check_timesteps(timesteps, pipe.scheduler)
    device, out = pipe.unet.device, []
    pipe.unet.to(memory_format=torch.channels_last)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        mean, _ = autoencoder.encode(pipe.vae, images[rows], batch_size=batch_size, precision=precision)
        x0, states = scaled(pipe, torch.from_numpy(mean)).to(device), embed(pipe, texts[rows])
        with autocast(device, precision):
            out.append(
                denoising_loss.errors_at(pipe.unet, x0, timesteps, pipe.scheduler, seed, encoder_hidden_states=states)
            )
    return np.concatenate(out)


class LatentDiffusion(Generator):
    """A pipeline as one of the models that are compared."""

    prompted = True
    settings = ("n", "seed", "batch_size", "steps", "guidance_scale", "scheduler")

    def __init__(self, pipe):
        self.pipe = pipe

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Self:
        return cls(load(folder, device=device))

    def sample(self, seeds: Sequence[int], p: sampling.Sample, **how) -> np.ndarray:
        return self.sample_with_masks(seeds, p, **how)[:, 0]

    def sample_with_masks(self, seeds: Sequence[int], p: sampling.Sample, *, texts=(), size=None, **how) -> np.ndarray:
        return draw(self.pipe, texts, seeds, p, size=size or image_size(self.pipe), **how)

    def reconstruct(self, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
        return autoencoder.reconstruct(self.pipe.vae, images, batch_size=batch_size, precision=precision)

    def denoising_errors(self, images, texts, timesteps, *, seed, batch_size, precision: Precision = "fp32"):
        return denoising_errors(
            self.pipe, images, texts, timesteps, seed=seed, batch_size=batch_size, precision=precision
        )
