"""Which way of fine-tuning copies less at equal quality, each tried alone, judged on VALIDATION people of a real set.

REAL_MRI=folder python -m benchmarks.less_copying lgg_flair          (then: python -m benchmarks.less_copying --table)

The same slices, steps, seeds and base for all. What is not in the library is written here, until it is shown to serve.
Numbers of all three sets may be published (profiles/*.yaml names their licences).
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import typer
import yaml
from torch import nn

from benchmarks import measure, pays, real
from stages import _cli
from synthmri import imageset, params, streams
from synthmri.errors import UserError
from synthmri.evaluation import auroc, copies, distances, features, membership, scorecard, stopping
from synthmri.generators import autoencoder, finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.simulation import pretraining
from synthmri.training import denoising_loss, sampling, views

VIEWS = 8  # of each slice, where there are more than itself and its mirror image
LEVEL_MM = 10.0  # standard deviation of a vaguer level
FORGOTTEN = 0.3  # share of the fields of a vaguer prompt that are dropped
PULL = 0.01  # weight of half the squared distance to the base's weights (arXiv 2505.19519)
AMBIENT = 400  # timestep above which only one noised copy of each slice is seen (Shah 2025, arXiv 2502.21278)
COLUMNS = {
    "kid": "KID", "precision": "precision", "recall": "recall", "coverage": "coverage", "memorised": "memorised",
    "attack": "attack by loss", "attack_high": "its upper end",
}  # fmt: skip


class Way(NamedTuple):
    """What a training has in place of the usual: mean and std (N, V, 4, h, w) and prompts; settings; its loss; which
    weights learn."""

    mean: np.ndarray
    std: np.ndarray
    texts: list[str]
    p: finetuning.Finetune
    loss: Callable | None = None
    adapters: Callable | None = None


def main(
    profile: Annotated[str, typer.Argument(help="lgg_flair, open_ms or t1ce_tumor")] = "lgg_flair",
    epochs: Annotated[int, typer.Option(min=2, help="an even number")] = 4,
    n: Annotated[int, typer.Option(min=8, help="samples of each")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each way, with seeds from 0")] = 1,
    most: Annotated[int, typer.Option(min=2, help="training slices, at even steps, where there are more")] = 700,
    only: Annotated[str, typer.Option(help="ways with this in their name; the results of others stay")] = "",
    show: Annotated[bool, typer.Option("--table", help="print the tables of the result file, measure nothing")] = False,
):
    """Write benchmarks/results/less_copying.json."""
    file = measure.RESULTS / "less_copying.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if show:
        print(table(known))
        return
    if profile not in real.SETS:
        raise UserError(f"{profile!r} is none of {', '.join(real.SETS)}")
    if epochs % 2:
        raise UserError(f"--epochs {epochs} is odd; with simulated slices in the batch there are half as many")
    root, name = os.environ.get("REAL_MRI"), real.SETS[profile]
    if not root:
        raise UserError(f"REAL_MRI is not set; name the folder of real slices, which holds {name}")
    precision = _cli.precision(_cli.start())
    changed = yaml.safe_load(Path(f"profiles/{profile}.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        sets = pays.preprocessed(Path(root) / name, changed["data"], Path(folder))
        train, val = imageset.read(sets / "train"), imageset.read(sets / "val")
        words = params.read(_cli.PARAMS, "prompt", prompts.Prompt).model_copy(update=changed.get("prompt", {}))
        train = train.take(imageset.evenly(len(train), most))
        found = compared(train, val, words, Path(folder), epochs, n, seeds, precision, only)
    about = {"epochs": epochs, "n": n, "trainings": seeds, "train_slices": len(train), "val_slices": len(val)}
    before = known.get(profile, {}).get("ways", {}) if only else {}
    known.pop("machine", None)
    measure.write("less_copying", known | {profile: about | {"ways": before | found}})


def compared(
    train: imageset.ImageSet, val: imageset.ImageSet, words: prompts.Prompt, folder: Path, epochs: int, n: int,
    seeds: int, precision: str, only: str = "",
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Way -> means over trainings of the scores against the validation slices and of copying."""
    p = params.read(_cli.PARAMS, "finetune", finetuning.Finetune)
    p = p.model_copy(update={"epochs": epochs, "compile": False})
    drawing = params.read(_cli.PARAMS, "sample", sampling.Sample)
    privacy = params.read(_cli.PARAMS, "privacy", membership.Privacy)
    images, theirs = np.array(train.images), np.array(val.images)
    base = latent_diffusion.load(p.base_model)
    texts, numbers = prompts.prompts(train.manifest, words), list(range(drawing.seed, drawing.seed + n))
    reference, honest = features.extract(scorecard.JUDGE, theirs), stopping.honest(theirs, images)

    # Slices that an attacker is asked about: as many of each side, alike in what prompts say.
    ours, others = membership.matched(train.manifest, val.manifest)
    some = imageset.evenly(len(ours), privacy.loss_pairs)
    ours, others = ours[some], others[some]
    asked = np.concatenate([images[ours], theirs[others]])
    told = [texts[i] for i in ours] + prompts.prompts(val.manifest.iloc[others], words)
    people = auroc.people(train.manifest, 1)[ours], auroc.people(val.manifest, 1)[others]

    def errors(pipe) -> np.ndarray:
        return latent_diffusion.denoising_errors(
            pipe, asked, told, privacy.timesteps, seed=0, batch_size=16, precision=precision
        )

    before, found = errors(base), {}
    tried = {name: way for name, way in ways(train, words, p, base, precision).items() if only in name}
    for number, (name, way) in enumerate(tried.items()):
        scores = []
        for seed in range(seeds):
            pipe = latent_diffusion.load(p.base_model)
            loss = functools.partial(way.loss, base=base.unet) if way.loss else denoising_loss.loss
            adapters = way.adapters or finetuning._add_adapters
            with patch.object(denoising_loss, "loss", loss), patch.object(finetuning, "_add_adapters", adapters):
                finetuning.finetune(
                    pipe, finetuning.Lessons(way.mean, way.std, way.texts), way.p, seed=seed,
                    checkpoint=folder / f"{number}-{seed}.pt", precision=precision,
                )  # fmt: skip
            if way.p.method == "lora" and not way.adapters:
                finetuning.fuse(pipe)
            made = latent_diffusion.draw(
                pipe, prompts.drawn(texts, numbers), numbers, drawing, size=images.shape[1], precision=precision
            )[:, 0]
            values = features.extract(scorecard.JUDGE, made)
            attack = membership.attack(*np.split(membership.by_loss(errors(pipe), before), 2), *people, privacy)
            scores.append(
                distances.precision_recall_density_coverage(reference, values)
                | {
                    "kid": distances.kernel_distance(values, reference),
                    "memorised": copies.memorised(copies.likeness(made, images).largest, honest),
                    "attack": attack["auroc"], "attack_high": attack.get("auroc_high", 1.0),
                }
            )  # fmt: skip
            print(name, seed, scores[-1])
        found[name] = {column: float(f"{np.mean([each[column] for each in scores]):.3g}") for column in COLUMNS}
    return found


def ways(
    train: imageset.ImageSet, words: prompts.Prompt, p: finetuning.Finetune, base, precision: str
) -> dict[str, Way]:
    """By name; all of as many steps, as nearly as whole epochs allow."""
    images, texts = np.array(train.images), prompts.prompts(train.manifest, words)

    def encoded(*pictures: np.ndarray) -> list[np.ndarray]:
        sides = [autoencoder.encode(base.vae, each, batch_size=16, precision=precision) for each in pictures]
        return [np.stack([side[part] for side in sides], axis=1) for part in (0, 1)]

    moved = [views.further(images, streams.generator(0, "less copying", k))[0] for k in range(VIEWS - 2)]
    mean, std = encoded(images, images[:, :, ::-1], *moved)
    heads = pretraining.draw_heads(_run(images.shape[1]), len(images), streams.generator(0, "less copying", "heads"))
    of_heads = [each.repeat(2, axis=1) for each in encoded(heads.images)]  # as many views as the rest has
    both = [np.concatenate([real[:, :2], drawn]) for real, drawn in zip((mean, std), of_heads, strict=True)]
    usual = Way(mean[:, :2], std[:, :2], texts, p)
    once = p.model_copy(update={"epochs": 1})
    vague = [text for k in range(p.epochs) for text in prompts.prompts(vaguer(train.manifest, k), words)]
    return {
        "as it is": usual,
        "half as long": usual._replace(p=p.model_copy(update={"epochs": p.epochs // 2})),
        "without the mirror image": usual._replace(mean=mean[:, :1], std=std[:, :1]),
        f"{VIEWS} views": usual._replace(mean=mean, std=std),
        "vaguer prompts": Way(*(np.tile(each[:, :2], (p.epochs, 1, 1, 1, 1)) for each in (mean, std)), vague, once),
        "half of the slices simulated": Way(
            *both, texts + prompts.prompts(heads.manifest, words), p.model_copy(update={"epochs": p.epochs // 2})
        ),
        "LoRA on attention": usual._replace(p=p.model_copy(update={"method": "lora"})),
        "norms and biases alone": usual._replace(p=p.model_copy(update={"method": "lora"}), adapters=norms_and_biases),
        "pull to the base's weights": usual._replace(loss=pulled),
        "ambient": usual._replace(loss=ambient),
    }


def _run(size: int) -> pretraining.Pretrain:
    return params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain).model_copy(update={"image_size": size})


def vaguer(manifest: pd.DataFrame, number: int) -> pd.DataFrame:
    """With other levels, and without some contrasts, levels and labels."""
    rng = np.random.default_rng([2, number])
    depth = [f"{max(0.0, float(each) + rng.normal(0, LEVEL_MM)):.2f}" if each else "" for each in manifest["depth_mm"]]
    changed = manifest.assign(depth_mm=depth)
    for name in ("depth_mm", "label"):
        changed[name] = changed[name].mask(rng.random(len(changed)) < FORGOTTEN, "")
    return changed


def norms_and_biases(parts: list, p: finetuning.Finetune, seed: int) -> None:
    """In place of adapters."""
    for part in parts:
        part.requires_grad_(False)
        for module in part.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.requires_grad_(True)
        for name, weight in part.named_parameters():
            weight.requires_grad_(weight.requires_grad or name.endswith("bias"))


def pulled(network, x0, scheduler, generator, *, base: nn.Module, **rest) -> torch.Tensor:
    """`denoising_loss.loss`, and the squared distance to the base's weights."""
    away = sum((w - b).square().sum() for w, b in zip(network.parameters(), base.parameters(), strict=True))
    return plain(network, x0, scheduler, generator, **rest) + PULL / 2 * away


plain = denoising_loss.loss


def ambient(
    network, x0, scheduler, generator, *, base: nn.Module, share=None, snr_gamma: float = 0.0, emphasis=None,
    **conditions,
) -> torch.Tensor:  # fmt: skip
    """Above AMBIENT the target is a noised copy of each slice, always the same, in place of the slice.

    In units where an image has no factor before it: x_t = x + sigma_t noise. Of a fixed x_n = x + sigma_n noise_n the
    best guess is E[x_n | x_t] = r x_t + (1 - r) E[x | x_t] with r = sigma_n^2 / sigma_t^2 (Daras 2024, arXiv
    2404.10177), so a network that guesses x learns from x_n alone where the errors of that are what counts.
    """
    n, last = len(x0), scheduler.config.num_train_timesteps
    t = ((torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n * last).long().to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    fixed = torch.stack([_own_noise(each) for each in x0])
    alpha_bar = scheduler.alphas_cumprod.to(x0.device)[:, None, None, None]
    a, s = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
    variance_n = (1 - alpha_bar[AMBIENT]) / alpha_bar[AMBIENT]
    late = (t > AMBIENT)[:, None, None, None]
    copy = x0 + variance_n.sqrt() * fixed
    more = (s.square() - a.square() * variance_n).clamp_min(0).sqrt()  # the noise that lies between n and t
    noisy = torch.where(late, a * copy + more * noise, a * x0 + s * noise)
    v = network(noisy, t, **conditions).sample.float()
    guess = a * noisy - s * v
    r_noisy = variance_n * a * noisy / s.square().clamp_min(1e-6)  # r x_t, finite where nothing is left of the image
    r = variance_n * a.square() / s.square().clamp_min(1e-6)
    wrong = torch.where(late, r_noisy + (1 - r) * guess - copy, guess - x0)
    return (wrong / s.clamp_min(0.02)).square().mean()


def _own_noise(x: torch.Tensor) -> torch.Tensor:
    """(C, H, W), the same for the same latents: by a number made of these."""
    number = int(np.frombuffer(x.detach().cpu().numpy().tobytes(), np.uint32).sum(dtype=np.uint64))
    return torch.randn(x.shape, generator=streams.generator(0, "own noise", number)).to(x)


def table(result: dict) -> str:
    """Markdown, a table for each set."""
    parts = []
    for profile, found in result.items():
        if profile == "machine":
            continue
        parts.append(
            f"{real.SETS[profile]}: {found['train_slices']} training and {found['val_slices']} validation slices, "
            f"{found['epochs']} epochs, N = {found['n']}, {found['trainings']} training(s) each."
        )
        parts.append(measure.columns("way", found["ways"], COLUMNS))
    return "\n\n".join(parts)


if __name__ == "__main__":
    _cli.run(main)
