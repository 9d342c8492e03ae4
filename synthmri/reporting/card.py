"""Model card and dataset sheet in the Hugging Face format, written from the numbers of a run and from nothing else."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from synthmri.reporting import tables
from synthmri.training import sampling

NAMED = {
    "fd_effnet": "Frechet distance of EfficientNet-Lite0 features (no FID)",
    "fd_alexnet": "Frechet distance of AlexNet features (no FID), which a loss of the autoencoder looks through",
    "fid": "FID (Inception-V3)",
    "fd_further": "Frechet distance of the features that evaluate.features names (no FID)",
    "kid_effnet": "KID of EfficientNet-Lite0 features, test people",
    "val_kid_effnet": "KID of EfficientNet-Lite0 features, validation people",
    "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
    "memorised": "share of images that look memorised (honest data: 0.05; what it misses: docs/evaluation.md)",
    "implausible": "share of images that are no plausible head (of 100; real slices of other people: beside)",
    "refused": "share that the shield of `synthmri generate` draws again: these, and near copies (of 100)",
    "mia_auroc": "best attack on membership, AUROC (0.5 is chance)",
    "mia_auroc_high": "largest upper 95 % bound of the attacks",
    "largest_correlation": "largest correlation of pixels with a training slice",
}  # fmt: skip
CLINICAL = (
    "**For research only, not for clinical use.** The images show no person. They must not be used for diagnosis, for "
    "the planning of treatment, or as evidence of what a disease looks like."
)
SIMULATED = "a **simulated** cohort (an anatomical atlas and signal equations; no image of a patient)"
MASKS = (
    " Of the three channels that the pipeline gives, red and green are the image; blue is the mask of its lesions as "
    "the decoder sees them, which no person has drawn (Dice {dice:.2f} on validation slices). What is said below of "
    "copies is of images alone."
)
PRIVATE = "a private set of MRI slices, which are not part of this"
OPEN = {  # by whether prompts steer it: then it is a pipeline of diffusers
    True: "import diffusers\n\n"
    'pipe = diffusers.StableDiffusionPipeline.from_pretrained("FOLDER")\n'
    "pipe.scheduler = diffusers.{sampler}.from_config(  # that of the scores below\n"
    "    pipe.scheduler.config, {told},\n)\n"
    'image = pipe(\n    "{prompt}", negative_prompt="{bare}",\n    '
    "guidance_scale={guidance_scale:g}, num_inference_steps={steps},\n).images[0]"
    "  # guidance is against the prompt without its label",
    False: "from pathlib import Path\n\nfrom synthmri import generators\n"
    "from synthmri.training.sampling import Sample\n\n"
    'model = generators.find("{code}").load(Path("FOLDER"))\n'
    'p = Sample(n=3, seed=0, steps=1, guidance_scale=1.0, scheduler="ddpm", batch_size=3)  # batch_size alone counts\n'
    "images = model.sample([0, 1, 2], p)  # uint8 (3, H, W), of these seeds",
}  # fmt: skip


SPLIT = "\nred, green, mask = image.split()  # red and green are alike: the image"


def model_card(
    title: str,
    code: str,
    prompted: bool,
    scores: dict[str, float],
    floor: dict[str, float],
    effort: dict[str, float],
    verdict: str,
    data: dict,
    tree: dict,
    prompt: str,
    rated: dict[str, float],
    dice: float | None = None,
) -> str:
    """Markdown with a YAML header for a model.

    title: its name; code: its name in synthmri.generators; prompted: whether prompts steer it; scores, floor: its
    scores and those of real slices of other people; effort: parameters, images_seen, teraflop, and where weights were
    pretrained, theirs; verdict: what the gate says, a sentence; data: counts as `preprocess` writes them; tree: all
    parameters; prompt: one of training; rated: its row of metrics/comparison.json, with what raters said; dice: of
    the masks of validation slices that it draws, None where it draws none.
    """
    simulated = tree["data"]["source"] == "simulated"
    source = "simulated brain MRI" if simulated else "private brain MRI"
    results = [
        EvalResult(
            task_type="text-to-image" if prompted else "unconditional-image-generation",
            dataset_type="simulated" if simulated else "private", dataset_name=f"{source}, test people",
            metric_type=name, metric_name=text, metric_value=scores[name],
        )
        for name, text in NAMED.items() if name in scores
    ]  # fmt: skip
    header = ModelCardData(
        model_name=f"{title}, {source}", eval_results=results, language="en",
        license="apache-2.0" if simulated and _own_base(tree) else "other",
        license_name=None if simulated and _own_base(tree) else "as-its-owner-decides",
        library_name="diffusers" if prompted else "synthmri",
        pipeline_tag="text-to-image" if prompted else "unconditional-image-generation",
        tags=["brain-mri", "synthetic-data", "not-for-clinical-use", *(["simulated-data"] if simulated else [])],
        base_model=tree["finetune"]["base_model"] if prompted and not _local_base(tree) else None,
    )  # fmt: skip
    rows = [(text, _number(scores, name), _number(floor, name)) for name, text in NAMED.items() if name in scores]
    measured = tables.markdown(("score", "this model", "real slices of other people"), rows)
    bare = sampling.unlabelled(prompt, [*data["train"].get("label", ())])
    drawing = _drawing(tree)
    sampler, told = sampling.SCHEDULERS[drawing["scheduler"]]
    opening = OPEN[prompted].format(
        code=code, prompt=prompt, bare=bare, sampler=sampler,
        told=", ".join(f"{key}={value!r}" for key, value in told.items()).replace("'", '"'), **drawing,
    ) + ("" if dice is None else SPLIT)  # fmt: skip
    people = ", ".join(_count(data, split) for split in ("train", "val", "test"))
    body = f"""# {title}: synthetic brain MRI

{CLINICAL}

It draws single {tree["data"]["plane"]} slices of {tree["data"]["image_size"]} x {tree["data"]["image_size"]} pixels, {
        "by a prompt" if prompted else "from noise alone, without a prompt"
    }. It was trained on {SIMULATED if simulated else PRIVATE}.{"" if dice is None else MASKS.format(dice=dice)}

## Intended use

To study methods of image synthesis and their evaluation, to test software, and to teach. Not intended: anything about a
patient; training of a diagnostic model without a test on real images; any claim that the images are anonymous beyond what
the table of memorisation says. Slices are independent; there is no volume behind them.

## How to open it

```python
{opening}
```

## Data

Split by subject: {people}. Contrasts: {", ".join(tree["data"]["contrasts"]) or "all there were"}. See DATASET.md.

## Scores

Of {scores["n"]:.0f} images; ± is the standard error over test people, and holds no luck of training.

{measured}

{_raters(rated)}

{verdict}
Memorisation and membership are tests of privacy and no proof: look at the nearest training slices before images are
passed on. `synthmri generate` draws again what is too like a training slice, or implausible, and states how often:
that protects the images that are passed on, not these weights, from which anybody draws without it.

## Training

{effort["parameters"] / 1e6:.1f} M parameters, {effort["images_seen"]:.0f} images seen, {effort["teraflop"]:.3g} TFLOP;
device {tree["runtime"]["device"]}. {_base(tree) if prompted else ""} {_pretraining(effort)}

## Licences

Code: Apache-2.0. {_base_licence(tree) if prompted else ""}{_data_licence(simulated)}
"""  # noqa: E501
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body}"))


def dataset_sheet(data: dict, tree: dict) -> str:
    """Markdown with a YAML header for the slices that a model was trained and judged on; arguments as `model_card`."""
    simulated = tree["data"]["source"] == "simulated"
    section = tree["data"]
    header = DatasetCardData(
        pretty_name="simulated brain MRI slices" if simulated else "private brain MRI slices", language="en",
        license="other",
        task_categories=["unconditional-image-generation", "text-to-image"],
        tags=["brain-mri", *(["simulated-data"] if simulated else ["private"])],
    )  # fmt: skip
    rows = []
    for split in ("train", "val", "test"):
        part = data[split]
        cells = (", ".join(f"{k} {v}" for k, v in part.get(kind, {}).items()) for kind in ("contrast", "label"))
        rows.append((split, part["images"], part.get("subjects") or "not known", *cells))
    counts = tables.markdown(("split", "slices", "subjects", "contrasts", "labels"), rows)
    dropped = ", ".join(f"{reason} {count}" for reason, count in data["slices_dropped"].items() if count) or "none"
    skipped = ", ".join(f"{reason} {count}" for reason, count in data["files_skipped"].items()) or "none"
    made = (
        f"{SIMULATED[0].upper()}{SIMULATED[1:]}: {tree['cohort']['subjects']} imaginary people, seed "
        f"{tree['cohort']['seed']}. All are one average brain, folded and deformed anew, in a drawn head."
        if simulated
        else "Slices of private scans. They are not part of this; subjects were told apart by salted hashes."
    )
    body = f"""# {header.pretty_name}

{CLINICAL}

## What it is

{made}

{counts}

Slices dropped: {dropped}. Files skipped: {skipped}.

## How it was made

{section["plane"]} slices, {section["image_size"]} px over {section["field_of_view_mm"]} mm, intensities windowed to the
percentiles {section["window_percentiles"]} of the head and kept in 8 bits. Split by subject with seed {section["seed"]}; a
slice of the validation or test split that correlates with one of another split above {section["duplicate_correlation"]} was
dropped.

## Who is in it

{"No one." if simulated else "People whose data are not told here; their consent and its limits are the matter of whoever holds the scans."}

## Licences

{_data_licence(simulated).strip()}
"""  # noqa: E501
    return str(DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{body}"))


def _raters(rated: dict[str, float]) -> str:
    """What blinded raters said, and why it may not hold."""
    said, warned = [], []
    if "manual_score" in rated:
        low, high = rated["manual_score_low"], rated["manual_score_high"]
        said.append(
            f"Realism by blinded raters, 1 to 5: {rated['manual_score']:.2f} ({low:.2f} to {high:.2f}; "
            f"{rated['manual_raters']:.0f} raters, {rated['manual_cases']:.0f} cases)."
        )
    if "proportion_correct" in rated:
        low, high = rated["proportion_correct_low"], rated["proportion_correct_high"]
        said.append(
            f"Of a pair, raters found the real slice in {100 * rated['proportion_correct']:.0f} % ({100 * low:.0f} to "
            f"{100 * high:.0f}; guessing: 50; {rated['choice_raters']:.0f} raters, {rated['choice_cases']:.0f} pairs)."
        )
    for kind in ("manual", "choice"):
        if rated.get(f"{kind}_few"):
            warned.append("these are few raters or cases")
        if missed := rated.get(f"{kind}_inattentive"):
            warned.append(
                f"{missed:.0f} of {rated[f'{kind}_raters']:.0f} raters missed planted controls, so they may not have "
                "looked; their answers count in the numbers above"
            )
    if warned:
        said.append(f"**Warning:** {'; '.join(dict.fromkeys(warned))}.")
    return " ".join(said) or "No blinded rater has judged these images."


def _number(scores: dict[str, float], name: str) -> str:
    spread = f" ± {scores[f'{name}_std']:.2g}" if f"{name}_std" in scores else ""
    return f"{scores[name]:.4g}{spread}" if name in scores else ""


def _count(data: dict, split: str) -> str:
    return f"{split} {data[split]['images']} slices of {data[split].get('subjects') or '?'} subjects"


def _drawing(tree: dict) -> dict:
    return {name: tree["sample"][name] for name in ("steps", "guidance_scale", "scheduler")}


def _own_base(tree: dict) -> bool:
    return tree["finetune"]["base_model"] == "pretrained/base"


def _local_base(tree: dict) -> bool:
    """Whether the base is a directory, whose name the hub does not know and need not."""
    return Path(tree["finetune"]["base_model"]).is_dir()


def _base(tree: dict) -> str:
    base = tree["finetune"]["base_model"]
    seen = ", which has seen simulated heads alone and no patient" if _own_base(tree) else ""
    return f"Fine-tuned from {f'`{base}`' if _own_base(tree) or not _local_base(tree) else 'a local directory'}{seen}."


def _pretraining(effort: dict[str, float]) -> str:
    """What the weights that training began with have seen, where that is known."""
    if "pretraining_images_seen" not in effort:
        return ""
    return (
        f"Pretrained on {effort['pretraining_images_seen']:.0f} simulated slices "
        f"({effort['pretraining_teraflop']:.3g} TFLOP), which show no patient."
    )


def _base_licence(tree: dict) -> str:
    if _own_base(tree):
        return "Base model: Apache-2.0. "
    return "Base model: under its own licence, which binds this model too. "


def _data_licence(simulated: bool) -> str:
    if simulated:
        return "Data: simulated from the ICBM152 atlas, © McConnell Brain Imaging Centre, free to use with its notice."
    return "Data: private; whoever holds them decides whether, and under which licence, this may be passed on."
