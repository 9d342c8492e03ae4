"""The loss of every diffusion model here, in latents and in pixels."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from synthmri import streams
from synthmri.errors import UserError
from synthmri.training import distributed

SMALLEST_SIGMA = 0.05  # below it errors of a predicted image count no more than there (Li and He 2025)


def loss(
    network,
    x0: torch.Tensor,
    scheduler,
    generator: torch.Generator,
    *,
    snr_gamma: float = 0.0,
    share: distributed.Share | None = None,
    emphasis: torch.Tensor | None = None,
    **conditions,
) -> torch.Tensor:
    """Denoising loss of one batch, a scalar: the mean of `errors`, each at a timestep of its own, by `weight`.

    x0: (B, C, H, W), about unit variance. Timesteps and noise are drawn on the CPU from `generator`.
    share: which part of a batch x0 is, where it is not all of it; the losses of the parts sum to that of the batch.
    emphasis: (B, 1, H, W), how much the error in each place counts, where not all count 1.
    """
    share = share or distributed.Share(len(x0), slice(None), 1.0)
    n, last = share.whole, scheduler.config.num_train_timesteps
    # Stratified over the batch: the same marginal as independent draws and less noise in the gradient. Which row falls
    # in which stratum is random too, since a batch may serve several steps.
    strata = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    t = (strata * last).long().clamp_max(last - 1)
    noise = torch.randn((n, *x0.shape[1:]), generator=generator)[share.rows].to(x0)
    t = t[share.rows].to(x0.device)
    each = errors(network, x0, noise, t, scheduler, emphasis=emphasis, **conditions)
    return (weight(scheduler, snr_gamma).to(each)[t] * each).mean() * share.weight


def weight(scheduler, snr_gamma: float) -> torch.Tensor:
    """What the error at each timestep counts, float32 (T,).

    snr_gamma = 0: 1 everywhere, in terms of `errors`. Else min-SNR-gamma (Hang 2023, doi
    10.1109/ICCV51070.2023.00684): min(SNR, gamma) / SNR for epsilon (eq. 4). For v that would be min(SNR, gamma) /
    (SNR + 1), which is nothing where sampling starts; so gamma bounds SNR + 1, the weight of v's own loss:
    min(SNR + 1, gamma + 1) / (SNR + 1).
    """
    alpha_bar = scheduler.alphas_cumprod
    if snr_gamma == 0:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    if scheduler.config.prediction_type == "epsilon":
        return snr.clamp_max(snr_gamma) / snr.clamp_min(1e-8)
    return (snr + 1).clamp_max(snr_gamma + 1) / (snr + 1)


def errors(
    network, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, scheduler, *, emphasis: torch.Tensor | None = None,
    **conditions,
) -> torch.Tensor:  # fmt: skip
    """Mean squared error of each image's prediction (B,): x0 and noise (B, C, H, W), timesteps t (B,).

    emphasis: (B, 1, H, W), what each place counts, where not all count 1.

    The target is what `scheduler` predicts: Ho 2020, eq. 14, for epsilon, Salimans 2022, appendix D, for v. Where it
    predicts x0, the error is that of the v which follows: 1 / sigma times as large, with sigma taken as SMALLEST_SIGMA
    at least.
    """
    kind = scheduler.config.prediction_type
    alpha_bar = scheduler.alphas_cumprod.to(x0.device)[t]
    a, s = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    noisy = a * x0 + s * noise
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = a * noise - s * x0
    elif kind == "sample":
        target = x0 / s.clamp_min(SMALLEST_SIGMA)
    else:
        raise ValueError(f"prediction_type {kind!r} is none of 'epsilon', 'v_prediction' and 'sample'")
    predicted = network(noisy, t, **conditions).sample
    if kind == "sample":
        predicted = predicted.float() / s.clamp_min(SMALLEST_SIGMA)
    squared = F.mse_loss(predicted.float(), target.float(), reduction="none")
    return (squared if emphasis is None else squared * emphasis).mean(dim=(1, 2, 3))


def errors_at(network, x0: torch.Tensor, timesteps: Sequence[int], scheduler, seed: int, **conditions) -> np.ndarray:
    """`errors` of x0 (B, C, H, W) at each timestep: float64 (B, T).

    All images have the same noise at a timestep, so that their errors differ by the images alone.
    """
    columns = []
    for t in timesteps:
        generator = streams.generator(seed, "denoising errors", int(t))
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
