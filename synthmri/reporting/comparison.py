"""The comparison of the models: one table from the scores of each, and what its columns can and cannot tell."""

import math

import pandas as pd

MODELS = {
    "vae": "VAE", "dcgan": "DCGAN", "ddpm": "DDPM", "unet_gan": "U-Net GAN", "latent_diffusion": "latent diffusion",
}  # fmt: skip
REFERENCES = {
    "held_out": "real, other people", "blurred": "held-out, blurred", "mean_image": "mean image",
    "train_copies": "train copies",
}  # fmt: skip
# Column -> heading, and which way is better: 1 up, -1 down, 0 neither (resemblance and effort are not quality).
COLUMNS = {
    "fid": ("FID ↓", -1), "fd_alexnet": ("FD AlexNet ↓", -1), "fd_effnet": ("FD EffNet ↓", -1),
    "kid_alexnet": ("KID ↓", -1), "precision": ("precision ↑", 1), "recall": ("recall ↑", 1),
    "density": ("density ↑", 1), "coverage": ("coverage ↑", 1), "ssim": ("SSIM", 0), "psnr": ("PSNR dB", 0),
    "lpips": ("LPIPS", 0), "ms_ssim": ("MS-SSIM within", 0), "memorised": ("memorised", 0),
    "largest_correlation": ("largest r", 0), "manual_score": ("manual 1-5 ↑", 1), "n": ("N", 0),
    "parameters": ("parameters", 0), "images_seen": ("images seen", 0), "teraflop": ("TFLOP", 0),
}  # fmt: skip
MANUAL = "manual_score"  # always shown: an empty column says that nobody has rated these images
CAPTION = (
    "FD, KID and precision to coverage compare each set with slices of people that nothing was trained on; ± is the "
    'standard error over these people. "real, other people" is the floor; FD is no FID.  \n'
    "SSIM, PSNR and LPIPS compare each image with the training slice nearest to it: resemblance, not quality, as the "
    "last rows show.  \n"
    '"memorised": 0.05 is what honest data gives. "manual": blinded readers\' realism with its 95 % interval; empty: '
    "nobody has rated; ⚠: too few.  \n"
    "Effort is that of training alone, without a pretrained base. Bold: best, by more than the uncertainty. Every "
    "column: docs/evaluation.md."
)


def table(models: dict[str, dict[str, float]], references: dict[str, dict[str, float]]) -> pd.DataFrame:
    """One row a model in the order of the original, then the references; numbers, empty where there is none."""
    rows = {**{name: models[name] for name in MODELS}, **{name: references[name] for name in REFERENCES}}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    known = [column for column in COLUMNS if column in frame or column == MANUAL]
    spread = [f"{column}_{end}" for end in ("std", "low", "high") for column in known if f"{column}_{end}" in frame]
    return frame.reindex(columns=known + spread).rename_axis("model")


def best(models: dict[str, dict[str, float]], column: str) -> str | None:
    """The model that leads a column by more than the combined uncertainty of the two best; None where none does."""
    sign = COLUMNS[column][1]
    ranked = sorted((m for m in models if column in models[m]), key=lambda m: -sign * models[m][column])
    if sign == 0 or len(ranked) < 2:
        return None
    first, second = (models[name] for name in ranked[:2])
    if f"{column}_std" not in first or f"{column}_std" not in second:
        return None  # a lead of unknown uncertainty is no lead
    spread = math.hypot(first[f"{column}_std"], second[f"{column}_std"])
    return ranked[0] if abs(first[column] - second[column]) > spread else None


def manual(group: dict[str, float]) -> dict[str, float]:
    """What the table shows of one group of metrics/readers.json."""
    shown = {name: value for name, value in group.items() if name.startswith(MANUAL)}
    return shown | {f"manual_{name}": group[name] for name in ("readers", "cases", "few")}


def readers_note(readers: dict[str, dict[str, float]]) -> str:
    """Which packets the manual scores belong to, and what was left out; empty without ratings."""
    packets = ", ".join(f"{name} ({count:.0f} ratings)" for name, count in readers.get("packets", {}).items())
    left_out = readers["counts"]["of_other_images"]
    parts = [f"Manual scores: packet {packets}."] if packets else []
    if packets and readers["counts"]["simulated"]:
        parts.append("The slices they were given beside are of simulated people: a rehearsal, not a finding.")
    if left_out:
        parts.append(f"{left_out:.0f} ratings are of images that are no longer here, and are left out.")
    return " ".join(parts)


def markdown(models: dict[str, dict[str, float]], references: dict[str, dict[str, float]], note: str = "") -> str:
    """The table as Markdown with arrows, uncertainties, the best in bold, the caption, and a note below it."""
    frame = table(models, references)
    columns = [column for column in COLUMNS if column in frame]
    lines = ["| model | " + " | ".join(COLUMNS[column][0] for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    rows = models | references
    leaders = {column: best(models, column) for column in columns}
    for name, row in frame.iterrows():
        cells = []
        for column in columns:
            text = _manual(rows[name]) if column == MANUAL else _number(column, row[column])
            spread = row.get(f"{column}_std", math.nan)
            if text and not math.isnan(spread) and column in ("fd_alexnet", "kid_alexnet", "coverage"):
                text += f" ± {_number(column, spread)}"
            cells.append(f"**{text}**" if leaders[column] == name else text)
        title = MODELS.get(name) or f"*{REFERENCES[name]}*"
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n\n".join(filter(None, ["\n".join(lines), CAPTION, note])) + "\n"


def _manual(row: dict[str, float]) -> str:
    if MANUAL not in row:
        return ""
    text = f"{row[MANUAL]:.2f} ({row[f'{MANUAL}_low']:.2f}–{row[f'{MANUAL}_high']:.2f})"
    few = f" ⚠ {row['manual_readers']:.0f} readers, {row['manual_cases']:.0f} cases"
    return text + few if row["manual_few"] else text


def _number(column: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if column == "parameters":
        return f"{value / 1e6:.1f} M"
    if column in ("n", "images_seen"):
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
