"""The loss of every diffusion model here, in latents and in pixels."""

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
