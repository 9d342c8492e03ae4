"""The loss of every diffusion model here, in latents and in pixels."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from synthmri.errors import UserError
from synthmri.training import distributed


def loss(
    network,
    x0: torch.Tensor,
    scheduler,
    generator: torch.Generator,
    *,
    snr_gamma: float,
    share: distributed.Share | None = None,
    **conditions,
) -> torch.Tensor:
    """Denoising loss of one batch, a scalar.

    The target is what `scheduler` predicts (Ho 2020 eq. 14 for epsilon, Salimans 2022 appendix D for v), weighted by
    min-SNR-gamma (Hang 2023, doi 10.1109/ICCV51070.2023.00684, eq. 4; snr_gamma = 0 leaves every timestep at weight 1).

    x0: (B, C, H, W), about unit variance. Timesteps and noise are drawn on the CPU from `generator`.
    share: which part of a batch x0 is, where it is not all of it; the losses of the parts sum to that of the batch.
    """
    share = share or distributed.Share(len(x0), slice(None), 1.0)
    n, last = share.whole, scheduler.config.num_train_timesteps
    # Stratified over the batch: the same marginal as independent draws and less noise in the gradient.
    t = ((torch.arange(n) + torch.rand(n, generator=generator)) / n * last).long().clamp_max(last - 1)
    noise = torch.randn((n, *x0.shape[1:]), generator=generator)[share.rows].to(x0)
    t = t[share.rows].to(x0.device)
    each = errors(network, x0, noise, t, scheduler, **conditions)
    if snr_gamma > 0:
        alpha_bar = scheduler.alphas_cumprod.to(x0.device)[t]
        snr = alpha_bar / (1 - alpha_bar)
        epsilon = scheduler.config.prediction_type == "epsilon"
        weight = snr.clamp_max(snr_gamma) / (snr.clamp_min(1e-8) if epsilon else snr + 1)
        each = each * weight
    return each.mean() * share.weight


def errors(network, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, scheduler, **conditions) -> torch.Tensor:
    """Mean squared error of each image's prediction (B,), unweighted: x0 and noise (B, C, H, W), timesteps t (B,)."""
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
    return F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))


def errors_at(network, x0: torch.Tensor, timesteps: Sequence[int], scheduler, seed: int, **conditions) -> np.ndarray:
    """`errors` of x0 (B, C, H, W) at each timestep: float64 (B, T).

    All images have the same noise at a timestep, so that their errors differ by the images alone.
    """
    columns = []
    for t in timesteps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + t)
        noise = torch.randn(x0.shape[1:], generator=generator).to(x0).expand_as(x0)
        step = torch.full((len(x0),), t, device=x0.device)
        columns.append(errors(network, x0, noise, step, scheduler, **conditions).double().cpu().numpy())
    return np.stack(columns, axis=1)


def check_timesteps(timesteps: Sequence[int], scheduler) -> None:
    """Raise UserError unless the noise schedule has every one of them."""
    last = scheduler.config.num_train_timesteps - 1
    for t in timesteps:
        if not 0 <= t <= last:
            raise UserError(f"privacy.timesteps holds {t}; the model's noise schedule has 0 to {last}")
