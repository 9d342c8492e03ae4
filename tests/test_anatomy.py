"""The simulated heads: physics against closed forms, geometry against its definition."""

import numpy as np
import pytest
import torch

from synthmri import params
from synthmri.simulation import cohort, heads

RANGES = heads.Anatomy(
    scale=(0.9, 1.1), shape_mm=(5.0, 5.0), ventricles_mm=(9.0, 9.0), sulci=(0.5, 2.0), lesions=(5, 5),
    tilt_deg=(-5, 5), offset_mm=(-3, 3),
)  # fmt: skip
STILL = heads.Anatomy(
    scale=(1, 1), shape_mm=(0, 0), ventricles_mm=(0, 0), sulci=(1, 1), lesions=(0, 0), tilt_deg=(0, 0), offset_mm=(0, 0)
)


@pytest.fixture(scope="module")
def atlas():
    return heads.load_atlas()


def draw(atlas, ranges=RANGES, n=1, seed=0):
    return heads.draw_subjects(atlas, ranges, n, torch.Generator().manual_seed(seed))


def test_spin_echo_and_inversion_recovery_closed_forms():
    def at(*values):
        return torch.tensor([float(v) for v in values], dtype=torch.float64)

    one = heads.spin_echo(at(1), at(1000), at(100), at(1000), at(100), at(0))
    assert one.item() == pytest.approx((1 - np.exp(-1)) * np.exp(-1))
    # At TI = T1 ln 2 with a very long TR the magnetisation passes through zero: how FLAIR puts out CSF.
    null = heads.spin_echo(at(1), at(4000), at(1e9), at(1e6), at(1), at(4000 * np.log(2)))
    assert abs(null.item()) < 1e-9


@pytest.mark.parametrize(
    ("contrast", "order"),
    [
        ("T1w", ["fat", "wm", "gm", "csf"]),
        ("T2w", ["csf", "gm", "wm", "bone"]),
        ("FLAIR", ["lesion", "gm", "wm", "csf"]),
    ],
)
def test_tissues_have_the_order_of_brightness_that_readers_know(contrast, order):
    timing = {"T1w": (550, 12, 0), "T2w": (4500, 100, 0), "FLAIR": (9000, 110, 2450)}[contrast]
    tr, te, ti = (torch.tensor(float(t)) for t in timing)
    table = {t: heads.spin_echo(*(torch.tensor(v) for v in heads.RELAXATION[t]), tr, te, ti).item() for t in order}
    assert sorted(order, key=table.get, reverse=True) == order


def test_deformation_is_invertible(atlas):
    subject = draw(atlas, n=2)
    field = heads.displacement(atlas, subject).double()
    # Jacobian of x -> x + u(x) at every knot of the field, by central differences.
    steps = [(high - low) / (k - 1) for (low, high), k in zip(heads._BOX_MM, reversed(field.shape[2:]), strict=True)]
    d = torch.stack([torch.gradient(field, spacing=s, dim=dim)[0] for s, dim in zip(steps, (4, 3, 2), strict=True)], -1)
    jacobian = d.permute(0, 2, 3, 4, 1, 5) + torch.eye(3, dtype=torch.float64)
    assert torch.linalg.det(jacobian).min() > 0.05
    assert field.norm(dim=1).max() > 5  # and it does deform


def test_fractions_sum_to_one_and_none_is_negative(atlas):
    subject = draw(atlas, n=2)
    points = heads.plane_points(
        torch.tensor([[0.0, -18, 20], [0, -18, -25]]), ["axial", "axial"], torch.full((2,), 2.0), 96
    )
    at = heads.to_atlas(subject, heads.displacement(atlas, subject), points)
    fractions = heads.tissue_fractions(atlas, subject, at)
    assert fractions.min() >= 0
    torch.testing.assert_close(fractions.sum(1), torch.ones(2, 96 * 96), atol=1e-5, rtol=0)


def test_undeformed_head_has_tissues_where_the_atlas_has_them(atlas):
    subject = draw(atlas, STILL)
    places = {"wm": (26.0, -20, 30), "csf": (8.0, -8, 22), "air": (0.0, 110, 20), "gm": (14.0, 10, 8)}
    at = torch.tensor([list(p) for p in places.values()])[None]
    got = heads.tissue_fractions(atlas, subject, heads.to_atlas(subject, heads.displacement(atlas, subject), at))
    assert [heads.TISSUES[i] for i in got[0].argmax(0)] == list(places)


def test_vertex_is_the_top_of_the_head(atlas):
    subject = draw(atlas, STILL, n=4)
    z = torch.arange(70.0, 120.0, 0.5)
    xy = torch.stack(
        torch.meshgrid(torch.arange(-30.0, 31, 10), torch.arange(-60.0, 31, 10), indexing="ij"), -1
    ).reshape(-1, 2)
    points = torch.cat([xy[:, None].expand(-1, len(z), 2), z[None, :, None].expand(len(xy), -1, 1)], -1).reshape(
        1, -1, 3
    )
    head = heads.tissue_fractions(atlas, subject, points.expand(4, -1, -1))[:, 0] < 0.5
    top = torch.stack([z[h.reshape(len(xy), -1).any(0)].max() for h in head])
    torch.testing.assert_close(top, heads.vertex_mm(subject), atol=3.0, rtol=0)


def test_radiological_orientation():
    points = heads.plane_points(torch.zeros(3, 3), ["axial", "coronal", "sagittal"], torch.ones(3), 3).reshape(
        3, 3, 3, 3
    )
    right_of_image = points[:, 1, 2] - points[:, 1, 0]
    bottom_of_image = points[:, 2, 1] - points[:, 0, 1]
    assert right_of_image.tolist() == [[-2, 0, 0], [-2, 0, 0], [0, -2, 0]]  # patient's left, left, back
    assert bottom_of_image.tolist() == [[0, -2, 0], [0, 0, -2], [0, 0, -2]]  # back, feet, feet


def test_rician_noise_over_nothing_is_rayleigh():
    noise = heads.rician(torch.zeros(1, 400_000), torch.tensor([2.0]), torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.005)


def test_blur_keeps_sums_and_spreads_by_its_sigma():
    impulse = torch.zeros(2, 41, 41)
    impulse[:, 20, 20] = 1
    out = heads.blur(impulse, torch.tensor([1.0, 2.5]))
    rows = torch.arange(41.0) - 20
    assert out.sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (out.sum(2) * rows**2).sum(1).sqrt().tolist() == pytest.approx([1.0, 2.5], rel=0.02)


def small_cohort(**change):
    section = params.read("data/cohort.yaml", "cohort", cohort.Cohort)
    return section.model_copy(update={"pixel_mm": 3.0, "slice_mm": 10.0, "subjects": 2, **change})


def simulated(count, **change):
    atlas, p = heads.load_atlas(), small_cohort(**change)
    return [cohort.simulate_one(atlas, p, i) for i in range(count)]


def test_subject_depends_on_its_number_alone():
    two, three = simulated(2), simulated(3, subjects=3)
    for a, b in zip(two, three[:2], strict=True):
        assert (a.age_like, a.lesion_ml) == (b.age_like, b.lesion_ml)
        for contrast in a.volumes:
            np.testing.assert_array_equal(a.volumes[contrast], b.volumes[contrast])
    assert any((two[0].volumes[c] != two[1].volumes[c]).any() for c in two[0].volumes)


def test_lesion_share_decides_who_has_lesions():
    assert simulated(1, lesion_share=0.0)[0].lesion_ml == 0
    assert simulated(1, lesion_share=1.0)[0].lesion_ml > 0


def test_cohort_lies_outside_what_the_base_was_pretrained_on():
    from synthmri.simulation import pretraining

    seen = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain).unet.scanner
    site = params.read("data/cohort.yaml", "cohort", cohort.Cohort).scanner
    assert site.noise[0] > seen.noise[1]
    assert site.bias[0] > seen.bias[1]
    for contrast, timing in site.sequences.items():
        known = seen.sequences[contrast].te_ms
        assert timing.te_ms[0] > known[1] or timing.ti_ms[0] > seen.sequences[contrast].ti_ms[1]
