"""The latent diffusion model: any pipeline in Stable Diffusion format, fine-tuned and sampled from.

Scheduler, prediction type, betas and latent scaling are read from the checkpoint, never assumed.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from synthmri import autoencoder, diffusion, sampling, training
from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section


class Finetune(Section):
    """Section `finetune`."""

    base_model: str = Field(min_length=1)
    base_revision: str
    autoencoder: Literal["none", "decoder", "full"]
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
    snapshot: Callable[[int], None] = lambda epoch: None,
) -> tuple[list[tuple[int, float, float]], int]:
    """Train the UNet of `pipe` (and by p.train_text_encoder its text encoder) in place; it ends with averaged weights.

    mean, std: (N, V, 4, h, w) unscaled posterior of V views of each image (itself, mirrored); texts: N prompts;
    token: a token of theirs that the tokenizer is to learn, or "".
    Written to `checkpoint` after every epoch; a run that was killed goes on from there to the same result. Before the
    first epoch and after each, `snapshot(epochs done)` is called while `pipe` holds the averaged weights.
    Returns (step, loss, learning rate) of every step, and the floating-point operations of the whole (those of one
    step, counted by torch, times the steps). Raises UserError when the loss stops being finite.
    """
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
    from torch.utils.flop_counter import FlopCounterMode

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
    operations = 0
    if state := training.load_checkpoint(checkpoint):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        for shadow, saved in zip(ema.shadow_params, state["ema"], strict=True):
            shadow.copy_(saved)
        history = [tuple(entry) for entry in state["history"]]
        ema.optimization_step, operations = len(history), state["operations"]
    else:
        snapshot(0)
    for epoch in range(len(history) // per_epoch, p.epochs):
        order = torch.randperm(count, generator=training.step_generator(p.seed, epoch))
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            # All that is random about a step comes from its number, so a resumed run is the run that was not stopped.
            generator = training.step_generator(p.seed + 1, step)
            rows = order[i * p.batch_size : (i + 1) * p.batch_size]
            view = torch.randint(views, (len(rows),), generator=generator)
            z = mean[rows, view] + std[rows, view] * torch.randn(std[rows, view].shape, generator=generator)
            x0 = ((z - shift) * scale).to(accelerator.device)
            empty = torch.rand(len(rows), generator=generator) < p.empty_prompt
            which = torch.where(empty, torch.tensor(known.index("")), row[rows]).to(accelerator.device)
            optimizer.zero_grad()
            with FlopCounterMode(display=False) if operations == 0 else nullcontext() as counter:
                with accelerator.autocast():
                    states = text_encoder(ids[which])[0] if cached is None else cached[which]
                    value = diffusion.loss(
                        unet, x0, pipe.scheduler, generator, min_snr=p.min_snr, encoder_hidden_states=states
                    )
                accelerator.backward(value)
            operations = operations or counter.get_total_flops()
            rate = p.learning_rate * training.warm_cosine(step, total, p.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
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
        ema.store(weights)
        ema.copy_to(weights)
        snapshot(epoch + 1)
        ema.restore(weights)
        training.save_checkpoint(
            checkpoint,
            {
                "network": network.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.shadow_params,
                "history": [list(entry) for entry in history], "operations": operations,
            },
        )  # fmt: skip
    if history:  # zero epochs leave the base as it is
        ema.copy_to(weights)
    network.requires_grad_(False).eval()
    return history, operations * total


def new_scheduler(pipe, name: str):
    """The sampler `name` on the noise schedule and prediction type that the checkpoint was trained with."""
    import diffusers

    cls = {
        "sde-dpmsolver++": diffusers.DPMSolverMultistepScheduler,
        "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
        "ddim": diffusers.DDIMScheduler,
        "ddpm": diffusers.DDPMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
    }[name]
    extra = {"algorithm_type": name, "solver_order": 2} if name.endswith("dpmsolver++") else {}
    if name in ("ddim", "ddpm"):
        extra["clip_sample"] = False  # latents are not confined to [-1, 1]
    return cls.from_config(pipe.scheduler.config, **extra)


@torch.no_grad()
def sample(
    pipe,
    texts: Sequence[str],
    seeds: Sequence[int],
    p: sampling.Sample,
    *,
    size: int,
    progress: Callable = lambda batches, total: batches,
) -> np.ndarray:
    """uint8 (N, size, size): image i from texts[i] and seeds[i] alone.

    Each image has a generator of its own, and every batch the same shape (the last is filled up), so that neither N nor
    the company in its batch changes an image.
    """
    own, pipe.scheduler = pipe.scheduler, new_scheduler(pipe, p.scheduler)
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
    pipe.scheduler = own
    return out


def reconstruct(pipe, images: np.ndarray, *, batch: int) -> np.ndarray:
    """uint8 (N, S, S) -> uint8 (N, S, S): each image through the autoencoder of the pipeline and back.

    In bfloat16: half the time on a CPU, and 0.003 dB of PSNR from float32 on held-out slices.
    """
    return autoencoder.reconstruct(pipe.vae, images, batch=batch, bf16=True)


@torch.no_grad()
def denoising_errors(
    pipe, images: np.ndarray, texts: Sequence[str], timesteps: Sequence[int], *, seed: int, batch: int
) -> np.ndarray:
    """uint8 (N, H, W) and their prompts -> float64 (N, T): the error of the UNet at each timestep, the noise the same.

    Raises UserError for a timestep that the noise schedule of the checkpoint does not have.
    """
    diffusion.check_timesteps(timesteps, pipe.scheduler)
    device, out = pipe.unet.device, []
    pipe.unet.to(memory_format=torch.channels_last)
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    for start in range(0, len(images), batch):
        mean, _ = autoencoder.encode(pipe.vae, images[start : start + batch], batch=batch, bf16=True)
        x0 = ((torch.from_numpy(mean) - shift) * pipe.vae.config.scaling_factor).to(device)
        states = embed(pipe, texts[start : start + batch])
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out.append(
                diffusion.errors_at(pipe.unet, x0, timesteps, pipe.scheduler, seed, encoder_hidden_states=states)
            )
    return np.concatenate(out)
