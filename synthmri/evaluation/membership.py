"""Membership inference: can an attacker tell the slices that a model trained on from slices of other people?

Two attacks. By loss (Matsumoto 2023, arXiv 2302.03262; Carlini 2023, arXiv 2301.13188): a diffusion model denoises what
it has seen with smaller errors. By distance (Hayes 2019, arXiv 1705.07663, and Chen 2020, arXiv 1909.03935, of GANs):
the generated images lie nearer to what the model has seen. The attacker of the first has the weights, the attacker of
the second the images alone.
"""

import numpy as np
import pandas as pd
from pydantic import Field

from synthmri.evaluation import auroc
from synthmri.params import Section
from synthmri.reporting import answers, tables
from synthmri.scans import prompts

FALSE_POSITIVES = 0.01


class Privacy(Section):
    """Section `privacy`."""

    loss_pairs: int = Field(ge=2)
    timesteps: tuple[int, ...] = Field(min_length=1)


def matched(members: pd.DataFrame, others: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two manifests, as many of each, alike in contrast, plane, label and level (whole cm): two int64 (K,).

    Without that an attack could win by a difference of the sets that has nothing to do with training. K may be 0.
    """

    def key(manifest: pd.DataFrame) -> pd.Series:
        level = [str(prompts.level(float(depth))) if depth else "" for depth in manifest["depth_mm"]]
        columns = [manifest[name] for name in ("contrast", "plane", "label")]
        return pd.Series(["/".join(parts) for parts in zip(*columns, level, strict=True)], index=manifest.index)

    ours, theirs, rng = key(members).to_numpy(), key(others).to_numpy(), np.random.default_rng(0)
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for name in sorted(set(ours) & set(theirs)):
        a, b = np.flatnonzero(ours == name), np.flatnonzero(theirs == name)
        count = min(len(a), len(b))
        first.append(np.sort(rng.choice(a, count, replace=False)))
        second.append(np.sort(rng.choice(b, count, replace=False)))
    return np.concatenate(first), np.concatenate(second)


def by_loss(errors: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Denoising errors (N, T) -> scores (N,), high for what looks trained on; every timestep has the same weight.

    reference: the errors of a model that saw none of them. Some people are easier to denoise than others, by whatever
    model; relative to these, what is left is training (Watson 2022, arXiv 2111.08440).
    """
    if reference is not None:
        errors = np.log(np.maximum(errors, 1e-12) / np.maximum(reference, 1e-12))
    return -((errors - errors.mean(axis=0)) / np.maximum(errors.std(axis=0), 1e-12)).mean(axis=1)


def attack(
    members: np.ndarray, others: np.ndarray, member_people: np.ndarray, other_people: np.ndarray, p: Privacy
) -> dict[str, float]:
    """How well scores (N,) and (M,) tell members from others, with whole numbers that say whose slice each is.

    `auroc`: 0.5 is chance; `_low`, `_high`: 95 % bootstrap interval over people, of each side by itself; not known, and
    so left out, where a side has fewer than LEAST_PEOPLE.
    `tpr_at_1pct_fpr`: share of members found by the bound that takes at most 1 % of the others for members.
    `people`: how many the smaller side has. `trained_people`: the members' side.
    """
    scores = np.concatenate([members, others])
    positive = np.arange(len(scores)) < len(members)
    _, ours = np.unique(member_people, return_inverse=True)
    _, theirs = np.unique(other_people, return_inverse=True)
    who = np.concatenate([ours, ours.max() + 1 + theirs])
    sides = (np.arange(who.max() + 1) > ours.max()).astype(int)
    wins, pairs = auroc.tables(scores, positive, who, len(sides))
    bound = np.sort(others)[::-1][int(FALSE_POSITIVES * len(others))]
    result = {
        "auroc": float(auroc.area(wins, pairs, np.ones((1, len(sides))))[0]),
        "tpr_at_1pct_fpr": float((members > bound).mean()),
        "people": float(np.bincount(sides).min()),
        "trained_people": float((sides == 0).sum()),
    }
    if result["people"] < answers.LEAST_PEOPLE:
        return result
    weights = auroc.resampled(sides, auroc.ROUNDS, np.random.default_rng(0))
    low, high = auroc.interval(auroc.area(wins, pairs, weights))
    return result | {"auroc_low": low, "auroc_high": high}


def worst(attacks: dict[str, dict[str, float]]) -> dict[str, float]:
    """A model's attacks as mia_<attack>_<number>, the largest of their areas and of the upper ends of these, and the
    least of their people.

    `mia_auroc_high` is left out where it is not known of each of them: the other attack may be the one that succeeds.
    """
    result = {
        "mia_auroc": max(found["auroc"] for found in attacks.values()),
        "mia_people": min(found["people"] for found in attacks.values()),
        "mia_trained_people": min(found["trained_people"] for found in attacks.values()),
    }
    if all("auroc_high" in found for found in attacks.values()):
        result["mia_auroc_high"] = max(found["auroc_high"] for found in attacks.values())
    for name, found in attacks.items():
        result |= {f"mia_{name}_{key}": value for key, value in found.items()}
    return result


def markdown(result: dict[str, dict[str, float]], titles: dict[str, str]) -> str:
    """A row for each model; AUROC of each attack with its interval, and the share found at 1 % false positives."""
    found = "found at 1 % false alarms"
    head, rows = ("model", "AUROC by distance", found, "AUROC by loss", found), []
    for model, scores in result.items():
        cells = [titles[model]]
        for name in ("distance", "loss"):
            if f"mia_{name}_auroc" in scores:
                area, low, high = (scores.get(f"mia_{name}_auroc{end}") for end in ("", "_low", "_high"))
                interval = "interval not known" if high is None else f"{low:.3f} to {high:.3f}"
                cells += [f"{area:.3f} ({interval})", f"{scores[f'mia_{name}_tpr_at_1pct_fpr']:.3f}"]
            else:
                cells += ["", ""]
        rows.append(cells)
    lows = {model: [v for k, v in scores.items() if k.endswith("_auroc_low")] for model, scores in result.items()}
    told = [titles[model] for model, ends in lows.items() if max(ends, default=0.0) > 0.5]
    unsure = [model for model in result if "mia_auroc_high" not in result[model]]
    parts = []
    if told:
        parts.append(f"An attack tells training slices from other people's better than chance for: {', '.join(told)}.")
    if unsure:
        worst = max(unsure, key=lambda model: result[model]["mia_auroc"])
        parts.append(
            f"{'One side' if len(unsure) == len(result) else 'Of some attacks one side'} has fewer than "
            f"{answers.LEAST_PEOPLE} people, so nobody knows how far these numbers hold. The best of these attacks is "
            f"on {titles[worst]}, with an AUROC of {result[worst]['mia_auroc']:.3f}. {answers.too_few(result[worst])}"
        )
    if not parts:
        parts.append(
            "No attack tells training slices from other people's better than chance, which is no proof that none can."
        )
    return f"{' '.join(parts)}\n\n{tables.markdown(head, rows)}"
