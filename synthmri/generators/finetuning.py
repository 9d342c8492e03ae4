"""Fine-tuning a pipeline in Stable Diffusion format: all weights of its UNet, or low-rank adapters of them."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators import latent_diffusion
from synthmri.params import Section
from synthmri.training import denoising_loss, distributed, loop, sampling
from synthmri.training.precision import Precision
from synthmri.training.snapshots import Verdict

MAX_GRAD_NORM = 1.0
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # the attention of a CLIP text encoder


class Lora(Section):
    """Section `finetune.lora`."""

    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, le=1024)
    targets: tuple[str, ...] = Field(min_length=1)


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


class Lessons(NamedTuple):
    """What a pipeline learns from: N slices, as `encode` and `prompts` leave them.

    mean, std: float32 (N, V, 4, h, w), the unscaled posterior of V views of each (itself, mirrored, ...); texts: N
    prompts, whose labels are those of `latent_diffusion.mark_labels`; emphasis: by `masks.emphasis`, where the loss
    counts more.
    """

    mean: np.ndarray
    std: np.ndarray
    texts: Sequence[str]
    emphasis: Callable | None = None


class Batch(NamedTuple):
    """One step's part of this process, and the random numbers that are left for its loss."""

    x0: torch.Tensor  # (B, 4, h, w), scaled as the UNet knows latents
    which: torch.Tensor  # (B,), of the known prompts
    places: torch.Tensor | None  # (B, 1, h, w), what the error in each place counts
    share: distributed.Share
    generator: torch.Generator


def finetune(
    pipe,
    lessons: Lessons,
    p: Finetune,
    *,
    seed: int,
    checkpoint: Path,
    token: str = "",
    device: str = "cpu",
    precision: Precision = "fp32",
    tick: loop.Tick = lambda step, loss, rate: None,
    snapshot: Callable[[int], Verdict | None] = lambda epoch: None,
) -> tuple[list[tuple[int, float, float]], int]:
    """Train the UNet of `pipe` (and by p.train_text_encoder its text encoder) in place; it ends with averaged weights.

    Those of the end, or, where `snapshot` gives verdicts, the best of those that it saw; by them it may stop early.

    With p.method "lora" only low-rank adapters of them are trained (Hu 2021, arXiv 2106.09685); `fuse` then adds these
    to the weights.

    token: a word of the prompts that the tokenizer is to learn, or "". With p.compile the UNet runs through
    torch.compile, save in the first step: the same to the rounding of sums.
    Written to `checkpoint` after every epoch; a run that was killed goes on from there to the same result. Before the
    first epoch and after each, `snapshot(epochs done)` is called while `pipe` holds the averaged weights.
    Of several processes (see `parallel`) each takes its share of every batch, and all end with the same weights.
    Returns (step, loss, learning rate) of every step, and the floating-point operations of all of them (those of one,
    counted by torch, times their number). Raises UserError when the loss stops being finite, and where p.compile
    finds no C++ compiler.
    """
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    _check(pipe, p, token, lessons.texts)

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

    # What it learns from: batches, and the states of every prompt there is.
    known, batch = _batches(pipe, lessons, p, seed, accelerator.device)
    ids = latent_diffusion.tokens(pipe, known).to(accelerator.device)
    cached = None if p.train_text_encoder else latent_diffusion.embed(pipe, known).to(accelerator.device)
    per_epoch = -(-len(lessons.texts) // p.batch_size)
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

    def backward(unet, one: Batch) -> torch.Tensor:
        with accelerator.autocast():
            states = text_encoder(ids[one.which])[0] if cached is None else cached[one.which]
            value = denoising_loss.loss(
                unet, one.x0, pipe.scheduler, one.generator, snr_gamma=p.snr_gamma, share=one.share,
                emphasis=one.places, encoder_hidden_states=states,
            )  # fmt: skip
        accelerator.backward(value)
        return value

    for epoch in range(len(history) // per_epoch, p.epochs):
        if stopped:
            break
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            # Operations are counted as they are called, which compiled ones are not.
            optimizer.zero_grad()
            unet = compiled if operations.total else plain
            value = operations.run(partial(backward, unet, batch(step)))
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


def _batches(
    pipe, lessons: Lessons, p: Finetune, seed: int, device: torch.device
) -> tuple[list[str], Callable[[int], Batch]]:
    """Every prompt there is, and a function of a step: what it learns from."""
    scale = pipe.vae.config.scaling_factor
    mean, std = latent_diffusion.scaled(pipe, torch.from_numpy(lessons.mean)), torch.from_numpy(lessons.std) * scale
    count, views = mean.shape[:2]
    per_epoch = -(-count // p.batch_size)
    bare = [sampling.unlabelled(text, latent_diffusion.labels(pipe)) for text in lessons.texts]
    known = sorted({*lessons.texts, *bare})
    row, bare_row = (torch.tensor([known.index(text) for text in texts]) for texts in (lessons.texts, bare))

    @lru_cache(maxsize=1)
    def order(epoch: int) -> torch.Tensor:
        return torch.randperm(count, generator=streams.generator(seed, "finetune", "order", epoch))

    def batch(step: int) -> Batch:
        # One view of each of its slices, drawn from the posterior, and its prompt, or that without label.
        generator = streams.generator(seed, "finetune", "step", step)
        epoch, i = divmod(step, per_epoch)
        rows = order(epoch)[i * p.batch_size : (i + 1) * p.batch_size]
        share = distributed.share(len(rows))
        view = torch.randint(views, (len(rows),), generator=generator)
        x0 = mean[rows, view] + std[rows, view] * torch.randn(std[rows, view].shape, generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < p.cond_drop_prob
        which = torch.where(dropped, bare_row[rows], row[rows])
        places = lessons.emphasis(rows, view, generator)[share.rows].to(device) if lessons.emphasis else None
        return Batch(x0[share.rows].to(device), which[share.rows].to(device), places, share, generator)

    return known, batch


def _check(pipe, p: Finetune, token: str, texts: list[str]) -> None:
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
    if token and not any(token in text for text in texts):
        raise UserError(
            f"prompt.token = {token}, and no prompt holds it; write {{token}} into prompt.template, or set "
            "prompt.token to ''"
        )
    if (kind := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise UserError(
            f"the base model predicts {kind!r}, of which no loss is known here; choose a finetune.base_model that "
            "predicts epsilon or v_prediction"
        )
    if p.compile:
        loop.check_compiler("finetune.compile")


def add_token(pipe, token: str, like: str = "mri") -> None:
    """Add `token` to tokenizer and text encoder, initialised from the mean of the tokens of `like`.

    A token that is there already keeps what it has learnt.
    """
    source = pipe.tokenizer(like, add_special_tokens=False).input_ids
    if not pipe.tokenizer.add_tokens([token]):
        return
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[pipe.tokenizer.convert_tokens_to_ids(token)] = table[source].mean(0)


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
