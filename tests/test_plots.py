import numpy as np
import pytest
from PIL import Image

from synthmri.errors import UserError
from synthmri.reporting import plots


def _images(n, height=32, width=40):
    return np.random.default_rng(0).integers(0, 256, (n, height, width), np.uint8)


def test_contact_sheet_shows_every_pixel():
    images = _images(5)
    sheet = np.asarray(plots.contact_sheet(images, 3))
    assert sheet.shape == (2 * 32 + 4, 3 * 40 + 2 * 4)
    np.testing.assert_array_equal(sheet[:32, 44:84], images[1])
    np.testing.assert_array_equal(sheet[36:, 44:84], images[4])
    assert (sheet[36:, 88:] == 255).all()


def test_contact_sheet_writes_captions_below():
    images = np.zeros((2, 64, 64), np.uint8)
    sheet = np.asarray(plots.contact_sheet(images, 2, captions=["first", "second"]))
    strip = sheet[64:, :64]
    assert (sheet[:64, :64] == 0).all() and 0 < (strip < 128).mean() < 0.5


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((_images(2) / 255, 2), "float64"),
        ((_images(2)[:0], 2), "0, 32, 40"),
        ((_images(2), 0), "columns = 0"),
        ((_images(2), 2, ["one"]), "1 captions for 2 images"),
    ],
)
def test_contact_sheet_refuses(arguments, words):
    with pytest.raises(UserError, match=words):
        plots.contact_sheet(*arguments)


def test_curve_refuses_other_counts():
    names = {"x_label": "x", "y_label": "y", "title": "t"}
    with pytest.raises(UserError, match="1 xs, 2 series"):
        plots.curve([[1]], [[1], [2]], ["a", "b"], **names)
    with pytest.raises(UserError, match="`a` has 1 places for 2"):
        plots.curve([[1]], [[1, 2]], ["a"], **names)


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.contact_sheet(_images(4), 2, captions=list("abcd")),
        lambda: plots.real_against_synthetic(_images(20), _images(3), title="Test people"),
        lambda: plots.curve([[1, 2], [2, 3]], [[5, 1], [4, 2]], ["a", "b"], x_label="x", y_label="y", title="t"),
    ],
)
def test_pictures_are_the_same_bytes_whatever_the_name(make, tmp_path):
    for name in ("one.png", ".two.png.part"):
        plots.save(make(), tmp_path / name)
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / ".two.png.part").read_bytes()
    assert b"tEXt" not in data and b"tIME" not in data
    assert np.asarray(Image.open(tmp_path / "one.png").convert("L")).std() > 10


@pytest.mark.parametrize("values", [[13.2, 50.0, 389.0], [0.0008, 0.07, 1.02], [1.0, 12.0], [0.4, 0.6], [3.0, 2e6]])
def test_labels_of_an_axis_of_scores_do_not_overlap(values):
    """Beside two other panels, as in the comparison."""
    figure = plots.dots([str(value) for value in values], {name: (values, [0.0] * len(values), None) for name in "abc"})
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        labels = [*axes.xaxis.get_ticklabels(), *axes.xaxis.get_ticklabels(minor=True)]
        boxes = [
            label.get_window_extent() for label in labels if label.get_text() and low <= label.get_position()[0] <= high
        ]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) > 1 and all(a.x1 + 2 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
