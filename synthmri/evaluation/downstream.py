"""What synthetic slices are good for: a small classifier that trains on real ones, synthetic ones, or both.

It learns the manifest's `label` and is judged on the test people, with as few real people as a share says, against the
fair rival: the same real slices with classical augmentation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from scipy.stats import rankdata
from torch import nn

from synthmri import streams
from synthmri.evaluation import auroc
from synthmri.params import Section
from synthmri.training import loop

# Arm -> title, whether it has real slices, synthetic ones, and classical augmentation.
ARMS = {
    "real": ("real", True, False, False),
    "real_augmented": ("real, classical augmentation", True, False, True),
    "synthetic_augmented": ("synthetic, classical augmentation", False, True, True),
    "both": ("real + synthetic", True, True, False),
    "both_augmented": ("real + synthetic, classical augmentation", True, True, True),
}
WIDTH = 8  # channels at half the picture's size; doubled at each of three more halvings
RIVAL, JUDGED = "real_augmented", "both_augmented"
ROTATION_RAD, SHIFT, ZOOM, CONTRAST = 0.17, 0.08, 0.08, 0.15  # largest change, relative to half the image or to 1


class Utility(Section):
    """Section `utility`."""

    image_px: int = Field(ge=16, le=512, multiple_of=16)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0, le=0.1)
    synthetic_share: float = Field(gt=0, lt=1)
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    trainings: int = Field(ge=1, le=100)

    @field_validator("fractions")
    @classmethod
    def _whole(cls, fractions):
        if 1 not in fractions:
            raise ValueError("1.0 must be one of them: all real slices are what the verdict is about")
        return fractions


@dataclass(frozen=True)
class Labelled:
    """images: float32 (N, 1, S, S) in [0, 1]; labels: int64 (N,), the class; who: (N,), the person, from 0."""

    images: torch.Tensor
    labels: np.ndarray
    who: np.ndarray


def shrunk(images: np.ndarray, size: int) -> torch.Tensor:
    """uint8 (N, H, W) -> float32 (N, 1, size, size) in [0, 1], by means over areas."""
    parts = []
    for start in range(0, len(images), 64):
        x = torch.from_numpy(np.array(images[start : start + 64]))[:, None].float() / 255
        parts.append(F.interpolate(x, size=(size, size), mode="area"))
    return torch.cat(parts)


def network(classes: int, seed: int) -> nn.Module:
    """Four convolutions, each halving the picture, their mean over the picture, and one linear layer."""
    torch.manual_seed(seed)
    widths = [1, *(WIDTH * 2**k for k in range(4))]
    layers = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


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


def predictions(
    sources: list[tuple[torch.Tensor, np.ndarray]],
    shares: list[float],
    test: torch.Tensor,
    classes: int,
    p: Utility,
    *,
    augment: bool,
    seed: int,
) -> np.ndarray:
    """Train on (images, labels) of each source and judge `test` (M, 1, S, S): probabilities float64 (M, classes).

    Every image of a batch is of a source by `shares`, then of a class that it holds, all alike, then of any slice of
    that: neither the size of a source nor a rare class decides. The number of steps is the same whatever the sources.
    """
    images, rows = torch.cat([x for x, _ in sources]), []
    starts = np.cumsum([0, *(len(x) for x, _ in sources)])
    for start, (_, labels) in zip(starts, sources, strict=False):
        rows.append([start + np.flatnonzero(labels == label) for label in range(classes)])
    targets = torch.from_numpy(np.concatenate([labels for _, labels in sources]))
    mean, spread = images.mean(), images.std().clamp_min(1e-3)
    net = network(classes, seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=p.learning_rate, weight_decay=0.01)
    for step in range(p.steps):
        generator, rng = streams.generator(seed, "utility", step), np.random.default_rng([seed, step])
        chosen = [
            rng.choice(rows[rng.choice(len(sources), p=shares)][rng.integers(classes)]) for _ in range(p.batch_size)
        ]
        x = augmented(images[chosen], generator) if augment else images[chosen]
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * loop.warm_cosine(step, p.steps, 1)
        loss = F.cross_entropy(net((x - mean) / spread), targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return torch.cat([net((x - mean) / spread) for x in test.split(256)]).double().softmax(1).numpy()


def kinds(labels: np.ndarray, who: np.ndarray) -> np.ndarray:
    """The class of each person 0 .. P - 1; of those whose slices differ in it, a number for each set of classes."""
    classes = int(labels.max()) + 1
    held = np.zeros((int(who.max()) + 1, classes), bool)
    held[who, labels] = True
    sets = classes + np.unique(held, axis=0, return_inverse=True)[1].ravel()
    return np.where(held.sum(axis=1) == 1, held.argmax(axis=1), sets)


def few(labels: np.ndarray, who: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of a share of the people of each class, at least one of each; a smaller share is part of a larger."""
    of, kept = kinds(labels, who), []
    for label in np.unique(of):
        members = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(of == label))
        kept += list(members[: max(1, round(fraction * len(members)))])
    return np.flatnonzero(np.isin(who, kept))


def obstacle(train: np.ndarray, test: tuple[np.ndarray, np.ndarray], synthetic: np.ndarray, names: list[str]) -> str:
    """Why the experiment cannot be done, or "". train, synthetic: labels (N,); test: labels and who, (M,) each."""
    if len(names) < 2:
        return f"the training slices have {len(names)} label(s), and a classifier needs two"
    labels, who = test
    for label, name in enumerate(names):
        people = len(np.unique(who[labels == label]))
        if people < 2:
            return f"{people} test subject(s) have the label `{name}`, and an interval needs two"
        if not (synthetic == label).any():
            return f"no synthetic slice was drawn for the label `{name}`; prompt.template needs {{label}}"
    return ""


def measured(
    train: Labelled,
    test: Labelled,
    synthetic: tuple[torch.Tensor, np.ndarray],
    classes: int,
    p: Utility,
    *,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Arm -> per cent of the real training people -> scores; a share that gives no more people than a smaller is out.

    `auroc` (one class against the rest, mean over classes) and `f1` (macro) are over test slices, means over
    p.trainings trainings that differ in the people drawn, the start and the batches; _low and _high are 95 % intervals
    that resample test people and trainings. `_gain` is the difference to classical augmentation of the same real
    slices (for synthetic ones alone: of all), `_p` its permutation test over people, two-sided.
    """
    luck = [streams.number(seed, "utility", k) for k in range(p.trainings)]
    made: dict[tuple[str, str], np.ndarray] = {}
    used: dict[str, tuple[float, float]] = {"0": (0.0, 0.0)}
    for fraction in sorted(p.fractions):
        rows = few(train.labels, train.who, fraction, luck[0])
        size = float(len(np.unique(train.who[rows])))
        if size not in (people for people, _ in used.values()):
            used[f"{100 * fraction:g}"] = (size, float(len(rows)))
    for arm, (_, real, artificial, augment) in ARMS.items():
        for share in list(used)[1:] if real else ["0"]:
            outcomes = []
            for k in range(p.trainings):
                rows = few(train.labels, train.who, float(share) / 100, luck[k]) if real else []
                sources = [(train.images[rows], train.labels[rows])] if real else []
                sources += [synthetic] if artificial else []
                shares = [1 - p.synthetic_share, p.synthetic_share] if len(sources) == 2 else [1.0]
                outcomes.append(predictions(sources, shares, test.images, classes, p, augment=augment, seed=luck[k]))
                tick()
            made[arm, share] = np.stack(outcomes)
    most = list(used)[-1]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (arm, share), values in made.items():
        scores = _scores(values, test)
        scores |= {"train_subjects": used[share][0], "train_slices": used[share][1]}
        if arm != RIVAL:
            scores |= _against(values, made[RIVAL, share if ARMS[arm][1] else most], test)
        result.setdefault(arm, {})[share] = scores
    return result


def cost(p: Utility) -> int:
    """The most trainings that `measured` makes."""
    return p.trainings * sum(len(p.fractions) if real else 1 for _, real, _, _ in ARMS.values())


def _tables(probabilities: np.ndarray, labels: np.ndarray, who: np.ndarray, count: int):
    """Of one training: for each class the tables of its ROC curve, and (count, C, C) of true and predicted classes."""
    classes = probabilities.shape[1]
    curves = [auroc.tables(probabilities[:, c], labels == c, who, count) for c in range(classes)]
    confusion = np.zeros((count, classes, classes))
    np.add.at(confusion, (who, labels, probabilities.argmax(axis=1)), 1)
    return curves, confusion


def _both(table, weights: np.ndarray) -> np.ndarray:
    """AUROC and macro F1 under weights of people (R, count): (2, R)."""
    curves, confusion = table
    areas = np.mean([auroc.area(wins, pairs, weights) for wins, pairs in curves], axis=0)
    total = np.einsum("rg,gtp->rtp", weights, confusion)
    hits = np.einsum("rcc->rc", total)
    f1 = 2 * hits / np.maximum(total.sum(1) + total.sum(2), 1e-12)
    return np.stack([areas, f1.mean(axis=1)])


def _resampled(tables: list, of: np.ndarray) -> np.ndarray:
    """(2, rounds): AUROC and F1 as means over trainings drawn with replacement, of people drawn with replacement."""
    rng = np.random.default_rng(1)
    weights = auroc.resampled(of, auroc.ROUNDS, rng)
    chosen = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), auroc.ROUNDS) / len(tables)
    return sum(_both(table, weights) * chosen[:, k] for k, table in enumerate(tables))


def _scores(values: np.ndarray, test: Labelled) -> dict[str, float]:
    of = kinds(test.labels, test.who)
    tables = [_tables(each, test.labels, test.who, len(of)) for each in values]
    points = np.mean([_both(table, np.ones((1, len(of))))[:, 0] for table in tables], axis=0)
    result = {}
    for name, point, spread in zip(("auroc", "f1"), points, _resampled(tables, of), strict=True):
        low, high = auroc.interval(spread)
        result |= {name: float(point), f"{name}_low": low, f"{name}_high": high}
    return result


def _against(values: np.ndarray, rival: np.ndarray, test: Labelled) -> dict[str, float]:
    """Gains over the rival; the test swaps the two arms' predictions person by person.

    Both arms stand in one table as people 0 .. P - 1 and P .. 2 P - 1, so that a swap, too, is a choice of weights.
    """
    of = kinds(test.labels, test.who)
    tables = []
    for ours, theirs in zip(values, rival, strict=True):
        # Swapped scores must be of one scale: ranks of ours stand beside ranks of theirs, the class chosen as it was.
        pair = np.concatenate([rankdata(ours, axis=0), rankdata(theirs, axis=0)]) / len(ours)
        who = np.concatenate([test.who, test.who + len(of)])
        labels = np.tile(test.labels, 2)
        curves, _ = _tables(pair, labels, who, 2 * len(of))
        _, confusion = _tables(np.concatenate([ours, theirs]), labels, who, 2 * len(of))
        tables.append((curves, confusion))

    def gain(weights: np.ndarray) -> np.ndarray:
        """(2, R) of weights (R, 2 P) of our arm; the rival has the halves exchanged."""
        other = np.roll(weights, len(of), axis=1)
        return np.mean([_both(table, weights) - _both(table, other) for table in tables], axis=0)

    rng = np.random.default_rng(2)
    swap = rng.integers(0, 2, (auroc.ROUNDS, len(of))).astype(float)
    none = np.zeros((1, len(of)))
    observed = gain(np.concatenate([none + 1, none], axis=1))[:, 0]
    by_chance = np.abs(gain(np.concatenate([1 - swap, swap], axis=1)))
    # The same draws of people and trainings for both arms, which is what pairs them.
    ours, theirs = (
        _resampled([_tables(each, test.labels, test.who, len(of)) for each in arm], of) for arm in (values, rival)
    )
    result = {}
    for i, name in enumerate(("auroc", "f1")):
        low, high = auroc.interval(ours[i] - theirs[i])
        as_large = (by_chance[i] >= abs(observed[i]) - 1e-12).sum()
        result |= {
            f"{name}_gain": float(observed[i]), f"{name}_gain_low": low, f"{name}_gain_high": high,
            f"{name}_p": float((1 + as_large) / (1 + auroc.ROUNDS)),
        }  # fmt: skip
    return result


def sentence(result: dict[str, dict[str, dict[str, float]]], names: list[str]) -> str:
    """Whether synthetic slices helped, also when they did not."""
    share = list(result[RIVAL])[-1]
    rival, ours = result[RIVAL][share], result[JUDGED][share]
    task = f"to tell {' from '.join(names)}"
    if rival["auroc_low"] <= 0.5 and ours["auroc_low"] <= 0.5:
        return (
            f"**Nothing can be said about the use of synthetic slices: even with all real training data the classifier "
            f"does not learn {task}** (AUROC {_range(rival, 'auroc')} with classical augmentation, where 0.5 is "
            f"chance, and {_range(ours, 'auroc')} with synthetic slices added)."
        )
    sure = ours["auroc_p"] < 0.05 and (ours["auroc_gain_low"] > 0 or ours["auroc_gain_high"] < 0)
    before = f"{rival['auroc']:.3f}"
    verb = "did not measurably help" if not sure else "helped" if ours["auroc_gain"] > 0 else "did harm"
    return (
        f"**Synthetic slices {verb}** {task}: added to all real training data with classical augmentation, they "
        f"changed the AUROC by {_range(ours, 'auroc_gain', '+.3f')} from {before} (p = {ours['auroc_p']:.3f})."
    )


def markdown(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each arm and share of real people: AUROC, F1 and gains with their intervals."""
    lines = ["| trained on | real people | AUROC | macro F1 | AUROC against classical augmentation | p |"]
    lines.append("|---" * 6 + "|")
    for arm, shares in result.items():
        for share, scores in shares.items():
            cells = [ARMS[arm][0], f"{share} % ({scores['train_subjects']:.0f})"]
            cells += [_range(scores, "auroc"), _range(scores, "f1")]
            known = "auroc_gain" in scores
            cells += [_range(scores, "auroc_gain", "+.3f"), f"{scores['auroc_p']:.3f}"] if known else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _range(scores: dict[str, float], name: str, form: str = ".3f") -> str:
    return f"{scores[name]:{form}} ({scores[f'{name}_low']:{form}} to {scores[f'{name}_high']:{form}})"
