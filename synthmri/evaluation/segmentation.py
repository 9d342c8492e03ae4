"""What synthetic pairs of image and mask are good for: a network that learns to draw masks from real pairs, synthetic
ones, or both, judged on the test people against the best that it reaches without synthetic ones.

As for classifiers (`downstream`), but with less of everything: a network that trains from nothing costs more than a
linear layer on features.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from statsmodels.stats.multitest import multipletests
from torch import nn

from synthmri import streams
from synthmri.evaluation import auroc
from synthmri.reporting import tables
from synthmri.training import loop, masks, resolution

SHARES = (0.1, 1.0)  # of the real training people, at least one who has lesions
LONGER = 2  # times the steps of a classifier on features that are there: this network begins with nothing
TRAININGS = 3  # of each arm and share: other people, other batches
BATCH, CROP_PX, LEARNING_RATE = 8, 64, 3e-3
ENUMERATED = 12  # people up to whom a test takes every choice of signs
GAIN = 0.15  # largest change of brightness in training
WIDTHS = (12, 24, 48)  # channels at full, half and quarter size


class Pairs(NamedTuple):
    """images, masks: uint8 (N, S, S), 255 in a lesion; who: (N,), the person (of synthetic ones of no meaning)."""

    images: np.ndarray
    masks: np.ndarray
    who: np.ndarray


class Arm(NamedTuple):
    """What a network trains on. synthetic: share of a batch; passes: how often the steps of a training on real pairs
    alone, so that an arm never sees fewer of these."""

    title: str
    synthetic: float = 0.0
    passes: int = 1


ARMS = {
    "real": Arm("real"),
    "real_repeated": Arm("real, twice as long", passes=2),  # as many steps as `both`
    "synthetic": Arm("synthetic alone, twice as long", synthetic=1.0, passes=2),
    "both": Arm("real and synthetic 1 : 1", synthetic=0.5, passes=2),
}
RIVALS = tuple(name for name, arm in ARMS.items() if not arm.synthetic)


class Network(nn.Module):
    """A small U-Net (Ronneberger 2015, arXiv 1505.04597): (B, 1, S, S) in [0, 1] -> logits (B, S, S)."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.last = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            x = F.interpolate(x, size=beside.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, beside], dim=1))
        return self.last(x)[:, 0]


def _block(before: int, after: int) -> nn.Sequential:
    layers = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
    return nn.Sequential(*layers)


def pairs(images: np.ndarray, marks: np.ndarray, who: np.ndarray, image_px: int) -> Pairs:
    """From slices and their masks, uint8 (N, H, W); a pixel is inside where most of what it covers is."""
    smaller = resolution.shrunk(marks, image_px)
    return Pairs(resolution.shrunk(images, image_px), np.where(smaller > 127, 255, 0).astype(np.uint8), who)


def obstacle(train: Pairs, val: Pairs, test: Pairs, synthetic: Pairs) -> str:
    """Why the experiment cannot be done, or ""."""
    for name, part, least in (("training", train, 1), ("validation", val, 1), ("test", test, 2)):
        if (count := len(ill(part))) < least:
            return f"{count} {name} subject(s) have a mask of a lesion, and {least} are needed"
    if not synthetic.masks.any():
        return "no synthetic slice has a lesion"
    return ""


def ill(part: Pairs) -> np.ndarray:
    """Who has a lesion in some slice, ascending."""
    return np.unique(part.who[part.masks.any(axis=(1, 2))])


def few(train: Pairs, share: float, seed: int) -> np.ndarray:
    """The rows of a share of the people, at least one of them with lesions; a smaller share is part of a larger."""
    rng = np.random.default_rng(seed)
    sick = rng.permutation(ill(train))
    order = [sick[0], *rng.permutation(np.setdiff1d(train.who, sick[:1]))]
    return np.flatnonzero(np.isin(train.who, order[: max(1, round(share * len(order)))]))


def trained(real: Pairs, synthetic: Pairs, arm: Arm, steps: int, *, seed: int) -> Network:
    """A network after steps * arm.passes batches of BATCH crops, mirrored and of other brightness."""
    with streams.weights(seed, "segmentation"):
        network = Network()
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    crop = min(CROP_PX, *real.images.shape[1:])
    drawn = round(arm.synthetic * BATCH)
    sources = [
        (part, count, masks.marked(part.masks))
        for part, count in ((real, BATCH - drawn), (synthetic, drawn)) if count
    ]  # fmt: skip
    network.train()
    for step in range(steps * arm.passes):
        generator = streams.generator(seed, "segmentation", step)
        parts = [
            masks.crops([part.images, part.masks], count, crop, generator, marked) for part, count, marked in sources
        ]
        images, marks = (torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True))
        gain = 1 + GAIN * (2 * torch.rand(BATCH, 1, 1, generator=generator) - 1)
        x = (images.float() / 255 * gain)[:, None].contiguous(memory_format=torch.channels_last)
        loop.set_rate(optimizer, LEARNING_RATE * loop.warm_cosine(step, steps * arm.passes, 5))
        loop.descend(optimizer, masks.loss(network(x), (marks > 127).float()), max_grad_norm=1.0)
    return network.eval()


@torch.no_grad()
def drawn_by(network: Network, images: np.ndarray) -> np.ndarray:
    """Masks uint8 (N, S, S), 255 inside, of uint8 (N, S, S)."""
    found = []
    for start in range(0, len(images), 16):
        x = torch.from_numpy(images[start : start + 16])[:, None].float() / 255
        found.append(255 * (network(x.contiguous(memory_format=torch.channels_last)) > 0).to(torch.uint8))
    return torch.cat(found).numpy()


def dice(found: np.ndarray, part: Pairs) -> np.ndarray:
    """Float64 (P,): of each person with lesions, over all slices of that person, 2 |A and B| / (|A| + |B|)."""
    return np.array(
        [
            2 * ((found[rows] > 127) & (part.masks[rows] > 127)).sum()
            / ((found[rows] > 127).sum() + (part.masks[rows] > 127).sum())
            for rows in (part.who == person for person in ill(part))
        ]
    )  # fmt: skip


def clear(found: np.ndarray, part: Pairs) -> float:
    """Share of the slices without a lesion in which none is drawn; NaN where all have one."""
    empty = ~part.masks.any(axis=(1, 2))
    return float((~found[empty].any(axis=(1, 2))).mean()) if empty.any() else math.nan


def smallest_p(people: int) -> float:
    """That the test of `measured` can give of so many people with lesions, before Holm's correction."""
    return 2 / 2**people if people <= ENUMERATED else 1 / (1 + auroc.ROUNDS)


def measured(
    train: Pairs, val: Pairs, test: Pairs, synthetic: Pairs, steps: int, *, seed: int,
    progress: Callable[[Iterable, int], Iterable] = lambda rounds, total: rounds,
) -> dict[str, dict[str, dict[str, float]]]:  # fmt: skip
    """Arm -> per cent of the real training people ("0" without any) -> scores.

    `dice` is the mean over the test people with lesions and TRAININGS trainings, _low and _high its 95 % interval over
    people and trainings; `clear` the share of test slices without lesions in which none is drawn. Of the arms without
    synthetic pairs the one of the largest Dice on the validation people (`val_dice`) is the rival of that share
    (`rival` is 1); of the others `gain` is the difference to it (of synthetic ones alone: to that of all people),
    `p_holm` that of a test that swaps the two person by person, by Holm over the arms of a share.
    """
    plans = [
        (name, f"{100 * share:g}" if arm.synthetic < 1 else "0", share, k)
        for name, arm in ARMS.items() for share in (SHARES if arm.synthetic < 1 else SHARES[-1:])
        for k in range(TRAININGS)
    ]  # fmt: skip
    found: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray, float, int]]] = {}
    for name, share, fraction, k in progress(plans, len(plans)):
        luck = streams.number(seed, "segmentation", k)
        rows = few(train, fraction, luck)
        network = trained(Pairs(*(part[rows] for part in train)), synthetic, ARMS[name], steps, seed=luck)
        theirs, ours = (drawn_by(network, part.images) for part in (val, test))
        people = 0 if share == "0" else len(np.unique(train.who[rows]))
        found.setdefault((name, share), []).append((dice(theirs, val), dice(ours, test), clear(ours, test), people))
    known = {key: float(np.mean([each[0].mean() for each in trainings])) for key, trainings in found.items()}
    values = {key: np.stack([each[1] for each in trainings]) for key, trainings in found.items()}  # (TRAININGS, P)
    spread = {key: _resampled(each) for key, each in values.items()}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (name, share), each in values.items():
        low, high = auroc.interval(spread[name, share])
        empty, people = (float(np.mean([training[i] for training in found[name, share]])) for i in (2, 3))
        scores = {"train_subjects": people, "val_dice": known[name, share]}
        scores |= {} if math.isnan(empty) else {"clear": empty}
        scores |= {"dice": float(each.mean()), "dice_low": low, "dice_high": high}
        at = f"{100 * SHARES[-1]:g}" if share == "0" else share
        rival = max(RIVALS, key=lambda name, at=at: known[name, at])
        if ARMS[name].synthetic:
            difference = each.mean(axis=0) - values[rival, at].mean(axis=0)
            low, high = auroc.interval(spread[name, share] - spread[rival, at])
            scores |= {"gain": float(difference.mean()), "gain_low": low, "gain_high": high, "p": _swapped(difference)}
        else:
            scores["rival"] = float(name == rival)
        result.setdefault(name, {})[share] = scores
    for at in (f"{100 * share:g}" for share in SHARES):
        last = at == f"{100 * SHARES[-1]:g}"
        arms = [rows[s] for rows in result.values() for s in ({at, "0"} if last else {at}) if "p" in rows.get(s, {})]
        for scores, corrected in zip(arms, multipletests([row["p"] for row in arms], method="holm")[1], strict=True):
            scores["p_holm"] = float(corrected)
    return result


def _resampled(values: np.ndarray) -> np.ndarray:
    """(rounds,): means of (K, P) over trainings and people, both drawn with replacement; alike for all arms."""
    rng = np.random.default_rng(1)
    people = auroc.resampled(np.zeros(values.shape[1]), auroc.ROUNDS, rng) / values.shape[1]
    trainings = auroc.resampled(np.zeros(len(values)), auroc.ROUNDS, rng) / len(values)
    return np.einsum("rk,kp,rp->r", trainings, values, people)


def _swapped(difference: np.ndarray) -> float:
    """Two-sided p of the mean of (P,) under all signs, of many people under random ones and those that they have."""
    if len(difference) <= ENUMERATED:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(difference))))
    else:
        signs = np.random.default_rng(2).choice([-1.0, 1.0], (auroc.ROUNDS, len(difference)))
        signs = np.concatenate([np.ones((1, len(difference))), signs])
    return float((np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12).mean())


def effect(scores: dict[str, float]) -> int:
    """1 where an arm surely gained over the rival, -1 where it surely lost, 0 otherwise."""
    if scores["p_holm"] >= 0.05:
        return 0
    return int(scores["gain_low"] > 0) - int(scores["gain_high"] < 0)


def sentence(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """Whether synthetic pairs helped, also when they did not: with all real people, and with fewer."""
    most = list(result[RIVALS[0]])[-1]
    parts = []
    for share in reversed(result[RIVALS[0]]):
        rival = next(name for name in RIVALS if result[name][share]["rival"])
        arms = {name: result[name].get(share if ARMS[name].synthetic < 1 else "0") for name in ARMS}
        arms = {name: arms[name] for name in arms if name not in RIVALS and (share == most or ARMS[name].synthetic < 1)}
        best = max(arms, key=lambda name: (effect(arms[name]), arms[name]["gain"]))
        ours, theirs = arms[best], result[rival][share]
        change = (
            f"`{ARMS[best].title}` changed Dice by {_range(ours, 'gain', '+.3f')} from {theirs['dice']:.3f} of "
            f"`{ARMS[rival].title}` (p = {ours['p_holm']:.3f} by Holm)"
        )
        verb = {1: "helped", 0: "did not measurably help", -1: "did harm"}[effect(ours)]
        people = "all real people" if share == most else f"{share} % of the people ({theirs['train_subjects']:.0f})"
        bold = f"**Synthetic pairs {verb}** to draw masks of lesions" if share == most else f"they {verb}"
        parts.append(f"{bold}{':' if share == most else ''} with {people}" + (", " if share == most else ": ") + change)
    return f"{parts[0]}. " + " ".join(f"{part[0].upper()}{part[1:]}." for part in parts[1:])


def markdown(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each arm and share of real people; the rival in bold."""
    rows = []
    for arm, shares in result.items():
        for share, scores in shares.items():
            title = f"**{ARMS[arm].title}**" if scores.get("rival") else ARMS[arm].title
            empty = f"{scores['clear']:.2f}" if "clear" in scores else ""
            cells = [title, f"{share} % ({scores['train_subjects']:.0f})", _range(scores, "dice"), empty]
            known = "gain" in scores
            cells += [_range(scores, "gain", "+.3f"), f"{scores['p_holm']:.3f}"] if known else ["", ""]
            rows.append(cells)
    head = ["trained on", "real people", "Dice", "left clear", "Dice against the rival", "p by Holm"]
    return tables.markdown(head, rows)


def _range(scores: dict, name: str, form: str = ".3f") -> str:
    return f"{scores[name]:{form}} ({scores[f'{name}_low']:{form}} to {scores[f'{name}_high']:{form}})"
