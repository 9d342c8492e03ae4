"""The latent diffusion model: any pipeline in Stable Diffusion format, fine-tuned and sampled from.

Scheduler, prediction type, betas and latent scaling are read from the checkpoint, never assumed.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators import autoencoder
from synthmri.generators.base import Generator
from synthmri.params import Section
from synthmri.training import denoising_loss, distributed, loop, sampling
from synthmri.training.precision import Precision, autocast
from synthmri.training.snapshots import Verdict


class Lora(Section):
    """Section `finetune.lora`."""

    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=1024)
    targets: tuple[str, ...] = Field(min_length=1)


MAX_GRAD_NORM = 1.0


class Finetune(Section):
    """Section `finetune`."""

    base_model: str = Field(min_length=1)
    method: Literal["full", "lora"]
    lora: Lora
    autoencoder: Literal["none", "decoder", "full"]
    epochs: int = Field(ge=0, le=10_000)
    batch_size: int = Field(ge=1, le=4096)
    learning_rate: float = Field(gt=0, le=0.01)
    snr_gamma: float = Field(ge=0, le=100)
    ema_decay: float = Field(ge=0, lt=1)
    cond_drop_prob: float = Field(ge=0, lt=1)
    patience: int = Field(ge=0, le=1000)
    compile: bool
    train_text_encoder: bool


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
    seed: int,
    checkpoint: Path,
    token: str = "",
    emphasis: Callable | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    tick: loop.Tick = lambda step, loss, rate: None,
    snapshot: Callable[[int], Verdict | None] = lambda epoch: None,
) -> tuple[list[tuple[int, float, float]], int]:
    """Train the UNet of `pipe` (and by p.train_text_encoder its text encoder) in place; it ends with averaged weights.

    Those of the end, or, where `snapshot` gives verdicts, the best of those that it saw; by them it may stop early.

    With p.method "lora" only low-rank adapters of them are trained (Hu 2021, arXiv 2106.09685); `fuse` then adds these
    to the weights.

    mean, std: (N, V, 4, h, w) unscaled posterior of V views of each image (itself, mirrored); texts: N prompts, whose
    labels are those of `mark_labels`; token: a token of theirs that the tokenizer is to learn, or ""; emphasis: by
    `masks.emphasis`, where the loss counts more.
    With p.compile the UNet runs through torch.compile, save in the first step: the same to the rounding of sums.
    Written to `checkpoint` after every epoch; a run that was killed goes on from there to the same result. Before the
    first epoch and after each, `snapshot(epochs done)` is called while `pipe` holds the averaged weights.
    Of several processes (see `parallel`) each takes its share of every batch, and all end with the same weights.
    Returns (step, loss, learning rate) of every step, and the floating-point operations of all of them (those of one,
    counted by torch, times their number). Raises UserError when the loss stops being finite, and where p.compile
    finds no C++ compiler.
    """
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    _check(pipe, p, token)

    # What learns: the UNet, or adapters of it; in which format; and the average that is kept.
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device == "cpu")
    if token:
        add_token(pipe, token)
    pipe.unet.to(memory_format=torch.channels_last)
    trained = [pipe.unet] + ([pipe.text_encoder] if p.train_text_encoder else [])
    network = torch.nn.ModuleList(trained)
    if p.method == "lora":
        _add_adapters(trained, p, seed)
    else:
        network.requires_grad_(True)
    network.train()
    named = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    weights = list(named.values())
    optimizer = torch.optim.AdamW(weights, lr=p.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    # Prepared as for evaluation: accelerate then leaves gradients alone, of which shares may differ in weight.
    plain, optimizer = accelerator.prepare_model(pipe.unet, evaluation_mode=True), accelerator.prepare(optimizer)
    compiled = torch.compile(plain) if p.compile else plain
    text_encoder = pipe.text_encoder
    if p.train_text_encoder:
        text_encoder = accelerator.prepare_model(text_encoder, evaluation_mode=True)
    ema = EMAModel(weights, decay=p.ema_decay, use_ema_warmup=True, power=0.75)

    # What it learns from: latents as the UNet knows them, and the states of every prompt there is.
    mean, std = _scaled(pipe, torch.from_numpy(mean)), torch.from_numpy(std) * pipe.vae.config.scaling_factor
    count, views = mean.shape[:2]
    bare = [sampling.unlabelled(text, labels(pipe)) for text in texts]
    known = sorted({*texts, *bare})
    row, bare_row = (torch.tensor([known.index(text) for text in each]) for each in (texts, bare))
    ids = tokens(pipe, known).to(accelerator.device)
    cached = None if p.train_text_encoder else embed(pipe, known).to(accelerator.device)
    per_epoch = -(-count // p.batch_size)
    total = p.epochs * per_epoch

    # Where it goes on from.
    history: list[tuple[int, float, float]] = []
    operations, best, stopped = loop.Operations(), [], False
    if state := loop.load_checkpoint(checkpoint):
        with torch.no_grad():
            for name, weight in named.items():
                weight.copy_(state["network"][name])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None:  # fp16
            accelerator.scaler.load_state_dict(state["scaler"])
        for shadow, saved in zip(ema.shadow_params, state["ema"], strict=True):
            shadow.copy_(saved)
        history = [tuple(entry) for entry in state["history"]]
        ema.optimization_step = len(history)
        operations.load_state_dict(state["operations"])
        best, stopped = state["best"], state["stopped"]
    elif (verdict := snapshot(0)) and verdict.best:
        best = [weight.detach().clone() for weight in weights]

    def backward(unet, x0, which, places, generator, share) -> torch.Tensor:
        with accelerator.autocast():
            states = text_encoder(ids[which])[0] if cached is None else cached[which]
            value = denoising_loss.loss(
                unet, x0, pipe.scheduler, generator, snr_gamma=p.snr_gamma, share=share, emphasis=places,
                encoder_hidden_states=states,
            )  # fmt: skip
        accelerator.backward(value)
        return value

    for epoch in range(len(history) // per_epoch, p.epochs):
        if stopped:
            break
        order = torch.randperm(count, generator=streams.generator(seed, "finetune", "order", epoch))
        for i in range(per_epoch):
            # A batch: one view of each of its slices, drawn from the posterior, and its prompt, or that without label.
            step = epoch * per_epoch + i
            generator = streams.generator(seed, "finetune", "step", step)
            rows = order[i * p.batch_size : (i + 1) * p.batch_size]
            share = distributed.share(len(rows))
            view = torch.randint(views, (len(rows),), generator=generator)
            x0 = mean[rows, view] + std[rows, view] * torch.randn(std[rows, view].shape, generator=generator)
            x0 = x0[share.rows].to(accelerator.device)
            dropped = torch.rand(len(rows), generator=generator) < p.cond_drop_prob
            which = torch.where(dropped, bare_row[rows], row[rows])[share.rows].to(accelerator.device)
            places = emphasis(rows, view, generator)[share.rows].to(accelerator.device) if emphasis else None

            # A step down its gradient. Operations are counted as they are called, which compiled ones are not.
            optimizer.zero_grad()
            unet = compiled if operations.total else plain
            value = operations.run(partial(backward, unet, x0, which, places, generator, share))
            distributed.sum_gradients(weights)
            rate = p.learning_rate * loop.warm_cosine(step, total, max(1, total // 10))
            loop.set_rate(optimizer, rate)
            accelerator.clip_grad_norm_(weights, MAX_GRAD_NORM)
            optimizer.step()
            ema.step(weights)
            loss = distributed.total(value.item())
            if not np.isfinite(loss):
                raise UserError(
                    f"fine-tuning diverged: the loss of step {step} is {loss}; lower finetune.learning_rate "
                    f"(now {p.learning_rate}) or set runtime.precision to fp32"
                )
            history.append((step, loss, rate))
            tick(step, loss, rate)

        # A look at the averaged weights, and a place to go on from.
        ema.store(weights)
        ema.copy_to(weights)
        if verdict := snapshot(epoch + 1):
            best = [weight.detach().clone() for weight in weights] if verdict.best else best
            stopped = verdict.stop
        ema.restore(weights)
        loop.save_checkpoint(
            checkpoint,
            {
                "network": {name: weight.detach() for name, weight in named.items()},
                "optimizer": optimizer.state_dict(), "ema": ema.shadow_params,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                "history": [list(entry) for entry in history], "operations": operations.state_dict(),
                "best": best, "stopped": stopped,
            },
        )  # fmt: skip
    if history:  # zero epochs leave the base as it is
        ema.copy_to(weights)
    with torch.no_grad():
        for weight, kept in zip(weights, best, strict=False):  # none where there were no verdicts
            weight.copy_(kept)
    network.requires_grad_(False).eval()
    return history, operations.total


def _check(pipe, p: Finetune, token: str) -> None:
    """Raise UserError for what cannot be trained, before anything is."""
    if token and not p.train_text_encoder:
        raise UserError(
            f"prompt.token = {token}: a new token learns nothing while finetune.train_text_encoder is false; "
            "set that to true, or prompt.token to ''"
        )
    if token and p.method == "lora":
        raise UserError(
            f"prompt.token = {token}: adapters have no room for a new token; set finetune.method to full, or "
            "prompt.token to ''"
        )
    if (kind := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise UserError(
            f"the base model predicts {kind!r}, of which no loss is known here; choose a finetune.base_model that "
            "predicts epsilon or v_prediction"
        )
    if p.compile:
        loop.check_compiler("finetune.compile")


def _scaled(pipe, latents: torch.Tensor) -> torch.Tensor:
    """Latents as they come from the encoder -> as the UNet knows them."""
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    return (latents - shift) * pipe.vae.config.scaling_factor


TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # the attention of a CLIP text encoder


def _add_adapters(parts: list, p: Finetune, seed: int) -> None:
    """Low-rank adapters that change nothing yet on the UNet and, where it is among `parts`, the text encoder."""
    from peft import LoraConfig

    for part, targets in zip(parts, (p.lora.targets, TEXT_TARGETS), strict=False):
        config = LoraConfig(r=p.lora.rank, lora_alpha=p.lora.alpha, target_modules=list(targets))
        try:
            with streams.weights(seed, "finetune", "adapters"):  # one half of each starts at random
                part.add_adapter(config)
        except ValueError as error:
            layers = [name for name, m in part.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
            known = sorted({re.search(r"[^.]+(\.\d+)?$", name)[0] for name in layers})
            raise UserError(
                f"finetune.lora.targets = {list(targets)} cannot be adapted: {error}\n"
                f"  the layers of this network are {', '.join(known)}"
            ) from None


def fuse(pipe) -> dict[str, dict[str, torch.Tensor]]:
    """Add the adapters of `finetune` to the weights: `pipe` then is a plain pipeline that draws the same.

    Returns the adapters of "unet" and, where it has any, "text_encoder", as diffusers' `save_lora_weights` takes them.
    Their scale alpha / rank is multiplied in: that format's default is 1.
    """
    from peft.utils import get_peft_model_state_dict

    adapters = {}
    for name in ("unet", "text_encoder"):
        part = getattr(pipe, name)
        if not getattr(part, "peft_config", None):
            continue
        config = part.peft_config["default"]
        scale = config.lora_alpha / config.r
        state = get_peft_model_state_dict(part, adapter_name="default")
        adapters[name] = {
            key: (value * scale if "lora_B" in key else value).contiguous() for key, value in state.items()
        }
    pipe.fuse_lora(components=list(adapters))
    pipe.unload_lora_weights()
    return adapters


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
    # Trailing steps begin where training's noise ends (Lin 2024, arXiv 2305.08891); the leading ones of Stable
    # Diffusion's configuration stop short of it, and run past it when all 1000 are asked for.
    extra = {"timestep_spacing": "trailing"}
    if name.endswith("dpmsolver++"):
        extra |= {"algorithm_type": name, "solver_order": 2}
    if name in ("ddim", "ddpm"):
        extra["clip_sample"] = False  # latents are not confined to [-1, 1]
    return cls.from_config(pipe.scheduler.config, **extra)


def image_size(pipe) -> int:
    """px that the pipeline draws unless told otherwise."""
    return pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@torch.no_grad()
def sample(
    pipe,
    texts: Sequence[str],
    seeds: Sequence[int],
    p: sampling.Sample,
    *,
    size: int,
    precision: Precision = "fp32",
    progress: Callable = lambda batches, total: batches,
) -> np.ndarray:
    """uint8 (N, size, size): image i from texts[i] and seeds[i] alone; see `draw`."""
    return draw(pipe, texts, seeds, p, size=size, precision=precision, progress=progress)[:, 0]


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
                generator=[torch.Generator().manual_seed(int(seeds[i])) for i in rows],
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
        return np.concatenate(distributed.spread(one, range(0, len(seeds), p.batch_size), progress))
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
        x0, states = _scaled(pipe, torch.from_numpy(mean)).to(device), embed(pipe, texts[rows])
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

    def sample(
        self, seeds: Sequence[int], p: sampling.Sample, *, texts=(), size=None, precision: Precision = "fp32",
        progress: Callable = lambda batches, total: batches,
    ) -> np.ndarray:  # fmt: skip
        return self.sample_with_masks(seeds, p, texts=texts, size=size, precision=precision, progress=progress)[:, 0]

    def sample_with_masks(
        self, seeds: Sequence[int], p: sampling.Sample, *, texts=(), size=None, precision: Precision = "fp32",
        progress: Callable = lambda batches, total: batches,
    ) -> np.ndarray:  # fmt: skip
        size = size or image_size(self.pipe)
        return draw(self.pipe, texts, seeds, p, size=size, precision=precision, progress=progress)

    def reconstruct(self, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
        return autoencoder.reconstruct(self.pipe.vae, images, batch_size=batch_size, precision=precision)

    def denoising_errors(self, images, texts, timesteps, *, seed, batch_size, precision: Precision = "fp32"):
        return denoising_errors(
            self.pipe, images, texts, timesteps, seed=seed, batch_size=batch_size, precision=precision
        )
