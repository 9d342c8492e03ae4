"""What every diffusion training here shares: the loss, the schedule of the learning rate, and checkpoints."""

import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F


def loss(
    network, x0: torch.Tensor, scheduler, generator: torch.Generator, *, min_snr: float, **conditions
) -> torch.Tensor:
    """Denoising loss of one batch, a scalar.

    The target is what `scheduler` predicts (Ho 2020 eq. 14 for epsilon, Salimans 2022 appendix D for v), weighted by
    min-SNR-gamma (Hang 2023, doi 10.1109/ICCV51070.2023.00684, eq. 4; min_snr = 0 leaves every timestep at weight 1).

    x0: (B, C, H, W), about unit variance. Timesteps and noise are drawn on the CPU from `generator`.
    """
    n, last = len(x0), scheduler.config.num_train_timesteps
    # Stratified over the batch: the same marginal as independent draws and less noise in the gradient.
    t = ((torch.arange(n) + torch.rand(n, generator=generator)) / n * last).long().clamp_max(last - 1)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    t = t.to(x0.device)
    kind = scheduler.config.prediction_type
    alpha_bar = scheduler.alphas_cumprod.to(x0.device)[t]
    a, s = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    noisy = a * x0 + s * noise
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = a * noise - s * x0
    else:
        raise ValueError(f"prediction_type {kind!r} is neither 'epsilon' nor 'v_prediction'")
    predicted = network(noisy, t, **conditions).sample
    each = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    if min_snr > 0:
        snr = alpha_bar / (1 - alpha_bar)
        weight = snr.clamp_max(min_snr) / (snr.clamp_min(1e-8) if kind == "epsilon" else snr + 1)
        each = each * weight
    return each.mean()


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: a linear warm-up, then half a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: they depend on the step alone, so a resumed run goes on as if never stopped."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write tensors and numbers so that a kill at any moment leaves the old checkpoint or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load_checkpoint(path: Path) -> dict | None:
    """The state that was saved last, or None. Only tensors and plain values are admitted."""
    return torch.load(path, map_location="cpu", weights_only=True) if Path(path).exists() else None
