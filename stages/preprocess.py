"""data/raw -> data/slices/{train,val,test}: read what is there, slice it, split it by subject."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import Progress

from stages import _cli, _files, _secrets, _workers
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.scans import identity, inventory, likeness, read, scan, slicing, splits, wording

COLUMNS = ["subject", "source", "contrast", "plane", "label", "slice_mm", "depth_mm", "split"]
FEW_PEOPLE = 5  # as answers.LEAST_PEOPLE, which a test holds it to
ORIENTATION = {
    "axial": "anterior up, left of the patient on the right",
    "coronal": "superior up, left of the patient on the right",
    "sagittal": "superior up, anterior on the left",
}


def main(
    raw: Annotated[Path, typer.Option(help="folder of scans")],
    out: Annotated[Path, typer.Option(help="folder for the ImageSets train, val and test")],
    metrics: Annotated[Path, typer.Option(help="JSON of counts")],
    sheet: Annotated[Path, typer.Option(help="PNG of some slices of each split")],
    least: Annotated[int, typer.Option(help="evaluate.min_images: what is warned of below it")] = 0,
    image_px: Annotated[int, typer.Option(help="train.image_px: the edge that baselines learn at most")] = 64,
) -> None:
    """Slice and split the scans of a folder. No name of a person or a file gets into any output."""
    _cli.start()
    data = params.read(_cli.PARAMS, "data", slicing.Data)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    held = inventory.take(raw, data)
    found, skipped = held.sources, held.bad
    for line in wording.skipped(skipped):
        console.print(line)
    if classes := wording.classes(found, data.classes):
        console.print(classes)
    if reasons := inventory.unsettled(held, data):
        raise UserError(
            "\n  ".join(["whose the scans are, or what they show, is in doubt", *reasons])
            + f"\nrun `synthmri check`, look through {raw / inventory.TABLE}, and mend it; or, if it is right, set "
            "data.subjects to confirmed in params.yaml"
        )
    salt = _salt(raw, data)
    sources = _wanted(found, skipped, raw, data)
    tried = len(sources) + _failures(skipped)

    with (
        _files.replacing(out) as out_part,
        _files.replacing(metrics) as metrics_part,
        _files.replacing(sheet) as sheet_part,
    ):
        out_part.mkdir()
        pixels, drawn = out_part / "all.raw", out_part / "masks.raw"  # grow scan by scan: memory holds one at a time
        rows, dropped = _slice(_results(sources, data), sources, skipped, data, (pixels, drawn), console, salt)
        if _failures(skipped) > data.max_bad_fraction * tried:
            raise UserError(
                f"{_failures(skipped)} of {tried} scans cannot be used, more than data.max_bad_fraction = "
                f"{data.max_bad_fraction:g}; the reasons are above: mend or remove these, or raise the bound"
            )
        if rows.empty:
            raise UserError(
                f"no slice is left of {tried} scans (left out: {dict(dropped)}); widen data.depth_mm = "
                f"{list(data.depth_mm)} or lower data.min_head_fraction = {data.min_head_fraction:g}"
            )
        shape = (len(rows), data.image_size, data.image_size)
        images = np.memmap(pixels, np.uint8, "r", shape=shape)
        masks = np.memmap(drawn, np.uint8, "r", shape=shape) if drawn.exists() else None
        side = _split(rows, data)
        if data.source == "raw":
            for line in _alike(images, rows):
                console.print(f"warning: {line}")
        copies = splits.duplicates(images, side, data.duplicate_correlation, scratch=out_part)
        dropped["border_gap"] = int((side == "").sum())
        dropped["duplicate_exact"] = int((copies == "exact").sum())
        dropped["duplicate_near"] = int((copies == "near").sum())
        rows["split"] = np.where(copies == "", side, "")

        for name in splits.SPLITS:
            chosen = np.flatnonzero(rows["split"] == name)
            needed = 2 if name == "val" else 1  # no distance to one alone tells which epoch is to be kept
            if len(chosen) < needed:
                raise UserError(
                    f"{'one image is' if len(chosen) else 'no image is'} left for {name}, where {needed} are needed "
                    f"(left out: {dict(dropped)}); add scans, widen data.depth_mm = "
                    f"{list(data.depth_mm)} (volumes), say whose each scan is in {inventory.TABLE} (`synthmri check`), "
                    f"or, where nobody knows, lower data.border_gap = {data.border_gap}"
                )
            manifest = rows.iloc[chosen][COLUMNS].reset_index(drop=True)
            part, of_part = (
                None if array is None else (piece for _, piece in imageset.pieces(array, imageset.PIECE, chosen))
                for array in (images, masks)
            )
            imageset.write_pieces(out_part / name, part, shape[1:], manifest, _meta(rows, data), of_part)
        del images, masks
        pixels.unlink()
        drawn.unlink(missing_ok=True)

        sets = {name: imageset.read(out_part / name) for name in splits.SPLITS}
        counts = {name: _count(part.manifest) for name, part in sets.items()}
        counts["files"] = {"found": len(found), "asked_for": len(sources), "used": rows["source"].nunique()}
        left_out = [error for error in skipped if isinstance(error, scan.LeftOut)]
        counts["files_left_out"] = Counter(error.category for error in left_out)
        counts["files_skipped"] = Counter(error.category for error in skipped if not isinstance(error, scan.LeftOut))
        counts["slices_dropped"] = dropped
        counts["simulated"] = int(data.source == "simulated")
        metrics_part.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _sheet(sets).save(sheet_part, format="PNG")
    for warning in _warnings(counts, least, min(image_px, data.image_size)):
        console.print(f"warning: {warning}")


def _warnings(counts: dict[str, dict], least: int, image_px: int) -> Iterator[str]:
    """What will stop a later stage, after minutes of training, or make its answer one that nobody can use."""
    images = {name: counts[name]["images"] for name in splits.SPLITS}
    if 0 < counts["train"]["subjects"] < FEW_PEOPLE:
        yield (
            f"{counts['train']['subjects']} people to train on: so few cannot be protected, since what fits their "
            "slices fits them, and how surely an attack fails is not known below "
            f"{FEW_PEOPLE}; share nothing that is learnt from them, or add people"
        )
    for name in ("train", "test"):
        if images[name] < least:
            yield (
                f"{images[name]} {name} slices, below evaluate.min_images = {least}: nothing will be scored; add "
                f"scans, raise data.split.{name}, or lower the bound and trust the distances less"
            )
    if images["val"] < least:
        yield (
            f"{images['val']} validation slices, below evaluate.min_images = {least}: no model can become champion; "
            "add scans or raise data.split.val"
        )
    if image_px & (image_px - 1):
        yield (
            f"the baselines would learn {image_px} px, the smaller of train.image_px and data.image_size, where they "
            "take 16, 32, 64, 128, 256, 512 or 1024 alone, and will stop"
        )


def _alike(images: np.ndarray, rows: pd.DataFrame) -> Iterator[str]:
    """Who may be one person under two names: for the screen alone."""
    known = rows[rows["person"] != ""]
    if known["person"].nunique() > likeness.MOST:
        yield f"more than {likeness.MOST} people: who looks like whom is not looked at"
        return
    for contrast, part in known.groupby("contrast"):
        for one, other, value in likeness.alike(images, part.index.to_numpy(), list(part["person"])):
            yield (
                f"{one} and {other} look alike ({contrast or 'unknown contrast'}, {value:.2f}); if they are one "
                f"person, give both the same subject in {inventory.TABLE}"
            )


def _salt(raw: Path, data: slicing.Data) -> str:
    """What pseudonyms are hashed with: a random secret that stays among the scans. Simulated people have no secrets."""
    if data.source == "simulated":
        return "simulated"
    return _secrets.secret(raw / ".salt")


def _failures(skipped: list[scan.BadFile]) -> int:
    """How many should have been scans; a file of another format, or one that is no scan, is no failure."""
    return sum(error.category != "format" and not isinstance(error, scan.LeftOut) for error in skipped)


def _wanted(found: list, skipped: list, raw: Path, data: slicing.Data) -> list[scan.Source]:
    """The sources of the contrasts asked for. Raises UserError where there are none at all."""
    if not found and not _failures(skipped):
        raise UserError(
            f"{raw} holds no scans ({len(skipped)} files of other formats); put there {scan.FORMATS}, or set "
            "data.source to simulated in params.yaml"
        )
    wanted = [source for source in found if not data.contrasts or (source.contrast or "unknown") in data.contrasts]
    if found and not wanted:
        held = dict(sorted(Counter(source.contrast or "unknown" for source in found).items()))
        raise UserError(f"data.contrasts = {list(data.contrasts)}, but {raw} holds {held}; change it in params.yaml")
    return wanted


def _slice(
    results: Iterator[tuple[slicing.Slices | scan.BadFile, scan.BadFile | None]], sources: list[scan.Source],
    skipped: list, data: slicing.Data, files: tuple[Path, Path], console: Console, salt: str,
) -> tuple[pd.DataFrame, Counter]:  # fmt: skip
    """Write the slices of all sources to the first file (uint8), the masks of their lesions to the second, where any
    scan has one -> a row for each slice, and what was dropped.

    results: of each source, and why its mask is not used. `skipped` grows by the sources that cannot be used. The
    columns person and block are for splitting alone.
    """
    rows, depths, labels, dropped, bad, unmasked = [], [], [], Counter(), [], []
    masked = any(source.mask for source in sources)
    if data.label_from == "mask" and not masked:
        raise UserError(
            "data.label_from = mask, but no mask belongs to a scan; name masks as their scans, as in x_mask.png beside "
            "x.png or masks/1.png beside images/1.png, or set it to names"
        )
    with (
        files[0].open("wb") as file,
        files[1].open("wb") if masked else nullcontext() as drawn,
        Progress(console=console) as progress,
    ):
        results = progress.track(results, total=len(sources), description="slices")
        for number, (source, (result, trouble)) in enumerate(zip(sources, results, strict=True), start=1):
            unmasked += [trouble] if trouble else []
            if isinstance(result, scan.BadFile):
                bad.append(result)
                continue
            dropped.update(result.dropped)
            file.write(result.images.tobytes())
            if masked:
                drawn.write((np.zeros_like(result.images) if result.masks is None else result.masks).tobytes())
            volume = result.depth_mm is not None
            row = {
                "person": source.subject or "",
                "block": source.block,
                "subject": identity.pseudonym(source.subject, salt) if source.subject else "",
                "source": f"{source.kind}-{number:04d}",
                "contrast": source.contrast,
                "plane": data.plane if volume else source.plane,
                "slice_mm": f"{result.slice_mm:.3f}" if volume else "",
                "count": len(result.images),
            }
            rows.append(row)
            labels += _labels(source, result, data)
            depths += [f"{depth:.2f}" for depth in result.depth_mm] if volume else [""] * len(result.images)
    skipped += bad
    for line in wording.skipped(unmasked):
        console.print(f"warning: taken for free of lesions, {line.removeprefix('skipped ')}")
    for line in wording.skipped(bad):
        console.print(line)
    left = {row["person"] for row in rows if row["count"]}
    lost = sorted({source.subject for source in sources if source.subject} - left)
    if lost:
        console.print(f"warning: nothing is left of {len(lost)} people ({wording.some(lost)})")
    if shown := sorted(set(labels) - {""}):
        console.print(f"labels, which the outputs show: {', '.join(shown)}")
    if not depths:
        return pd.DataFrame(), dropped
    of_sources = pd.DataFrame(rows)
    of_slices = of_sources.loc[of_sources.index.repeat(of_sources["count"])].drop(columns="count")
    return of_slices.reset_index(drop=True).assign(depth_mm=depths, label=labels), dropped


def _labels(source: scan.Source, result: slicing.Slices, data: slicing.Data) -> list[str]:
    """One a slice: that of its source, or what its mask says."""
    if data.label_from == "names" or result.masks is None:
        return [source.label if data.label_from == "names" else ""] * len(result.images)
    return ["lesions" if mask.any() else "none" for mask in result.masks]


def _results(
    sources: list[scan.Source], data: slicing.Data
) -> Iterator[tuple[slicing.Slices | scan.BadFile, scan.BadFile | None]]:
    """What `_one` gives of each source, in order, whatever the number of workers."""
    # Workers of a cluster may run in another folder.
    sources = [
        replace(
            source,
            paths=tuple(path.absolute() for path in source.paths),
            mask=source.mask and source.mask.absolute(),
        )
        for source in sources
    ]
    one = partial(_one, data=data)
    return _workers.ordered(one, sources, *_workers.shared(threads=1), name=lambda source: source.name)


def _one(source: scan.Source, data: slicing.Data) -> tuple[slicing.Slices | scan.BadFile, scan.BadFile | None]:
    """The slices of a source, or why there are none; and why its mask is not used, where labels can do without."""
    mask = trouble = None
    try:
        volume = read.read(source, data.channel)
    except scan.BadFile as error:
        return error, None
    try:
        mask = read.read_mask(source, volume) if source.mask else None
    except scan.BadFile as error:
        if data.label_from == "mask":
            return error, None
        trouble = error
    try:
        if volume.spacing_mm is None:
            return slicing.from_pictures(volume.data, data, mask), trouble
        return slicing.from_volume(volume.data, volume.spacing_mm, data, mask), trouble
    except scan.BadFile as error:
        return type(error)(error.category, f"{source.name}: {error}"), None
    except UserError as error:
        return scan.BadFile("values", f"{source.name}: {error}"), None


def _split(rows: pd.DataFrame, data: slicing.Data) -> np.ndarray:
    """train, val, test, or "" for a picture too near to a border, for each row."""
    found = np.full(len(rows), "", dtype=object)
    known = (rows["person"] != "").to_numpy()
    if known.any():
        side = splits.split(list(rows["person"][known]), data.split, data.seed)
        found[known] = [side[person] for person in rows["person"][known]]
    for _, block in rows[~known].groupby("block"):
        found[block.index] = splits.blocks(len(block), data.split, data.border_gap)
    return found


def _meta(rows: pd.DataFrame, data: slicing.Data) -> dict:
    """The parameters that shape the bytes, the pixel spacing and the orientation (null: pictures do not tell)."""
    volumes = bool((rows["slice_mm"] != "").all())
    return {
        "data": data.model_dump(mode="json"),
        "pixel_mm": data.field_of_view_mm / data.image_size if volumes else None,
        "orientation": ORIENTATION[data.plane] if volumes else None,
    }


def _count(manifest: pd.DataFrame) -> dict:
    """Images, subjects (0: pictures, which do not tell whose they are), and images by contrast and label."""
    counts = {"images": len(manifest), "subjects": len(set(manifest["subject"]) - {""})}
    for column in ("contrast", "label"):
        counts[column] = Counter(manifest[column].replace("", "unknown"))
    return counts


def _sheet(sets: dict[str, imageset.ImageSet], columns: int = 8, side: int = 128) -> Image.Image:
    """A row of slices of val and of test below three of train, evenly picked, each split with a caption."""
    font, caption = ImageFont.load_default(14), 24
    lines = {"train": 3, "val": 1, "test": 1}
    page = Image.new("L", (columns * side, sum(lines.values()) * side + len(sets) * caption))
    top = 0
    for name, part in sets.items():
        subjects = _count(part.manifest)["subjects"] or "unknown number of"
        text = f"{name}: {len(part)} images, {subjects} subjects"
        ImageDraw.Draw(page).text((6, top + 4), text, fill=255, font=font)
        top += caption
        picked = imageset.evenly(len(part), lines[name] * columns)
        for place, index in enumerate(picked):
            tile = Image.fromarray(np.asarray(part.images[index])).resize((side, side), Image.Resampling.BOX)
            page.paste(tile, (place % columns * side, top + place // columns * side))
        top += lines[name] * side
    return page


if __name__ == "__main__":
    _cli.run(main)
