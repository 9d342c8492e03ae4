"""A packet: the images of one study under random names, frozen under the hash of everything in it.

    packet-<hash>/packet.json   parameters, images (name -> SHA-256 of its pixels), the order of each rater: names of
                                images, or of pairs as LEFT-RIGHT
    packet-<hash>/images/       uncompressed grey PNGs: of one size in bytes, with nothing in them but pixels
    key-<hash>.csv              what each image is: outside of the folder that is served
    ratings-<hash>.db           the answers (store.py)

The hash covers packet.json, which holds those of the images and of the key; new samples make a new packet.
"""

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from reader_study import design
from synthmri.errors import UserError

KEY_COLUMNS = ("image", "source", "row", "case", "contrast", "level_mm", "sha256")


@dataclass(frozen=True)
class Packet:
    """What is served. images: name -> PNG; orders: of each rater, (name, is it shown for the second time), where a name
    is that of an image or, in a forced choice, LEFT-RIGHT of two."""

    hash: str
    images: dict[str, bytes]
    hashes: dict[str, str]
    orders: list[list[tuple[str, bool]]]
    key_sha256: str
    simulated: bool
    design: str
    controls: int


def write(
    folder: Path, key: Path, items: list[design.Item], images: list[np.ndarray], p: design.Study, *, secret: str,
    simulated: bool,
) -> str:  # fmt: skip
    """Write a packet and its key to two paths that do not exist; the hash that both are to be named by.

    images: uint8 (H, W) of each item; secret: what names and orders are drawn with, besides the seed; simulated: the
    real slices are of a simulated cohort, which raters are told.
    """
    hidden = int.from_bytes(hashlib.sha256(secret.encode()).digest())
    names = design.names(items, p, hidden)
    table = pd.DataFrame(
        [(n, i.source, i.row, i.case, i.contrast, i.level_mm, design.sha256(a))
         for n, i, a in zip(names, items, images, strict=True)],
        columns=KEY_COLUMNS,
    ).sort_values("image")  # fmt: skip
    key.touch(mode=0o600)  # the end of blinding for whoever reads it
    table.to_csv(key, index=False, lineterminator="\n")
    (folder / "images").mkdir(parents=True)
    for name, image in sorted(zip(names, images, strict=True), key=lambda pair: pair[0]):  # the dates tell nothing
        (folder / "images" / f"{name}.png").write_bytes(png(image))
    shown = design.trials(items, p)

    def named(rater: int) -> list[tuple[str, bool]]:
        turns = design.order(items, p, rater, hidden)
        turned = design.sides(len(turns), p, rater, hidden)
        return [
            ("-".join(names[i] for i in (shown[trial][::-1] if turn else shown[trial])), again)
            for (trial, again), turn in zip(turns, turned, strict=True)
        ]

    content = {
        "study": p.model_dump(),
        "images": dict(zip(table["image"], table["sha256"], strict=True)),
        "orders": [named(rater) for rater in range(p.raters)],
        "simulated": simulated,
        "key_sha256": _sha256(key.read_bytes()),
    }
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    (folder / "packet.json").write_text(text, encoding="utf-8")
    return _sha256(text.encode())[:16]


def png(image: np.ndarray) -> bytes:
    """A grey PNG without compression: how well an image compresses would show in its size."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def read(folder: Path) -> Packet:
    """Open a packet and check all of it against its hash. Raises UserError where anything was changed."""
    try:
        text = (folder / "packet.json").read_bytes()
        content = json.loads(text)
        images = {name: (folder / "images" / f"{name}.png").read_bytes() for name in content["images"]}
        pixels = {name: np.asarray(Image.open(io.BytesIO(data))) for name, data in images.items()}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} cannot be read as a packet ({error}); make one with `synthmri study create`"
        ) from None
    found = _sha256(text)[:16]
    if folder.name != f"packet-{found}":
        raise UserError(
            f"{folder} was changed: its content now has the hash {found}; make a new one (`synthmri study create`)"
        )
    for name, wanted in content["images"].items():
        if design.sha256(pixels[name]) != wanted:
            raise UserError(f"{folder}/images/{name}.png was changed; make a new packet with `synthmri study create`")
    orders = [[(name, again) for name, again in order] for order in content["orders"]]
    # Packets that were made before there were others are of ratings, without controls.
    study = {"design": "rating", "controls": 0} | content["study"]
    return Packet(
        found, images, content["images"], orders, content["key_sha256"], content["simulated"], study["design"],
        study["controls"],
    )  # fmt: skip


def read_key(path: Path, packet: Packet) -> pd.DataFrame:
    """What each image is, by its name. Raises UserError for another packet's key."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the key {path} cannot be read ({error}); it is made beside the packet") from None
    if _sha256(data) != packet.key_sha256:
        raise UserError(f"{path} is not the key of packet {packet.hash}, or was changed")
    return pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False).set_index("image")


def find(home: Path, name: str) -> Path:
    """The packet of that name or hash in a folder; with an empty name, the only one there."""
    there = sorted(path for path in home.glob("packet-*") if re.fullmatch(r"packet-[0-9a-f]{16}", path.name))
    chosen = [path for path in there if not name or path.name in (name, f"packet-{name}")]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(path.name for path in there)
    if not there:
        raise UserError(f"there is no packet in {home}; make one with `synthmri study create`")
    raise UserError(f"{name or 'several packets'}: name one of {known} with --packet (or PACKET= to make)")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
