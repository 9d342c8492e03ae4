"""Train, val and test: split by person, never by slice; and what is the same image in two of them."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from synthmri import imageset
from synthmri.errors import UserError
from synthmri.params import Section

SPLITS = ("train", "val", "test")
BLOCK = 1024  # small images compared at a time, with 4 as many


class Fractions(Section):
    """Shares of the subjects; each split gets one at the least."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _sum(self):
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the three sum to {total:g} and must sum to 1")
        return self


def split(subjects: list[str], fractions: Fractions, seed: int) -> dict[str, str]:
    """Subject -> train, val or test; the order of `subjects` is of no matter. Raises UserError below 3 subjects."""
    subjects = sorted(set(subjects))
    if len(subjects) < len(SPLITS):
        raise UserError(
            f"{len(subjects)} subject(s) found, at least 3 are needed: train, val and test share none. Add subjects, "
            "or name the folders at the top (or the files) by subject, such as sub-01, if these hold several"
        )
    order = np.random.default_rng(seed).permutation(len(subjects))
    names = np.repeat(SPLITS, _shares(len(subjects), fractions))
    return {subjects[index]: str(name) for index, name in zip(order, names, strict=True)}


def blocks(count: int, fractions: Fractions, gap: int) -> list[str]:
    """The split of each of `count` neighbouring pictures whose subjects are not known: train first, test last.

    Neighbours are likely of one person, so `gap` pictures between two splits get "" and are to be dropped. Where too
    few are there for this, all go to train.
    """
    usable = count - 2 * gap
    if usable < len(SPLITS):
        return ["train"] * count
    train, val, test = _shares(usable, fractions)
    return ["train"] * train + [""] * gap + ["val"] * val + [""] * gap + ["test"] * test


def _shares(count: int, fractions: Fractions) -> tuple[int, int, int]:
    """Train, val and test of `count` (3 or more), each 1 at the least."""
    test = min(max(1, round(fractions.test * count)), count - 2)
    val = min(max(1, round(fractions.val * count)), count - test - 1)
    return count - val - test, val, test


def duplicates(
    images: np.ndarray, splits: np.ndarray, correlation: float, *, scratch: Path | None = None
) -> np.ndarray:
    """What is the same image in two splits: "", "exact" or "near" for each of N, the latter two in val and test only.

    images: uint8 (N, H, W), may be memory-mapped; splits: N of train, val, test or "", which is left aside. Test is
    compared with train, val with train and what is left of test. Near: Pearson correlation above `correlation` after
    shrinking to 32 x 32. scratch: folder for the small images (1 KiB each) while this runs; None: the system's.
    Raises UserError where more than half of test is in train too.
    """
    splits = np.asarray(splits)
    found = np.full(len(splits), "", dtype="<U5")
    with tempfile.TemporaryFile(dir=scratch) as file:
        small, digest = _small(images, file)
        bound = _bound(small)
        for later, earlier in (("test", ["train"]), ("val", ["train", "test"])):
            ours = np.flatnonzero(splits == later)
            theirs = np.flatnonzero(np.isin(splits, earlier) & (found == ""))
            for start in range(0, len(ours), BLOCK):
                rows = ours[start : start + BLOCK]
                found[rows[_largest(rows, theirs, small, bound, correlation) > correlation]] = "near"
            found[ours[np.isin(digest[ours], digest[theirs])]] = "exact"
            if later == "test" and 2 * np.count_nonzero(found[ours]) > len(ours):
                raise UserError(
                    f"the split leaks: {np.count_nonzero(found[ours])} of {len(ours)} test images are in train too. Is "
                    "one patient there under two names? Put both under one, or raise data.duplicate_correlation"
                )
    return found


def thumbnails(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) -> float32 (N, 1024): of 32 x 32 pixels, of mean 0 and norm 1; a dot product is a correlation."""
    return _standard(_shrunk(images))


def _shrunk(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, 1024), the means of 32 x 32 fields."""
    out = np.empty((len(images), 1024), dtype=np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = np.asarray(Image.fromarray(np.asarray(image)).resize((32, 32), Image.Resampling.BOX)).ravel()
    return out


def _standard(small: np.ndarray) -> np.ndarray:
    """uint8 (N, 1024) -> float32 (N, 1024) of mean 0 and norm 1 (0 where an image has one value)."""
    out = small.astype(np.float32)
    for row in out:
        row -= row.mean()
        row /= max(float(np.linalg.norm(row)), 1e-6)
    return out


def _small(images: np.ndarray, file) -> tuple[np.ndarray, np.ndarray]:
    """The shrunk images, uint8 (N, 1024) memory-mapped from `file`, and the hexadecimal SHA-256 of each, (N,)."""
    digest = np.empty(len(images), "S64")
    for start, piece in imageset.pieces(images, imageset.PIECE):
        file.write(_shrunk(piece).data)
        digest[start : start + len(piece)] = [hashlib.sha256(image).hexdigest() for image in piece]
    file.flush()
    return np.memmap(file, np.uint8, "r", shape=(len(images), 1024)), digest


def _bound(small: np.ndarray) -> np.ndarray:
    """float32 (N, 33) whose dot products are at least the correlations of the shrunk images: a quick first look.

    An image of norm 1 is p in the span of some orthonormal directions and the rest r, and by Cauchy and Schwarz
    a.b = p(a).p(b) + r(a).r(b) <= p(a).p(b) + |r(a)| |r(b)|. The directions are those along which images differ most
    (principal components of up to 2048 of them), but any would do: they change the time, never the result.
    """
    some = imageset.evenly(len(small), 2048)
    values = _standard(np.array(small[some]))
    _, vectors = np.linalg.eigh(values.T @ values)
    axes = vectors[:, -32:]
    out = np.empty((len(small), 33), np.float32)
    for start, piece in imageset.pieces(small, BLOCK):
        values = _standard(piece)
        rows = out[start : start + len(piece)]
        rows[:, :32] = values @ axes
        rows[:, 32] = np.linalg.norm(values - rows[:, :32] @ axes.T, axis=1)
    return out


def _largest(
    rows: np.ndarray, theirs: np.ndarray, small: np.ndarray, bound: np.ndarray, correlation: float
) -> np.ndarray:
    """The largest correlation of each of `rows` with any of `theirs`, (len(rows),); below `correlation` any value."""
    ours = _standard(np.array(small[rows]))
    largest = np.full(len(rows), -1.0, np.float32)
    for start in range(0, len(theirs), 4 * BLOCK):
        part = theirs[start : start + 4 * BLOCK]
        likely = part[(bound[rows] @ bound[part].T).max(0) > correlation - 1e-4]  # a margin for float32
        if len(likely):
            np.maximum(largest, (ours @ _standard(np.array(small[likely])).T).max(1), out=largest)
    imageset.release(small)
    return largest
