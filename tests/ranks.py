"""What several processes make of the same trainings and samples: `accelerate launch ... tests/ranks.py FOLDER`.

Also called by test_parallel.py itself, as one process. All in float32, and of batches that do not divide by two.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from synthmri import generators, params
from synthmri.generators import autoencoder_training, finetuning, latent_diffusion
from synthmri.imageset import ImageSet
from synthmri.simulation import pretraining
from synthmri.training import distributed, sampling

SMALL = {
    "vae": dict(width=4, latent_dim=4, learning_rate=1e-3), "dcgan": dict(width=4, latent_dim=4, learning_rate=5e-5),
    "unet_gan": dict(width=4, latent_dim=4, cutmix=1.0),
    "ddpm": dict(channels=(16, 32), sample_steps=2),
}  # fmt: skip


def section(name, cls, **change):
    return params.read("params.yaml", name, cls).model_copy(update=change)


def flat(*modules):
    return torch.cat([w.detach().flatten().float() for m in modules for w in m.state_dict().values()])


def baselines(folder: Path) -> dict:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 64, 64), dtype=np.uint8)
    made = {}
    for name, small in SMALL.items():
        generator = generators.find(name)
        p = section(f"baselines.{name}", generator.Params, steps=3, batch_size=5, **small)
        model, history, _ = generator.fit(
            images, p, seed=0, points=1, checkpoint=folder / f"{name}.pt", tick=lambda step, loss, rate: None,
            snapshot=lambda point, model: None,
        )  # fmt: skip
        generator.fit(
            images, p.model_copy(update={"steps": 1}), seed=0, points=1, checkpoint=folder / f"{name}-first.pt",
            tick=lambda step, loss, rate: None, snapshot=lambda point, model: None,
        )  # fmt: skip
        made[name] = flat(model.network)
        made[f"{name} losses"] = torch.tensor([list(row.values()) for row in history])
        drawing = section("sample", sampling.Sample, batch_size=2)
        made[f"{name} drawn"] = generator.untrained(p, 64, seed=1).sample([1, 2, 3, 4, 5], drawing)
    return made


def pipeline(folder: Path):
    """A tiny pipeline of random weights, the same in every process; its tokenizer lies in the folder."""
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    autoencoder = pretraining.new_autoencoder(smallest().autoencoder)
    pipe = pretraining.new_pipeline(smallest(), autoencoder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe


def smallest() -> pretraining.Pretrain:
    run = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    run = run.model_copy(update={"image_size": 64})
    first = dict(
        width=8,
        encoder_blocks=(0, 1, 0, 1),
        decoder_blocks=(1, 0, 1, 0),
        batch_size=3,
        crop_px=64,
        adversarial_weight=0.5,
    )
    second = dict(channels=(16, 32), text_width=16, text_layers=1, steps=3, batch_size=3, reuse=2)
    return run.model_copy(
        update=dict(autoencoder=run.autoencoder.model_copy(update=first), unet=run.unet.model_copy(update=second))
    )


def heads() -> ImageSet:
    images = np.random.default_rng(1).integers(0, 255, (7, 64, 64), dtype=np.uint8)
    words = pd.DataFrame({"contrast": "T1w", "plane": "axial", "depth_mm": "60.00", "label": "none"}, index=range(7))
    return ImageSet(images, words)


def of_latent_diffusion(folder: Path) -> dict:
    """5 slices in batches of 4: the last has fewer rows than there are processes."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(5, 2, 4, 8, 8)).astype(np.float32)
    texts = ["T1w axial brain MRI"] * 3 + ["FLAIR axial brain MRI"] * 2
    made = {}
    for method in ("full", "lora"):
        pipe = pipeline(folder.parent)
        p = section(
            "finetune", finetuning.Finetune, epochs=2, batch_size=4, method=method,
            train_text_encoder=method == "full",
        )  # fmt: skip
        history, _ = finetuning.finetune(
            pipe,
            finetuning.Lessons(mean, np.full_like(mean, 0.1), texts),
            p,
            seed=0,
            checkpoint=folder / f"{method}.pt",
        )
        made[method] = flat(pipe.unet, pipe.text_encoder)
        made[f"{method} losses"] = torch.tensor([loss for _, loss, _ in history])
    drawn = section("sample", sampling.Sample, steps=2, batch_size=2)
    made["latent_diffusion drawn"] = latent_diffusion.draw(
        pipeline(folder.parent), texts, [1, 2, 3, 4, 5], drawn, size=64
    )[:, 0]
    return made


def pretrained(folder: Path) -> dict:
    """Both parts; the autoencoder's loss has a discriminator of patches, and statistics of the whole batch."""
    run, losses, later = smallest(), [], []

    def autoencoder(steps: int, checkpoint: Path):
        return pretraining.fit_autoencoder(
            run.autoencoder.model_copy(update={"steps": steps}), run, lambda x, y: (x - y).square().mean(), checkpoint,
            "cpu", lambda step, loss, rate: losses.append(loss),
        )[0]  # fmt: skip

    # Gradients are compared after one step: the second's is of weights that Adam has moved, by steps of rounding too.
    autoencoder(1, folder / "autoencoder.pt")
    if distributed.is_main():
        shutil.copy(folder / "autoencoder.pt", folder / "longer.pt")
    distributed.total(0.0)  # until it is there
    vae = autoencoder(2, folder / "longer.pt")
    pipe = pipeline(folder.parent)
    pretraining.fit_unet(pipe, heads(), run, folder / "unet.pt", "cpu", lambda step, loss, rate: later.append(loss))
    return {
        "autoencoder": flat(vae), "autoencoder losses": torch.tensor(losses),
        "unet": flat(pipe.unet, pipe.text_encoder), "unet losses": torch.tensor(later),
    }  # fmt: skip


def adapted(folder: Path) -> dict:
    """A decoder that learns masks too, whose Dice is of the whole batch."""
    rng, losses = np.random.default_rng(2), []
    slices = rng.integers(0, 255, (5, 64, 64), dtype=np.uint8)
    lesions = np.where(rng.random((5, 8, 8)) < 0.2, 255, 0).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    vae = pipeline(folder.parent).vae
    p = section("adapt", autoencoder_training.Adapt, steps=1, batch_size=3, mask_weight=1.0)
    autoencoder_training.adapt(
        vae, slices, "decoder", p, lambda x, y: (x - y).square().mean(), lesions=lesions, seed=0,
        checkpoint=folder / "adapted.pt", tick=lambda step, loss, rate: losses.append(loss),
    )  # fmt: skip
    return {"adapted": flat(vae), "adapted losses": torch.tensor(losses)}


def everything(folder: Path) -> dict:
    """Weights, losses and images by name; the checkpoints go to the folder."""
    folder.mkdir(exist_ok=True)
    return baselines(folder) | of_latent_diffusion(folder) | pretrained(folder) | adapted(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.join("cpu", 1)
    made = everything(Path(sys.argv[1]))
    torch.save(
        {key: torch.as_tensor(value) for key, value in made.items()}, Path(sys.argv[1]) / f"{distributed.rank()}.pt"
    )
