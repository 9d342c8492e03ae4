"""Every score of one set of images against one reference: what a row of the comparison holds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from synthmri import scores

NAMES = {"alexnet": "fd_alexnet", "effnet": "fd_effnet", "inception": "fid"}  # only Inception may be called FID


@dataclass(frozen=True)
class Reference:
    """What all models are measured against. images: uint8 (., H, W); features: extractor -> float32 (., D)."""

    train: np.ndarray
    test: np.ndarray
    train_features: dict[str, np.ndarray]
    test_features: dict[str, np.ndarray]
    subjects: pd.Series | None  # of the held-out images; None where fewer than two are known


def distribution(features: dict[str, np.ndarray], reference: Reference, p: scores.Evaluate) -> dict[str, float]:
    """Distances between the sets, and `*_std`: their spread over subsets of held-out subjects."""

    def alexnet(test: np.ndarray) -> dict[str, float]:
        values = {
            "fd_alexnet": scores.frechet_distance(features["alexnet"], test),
            "kid_alexnet": scores.kernel_distance(features["alexnet"], test),
        }
        return values | scores.precision_recall_density_coverage(test, features["alexnet"])

    result = alexnet(reference.test_features["alexnet"])
    others = {NAMES[name]: name for name in features if name != "alexnet"}
    for name, extractor in others.items():
        result[name] = scores.frechet_distance(features[extractor], reference.test_features[extractor])
    if reference.subjects is not None:
        rows = np.arange(len(reference.test))

        def all_of(part: np.ndarray) -> np.ndarray:
            values = alexnet(reference.test_features["alexnet"][part])
            values |= {
                name: scores.frechet_distance(features[extractor], reference.test_features[extractor][part])
                for name, extractor in others.items()
            }
            return np.array([values[name] for name in result])

        spread = scores.by_subject(
            all_of, rows, reference.subjects, rounds=p.subsample_rounds, fraction=p.subsample_fraction, seed=p.seed
        )
        result |= {f"{name}_std": float(value) for name, value in zip(list(result), spread, strict=True)}
    return result


def validation(
    features: np.ndarray, held_back: np.ndarray, subjects: pd.Series | None, p: scores.Evaluate
) -> dict[str, float]:
    """`val_kid_alexnet` of features (N, D) against those of the validation slices (M, D): what models are chosen by.

    And `val_kid_alexnet_std`, its standard error over validation subjects, where two or more are known.
    """
    result = {"val_kid_alexnet": scores.kernel_distance(features, held_back)}
    if subjects is not None and subjects.nunique() > 1:
        spread = scores.by_subject(
            lambda part: scores.kernel_distance(features, part), held_back, subjects,
            rounds=p.subsample_rounds, fraction=p.subsample_fraction, seed=p.seed,
        )  # fmt: skip
        result["val_kid_alexnet_std"] = float(spread)
    return result


def against_train(
    images: np.ndarray, features: dict[str, np.ndarray], reference: Reference, p: scores.Evaluate, lpips
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """What tells of resemblance and copying, image by image, for uint8 (N, H, W) and its features.

    Returns the numbers by name, and for each image its largest pixel correlation with a train image and which one.
    """
    nearest = reference.train[scores.nearest_by_pixels(images, reference.train)]
    correlation, which = scores.largest_correlation(images, reference.train)
    result = scores.resemblance(images, nearest, lpips, batch=p.batch_size)
    result["memorised"] = scores.memorised(
        features["alexnet"], reference.test_features["alexnet"], reference.train_features["alexnet"]
    )
    result["largest_correlation"] = float(correlation.max())
    diversity = scores.ms_ssim(images, seed=p.seed)
    if diversity is not None:
        result["ms_ssim"] = diversity
    return result | {"n": float(len(images))}, correlation, which


def score(
    images: np.ndarray, features: dict[str, np.ndarray], reference: Reference, p: scores.Evaluate, lpips
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """All numbers of a set by name; docs/evaluation.md says what each means. Otherwise as `against_train`."""
    result, correlation, which = against_train(images, features, reference, p, lpips)
    return distribution(features, reference, p) | result, correlation, which
