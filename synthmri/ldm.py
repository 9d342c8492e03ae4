"""The latent diffusion model: any pipeline in Stable Diffusion format, encoded with, fine-tuned and sampled from.

Scheduler, prediction type, betas and latent scaling are read from the checkpoint, never assumed.
"""

import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator

from synthmri import diffusion
from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section

PROMPT_FIELDS = ("contrast", "plane", "level", "label", "token")


class Prompt(Section):
    """Section `prompt`: the words that name a slice, in training and in sampling."""

    template: str
    token: str = Field(pattern=r"^(<[a-z0-9-]{1,30}>)?$")

    @field_validator("template")
    @classmethod
    def _fields(cls, value: str) -> str:
        check_template(value)
        return value


class Encode(Section):
    """Section `encode`."""

    batch_size: int = Field(ge=1, le=1024)
    flip: bool
    bf16: bool


class Finetune(Section):
    """Section `finetune`."""

    base_model: str = Field(min_length=1)
    base_revision: str
    seed: int = Field(ge=0)
    epochs: int = Field(ge=0, le=10_000)
    batch_size: int = Field(ge=1, le=4096)
    learning_rate: float = Field(gt=0, le=0.01)
    warmup_steps: int = Field(ge=1)
    min_snr: float = Field(ge=0, le=100)
    gradient_clip: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)
    empty_prompt: float = Field(ge=0, lt=1)
    precision: Literal["no", "bf16", "fp16"]
    train_text_encoder: bool


class Sample(Section):
    """Section `sample`."""

    n: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)
    steps: int = Field(ge=1, le=1000)
    guidance: float = Field(ge=0, le=50)
    scheduler: Literal["dpmsolver++", "ddim", "ddpm", "euler"]
    batch_size: int = Field(ge=1, le=1024)
    bf16: bool
    channels: Literal[1, 3]


def check_template(template: str) -> None:
    """Raise ValueError unless every {field} of a prompt template is one of PROMPT_FIELDS."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template ({error}); write fields as {{contrast}}") from None
    for name in names:
        if name not in PROMPT_FIELDS:
            raise ValueError(
                f"{{{name}}} is no field of a prompt; use {', '.join('{' + f + '}' for f in PROMPT_FIELDS)}"
            )


def prompts(manifest: pd.DataFrame, p: Prompt) -> list[str]:
    """One prompt a row of a manifest; a part between commas whose field is empty is left out.

    `level` is the slice's depth in whole centimetres below the vertex.
    """
    out = []
    for row in manifest.to_dict("records"):
        depth = row.get("depth_mm", "")
        level = str(round(float(depth) / 10)) if depth else ""
        fields = {"token": p.token, "level": level} | {key: row.get(key, "") for key in ("contrast", "plane", "label")}
        fields = {key: "" if value == "unknown" else value for key, value in fields.items()}
        parts = []
        for part in p.template.split(","):
            names = [name for _, name, _, _ in string.Formatter().parse(part) if name]
            if len(parts) == 0 or all(fields[name] for name in names):
                parts.append(" ".join(part.format(**fields).split()))
        out.append(", ".join(part for part in parts if part))
    return out


def load(model: str | Path, *, revision: str = "", device: str = "cpu"):
    """Open a StableDiffusionPipeline in float32 from a directory or a hub id; safetensors only, never a pickle.

    Raises UserError with the remedies when it is missing, gated, or not in that format.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):  # what goes wrong is raised below
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    name = str(model)
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise UserError(f"{name} is no Stable Diffusion directory: model_index.json is missing")
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            name, revision=revision or None, safety_checker=None, requires_safety_checker=False,
            dtype=torch.float32, use_safetensors=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the model {name!r} cannot be opened: {reason}\n"
            "  remedies: set finetune.base_model to a local directory in Stable Diffusion format (pretrained/base is "
            "in the repository),\n  or, for a private or gated model of the hub, log in first with `hf auth login`"
        ) from None
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe.to(device)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W) -> float32 (B, 3, H, W) in [-1, 1], what an autoencoder of this format takes."""
    x = torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1
    return x[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def to_grey(decoded: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) about [-1, 1] -> uint8 (B, H, W): the channels' mean, through the project's one quantisation."""
    return to_uint8((decoded.float().mean(dim=1) / 2 + 0.5).cpu().numpy())


@torch.no_grad()
def encode(vae, images: np.ndarray, *, batch: int, bf16: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of uint8 (N, H, W) -> two float32 (N, 4, h, w), unscaled.

    Never one sample of it: that would bake its noise into every epoch. A deterministic autoencoder has deviation 0.
    """
    means, deviations = [], []
    device = next(vae.parameters()).device
    for start in range(0, len(images), batch):
        x = to_tensor(images[start : start + batch]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out = vae.encode(x)
        if hasattr(out, "latent_dist"):
            mean, deviation = out.latent_dist.mean, out.latent_dist.std
        else:
            mean, deviation = out.latents, torch.zeros_like(out.latents)
        means.append(mean.float().cpu().numpy())
        deviations.append(deviation.float().cpu().numpy())
    return np.concatenate(means), np.concatenate(deviations)


@torch.no_grad()
def reconstruct(
    model_dir: Path, images: np.ndarray, *, batch: int, device: str = "cpu", bf16: bool = False
) -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, H, W): each image through the autoencoder of a pipeline and back."""
    vae = load(model_dir, device=device).vae
    out = []
    for start in range(0, len(images), batch):
        mean, _ = encode(vae, images[start : start + batch], batch=batch, bf16=bf16)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16, enabled=bf16):
            out.append(to_grey(vae.decode(torch.from_numpy(mean).to(vae.device)).sample))
    return np.concatenate(out)


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


def add_token(pipe, token: str, like: str = "mri") -> None:
    """Add `token` to tokenizer and text encoder, initialised from the mean of the tokens of `like`."""
    source = pipe.tokenizer(like, add_special_tokens=False).input_ids
    if pipe.tokenizer.add_tokens([token]):
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[pipe.tokenizer.convert_tokens_to_ids(token)] = table[source].mean(0)


def finetune(
    pipe,
    mean: np.ndarray,
    std: np.ndarray,
    texts: Sequence[str],
    p: Finetune,
    *,
    checkpoint: Path,
    token: str = "",
    device: str = "cpu",
    tick: Callable[[int, float], None] = lambda step, loss: None,
) -> list[tuple[int, float, float]]:
    """Train the UNet of `pipe` (and by p.train_text_encoder its text encoder) in place; it ends with averaged weights.

    mean, std: (N, V, 4, h, w) unscaled posterior of V views of each image (itself, mirrored); texts: N prompts;
    token: a token of theirs that the tokenizer is to learn, or "".
    Written to `checkpoint` after every epoch; a run that was killed goes on from there to the same result.
    Returns (step, loss, learning rate) of every step. Raises UserError when the loss stops being finite.
    """
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    if token and not p.train_text_encoder:
        raise UserError(
            f"prompt.token = {token}: a new token learns nothing while finetune.train_text_encoder is false; "
            "set that to true, or prompt.token to ''"
        )
    accelerator = Accelerator(mixed_precision=p.precision, cpu=device == "cpu")
    if token:
        add_token(pipe, token)
    pipe.unet.to(memory_format=torch.channels_last)
    trained = [pipe.unet] + ([pipe.text_encoder] if p.train_text_encoder else [])
    network = torch.nn.ModuleList(trained)
    network.requires_grad_(True).train()
    weights = [w for w in network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=p.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    unet, optimizer = accelerator.prepare(pipe.unet, optimizer)
    text_encoder = accelerator.prepare(pipe.text_encoder) if p.train_text_encoder else pipe.text_encoder
    ema = EMAModel(weights, decay=p.ema_decay, use_ema_warmup=True, power=0.75)
    scale = pipe.vae.config.scaling_factor
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0

    known = sorted({*texts, ""})
    row = torch.tensor([known.index(text) for text in texts])
    ids = tokens(pipe, known).to(accelerator.device)
    cached = None if p.train_text_encoder else embed(pipe, known).to(accelerator.device)
    mean, std = torch.from_numpy(mean), torch.from_numpy(std)
    count, views = mean.shape[:2]
    per_epoch = -(-count // p.batch_size)
    total = p.epochs * per_epoch

    history: list[tuple[int, float, float]] = []
    if state := diffusion.load_checkpoint(checkpoint):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        for shadow, saved in zip(ema.shadow_params, state["ema"], strict=True):
            shadow.copy_(saved)
        history = [tuple(entry) for entry in state["history"]]
        ema.optimization_step = len(history)
    for epoch in range(len(history) // per_epoch, p.epochs):
        order = torch.randperm(count, generator=diffusion.step_generator(p.seed, epoch))
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            # All that is random about a step comes from its number, so a resumed run is the run that was not stopped.
            generator = diffusion.step_generator(p.seed + 1, step)
            rows = order[i * p.batch_size : (i + 1) * p.batch_size]
            view = torch.randint(views, (len(rows),), generator=generator)
            z = mean[rows, view] + std[rows, view] * torch.randn(std[rows, view].shape, generator=generator)
            x0 = ((z - shift) * scale).to(accelerator.device)
            empty = torch.rand(len(rows), generator=generator) < p.empty_prompt
            which = torch.where(empty, torch.tensor(known.index("")), row[rows]).to(accelerator.device)
            with accelerator.autocast():
                states = text_encoder(ids[which])[0] if cached is None else cached[which]
                value = diffusion.loss(
                    unet, x0, pipe.scheduler, generator, min_snr=p.min_snr, encoder_hidden_states=states
                )
            rate = p.learning_rate * diffusion.warm_cosine(step, total, p.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            accelerator.backward(value)
            accelerator.clip_grad_norm_(weights, p.gradient_clip)
            optimizer.step()
            ema.step(weights)
            loss = value.item()
            if not np.isfinite(loss):
                raise UserError(
                    f"fine-tuning diverged: the loss of step {step} is {loss}; lower finetune.learning_rate "
                    f"(now {p.learning_rate}) or set finetune.precision to 'no'"
                )
            history.append((step, loss, rate))
            tick(step, loss)
        diffusion.save_checkpoint(
            checkpoint,
            {
                "network": network.state_dict(), "optimizer": optimizer.state_dict(),
                "ema": ema.shadow_params, "history": [list(entry) for entry in history],
            },
        )  # fmt: skip
    if history:  # zero epochs leave the base as it is
        ema.copy_to(weights)
    network.requires_grad_(False).eval()
    return history


def new_scheduler(pipe, name: str):
    """The sampler `name` on the noise schedule and prediction type that the checkpoint was trained with."""
    import diffusers

    cls = {
        "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
        "ddim": diffusers.DDIMScheduler,
        "ddpm": diffusers.DDPMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    }[name]
    extra = {"algorithm_type": "dpmsolver++", "solver_order": 2} if name == "dpmsolver++" else {}
    if name in ("ddim", "ddpm"):
        extra["clip_sample"] = False  # latents are not confined to [-1, 1]
    return cls.from_config(pipe.scheduler.config, **extra)


@torch.no_grad()
def sample(
    pipe,
    texts: Sequence[str],
    seeds: Sequence[int],
    p: Sample,
    *,
    size: int,
    progress: Callable = lambda batches, total: batches,
) -> np.ndarray:
    """uint8 (N, size, size): image i from texts[i] and seeds[i] alone.

    Each image has a generator of its own, and every batch the same shape (the last is filled up), so that neither N nor
    the company in its batch changes an image.
    """
    pipe.scheduler = new_scheduler(pipe, p.scheduler)
    pipe.unet.to(memory_format=torch.channels_last)
    out = np.empty((len(seeds), size, size), np.uint8)
    starts = range(0, len(seeds), p.batch_size)
    device = pipe.unet.device
    for start in progress(starts, len(starts)):
        rows = [min(start + k, len(seeds) - 1) for k in range(p.batch_size)]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=p.bf16):
            decoded = pipe(
                prompt=[texts[i] for i in rows],
                generator=[torch.Generator().manual_seed(int(seeds[i])) for i in rows],
                num_inference_steps=p.steps,
                guidance_scale=p.guidance,
                height=size,
                width=size,
                output_type="pt",
            ).images
        if not torch.isfinite(decoded).all():
            raise UserError("the model draws values that are not finite; train it again with a lower learning rate")
        grey = to_uint8(decoded.float().mean(dim=1).cpu().numpy())
        out[start : start + p.batch_size] = grey[: len(seeds) - start]
    return out
