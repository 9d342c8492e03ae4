"""How stages write what they make, and read what others wrote."""

import hashlib
import json
import math
import os
import sys
from pathlib import Path

from stages._replacing import replacing as replacing
from synthmri.errors import UserError

PRETRAINING = "pretraining.json"  # beside weights that `synthmri pretrain` made: slices seen, operations


def save_pipeline(pipe, folder: Path, *, half: bool = False) -> None:
    """Write a pipeline in Stable Diffusion format; nothing in it tells where or when it was made."""
    import torch

    if half:
        # Not the text encoder: transformers opens it in the precision of its file, diffusers the rest in float32.
        pipe.unet.to(torch.float16)
        pipe.vae.to(torch.float16)
    # The tokenizer's file tells how it was called last, which in a resumed training is another call.
    if pipe.tokenizer.is_fast:
        pipe.tokenizer.backend_tokenizer.no_padding()
        pipe.tokenizer.backend_tokenizer.no_truncation()
    pipe.save_pretrained(folder, safe_serialization=True)
    forget_origin(folder)


def forget_origin(folder: Path) -> None:
    """Take out of the JSON files of a saved model where it was opened from: that differs from machine to machine."""
    for file in sorted(folder.rglob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_metrics(path: Path, tree: dict) -> None:
    """JSON of finite numbers to six significant digits: nothing smaller means anything. Words stay as they are."""

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return value if isinstance(value, str) else float(f"{value:.6g}")

    try:
        text = json.dumps(rounded(tree), indent=1, allow_nan=False)
    except ValueError:
        bad = _not_finite(tree)
        raise UserError(
            f"{', '.join(bad)} would be no finite number; look at the images and features it is made from"
        ) from None
    path.write_text(text + "\n", encoding="utf-8")


def read_scores(file: Path) -> dict[str, float]:
    """The numbers of a model's scores, without the trees by level, contrast and label that lie among them."""
    return {name: value for name, value in read_json(file).items() if not isinstance(value, dict)}


def pretraining(folder: Path) -> dict[str, float]:
    """`pretraining_images_seen` and `pretraining_teraflop` of weights of `synthmri pretrain`; of others, nothing."""
    file = folder / PRETRAINING
    return {f"pretraining_{key}": value for key, value in read_json(file).items()} if file.is_file() else {}


def _not_finite(tree: dict, where: str = "") -> list[str]:
    names = []
    for key, value in tree.items():
        if isinstance(value, dict):
            names += _not_finite(value, f"{where}{key}.")
        elif not isinstance(value, str) and not math.isfinite(value):
            names.append(f"{where}{key}")
    return names


def read_json(path: Path) -> dict:
    """What another stage wrote. Raises UserError when it is not there or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `dvc repro`") from None


def read_features(folder: Path, count: int | None) -> dict:
    """Extractor -> float32 (count, D), memory-mapped, of what stages.features wrote."""
    import numpy as np

    found = {}
    for file in sorted(folder.glob("*.npy")):
        try:
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # on damaged files numpy raises nearly anything
            raise UserError(f"{file} cannot be read as features ({error}); run `dvc repro`") from None
        if not isinstance(values, np.ndarray) or values.dtype != np.float32:
            raise UserError(f"{file} holds no features, which are float32; remove it and run `dvc repro`")
        if values.ndim != 2 or count not in (None, len(values)):
            raise UserError(f"{file} holds {values.shape} features for {count} images; run `dvc repro`")
        found[file.stem] = values
    if "effnet" not in found:
        raise UserError(f"{folder} holds no features; run `dvc repro`")
    return found


def watched(file: str, folder: Path, param: str) -> str:
    """`file`, which a parameter names, where it lies in a folder that DVC watches: raises UserError elsewhere.

    A parameter is its name alone: put in its place, another file would redo nothing.
    """
    if not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)):
        raise UserError(f"{param} = {file} lies outside of {folder}, where DVC sees a file change; put it there")
    return file


def save_array(path: Path, array) -> None:
    """NPY under this very name: given a path, np.save would add a suffix."""
    import numpy as np

    with open(path, "wb") as file:
        np.save(file, array)


def imported() -> str:
    """A short hash of the project's files that this process has imported: what a result depends on of the code."""
    root = Path(__file__).parent.parent
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    rooms = (root / "stages", root / "synthmri")
    return digest(*sorted(file for file in files if any(file.is_relative_to(room) for room in rooms)))


def code() -> str:
    """A short hash of all of the project's code, which workers elsewhere must have too."""
    root = Path(__file__).parent.parent
    return digest(*sorted([*root.glob("stages/*.py"), *root.glob("synthmri/**/*.py")]))


def digest(*parts: object) -> str:
    """A short hash of JSON-able values and of the files and folders (as Path) that something is made from."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(p for p in [part, *part.rglob("*")] if p.is_file()):
                total.update(f"{file.name} {file.stat().st_size}\n".encode())
                with open(file, "rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            total.update(json.dumps(part, sort_keys=True).encode())
    return total.hexdigest()[:16]
