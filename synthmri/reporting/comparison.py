"""The comparison of the models: one table from the scores of each, and what its columns can and cannot tell."""

import math

import pandas as pd

from synthmri.reporting import tables

MODELS = {
    "vae": "VAE", "dcgan": "DCGAN", "ddpm": "DDPM", "unet_gan": "U-Net GAN", "latent_diffusion": "latent diffusion",
}  # fmt: skip
FINE_TUNED = "latent_diffusion"  # the one that this is about
# What models are compared with: the model that fine-tuning starts from, before and after its decoder was adapted, then
# those of stage `references`.
BASES = {"base": "base, before all training", "base_adapted": "base, decoder adapted"}
REFERENCES = BASES | {
    "real": "real, other people", "blurred": "real, blurred", "mean_image": "mean image",
    "train_copies": "train copies", "train_copies_mirrored": "train copies, mirrored",
}  # fmt: skip
# Column -> heading, and which way is better: 1 up, -1 down, 0 neither (resemblance and effort are not quality).
COLUMNS = {
    "fd_effnet": ("FD EffNet ↓", -1), "fd_alexnet": ("FD AlexNet (seen by a loss) ↓", -1), "fid": ("FID ↓", -1),
    "fd_further": ("FD further ↓", -1), "kid_effnet": ("KID ↓", -1), "precision": ("precision ↑", 1),
    "recall": ("recall ↑", 1), "density": ("density ↑", 1), "coverage": ("coverage ↑", 1), "ssim": ("SSIM", 0),
    "psnr": ("PSNR dB", 0), "lpips": ("LPIPS", 0), "ms_ssim": ("MS-SSIM within", 0), "memorised": ("memorised", 0),
    "implausible": ("implausible", 0), "refused": ("refused by the shield", 0),
    "largest_correlation": ("largest r", 0), "level_error_cm": ("level off by cm", 0),
    "contrast_seen": ("contrast seen", 0), "label_seen": ("label seen", 0), "manual_score": ("manual 1-5 ↑", 1),
    "n": ("N", 0), "drawn_px": ("drawn with px", 0), "parameters": ("parameters", 0),
    "pretraining_images_seen": ("slices seen, pretraining", 0), "pretraining_teraflop": ("TFLOP, pretraining", 0),
    "images_seen": ("slices seen", 0), "teraflop": ("TFLOP", 0),
}  # fmt: skip
# Of metrics/training/*.json, whose `precision` is a number format.
EFFORT = ("drawn_px", "parameters", "pretraining_images_seen", "pretraining_teraflop", "images_seen", "teraflop")
DISTANCES = ("fd_effnet", "fd_alexnet", "fid", "fd_further")  # shown with their ratio to the floor
SPREAD = ("fd_effnet", "kid_effnet", "coverage")  # shown with their uncertainty
# What a first look needs, such as that of the README; the other columns stand in a second table.
FIRST = (
    "fd_effnet", "fd_alexnet", "fid", "kid_effnet", "recall", "coverage", "ssim", "psnr", "lpips", "memorised",
    "manual_score", "n",
)  # fmt: skip
MANUAL = "manual_score"  # always shown: an empty column says that nobody has rated these images
CAPTION = (
    "Against test people, whom no training saw and no model was ranked by. ±: standard error over them; ×: ratio to "
    '"real".  \n'
    "FD EffNet, no FID, decides: no loss looks through it. SSIM, PSNR, LPIPS: likeness to the nearest training "
    "slice.  \n"
    '"memorised": honest data gives 0.05. "manual": blinded raters; empty: nobody has rated; ⚠: too few.  \n'
    "Bold: better than all others with {sure:.0f} % confidence over test people, not over trainings. All columns: "
    "docs/evaluation.md"
)
ADDED = (  # to the papers that the names are of
    "What these have beside their papers. VAE: LPIPS (AlexNet), a patch discriminator, a Gaussian mixture for prior. "
    "DCGAN: the\nrelativistic loss with R1 and R2, shifted copies, averaged weights, bilinear upsampling. DDPM: a stem "
    "of 2 px, a shifted schedule\nof zero terminal SNR, the image predicted under the loss of v. U-Net GAN: generator "
    "and encoder of the DCGAN, with what that has.\nLatent diffusion: AutoencoderTiny, v-prediction, zero terminal SNR."
)
OTHERS = (
    "The other columns, of the same sets. Pretraining is on simulated heads. "
    '"level off", "seen": does an image show\nthe level, contrast and label that its prompt asks for? Judged by '
    "classifiers of training slices."
)


def table(models: dict[str, dict[str, float]], references: dict[str, dict[str, float]]) -> pd.DataFrame:
    """One row a model in the order of the original, then the references; numbers, empty where there is none.

    `*_ratio`: each Frechet distance over that of real slices of other people.
    """
    rows = {**{name: models[name] for name in MODELS}, **{name: references[name] for name in REFERENCES}}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    known = [column for column in COLUMNS if column in frame or column == MANUAL]
    spread = [f"{column}_{end}" for end in ("std", "low", "high") for column in known if f"{column}_{end}" in frame]
    ratios = {
        f"{column}_ratio": frame[column] / frame.loc["real", column]
        for column in DISTANCES
        if frame.get(column, {}).get("real", 0) > 0
    }
    return frame.assign(**ratios).reindex(columns=[*known, *spread, *ratios]).rename_axis("model")


def finetuning(models: dict[str, dict[str, float]], references: dict[str, dict[str, float]]) -> str:
    """A sentence: what the adapted decoder does to the Frechet distance of the base, and what fine-tuning does then."""
    base, adapted, tuned = (
        row["fd_effnet"] for row in (references["base"], references["base_adapted"], models["latent_diffusion"])
    )

    def change(before: float, after: float) -> str:
        share = 100 * abs(after - before) / before
        return "unchanged" if round(share) == 0 else f"{share:.0f} % {'less' if after < before else 'more'}"

    return (
        f"FD EffNet: {base:.3g} of the base, {adapted:.3g} ({change(base, adapted)}) with its decoder adapted, "
        f"{tuned:.3g} ({change(adapted, tuned)}) fine-tuned (N = {models['latent_diffusion']['n']:.0f})."
    )


def asked(scores: dict, of: str = "asked") -> dict[str, float]:
    """What the table shows of how far images are what was asked for; of: "asked", or "asked_of_real" for real ones."""
    return {name: value for name, value in scores.get(of, {}).items() if not isinstance(value, dict)}


def manual(group: dict[str, float]) -> dict[str, float]:
    """What the table shows of one group of metrics/raters.json."""
    shown = {name: value for name, value in group.items() if name.startswith(MANUAL)}
    return shown | {f"manual_{name}": group[name] for name in ("raters", "cases", "few", "inattentive")}


def told_apart(group: dict[str, float]) -> dict[str, float]:
    """What stands beside it of one model's forced choices."""
    names = ("proportion_correct", "proportion_correct_low", "proportion_correct_high")
    return {name: group[name] for name in names} | {
        f"choice_{name}": group[name] for name in ("raters", "cases", "few", "inattentive")
    }


def raters_note(raters: dict[str, dict]) -> str:
    """Which packets the manual scores belong to, how often the real slice of a pair was found, who did not attend, and
    what was left out; empty without ratings."""
    packets = ", ".join(f"{name} ({count:.0f} ratings)" for name, count in raters.get("packets", {}).items())
    counts = raters["counts"]
    parts = [f"Manual scores: packet {packets}."] if packets else []
    if packets and counts["simulated"]:
        parts.append("The slices they were given beside are of simulated people: a rehearsal, not a finding.")
    told = [f"{MODELS[name]} {_proportion(group)}" for name, group in raters.get("forced_choice", {}).items()]
    if told:
        parts.append(f"Of two slices the real one was found (0.5 is guessing): {'; '.join(told)}.")
    if counts.get("inattentive"):
        parts.append(
            f"⚠ {counts['inattentive']:.0f} of {counts['raters']:.0f} raters missed controls (images known to be bad, "
            "real ones shown twice) or gave one answer throughout. Their ratings count; metrics/raters.json says whose."
        )
    if missing := counts.get("without_controls"):
        parts.append(f"{missing:.0f} raters saw too few controls to say whether they attended.")
    if left_out := counts["of_other_images"]:
        parts.append(f"{left_out:.0f} ratings are of images that are no longer here, and are left out.")
    return "  \n".join(parts)


def _proportion(group: dict[str, float]) -> str:
    low, high = group["proportion_correct_low"], group["proportion_correct_high"]
    few = " ⚠" if group["few"] else ""
    people = f"{group['raters']:.0f} raters, {group['cases']:.0f} pairs"
    return f"{group['proportion_correct']:.2f} ({low:.2f}–{high:.2f};{few} {people})"


def markdown(
    models: dict[str, dict[str, float]],
    references: dict[str, dict[str, float]],
    leaders: dict[str, str],
    sure: float,
    note: str = "",
) -> str:
    """The columns FIRST as Markdown with arrows, uncertainties, the caption, and a note below it; then the others.

    leaders: column -> the model that leads it, in bold; sure: how sure that is, from 0 to 1.
    """
    frame, scores = table(models, references), models | references
    known = [column for column in COLUMNS if column in frame]
    first = _markdown(frame, [column for column in known if column in FIRST], scores, leaders)
    others = _markdown(frame, [column for column in known if column not in FIRST], scores, leaders)
    parts = [first, CAPTION.format(sure=100 * sure), note, OTHERS, others, ADDED]
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown(frame: pd.DataFrame, columns: list[str], scores: dict[str, dict], leaders: dict[str, str]) -> str:
    rows = []
    for name, row in frame.iterrows():
        cells = []
        for column in columns:
            text = _manual(scores[name]) if column == MANUAL else _number(column, row[column])
            spread, ratio = row.get(f"{column}_std", math.nan), row.get(f"{column}_ratio", math.nan)
            if text and not math.isnan(spread) and column in SPREAD:
                text += f" ± {_number(column, spread)}"
            if text and not math.isnan(ratio):
                text += f" ({_number(column, ratio)}×)"
            cells.append(f"**{text}**" if leaders.get(column) == name else text)
        rows.append([MODELS.get(name) or f"*{REFERENCES[name]}*", *cells])
    return tables.markdown(["model", *(COLUMNS[column][0] for column in columns)], rows)


def _manual(row: dict[str, float]) -> str:
    if MANUAL not in row:
        return ""
    text = f"{row[MANUAL]:.2f} ({row[f'{MANUAL}_low']:.2f}–{row[f'{MANUAL}_high']:.2f})"
    if row["manual_few"]:
        text += f" ⚠ {row['manual_raters']:.0f} raters, {row['manual_cases']:.0f} cases"
    if row["manual_inattentive"]:
        text += f" ⚠ {row['manual_inattentive']:.0f} of {row['manual_raters']:.0f} raters inattentive"
    return text


def _number(column: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if column == "parameters":
        return f"{value / 1e6:.1f} M"
    if column in ("n", "images_seen", "pretraining_images_seen"):
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
