"""Pretraining of the base model on simulated heads: an f8 autoencoder, then a text-conditioned latent diffusion model.

Every batch is new anatomy. The autoencoder learns from the widest randomisation (any plane, contrast, resolution), so
that it rebuilds images it has never seen; the UNet from a canonical pose and field of view, or it never learns anatomy.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators import autoencoder, autoencoder_training, latent_diffusion
from synthmri.params import Section
from synthmri.scans import prompts
from synthmri.simulation import atlas as maps
from synthmri.simulation import slices
from synthmri.training import denoising_loss, distributed, loop
from synthmri.training.precision import Precision, autocast

_WORDS = (
    "axial coronal sagittal brain mri of a an the with without and level t1w t2w flair t1ce pd healthy normal none "
    "lesion lesions tumour tumor meningioma glioma pituitary slice simulated patient male female young old"
)


class Autoencoder(Section):
    """Section `pretrain.autoencoder`."""

    slices: slices.Slices
    width: int = Field(ge=8, le=256)
    blocks: int = Field(ge=1, le=8)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    crop_px: int = Field(ge=64, le=512, multiple_of=8)
    learning_rate: float = Field(gt=0, le=0.1)
    perceptual_weight: float = Field(ge=0)
    adversarial_weight: float = Field(ge=0)
    latent_weight: float = Field(ge=0)
    latent_noise: float = Field(ge=0)


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

    @field_validator("template")
    @classmethod
    def _fields(cls, value: str) -> str:
        prompts.check_template(value)
        return value


class Pretrain(Section):
    """Section `pretrain`."""

    seed: int
    image_size: int = Field(ge=64, le=1024, multiple_of=32)
    checkpoint_steps: int = Field(ge=1)
    autoencoder: Autoencoder
    unet: Denoiser


def rgb(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W) in [0, 1] -> (B, 3, H, W) in [-1, 1], the input of the autoencoder."""
    return (images * 2 - 1)[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def new_autoencoder(p: Autoencoder):
    """diffusers' AutoencoderTiny (the layout of TAESD, Bohan 2023): f8, four latent channels, deterministic."""
    from diffusers import AutoencoderTiny

    width, blocks = (p.width,) * 4, p.blocks
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(1, blocks, blocks, blocks),
        num_decoder_blocks=(blocks, blocks, blocks, 1),
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
    tick: Callable[[int, float], None],
    *,
    precision: Precision = "fp32",
    start=None,
    part: str = "full",
):
    """Train an autoencoder, `start` or else a new one, or go on from `checkpoint`; the loss: see adaptation.train.

    part: "full", or "decoder", which keeps the latent space. perceptual: (B, 3, H, W) x (B, 3, H, W) in [-1, 1] ->
    distances. Returns the trained autoencoder.
    """
    with streams.weights(run.seed, "pretrain", "autoencoder"):
        model = (start or new_autoencoder(p)).to(device)
    atlas = maps.load_atlas().to(device)
    autoencoder_training.train(
        model, part, lambda generator: rgb(autoencoder_images(atlas, p, generator)), p, perceptual,
        seed=run.seed, precision=precision, checkpoint=checkpoint, section="pretrain.autoencoder",
        latent_weight=p.latent_weight, every=run.checkpoint_steps, tick=tick,
    )  # fmt: skip
    return model


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
    """An untrained UNet, text encoder and scheduler around a tokenizer and a trained autoencoder.

    The latter's scaling factor is set in place.
    """
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    p = run.unet
    standardise(vae, run)
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


def unet_images(atlas, p: Denoiser, size: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """A batch of slices (B, size, size) in [0, 1] in a canonical pose, and the prompt that names each.

    Of the prompts, a share of p.cond_drop_prob is empty; of the level and of the label, as many are left out.
    """
    batch = slices.draw(atlas, p.slices, p.batch_size, size, generator)
    dropped = torch.rand(3, p.batch_size, generator=generator) < p.cond_drop_prob
    table = batch.table.assign(label=batch.table["label"].mask(dropped[0].numpy(), ""))
    table["depth_mm"] = table["depth_mm"].astype(object).mask(dropped[1].numpy(), "")
    words = prompts.prompts(table, prompts.Prompt(template=p.template, token=""))
    return batch.images, ["" if empty else text for empty, text in zip(dropped[2].tolist(), words, strict=True)]


@torch.no_grad()
def standardise(vae, run: Pretrain) -> None:
    """Set the autoencoder's scaling factor so that its latents of canonical slices have unit variance overall."""
    device = next(vae.parameters()).device
    atlas = maps.load_atlas().to(device)
    batches = [
        unet_images(atlas, run.unet, run.image_size, streams.generator(run.seed, "standardise", i))[0] for i in range(4)
    ]
    z = torch.cat([autoencoder.posterior(vae.encode(rgb(images)))[0] for images in batches])
    vae.register_to_config(scaling_factor=round(1 / float(z.std()), 4))


def fit_unet(
    pipe,
    run: Pretrain,
    checkpoint: Path,
    device: str,
    tick: Callable[[int, float], None],
    *,
    precision: Precision = "fp32",
) -> None:
    """Train UNet and text encoder of `pipe` on latents of endless new slices, or go on from `checkpoint`.

    In place; the averaged (EMA) weights are what stays in it. Of several processes each takes its share of every batch,
    and draws whole batches in turn. Raises UserError when the loss stops being finite.
    """
    from diffusers.training_utils import EMAModel

    p = run.unet
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    unet, text, vae = pipe.unet.to(memory_format=torch.channels_last), pipe.text_encoder, pipe.vae
    vae.requires_grad_(False)
    network = torch.nn.ModuleList([unet, text]).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=p.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    ema = EMAModel(network.parameters(), decay=p.ema_decay, use_ema_warmup=True, power=0.75)
    first = 0
    if state := loop.load_checkpoint(checkpoint):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for shadow, saved in zip(ema.shadow_params, state["ema"], strict=True):
            shadow.copy_(saved)
        ema.optimization_step = first = state["step"]
    atlas = maps.load_atlas().to(device)

    @distributed.ahead
    def batches(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad(), autocast(device, precision):
            images, prompts = unet_images(atlas, p, run.image_size, streams.generator(run.seed, "pretrain", "heads", i))
            latents = autoencoder.posterior(vae.encode(rgb(images)))[0].float() * vae.config.scaling_factor
        return latents.cpu(), latent_diffusion.tokens(pipe, prompts)

    for step in range(first, p.steps):
        loop.set_rate(optimizer, p.learning_rate * loop.warm_cosine(step, p.steps, 100))
        generator = streams.generator(run.seed, "pretrain", "step", step)
        # A head serves `reuse` steps in a row, each time with other noise: drawing it costs as much as a step.
        latents, tokens = batches(step // p.reuse)
        share = distributed.share(len(latents))
        with autocast(device, precision):
            states = text(tokens[share.rows].to(device))[0]
            value = denoising_loss.loss(
                unet, latents[share.rows].to(device), pipe.scheduler, generator, snr_gamma=p.snr_gamma, share=share,
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
        tick(step, value)
        if (step + 1) % run.checkpoint_steps == 0 or step + 1 == p.steps:
            loop.save_checkpoint(
                checkpoint,
                {
                    "model": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.shadow_params,
                    "step": step + 1,
                },
            )
    ema.copy_to(network.parameters())
