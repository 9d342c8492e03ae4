"""Pretraining of the base model on simulated heads: an f8 autoencoder, then a text-conditioned latent diffusion model.

The autoencoder learns from the widest randomisation (any plane, contrast, resolution), new anatomy in every batch, so
that it rebuilds images it has never seen; the UNet, as the baselines, from slices in a canonical pose and field of view
that are drawn once (`synthmri draw`), or it never learns anatomy.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators import autoencoder, autoencoder_training, latent_diffusion
from synthmri.imageset import ImageSet, evenly, to_uint8
from synthmri.params import Section
from synthmri.scans import prompts
from synthmri.simulation import atlas as maps
from synthmri.simulation import slices
from synthmri.training import denoising_loss, distributed, loop, views
from synthmri.training.precision import Precision, autocast

_WORDS = (
    "axial coronal sagittal brain mri of a an the with without and level t1w t2w flair t1ce pd healthy normal none "
    "lesion lesions tumour tumor meningioma glioma pituitary slice simulated patient male female young old"
)


class Autoencoder(Section):
    """Section `pretrain.autoencoder`."""

    slices: slices.Slices
    width: int = Field(ge=8, le=256)
    encoder_blocks: tuple[int, int, int, int]
    decoder_blocks: tuple[int, int, int, int]
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    crop_px: int = Field(ge=64, le=512, multiple_of=8)
    learning_rate: float = Field(gt=0, le=0.1)
    perceptual_weight: float = Field(ge=0)
    adversarial_weight: float = Field(ge=0)
    adversarial_from: float = Field(ge=0, le=1)
    latent_weight: float = Field(ge=0)
    latent_noise: float = Field(ge=0)


def losses(p: Autoencoder) -> autoencoder_training.Losses:
    """What it is trained for."""
    return autoencoder_training.Losses(
        p.perceptual_weight, p.adversarial_weight, p.adversarial_from, latents=p.latent_weight,
        latent_noise=p.latent_noise,
    )  # fmt: skip


class Denoiser(Section):
    """Section `pretrain.unet`."""

    slices: slices.Slices
    template: str
    channels: tuple[int, ...] = Field(min_length=2, max_length=4)
    layers_per_block: int = Field(ge=1, le=4)
    text_width: int = Field(ge=16, multiple_of=16)
    text_layers: int = Field(ge=1, le=12)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    reuse: int = Field(ge=1, le=16)
    learning_rate: float = Field(gt=0, le=0.1)
    snr_gamma: float = Field(ge=0)
    ema_decay: float = Field(ge=0, lt=1)
    cond_drop_prob: float = Field(ge=0, lt=1)
    compile: bool

    @field_validator("template")
    @classmethod
    def _fields(cls, value: str) -> str:
        prompts.check_template(value)
        return value


class Pretrain(Section):
    """Section `pretrain`."""

    seed: int
    image_size: int = Field(ge=64, le=1024, multiple_of=32)
    baselines_px: int = Field(ge=16, le=1024)
    checkpoint_steps: int = Field(ge=1)
    autoencoder: Autoencoder
    unet: Denoiser


def rgb(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W) in [0, 1] -> (B, 3, H, W) in [-1, 1], the input of the autoencoder."""
    return (images * 2 - 1)[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def new_autoencoder(p: Autoencoder):
    """diffusers' AutoencoderTiny (the layout of TAESD, Bohan 2023): f8, four latent channels, deterministic."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(p.width,) * 4,
        decoder_block_out_channels=(p.width,) * 4,
        num_encoder_blocks=p.encoder_blocks,
        num_decoder_blocks=p.decoder_blocks,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


def autoencoder_images(atlas, p: Autoencoder, generator: torch.Generator) -> torch.Tensor:
    """A batch of crops (B, crop, crop) in [0, 1] from the widest randomisation."""
    n = p.batch_size
    images = slices.draw(atlas, p.slices, n, p.crop_px, generator).images
    # What simulated heads lack and real ones have, fine detail and any contrast curve: a random grain and gamma.
    small = torch.randn(n, 1, p.crop_px // 2, p.crop_px // 2, generator=generator)
    fine = torch.randn(n, 1, p.crop_px, p.crop_px, generator=generator)
    grain = F.interpolate(small, size=images.shape[1:], mode="bilinear")[:, 0] + fine[:, 0] * 0.5
    amount = 0.06 * torch.rand(n, 1, 1, generator=generator) ** 2
    gamma = torch.exp(0.5 * torch.randn(n, 1, 1, generator=generator))
    images = images * (1 + amount.to(images) * grain.to(images))
    return images.clamp(0, 1) ** gamma.to(images)


def fit_autoencoder(
    p: Autoencoder,
    run: Pretrain,
    perceptual: Callable,
    checkpoint: Path,
    device: str,
    tick: loop.Tick,
    *,
    precision: Precision = "fp32",
    start=None,
    part: str = "full",
):
    """Train an autoencoder, `start` or else a new one, or go on from `checkpoint`; the loss: see
    `losses`.

    part: "full", or "decoder", which keeps the latent space. perceptual: (B, 3, H, W) x (B, 3, H, W) in [-1, 1] ->
    distances. Returns the trained autoencoder and the floating-point operations.
    """
    with streams.weights(run.seed, "pretrain", "autoencoder"):
        model = (start or new_autoencoder(p)).to(device)
    atlas = maps.load_atlas().to(device)
    operations = autoencoder_training.train(
        model, part, lambda generator: rgb(autoencoder_images(atlas, p, generator)), losses(p), perceptual,
        steps=p.steps, learning_rate=p.learning_rate, seed=run.seed, section="pretrain.autoencoder",
        checkpoint=checkpoint, every=run.checkpoint_steps, precision=precision, tick=tick,
    )  # fmt: skip
    return model, operations


def new_tokenizer(length: int = 32):
    """A CLIPTokenizer whose byte-pair merges know the words of the prompts; any other text falls apart into bytes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.train_from_iterator(
        [_WORDS] * 10 + list("0123456789,.{}-"),
        trainers.BpeTrainer(
            vocab_size=4096, min_frequency=2, show_progress=False, end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    import json

    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [letter + "</w>" for letter in letters]
    words += [a + b for a, b in merges if a + b not in set(words)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def new_pipeline(run: Pretrain, vae, tokenizer):
    """An untrained UNet, text encoder and scheduler around a tokenizer and a trained autoencoder."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    p = run.unet
    with streams.weights(run.seed, "pretrain", "unet"):
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=p.text_width, intermediate_size=4 * p.text_width,
                num_hidden_layers=p.text_layers, num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=p.text_width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id, hidden_act="quick_gelu",
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=run.image_size // 8, in_channels=4, out_channels=4, layers_per_block=p.layers_per_block,
            block_out_channels=p.channels, cross_attention_dim=p.text_width, attention_head_dim=4, norm_num_groups=16,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(p.channels) - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (len(p.channels) - 1) + ("UpBlock2D",),
        ).to(memory_format=torch.channels_last)  # fmt: skip
    # v-prediction down to zero signal (Lin 2024, doi 10.1109/WACV57701.2024.00532): dark ground comes out dark.
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        algorithm_type="dpmsolver++", solver_order=2, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def draw_heads(run: Pretrain, n: int, generator: torch.Generator) -> ImageSet:
    """n slices by pretrain.unet.slices, with the words of their prompts in the manifest."""
    batch = slices.draw(maps.load_atlas(), run.unet.slices, n, run.image_size, generator)
    table = batch.table.assign(depth_mm=[f"{depth:.2f}" for depth in batch.table["depth_mm"]])
    return ImageSet(to_uint8(batch.images.numpy()), table[["contrast", "plane", "depth_mm", "label"]].astype(str))


def prompted(heads: ImageSet, p: Denoiser, generator: torch.Generator) -> tuple[np.ndarray, list[str]]:
    """A batch of drawn slices, uint8 (B, S, S), half of them mirrored left to right, and the prompt that names each.

    Of the prompts, a share of p.cond_drop_prob is empty; of the level and of the label, as many are left out.
    """
    rows = torch.randint(len(heads), (p.batch_size,), generator=generator).tolist()
    dropped = torch.rand(3, p.batch_size, generator=generator) < p.cond_drop_prob
    table = heads.manifest.iloc[rows]
    table = table.assign(
        label=table["label"].mask(dropped[0].numpy(), ""), depth_mm=table["depth_mm"].mask(dropped[1].numpy(), "")
    )
    words = prompts.prompts(table, prompts.Prompt(template=p.template, token=""))
    images = np.array(heads.images[rows])
    mirrored = (torch.rand(p.batch_size, generator=generator) < 0.5).numpy() & views.mirrors(table)
    return views.mirrored(images, mirrored), [
        "" if empty else text for empty, text in zip(dropped[2].tolist(), words, strict=True)
    ]


def standardise(vae, heads: ImageSet) -> None:
    """Set the autoencoder's scaling factor so that its latents of drawn slices have unit variance overall."""
    images = np.asarray(heads.images[evenly(len(heads), 128)])
    z, _ = autoencoder.encode(vae, images, batch_size=16)
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))


def fit_unet(
    pipe,
    heads: ImageSet,
    run: Pretrain,
    checkpoint: Path,
    device: str,
    tick: loop.Tick,
    *,
    precision: Precision = "fp32",
) -> int:
    """Train UNet and text encoder of `pipe` on latents of drawn slices, or go on from `checkpoint`.

    In place; the averaged (EMA) weights are what stays in it. Of several processes each takes its share of every batch,
    and draws whole batches in turn. With p.compile the UNet runs through torch.compile, save in the first step. Returns
    the floating-point operations. Raises UserError when the loss stops being finite, and where p.compile finds no C++
    compiler.
    """
    from diffusers.training_utils import EMAModel

    p = run.unet
    if p.compile:
        loop.check_compiler("pretrain.unet.compile")
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    unet, text, vae = pipe.unet.to(memory_format=torch.channels_last), pipe.text_encoder, pipe.vae
    vae.requires_grad_(False)
    network = torch.nn.ModuleList([unet, text]).requires_grad_(True).train()
    compiled = torch.compile(unet) if p.compile else unet
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=p.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    ema = EMAModel(network.parameters(), decay=p.ema_decay, use_ema_warmup=True, power=0.75)
    first, operations = 0, loop.Operations()
    if state := loop.load_checkpoint(checkpoint):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for shadow, saved in zip(ema.shadow_params, state["ema"], strict=True):
            shadow.copy_(saved)
        ema.optimization_step = first = state["step"]
        operations.load_state_dict(state["operations"])

    @distributed.ahead
    def batches(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts = prompted(heads, p, streams.generator(run.seed, "pretrain", "heads", i))
        latents, _ = autoencoder.encode(vae, images, batch_size=len(images), precision=precision)
        return torch.from_numpy(latents) * vae.config.scaling_factor, latent_diffusion.tokens(pipe, texts)

    def update(step: int) -> float:
        loop.set_rate(optimizer, p.learning_rate * loop.warm_cosine(step, p.steps, 100))
        generator = streams.generator(run.seed, "pretrain", "step", step)
        # A slice serves `reuse` steps in a row, each time with other noise: encoding it costs a third of a step.
        latents, tokens = batches(step // p.reuse)
        share = distributed.share(len(latents))
        with autocast(device, precision):
            states = text(tokens[share.rows].to(device))[0]
            value = denoising_loss.loss(
                compiled if operations.total else unet,  # operations are counted as they are called: of compiled, none
                latents[share.rows].to(device), pipe.scheduler, generator, snr_gamma=p.snr_gamma, share=share,
                encoder_hidden_states=states,
            )  # fmt: skip
        loop.descend(optimizer, value, max_grad_norm=1.0)
        ema.step(network.parameters())
        value = distributed.total(value.item())
        if not math.isfinite(value):
            raise UserError(
                f"training the UNet diverged: the loss of step {step} is {value}; lower pretrain.unet.learning_rate "
                f"(now {p.learning_rate}) or set runtime.precision to fp32"
            )
        return value

    for step in range(first, p.steps):
        value = operations.run(functools.partial(update, step))
        tick(step, value, optimizer.param_groups[0]["lr"])
        if (step + 1) % run.checkpoint_steps == 0 or step + 1 == p.steps:
            loop.save_checkpoint(
                checkpoint,
                {
                    "model": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.shadow_params,
                    "step": step + 1,
                    "operations": operations.state_dict(),
                },
            )
    ema.copy_to(network.parameters())
    return operations.total
