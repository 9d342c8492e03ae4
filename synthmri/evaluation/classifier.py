"""A classifier of slices: a linear layer on frozen features of ImageNet EfficientNet-Lite0, many trained at once."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from synthmri import streams
from synthmri.evaluation import features
from synthmri.imageset import pieces
from synthmri.training import loop

BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 1e-3, 0.1  # the rate falls by half a cosine
ROTATION_RAD, SHIFT, ZOOM, CONTRAST = 0.17, 0.08, 0.08, 0.15  # largest change, relative to half the image or to 1


@dataclass(frozen=True)
class Labelled:
    """views: float32 (N, V, D), features of each slice as it is (first) and augmented; labels: int64 (N,), the class;
    who: (N,), the person, from 0 (of synthetic slices of no meaning)."""

    views: np.ndarray
    labels: np.ndarray
    who: np.ndarray


def seen(images: np.ndarray, image_px: int, *, count: int, seed: int, device: str = "cpu") -> np.ndarray:
    """Features float32 (N, count, 1280) of uint8 (N, H, W), shrunk to image_px: as they are, then augmented."""
    out = np.empty((len(images), count, 1280), np.float32)
    for start, piece in pieces(images, 64):
        x = torch.from_numpy(piece)[:, None].float() / 255
        x = F.interpolate(x, size=(image_px, image_px), mode="area")
        for view in range(count):
            generator = streams.generator(seed, "utility view", view, start)
            y = augmented(x, generator) if view else x
            grey = (y[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            out[start : start + len(piece), view] = features.effnet(grey, device=device)
    return out


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B, 1, S, S) mirrored, turned, moved, zoomed, and with other contrast and brightness, each image by itself."""

    def draw(largest: float) -> torch.Tensor:
        return (torch.rand(len(x), generator=generator) * 2 - 1) * largest

    turn, zoom = draw(ROTATION_RAD), 1 + draw(ZOOM)
    mirror = torch.where(draw(1) < 0, -1.0, 1.0)
    theta = torch.stack(
        [
            torch.stack([mirror * zoom * turn.cos(), -zoom * turn.sin(), draw(SHIFT)], 1),
            torch.stack([mirror * zoom * turn.sin(), zoom * turn.cos(), draw(SHIFT)], 1),
        ],
        1,
    )
    x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    x = x.clamp(0, 1) ** torch.exp(2 * draw(CONTRAST))[:, None, None, None]
    return x * (1 + draw(CONTRAST))[:, None, None, None]


class Phase(NamedTuple):
    """steps of training on rows of a pool of slices: a batch takes of each source its share."""

    steps: int
    sources: tuple[tuple[np.ndarray, float], ...]


def batches(phase: Phase, labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of the pool, (steps, size): each of a class, all alike, then of a source that holds it, then any of that.

    So neither the size of a source nor a rare class decides.
    """
    held = np.unique(np.concatenate([labels[rows] for rows, _ in phase.sources]))
    wanted = rng.choice(held, phase.steps * size)
    chosen = np.empty(len(wanted), np.int64)
    for label in held:
        places = np.flatnonzero(wanted == label)
        parts = [(rows[labels[rows] == label], share) for rows, share in phase.sources]
        parts = [(rows, share) for rows, share in parts if len(rows)]
        shares = np.array([share for _, share in parts])
        which = rng.choice(len(parts), len(places), p=shares / shares.sum())
        for number, (rows, _) in enumerate(parts):
            chosen[places[which == number]] = rng.choice(rows, (which == number).sum())
    return chosen.reshape(phase.steps, size)


def predictions(
    pool: Labelled, plans: list[list[Phase]], judged: list[np.ndarray], classes: int, *, augment: bool,
    seeds: list[int],
) -> list[np.ndarray]:  # fmt: skip
    """Train a classifier by each of K plans on rows of `pool`; plans are alike in the steps of their phases.

    judged: features (M, D) -> for each the probabilities, float64 (K, M, classes). The classifiers learn side by side,
    which takes less time than one after the other; each depends on its own plan and seed alone. They start at zero.
    """
    flat = torch.from_numpy(pool.views.reshape(-1, pool.views.shape[2]))
    count = pool.views.shape[1]
    own = [np.unique(np.concatenate([rows for phase in plan for rows, _ in phase.sources])) for plan in plans]
    mean = torch.stack([flat[rows * count].mean(0) for rows in own])[:, None]
    spread = torch.stack([flat[rows * count].std(0, correction=0) for rows in own])[:, :, None]
    spread = torch.maximum(spread, 0.1 * spread.mean(1, keepdim=True))  # what few slices never showed may be large
    targets = torch.tensor(pool.labels)
    weights = torch.zeros(len(plans), flat.shape[1], classes, requires_grad=True)
    bias = torch.zeros(len(plans), 1, classes, requires_grad=True)

    def logits(x: torch.Tensor) -> torch.Tensor:  # (K, B, D) -> (K, B, classes), of the standardised x
        scaled = weights / spread
        return torch.baddbmm(bias - mean @ scaled, x, scaled)

    for number, phase in enumerate(plans[0]):
        rows, views = [], []
        for plan, seed in zip(plans, seeds, strict=True):
            rng = np.random.default_rng([seed, number])
            rows.append(batches(plan[number], pool.labels, BATCH, rng))
            views.append(rng.integers(count, size=rows[-1].shape) if augment else np.zeros_like(rows[-1]))
        rows, views = (torch.from_numpy(np.stack(values, axis=1)) for values in (rows, views))  # (steps, K, B)
        optimizer = torch.optim.AdamW([weights, bias], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for step in range(phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * loop.warm_cosine(step, phase.steps, 1)
            found = logits(flat[rows[step] * count + views[step]])
            loss = F.cross_entropy(found.flatten(0, 1), targets[rows[step]].flatten(), reduction="sum") / BATCH
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # the sum over classifiers, so that each has the gradient of its own mean
            optimizer.step()
    with torch.no_grad():
        spread_out = [torch.from_numpy(x).expand(len(plans), *x.shape) for x in judged]
        return [logits(x).double().softmax(2).numpy() for x in spread_out]
