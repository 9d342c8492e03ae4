"""The simulated heads: physics against closed forms, geometry against its definition."""

import numpy as np
import pytest
import torch

from synthmri import params
from synthmri.simulation import atlas as maps
from synthmri.simulation import cohort, heads, lesions, pretraining, scanner, shapes, slices
from synthmri.simulation.tissues import RELAXATION, TISSUES

RANGES = heads.Anatomy(
    scale=(0.9, 1.1), shape_mm=(4.0, 4.0), ventricles_mm=(9.0, 9.0), sulci=(0.5, 2.0), lesions=(5, 5),
    tilt_deg=(-5, 5), offset_mm=(-3, 3),
)  # fmt: skip
STILL = heads.Anatomy(
    scale=(1, 1), shape_mm=(0, 0), ventricles_mm=(0, 0), sulci=(1, 1), lesions=(0, 0), tilt_deg=(0, 0), offset_mm=(0, 0)
)
ROW = {tissue: row for row, tissue in enumerate(TISSUES)}


@pytest.fixture(scope="module")
def atlas():
    return maps.load_atlas()


def draw(atlas, ranges=RANGES, seed=0, **how):
    head = heads.draw(atlas, ranges, torch.Generator().manual_seed(seed), **how)
    if ranges is STILL:
        head.scale = torch.ones(3)
    return head


def fractions(atlas, head, points):
    return heads.tissue_fractions(atlas, head, heads.to_atlas(head, heads.displacement(atlas, head), points))


def axial(z, size=96, pixel_mm=2.0):
    return slices.plane_points(torch.tensor([0.0, -18, z]), "axial", pixel_mm, size).reshape(-1, 3)


def test_spin_echo_and_inversion_recovery_closed_forms():
    def at(*values):
        return torch.tensor([float(v) for v in values], dtype=torch.float64)

    one = scanner.spin_echo(at(1), at(1000), at(100), at(1000), at(100), at(0))
    assert one.item() == pytest.approx((1 - np.exp(-1)) * np.exp(-1))
    # At TI = T1 ln 2 with a very long TR the magnetisation passes through zero: how FLAIR puts out CSF.
    null = scanner.spin_echo(at(1), at(4000), at(1e9), at(1e6), at(1), at(4000 * np.log(2)))
    assert abs(null.item()) < 1e-9


@pytest.mark.parametrize(
    ("contrast", "order"),
    [
        ("T1w", ["fat", "wm", "gm", "csf"]),
        ("T1w", ["fat", "wm", "lesion", "csf"]),
        ("T2w", ["csf", "necrosis", "oedema", "gm", "deep", "muscle", "bone"]),
        ("FLAIR", ["lesion", "gm", "wm", "csf"]),
        ("PD", ["gm", "wm", "muscle", "bone"]),
        ("T1ce", ["tumour", "wm", "gm", "necrosis"]),
    ],
)
def test_tissues_have_the_order_of_brightness_that_readers_know(contrast, order):
    run = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    still = run.unet.slices.scanner.model_copy(update={"relaxation": (0.0, 0.0)})
    for seed in range(5):
        signal = scanner.draw_scans(still, [contrast], torch.Generator().manual_seed(seed))["signal"][0]
        assert sorted(order, key=lambda t: float(signal[ROW[t]]), reverse=True) == order


def test_contrast_medium_brightens_what_has_leaky_vessels_and_nothing_else_much():
    run = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    still = run.unet.slices.scanner.model_copy(update={"relaxation": (0.0, 0.0)})
    before, after = (
        scanner.draw_scans(still, [c], torch.Generator().manual_seed(3))["signal"][0] for c in ("T1w", "T1ce")
    )
    gain = after / before
    assert all(gain[ROW[t]] > 1.5 for t in ("tumour", "vein", "mucosa"))
    assert all(0.9 < gain[ROW[t]] < 1.1 for t in ("gm", "csf", "lesion", "oedema"))
    assert all(post <= pre for _, pre, _, post in RELAXATION.values())


def test_deformation_is_invertible(atlas):
    head = draw(atlas)
    field = heads.displacement(atlas, head).double()
    # Jacobian of x -> x + u(x) at every knot of the field, by central differences.
    steps = [(high - low) / (k - 1) for (low, high), k in zip(maps.BOX_MM, reversed(field.shape[2:]), strict=True)]
    d = torch.stack([torch.gradient(field, spacing=s, dim=dim)[0] for s, dim in zip(steps, (4, 3, 2), strict=True)], -1)
    jacobian = d.permute(0, 2, 3, 4, 1, 5) + torch.eye(3, dtype=torch.float64)
    assert torch.linalg.det(jacobian).min() > 0.05
    assert field.norm(dim=1).max() > 5  # and it does deform


@pytest.mark.parametrize("z", [60.0, 20.0, -35.0, -100.0])
def test_fractions_sum_to_one_and_none_is_negative(atlas, z):
    found = fractions(atlas, draw(atlas, masses=1), axial(z))
    assert found.min() >= -1e-5
    torch.testing.assert_close(found.sum(0), torch.ones(96 * 96), atol=1e-4, rtol=0)


def test_undeformed_head_has_tissues_where_the_atlas_has_them(atlas):
    head = draw(atlas, STILL)
    places = {"wm": (26.0, -20, 30), "csf": (8.0, -8, 22), "air": (0.0, 118, 20), "vitreous": (33.0, 62, -38)}
    got = fractions(atlas, head, torch.tensor(list(places.values())))
    assert [TISSUES[i] for i in got.argmax(0)] == list(places)


def test_places_of_the_brain_are_given_as_planes_of_the_head(atlas):
    """The vertex is the top of the head, the ears stick out furthest, and the nose in front."""
    head = draw(atlas, STILL)
    z = torch.arange(60.0, 125.0, 0.5)
    column = torch.stack([torch.zeros_like(z), torch.full_like(z, -20.0), z], 1)
    assert z[fractions(atlas, head, column)[0] < 0.5].max() == pytest.approx(heads.vertex_mm(head), abs=3)
    y = torch.arange(60.0, 127.0, 0.5)
    front = [torch.stack([torch.zeros_like(y), y, torch.full_like(y, level)], 1) for level in (-70.0, -75, -80)]
    tip = max(float(y[fractions(atlas, head, line)[0] < 0.5].max()) for line in front)
    assert tip == pytest.approx(heads.nose_mm(head), abs=4)
    x = torch.arange(-100.0, -60.0, 0.5)
    side = [
        torch.stack([x, torch.full_like(x, back), torch.full_like(x, level)], 1)
        for back in (-34.0, -27, -20) for level in (-58.0, -42, -26)
    ]  # fmt: skip
    ear = min(float(x[fractions(atlas, head, line)[0] < 0.5].min()) for line in side)
    assert ear == pytest.approx(heads.left_mm(head), abs=4)


def test_two_people_fold_apart_and_more_so_than_by_deformation_alone(atlas):
    """Grey matter of the convexity: correlation between people, with the folds of the atlas kept and with new ones."""

    points = axial(45.0)
    depth, *_ = maps.sample(atlas.inside, maps.BOX_MM, points)
    points = points[(depth > 1) & (depth < 14) & (points[:, 0].abs() > 20)]

    def cortex(seed, kept):
        head = draw(atlas, STILL, seed=seed)
        head.kept = kept
        found = fractions(atlas, head, points)
        return found[ROW["gm"]]

    def resemblance(kept):
        first, *others = (cortex(seed, kept) for seed in range(4))
        return np.mean([np.corrcoef(first, other)[0, 1] for other in others])

    assert resemblance(kept=-9.0) < resemblance(kept=9.0) - 0.2


def test_new_cortex_is_as_thick_as_it_says(atlas):
    """Under the crown of a gyrus, far from any sulcus, white matter begins one thickness below the fluid."""
    head = draw(atlas, STILL)
    head.kept = -9.0
    points = axial(50.0, size=256, pixel_mm=0.7)
    depth, *normal = maps.sample(atlas.inside, maps.BOX_MM, points)
    shares, used = heads._folds(atlas, head, points, torch.zeros(4, len(points)))
    surface = (depth > -1) & (depth < 6) & (used > 0.9)
    white = shares[1] > 0.5
    # The shallowest white matter lies one thickness under the surface fluid.
    assert float(depth[surface & white].min()) == pytest.approx(heads.CORTEX_MM + 0.4, abs=0.7)


def test_part_is_the_ellipsoid_that_it_says():
    """Volume of a turned ellipsoid on a grid against 4/3 pi abc."""
    turns = shapes.turn(torch.tensor([30.0]), torch.tensor([50.0]))
    parts = shapes.ellipsoids([0], torch.tensor([[1.0, 2, 3]]), torch.tensor([[6.0, 4, 9]]), turns)
    axis = torch.arange(-14.0, 14, 0.5)
    grid = torch.stack(torch.meshgrid(axis + 1, axis + 2, axis + 3, indexing="ij"), -1).reshape(-1, 3)
    near, inside = shapes.cover(parts, 0, grid.T.contiguous())
    assert int((inside > 0.5).sum()) * 0.5**3 == pytest.approx(4 / 3 * np.pi * 6 * 4 * 9, rel=0.02)


def test_paint_gives_room_to_the_last_part_first():
    one = torch.tensor([[5.0, 5, 5]])
    parts = shapes.ellipsoids([0, 1], torch.zeros(2, 3), one.repeat(2, 1), torch.eye(3).repeat(2, 1, 1))
    out = torch.zeros(2, 1)
    left = shapes.paint(parts, torch.zeros(1, 3), torch.tensor([0.8]), out)
    assert out[:, 0].tolist() == pytest.approx([0, 0.8], abs=1e-4) and float(left) == pytest.approx(0, abs=1e-4)


def test_mass_pushes_by_its_volume():
    """Tissue at s comes to lie at (s^3 + R^3)^(1/3), as nothing is compressed; and stays where bone holds."""
    mass = lesions.Mass("glioma", torch.zeros(3), torch.eye(3) / 20, 20.0, torch.zeros(3), 1.0, 0.0, True)
    grown = 0.72 * 20.0
    at = torch.tensor([[grown + 1e-3, 0, 0], [0, 200.0, 0]])
    came = lesions.push(mass, at, torch.ones(2)).norm(dim=1)
    near = ((grown + 1e-3) ** 3 - grown**3) ** (1 / 3)
    assert came.tolist() == pytest.approx([near, 200.0], abs=0.05)
    torch.testing.assert_close(lesions.push(mass, at, torch.zeros(2)), at)


def test_masses_lie_askew(atlas):
    """The axes of the ellipsoid |M x| = 1 are those of M^T M; of an upright one that is diagonal."""
    for seed in range(5):
        mass = lesions.draw_mass(atlas, torch.Generator().manual_seed(seed))
        shape = (mass.matrix.T @ mass.matrix * mass.radius_mm**2).double()
        axes = torch.linalg.eigvalsh(shape)
        assert (shape - shape.diag().diag()).abs().max() > 0.02 * (axes.max() - axes.min()) > 0
        assert float(shape.det()) == pytest.approx(float(axes.prod())) and 0.1 < axes.min() < axes.max() < 10


def test_every_kind_of_mass_grows_and_consists_of_its_own(atlas):
    seen = {}
    for seed in range(40):
        head = draw(atlas, STILL, seed=seed, masses=1)
        mass = head.masses[0]
        if mass.kind in seen or mass.radius_mm < 8:
            continue
        found = fractions(atlas, head, axial(float(mass.centre[2]), 128, 1.6))
        area = found.sum(1) * 1.6**2
        seen[mass.kind] = {t for t in ("glioma", "tumour", "necrosis", "oedema") if area[ROW[t]] > 15}
        assert slices.visible(found, 1.6) == "tumour"
    assert set(seen) == set(lesions.KINDS)
    assert seen["meningioma"] >= {"tumour"} and "glioma" not in seen["meningioma"]
    assert seen["glioma"] >= {"tumour", "oedema"}


def test_radiological_orientation():
    for plane, right, bottom in (
        ("axial", [-2, 0, 0], [0, -2, 0]),  # patient's left, back
        ("coronal", [-2, 0, 0], [0, 0, -2]),  # left, feet
        ("sagittal", [0, -2, 0], [0, 0, -2]),  # back, feet
    ):
        points = slices.plane_points(torch.zeros(3), plane, 1.0, 3)
        assert (points[1, 2] - points[1, 0]).tolist() == right
        assert (points[2, 1] - points[0, 1]).tolist() == bottom


def test_rician_noise_over_nothing_is_rayleigh():
    noise = scanner.rician(torch.zeros(1, 400_000), torch.tensor([2.0]), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.005)


def test_blur_keeps_sums_and_spreads_by_its_sigma():
    impulse = torch.zeros(2, 41, 41)
    impulse[:, 20, 20] = 1
    out = scanner.blur(impulse, torch.tensor([1.0, 2.5]))
    rows = torch.arange(41.0) - 20
    assert out.sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (out.sum(2) * rows**2).sum(1).sqrt().tolist() == pytest.approx([1.0, 2.5], rel=0.02)


def section(**change):
    run = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    return run.unet.slices.model_copy(update=change)


def test_slices_depend_on_the_seed_alone_and_name_what_they_show(atlas):
    p = section(tumours=1.0, planes={"axial": 0.4, "coronal": 0.3, "sagittal": 0.3}, levels=2, views=2, stripped=0.2)
    first, again = (slices.draw(atlas, p, 7, 64, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.images, again.images) and first.table.equals(again.table)
    assert first.images.shape == (7, 64, 64) and first.images.min() >= 0 and first.images.max() <= 1
    assert list(first.table["head"]) == [0, 0, 0, 0, 1, 1, 1]  # two slices in two contrasts each, and what is left
    other = slices.draw(atlas, p, 7, 64, torch.Generator().manual_seed(6))
    assert not torch.equal(first.images, other.images)
    table = slices.draw(atlas, p, 60, 32, torch.Generator().manual_seed(0)).table
    assert set(table["plane"]) == set(slices.PLANES) and len(set(table["contrast"])) == 5
    assert "tumour" in set(table["label"]) and table["depth_mm"].between(0, 230).all()


def test_stripped_slice_shows_the_brain_alone(atlas):
    how = dict(tumours=0.0, planes={"axial": 1.0}, depth_mm=(60, 60), levels=1, views=1)
    whole, brain = (
        slices.draw(atlas, section(stripped=share, **how), 1, 64, torch.Generator().manual_seed(1)).images[0]
        for share in (0.0, 1.0)
    )
    assert (brain > 0.1).sum() < 0.85 * (whole > 0.1).sum() and (brain > 0.1).sum() > 500


def test_level_is_the_depth_below_the_vertex(atlas):
    """The further below the vertex, down to the widest part, the more head there is; above it is none."""

    still = section().scanner.model_copy(update={"noise": (0.0, 0.0)})
    how = dict(tumours=0.0, planes={"axial": 1.0}, levels=1, views=1, anatomy=STILL, scanner=still)

    def share(depth):
        p = section(depth_mm=(depth, depth), **how)
        batch = slices.draw(atlas, p, 3, 64, torch.Generator().manual_seed(2))
        assert batch.table["depth_mm"].tolist() == pytest.approx([abs(depth)] * 3, abs=1e-3)
        return float((batch.images > 0.08).float().mean())

    assert share(-8.0) < 0.02 < share(12.0) < 0.75 * share(70.0)


def test_planes_that_are_none_are_refused():
    for planes in ({"oblique": 1.0}, {}, {"axial": 0.0}, {"axial": -1.0}):
        with pytest.raises(ValueError, match="shares, at least 0, of axial, coronal, sagittal"):
            slices.Slices.model_validate(section().model_dump() | {"planes": planes})
    with pytest.raises(ValueError, match="at least -1"):
        scanner.Scanner.model_validate(section().scanner.model_dump() | {"sharpen": (-2, 0)})


def small_cohort(**change):
    section = params.read("data/cohort.yaml", "cohort", cohort.Cohort)
    return section.model_copy(update={"pixel_mm": 3.0, "slice_mm": 10.0, "subjects": 2, **change})


def simulated(count, **change):
    atlas, p = maps.load_atlas(), small_cohort(**change)
    return [cohort.simulate_one(atlas, p, i) for i in range(count)]


def test_subject_depends_on_its_number_alone():
    two, three = simulated(2), simulated(3, subjects=3)
    for a, b in zip(two, three[:2], strict=True):
        assert (a.age_like, a.lesion_ml) == (b.age_like, b.lesion_ml)
        np.testing.assert_array_equal(a.lesions, b.lesions)
        for contrast in a.volumes:
            np.testing.assert_array_equal(a.volumes[contrast], b.volumes[contrast])
    assert any((two[0].volumes[c] != two[1].volumes[c]).any() for c in two[0].volumes)


def test_lesion_share_decides_who_has_lesions_and_the_mask_says_where():
    assert not simulated(1, lesion_share=0.0)[0].lesions.any()
    ill = simulated(1, lesion_share=1.0, pixel_mm=1.5, slice_mm=5.0, coverage_mm=90)[0]
    assert ill.lesions.shape == ill.volumes["FLAIR"].shape and ill.lesions.dtype == np.uint8
    mask_ml = ill.lesions.sum() * 1.5**2 * 5.0 / 1000
    assert 0.3 * ill.lesion_ml < mask_ml < 1.5 * ill.lesion_ml  # the rest is in voxels that are lesion in part
    flair = ill.volumes["FLAIR"]
    assert flair[ill.lesions > 0].mean() > 1.15 * np.median(flair[flair > 200])  # and it is bright there


def test_lesions_are_as_large_as_asked_and_specks_are_not_marked():
    small, large = (simulated(1, lesion_share=1.0, lesion_size=size)[0] for size in (0.5, 2.0))
    assert large.lesion_ml > 8 * small.lesion_ml  # as the cube of the width
    np.testing.assert_array_equal(large.affine, small.affine)
    lesion = np.zeros((12, 12, 2), bool)
    lesion[1:3, 1, 0] = lesion[2, 1, 1] = True  # two voxels, of which a third lies on the next slice
    lesion[6:8, 6:8, 0] = True
    found = cohort.marked(lesion, 1.0)
    assert found.dtype == np.uint8 and found.sum() == 4 and found[6:8, 6:8, 0].all()
    assert cohort.marked(lesion, 2.0).sum() == 7


def test_cohort_lies_outside_what_the_base_was_pretrained_on():
    seen = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain).unet.slices.scanner
    site = params.read("data/cohort.yaml", "cohort", cohort.Cohort).scanner
    assert site.noise[0] > seen.noise[1]
    assert site.bias[0] > seen.bias[1]
    for contrast, timing in site.sequences.items():
        known = seen.sequences[contrast].te_ms
        assert timing.te_ms[0] > known[1] or timing.ti_ms[0] > seen.sequences[contrast].ti_ms[1]
