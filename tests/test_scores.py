import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.ndimage import gaussian_filter
from skimage import data

from synthmri.errors import UserError
from synthmri.evaluation import copies, distances, features, pairs, uncertainty
from synthmri.training import perceptual


@pytest.fixture(scope="module")
def images():
    """24 smooth pictures of 64 x 64, different from one another."""
    rng = np.random.default_rng(0)
    whole = np.stack([data.camera(), data.brick(), data.grass(), data.gravel(), data.moon()])
    return np.stack([whole[i % 5, y : y + 64, x : x + 64] for i, (y, x) in enumerate(rng.integers(0, 448, (24, 2)))])


@pytest.fixture(scope="module")
def lpips_model():
    return perceptual.lpips_model()


def _gaussians(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rng.normal(0.5, 2, size=(m, d))


def _by_sqrtm(x, y):
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return means + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)


# Frechet distance


def test_frechet_distance_of_known_gaussians():
    """Samples with exactly the moments N(0, 1) and N(3, 4) an axis: (3 - 0)^2 + (2 - 1)^2 an axis."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # mean 0 and covariance 1, up to rounding
    assert distances.frechet_distance(x, 2 * x + 3) == pytest.approx(4 * (9 + 1), rel=1e-12)
    assert distances.frechet_distance(x, x + 3) == pytest.approx(4 * 9, rel=1e-12)
    assert distances.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_equals_the_matrix_root_and_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    x, y = _gaussians(300, 200, 24)
    found = distances.frechet_distance(x, y)
    assert found == pytest.approx(_by_sqrtm(x, y), rel=1e-9)
    moments = [torch.from_numpy(z) for s in (x, y) for z in (s.mean(axis=0), np.cov(s.T))]
    assert found == pytest.approx(float(_compute_fid(*moments)), rel=1e-9)


@pytest.mark.parametrize("n, m", [(20, 30), (20, 200), (200, 20), (2, 2)])
def test_frechet_distance_below_the_dimension(n, m):
    """Few rows in D = 64: against the nuclear norm of Xc Yc', and against covariances' eigenvalues."""
    x, y = _gaussians(n, m, 64)
    cx, cy = x - x.mean(axis=0), y - y.mean(axis=0)
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    traces = np.square(cx).sum() / (n - 1) + np.square(cy).sum() / (m - 1)
    nuclear = np.linalg.norm(cx @ cy.T, "nuc") / math.sqrt((n - 1) * (m - 1))
    assert distances.frechet_distance(x, y) == pytest.approx(means + traces - 2 * nuclear, rel=1e-9)
    eigenvalues, axes = np.linalg.eigh(np.cov(x.T))
    root = axes * np.sqrt(eigenvalues.clip(0)) @ axes.T
    eigenvalues = np.linalg.eigvalsh(root @ np.cov(y.T) @ root)
    full = means + traces - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    assert distances.frechet_distance(x, y) == pytest.approx(full, rel=1e-6)


def test_frechet_distance_is_symmetric_and_orderless():
    x, y = _gaussians(80, 60, 32)
    found = distances.frechet_distance(x, y)
    assert distances.frechet_distance(y, x) == pytest.approx(found, rel=1e-9)
    assert distances.frechet_distance(x[::-1], np.random.default_rng(1).permutation(y)) == pytest.approx(
        found, rel=1e-9
    )


# Kernel distance


def test_kernel_distance_equals_a_double_loop():
    x, y = _gaussians(9, 7, 5)

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    yy = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    xy = sum(k(a, b) for a in x for b in y) / (9 * 7)
    assert distances.kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_kernel_distance_equals_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = _gaussians(40, 40, 16)
    expected = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert distances.kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_biased_by_n_and_kernel_distance_is_not():
    rng = np.random.default_rng(0)
    small = [(rng.normal(size=(20, 16)), rng.normal(size=(20, 16))) for _ in range(200)]
    large = [(rng.normal(size=(80, 16)), rng.normal(size=(80, 16))) for _ in range(200)]
    fd = [np.mean([distances.frechet_distance(x, y) for x, y in halves]) for halves in (small, large)]
    kid = [np.array([distances.kernel_distance(x, y) for x, y in halves]) for halves in (small, large)]
    assert fd[0] > 2 * fd[1] > 0
    for values in kid:
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("score", [distances.frechet_distance, distances.kernel_distance])
def test_distances_refuse_what_is_no_pair_of_features(score):
    x = np.zeros((4, 3))
    bad = x.copy()
    bad[2, 1] = np.nan
    with pytest.raises(UserError, match="1 of 4 rows of features are not finite, row 2"):
        score(x, bad)
    for other in (np.zeros((4, 2)), np.zeros(3), np.zeros((1, 3))):
        with pytest.raises(UserError, match="at least 2 rows"):
            score(x, other)


# Known direction


@pytest.mark.parametrize("n, block", [(40, 7), (40, 1), (900, 100), (900, 4096)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_gaussians_are_those_of_all_rows(n, block, offset):
    """Below and above D = 60 rows, on badly scaled columns, with a mean a million times the spread."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 60)) * np.logspace(-3, 3, 60) + offset * np.logspace(-3, 3, 60)
    found = distances.gaussian(x, block=block)
    exact = x.astype(np.longdouble)
    mean = exact.mean(axis=0)
    covariance = ((exact - mean).T @ (exact - mean)).astype(float) / (n - 1)
    spread = np.sqrt(np.diag(covariance))
    assert found.count == n and len(found.root) <= 60
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=1e-14, atol=1e-13)
    error = (found.root.T @ found.root / (n - 1) - covariance) / np.outer(spread, spread)
    assert np.abs(error).max() < (1e-8 if offset else 1e-13)
    if offset:  # sums of squares, not of differences, would have lost everything
        naive = (x.T @ x - n * np.outer(x.mean(axis=0), x.mean(axis=0))) / (n - 1)
        assert np.abs((naive - covariance) / np.outer(spread, spread)).max() > 1e-5


def test_pieces_merge_in_any_order_and_number():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 20)) + 5, rng.normal(size=(200, 20))
    cuts = np.sort(rng.choice(np.arange(2, 299, 2), 6, replace=False))
    parts = [distances.gaussian(part) for part in np.split(x, cuts)]
    for order in (range(7), [3, 1, 6, 0, 5, 2, 4]):
        total = functools.reduce(distances.merged, [parts[i] for i in order])
        assert total.count == 300
        np.testing.assert_allclose(total.mean, x.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(total.root.T @ total.root / 299, np.cov(x.T), atol=1e-13)
        assert distances.frechet_distance(total, y) == pytest.approx(distances.frechet_distance(x, y), rel=1e-11)
    rows = np.sort(rng.choice(300, 100, replace=False))
    assert distances.frechet_distance(distances.gaussian(x, rows, block=9), x[rows]) == pytest.approx(0, abs=1e-10)
    with pytest.raises(UserError, match=r"1 row\(s\)"):
        distances.gaussian(x, rows[:1])
    x[250, 3] = np.inf
    with pytest.raises(UserError, match="row 250 first"):
        distances.gaussian(x, block=100)


def test_blocks_do_not_show_in_the_kernel_distance():
    x, y = _gaussians(130, 90, 24)
    k = [(a @ b.T / 24 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    expected = sum((m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in k[:2]) - 2 * k[2].mean()
    for block in (1, 32, 90, 1000):
        assert distances.kernel_distance(x, y, block=block) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("block", [16, 1000])
def test_neighbourhoods_are_those_of_the_package_prdc(monkeypatch, block):
    from prdc import compute_prdc

    monkeypatch.setattr(distances, "BLOCK", block)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        real, made = rng.normal(size=(90, 8)), rng.normal(size=(70, 8)) * 0.8 + 0.3
        expected = compute_prdc(real, made, nearest_k=5)
        assert distances.precision_recall_density_coverage(real, made) == pytest.approx(expected)
        assert expected["precision"] > 0.1 and expected["recall"] < 1


def test_nearest_distances_are_exact_in_blocks(monkeypatch):
    from scipy.spatial.distance import cdist

    monkeypatch.setattr(distances, "BLOCK", 8)
    x, y = _gaussians(50, 30, 16)
    x, y = x + 1e4, y + 1e4  # where |a|^2 + |b|^2 - 2 a.b alone has lost 8 digits
    y[7] = x[3]
    np.testing.assert_allclose(copies.nearest_distances(x, y), cdist(x, y).min(axis=1), rtol=1e-12, atol=0)
    assert copies.nearest_distances(x, y)[3] == 0


def test_distances_grow_with_blur_noise_and_collapse(images):
    rng = np.random.default_rng(0)
    real, reference = features.alexnet(images[:12]), features.alexnet(images[12:])
    for damage in (
        lambda strength: np.stack([gaussian_filter(image, strength) for image in images[:12]]),
        lambda strength: (images[:12] + rng.normal(0, 20 * strength, (12, 64, 64))).clip(0, 255).astype(np.uint8),
    ):
        damaged = [features.alexnet(damage(strength)) for strength in (1, 4)]
        for score in (distances.frechet_distance, distances.kernel_distance):
            values = [score(x, reference) for x in (real, *damaged)]
            assert values == sorted(values)
    collapsed = np.repeat(real[:1], 12, axis=0)
    assert distances.frechet_distance(collapsed, reference) > 2 * distances.frechet_distance(real, reference)


def test_copies_and_mean_images_win_at_resemblance(images, lpips_model):
    """Why ssim, psnr and lpips are not called quality: copies of train images are perfect, and a mean image is good."""
    train, test = images[:12], images[12:]

    def resemblance(x):
        nearest = copies.views(train, copies.closest_by_pixels(x, train).nearest)
        return pairs.ssim(x, nearest), pairs.psnr(x, nearest), pairs.lpips_distance(x, nearest, lpips_model)

    assert resemblance(train[::-1]) == (1, 100, 0)
    mean = np.repeat(train.mean(axis=0, keepdims=True).astype(np.uint8), 12, axis=0)
    assert resemblance(mean)[1] > resemblance(test)[1] + 3


# Uncertainty


def test_by_subject_is_the_standard_error_of_a_mean():
    """For the mean of S equal subjects the standard error is known: std / sqrt(S)."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    rows, subjects = np.repeat(values, 5)[:, None], np.repeat([f"s{i}" for i in range(30)], 5)
    for fraction in (0.3, 0.5, 0.8):
        found = uncertainty.by_subject(lambda x: x.mean(), rows, subjects, rounds=4000, fraction=fraction, seed=0)
        assert found == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=0.05)


def test_by_subject_is_the_spread_of_frechet_distances_over_cohorts():
    """Order of magnitude against new cohorts of the same population, which only a simulation has."""
    rng = np.random.default_rng(0)
    ours = rng.normal(0.5, 1, size=(200, 8))

    def cohort():
        return np.repeat(rng.normal(size=(40, 8)), 4, axis=0) + 0.3 * rng.normal(size=(160, 8))

    truth = np.std([distances.frechet_distance(ours, cohort()) for _ in range(200)])
    subjects = np.repeat(np.arange(40), 4)
    found = [
        uncertainty.by_subject(
            lambda x: distances.frechet_distance(ours, x), cohort(), subjects, rounds=50, fraction=0.8, seed=seed
        )
        for seed in range(8)
    ]
    assert 0.6 < np.mean(found) / truth < 1.5


def test_a_lead_is_judged_by_the_difference_against_the_same_people():
    """Two models that differ by little, each against people who differ by much: only the paired error sees the lead."""
    rng = np.random.default_rng(0)
    hard, rows = rng.normal(0, 1, 12), np.arange(12)
    scores = {"a": hard + 0.2, "b": hard + rng.normal(0, 0.1, 12)}
    settings = dict(rounds=40, fraction=0.5, seed=0)
    rounds = {
        name: uncertainty.rounds_by_subject(lambda part, own=own: own[part].mean(), rows, rows, **settings)
        for name, own in scores.items()
    }
    means = {name: own.mean() for name, own in scores.items()}
    assert means["a"] - means["b"] < np.hypot(*(np.std(each, ddof=1) for each in rounds.values()))  # unpaired: no lead
    assert uncertainty.leader(means, rounds, 12) == "a"
    assert np.std(rounds["a"], ddof=1) == uncertainty.by_subject(
        lambda part: scores["a"][part].mean(), rows, rows, **settings
    )


def test_equal_models_lead_no_more_often_than_promised():
    """Of two equal models one leads by chance in 2 x 5 % at most."""

    def leader(people: np.ndarray, seed: int):
        settings = dict(rounds=12, fraction=0.5, seed=seed)
        rounds = [uncertainty.rounds_by_subject(np.mean, own, np.arange(12), **settings) for own in people]
        return uncertainty.leader({0: people[0].mean(), 1: people[1].mean()}, rounds, 12)

    rng = np.random.default_rng(1)
    led = [leader(rng.normal(0, 1, (2, 12)), seed) is not None for seed in range(200)]
    assert sum(led) <= 34  # 20 are expected; more than 34 would have a chance of 0.001
    assert uncertainty.leader({"only": 1.0}, {"only": np.zeros(5)}, 5) is None


def test_fewest_kept_is_what_the_smallest_subjects_have():
    subjects = list("aaaabbc")
    assert uncertainty.fewest_kept(subjects, 0.5) == 3 and uncertainty.fewest_kept(subjects, 0.3) == 1
    assert uncertainty.fewest_kept(["a"] * 9, 0.5) == 0


def test_by_subject_keeps_subjects_whole_and_repeats():
    subjects = np.array(list("aaabbbccdddd"))
    rows = np.arange(12)[:, None]
    seen = []

    def score(x):
        seen.append(tuple(x[:, 0]))
        return float(len(x))

    first = uncertainty.by_subject(score, rows, subjects, rounds=20, fraction=0.5, seed=3)
    assert all(len(set(drawn)) == len(drawn) for drawn in seen)
    assert all(set(np.flatnonzero(np.isin(subjects, subjects[list(drawn)]))) == set(drawn) for drawn in seen)
    assert first == uncertainty.by_subject(score, rows, subjects, rounds=20, fraction=0.5, seed=3)
    assert (
        uncertainty.by_subject(score, rows, subjects, rounds=5, fraction=0.99, seed=0) >= 0
    )  # one subject is left out
    with pytest.raises(UserError, match="at least 2"):
        uncertainty.by_subject(score, rows, ["a"] * 12, rounds=5, fraction=0.5, seed=0)


# Pairs of images


@pytest.mark.parametrize("block", [1, 7, 100])
def test_nearest_of_closest_by_pixels_equals_brute_force(images, block):
    rng = np.random.default_rng(0)
    references = images[rng.permutation(24)[:19]]
    both = np.concatenate([references, references[:, :, ::-1]])
    squares = np.square(images[:, None].astype(np.int64) - both[None]).sum(axis=(2, 3))
    found = copies.closest_by_pixels(images, references, block=block).nearest
    np.testing.assert_array_equal(found, squares.argmin(axis=1))


@pytest.mark.parametrize("block", [1, 2, 64])
def test_nearest_of_closest_by_pixels_takes_the_first_of_equals_and_sees_one_grey_level(block):
    white = np.full((1, 256, 256), 255, np.uint8)
    almost = white.copy()
    almost[0, 255, 255] = 254
    references = np.concatenate([almost, white, white, almost])
    found = copies.closest_by_pixels(np.concatenate([white, almost]), references, block=block).nearest
    np.testing.assert_array_equal(found, [1, 0])


def test_ssim_and_psnr_equal_torchmetrics(images):
    """torchmetrics also averages over the border, where the window is padded; Wang's mean is over whole windows."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    rng = np.random.default_rng(0)
    noisy = (images + rng.normal(0, 15, images.shape)).clip(0, 255).astype(np.uint8)
    a, b = (torch.from_numpy(x).double()[:, None] for x in (images, noisy))
    _, full = structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    assert pairs.ssim(images, noisy) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    expected = peak_signal_noise_ratio(a, b, data_range=255.0, dim=(1, 2, 3))
    assert pairs.psnr(images, noisy) == pytest.approx(float(expected), abs=1e-4)


def test_psnr_of_known_differences():
    black = np.zeros((2, 16, 16), np.uint8)
    other = black.copy()
    other[0] += 255
    assert pairs.psnr(black[:1], other[:1]) == 0
    assert pairs.psnr(black, black) == 100
    assert pairs.psnr(black, other) == 50
    assert pairs.psnr(black, black + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)


def test_lpips_distance_does_not_depend_on_the_batch(images, lpips_model):
    values = [pairs.lpips_distance(images[:11], images[11:22], lpips_model, batch=batch) for batch in (1, 4, 64)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)
    assert pairs.lpips_distance(images, images, lpips_model) == 0


def test_scores_of_images_refuse_what_is_no_pair(images, lpips_model):
    calls = (pairs.ssim, pairs.psnr, lambda x, y: pairs.lpips_distance(x, y, lpips_model))
    for call in calls:
        with pytest.raises(UserError, match="24 images and 23 references"):
            call(images, images[1:])
        with pytest.raises(UserError, match="0 images"):
            call(images[:0], images[:0])
    for call in (*calls, copies.closest_by_pixels):
        with pytest.raises(UserError, match="float64"):
            call(images, images / 255)
        with pytest.raises(UserError, match="64, 64"):
            call(images, images[:, 1:])
    with pytest.raises(UserError, match="no references"):
        copies.closest_by_pixels(images, images[:0])
    with pytest.raises(UserError, match="11 x 11"):
        pairs.ssim(images[:, :10], images[:, :10])


# precision, recall, density, coverage


def test_manifolds_of_a_line_by_hand():
    """Points on a line, k = 1: neighbourhoods are intervals that can be counted by hand."""
    real = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii 1, 1, 1, 8
    fake = np.array([[0.5], [1.5], [100.0], [200.0]])  # radii 1, 1, 98.5, 100
    found = distances.precision_recall_density_coverage(real, fake, k=1)
    # 0.5 lies within 0 and 1; 1.5 within 1 and 2 (and 8.5 from 10: outside); 100 and 200 within none.
    assert found["precision"] == 0.5
    assert found["density"] == pytest.approx((2 + 2) / (1 * 4))
    # Of the real ones 0, 1, 2 have a fake nearer than their radius; 10 does not (8.5 > 8).
    assert found["coverage"] == 0.75
    # Real ones within a fake's neighbourhood: 0, 1, 2 by the first two, 10 by the third (90 < 98.5).
    assert found["recall"] == 1.0


def test_equal_sets_are_covered_and_far_ones_are_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    same = distances.precision_recall_density_coverage(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = distances.precision_recall_density_coverage(x, x + 100)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_too_few_for_a_neighbourhood():
    with pytest.raises(UserError, match="neighbourhoods of 5"):
        distances.precision_recall_density_coverage(np.ones((6, 2)), np.ones((60, 2)))


# memorisation and diversity


def test_memorised_share_by_hand():
    honest = np.arange(10, 50) / 100  # the 95th percentile of .10, .11 .. .49 is .4705
    assert copies.memorised(np.array([0.1, 0.47, 0.48, 0.9]), honest) == 0.5


def test_views_count_mirror_images_behind_the_references(images):
    np.testing.assert_array_equal(copies.views(images, np.array([24 + 3, 3]))[0], images[3, :, ::-1])
    np.testing.assert_array_equal(copies.views(images, np.array([24 + 3, 3]))[1], images[3])


def test_mirrored_copies_are_found_by_pixels(images):
    found = copies.closest_by_pixels(images[:3, :, ::-1], images)
    np.testing.assert_array_equal(found.nearest, [24, 25, 26])
    np.testing.assert_array_equal(found.correlated, [24, 25, 26])
    np.testing.assert_allclose(found.correlation, 1)


@pytest.fixture(scope="module")
def large():
    """Crops of 128 px that do not overlap, dark towards the border as heads are."""
    whole = [data.brick(), data.grass(), data.gravel()]
    cut = [each[y : y + 128, x : x + 128] for each in whole for y in (0, 128, 256) for x in (0, 128, 256)]
    return np.rint(np.stack(cut) * np.outer(*[np.hanning(128)] * 2)).astype(np.uint8)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("change", ["none", "shift", "turn", "gain", "shading", "noise", "blur"])
def test_likeness_finds_copies_that_differ_in_place_angle_gain_shading_noise_and_blur(large, change, mirrored):
    from scipy import ndimage

    rng = np.random.default_rng(0)
    x = large[:6].astype(float)
    if change == "shift":
        x = ndimage.shift(x, (0, 4, -4), order=1)
    elif change == "turn":
        x = ndimage.rotate(x, 7, axes=(1, 2), reshape=False, order=1)
    elif change == "gain":
        x = 20 + 0.6 * x
    elif change == "shading":
        x = x * np.linspace(0.5, 1.2, 128)
    elif change == "noise":
        x = x + rng.normal(0, 10, x.shape)
    elif change == "blur":
        x = gaussian_filter(x, (0, 1, 1))
    x = x.clip(0, 255).astype(np.uint8)
    found = copies.likeness(x[:, :, ::-1] if mirrored else x, large)
    np.testing.assert_array_equal(found.closest, np.arange(6) + 27 * mirrored)
    honest = copies.likeness(large[:6], large[6:]).largest
    assert found.largest.min() > honest.max()
    assert found.largest.max() <= 1 and (change != "none" or found.largest.min() > 1 - 1e-5)


def test_likeness_is_the_largest_correlation_of_shifted_structure(large):
    """Without turning, by brute force over every shift that wraps around."""
    a, b = (copies._structure(large[i : i + 1], copies.EDGE)[0].numpy() for i in (0, 1))
    each = [
        np.corrcoef(np.roll(a, (dy, dx), (0, 1)).ravel(), view.ravel())[0, 1]
        for dy in range(copies.EDGE)
        for dx in range(copies.EDGE)
        for view in (b, b[:, ::-1])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "ANGLES_DEG", (0,))
        assert copies.likeness(large[:1], large[1:2]).largest[0] == pytest.approx(max(each), abs=1e-5)


def test_likeness_does_not_depend_on_the_block_and_flat_images_are_like_nothing(large):
    one, many = (copies.likeness(large[:7], large[7:], block=block) for block in (2, 64))
    np.testing.assert_allclose(one.largest, many.largest, atol=1e-6)
    np.testing.assert_array_equal(one.closest, many.closest)
    assert copies.likeness(np.full((1, 128, 128), 9, np.uint8), large).largest[0] == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="no references"):
        copies.likeness(large, large[:0])


def test_largest_correlation_is_pearsons(images):
    _, values, which = copies.closest_by_pixels(images[:5], images[5:], block=4)
    both = np.concatenate([images, images[5:, :, ::-1]])
    table = np.corrcoef(both.reshape(len(both), -1))[:5, 5:]
    np.testing.assert_allclose(values, table.max(axis=1), atol=1e-12)
    np.testing.assert_array_equal(which, table.argmax(axis=1))
    flat = np.full((1, 64, 64), 9, np.uint8)
    assert copies.closest_by_pixels(flat, images).correlation == 0
    assert copies.closest_by_pixels(images[:1], flat).correlation == 0


def test_ms_ssim_is_torchmetrics_and_falls_with_diversity():
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    a, b = data.camera()[:192, :192], data.brick()[:192, :192]
    pair = pairs.ms_ssim(np.stack([a, b]), pairs=3)
    reference = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)
    tensors = [torch.from_numpy(image.astype(np.float32) / 255)[None, None] for image in (a, b)]
    assert pair == pytest.approx(reference(*tensors).item(), abs=1e-4)
    assert pairs.ms_ssim(np.stack([a, a])) == pytest.approx(1, abs=1e-5)
    assert pairs.ms_ssim(np.stack([a, b])[:, :100, :100]) is None
