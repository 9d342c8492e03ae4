"""What the pipeline made of a model: its files, scores, parameters and cards, as they go into the registry or out."""

import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
import pandas as pd

from stages import _files, _watch
from synthmri import generators, imageset, params
from synthmri.errors import UserError
from synthmri.registry import description, gate, lineage, mlflow_store
from synthmri.reporting import comparison
from synthmri.scans import prompts

METRICS, MODELS, SLICES, SAMPLES = Path("metrics"), Path("models"), Path("data/slices"), Path("data/samples")
PRIVACY, AUTOENCODER = METRICS / "privacy.json", METRICS / "autoencoder.json"
OF_SCORES = ("privacy", "gate", "comparison")  # files of all models that stand beside a model's own scores


def entry(
    name: str, p: gate.Registry, tree: dict, made_with: dict[str, str], locked: dict[str, str], scratch: Path, *,
    elsewhere: bool,
) -> mlflow_store.Entry:  # fmt: skip
    """What is to stand in the registry about a model. Files below `scratch` are written if it is new: `register`.

    elsewhere: whether the registry may be on another machine.
    """
    from synthmri.training import sampling

    runtime = params.parse(tree["runtime"], "runtime", params.Runtime, "dvc.lock")
    drawing = params.parse(tree["sample"], "sample", sampling.Sample, "dvc.lock")
    scores = scores_of(name)
    effort = _files.read_json(METRICS / f"training/{name}.json")
    failed = [why for why in gate.judge(scores, p).values() if why]
    adapters = MODELS / name / "lora"  # of finetune.method: lora
    kinds = ["samples", "progression"]
    private = not simulated(tree)
    if not (private and elsewhere):
        kinds += ["real_beside", "closest"]
    results = [METRICS / file for file in ("comparison.md", "comparison.png", "gate.json", "gate.md")]
    files = [(METRICS / kind / f"{name}.png", f"pictures/{kind}") for kind in kinds]
    files += [(file, "results") for file in results]
    files += [(Path("dvc.lock"), "lineage"), (scratch / name / "cards", "cards")]
    tags = {
        "model": name,
        "gate": "refused" if failed else "passed",
        "gate_reasons": "; ".join(failed) or "every rule holds",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {runtime.device}",
        "precision": effort["precision"],
        "data": "private" if private else "simulated, not patients",
    }
    hashes = {
        "model": lineage.hash_of(locked, MODELS / name),
        "samples": lineage.hash_of(locked, SAMPLES / name),
        "slices": {split: lineage.hash_of(locked, SLICES / split) for split in ("train", "val", "test")},
        "scores": {file: lineage.hash_of(locked, METRICS / f"{file}.json") for file in (name, *OF_SCORES)},
        "metrics": sorted(scores),
    }
    floor = _files.read_json(METRICS / "references.json")["real"].get("fd_effnet", 0)
    ratio = {"fd_ratio": scores["fd_effnet"] / floor} if floor > 0 else {}
    took = _watch.kept(MODELS / name)
    if os.environ.get("DVC_EXP_NAME"):
        tags["experiment"] = os.environ["DVC_EXP_NAME"]
    return mlflow_store.Entry(
        name=registered(p, name),
        title=comparison.MODELS[name],
        identity=identity(hashes["model"], hashes["samples"]),
        lineage=hashes,
        tags=tags,
        params=made_with,
        scores=scores | ratio | {key: effort[key] for key in ("parameters", "images_seen", "teraflop")},
        curves=_curves(name) | _figures(took),
        datasets=[(str(SLICES / split), value, split) for split, value in hashes["slices"].items()],
        files=files,
        artifacts={
            "model": str(MODELS / name),
            "prompts": str(scratch / name / "prompts.json"),
            "cards": str(scratch / name / "cards"),
        },
        config={
            "code": name, "sample": drawing.model_dump(), "threads": runtime.threads, "device": runtime.device,
            "precision": runtime.precision,
        },
        example=[{"seed": drawing.seed, "n": 1}],
        requirements=_requirements(),
        adapters=(str(adapters), tree["finetune"]["base_model"]) if adapters.is_dir() else None,
        trained=(took["ended"] - took["seconds"], took["ended"]) if took else None,
    )  # fmt: skip


def write_cards(folder: Path, name: str, p: gate.Registry, tree: dict, texts: list[str]) -> None:
    """Write README.md, the model's card, and DATASET.md. texts: prompts of training, whose first the card shows."""
    from synthmri.reporting import card  # and with it huggingface_hub

    scores, data = scores_of(name), _files.read_json(METRICS / "data.json")
    failed = [why for why in gate.judge(scores, p).values() if why]
    word = p.override.reason if gate.overridden(name, scores, p) else ""
    compared = _files.read_json(METRICS / "comparison.json")
    text = card.model_card(
        comparison.MODELS[name], name, generators.find(name).prompted, scores,
        compared["references"]["real"], _files.read_json(METRICS / f"training/{name}.json"),
        description.verdict(failed, word), data, tree, texts[0], compared["models"][name],
        _files.read_json(AUTOENCODER)["after"].get("dice") if generators.find(name).prompted else None,
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "DATASET.md").write_text(card.dataset_sheet(data, tree), encoding="utf-8")


def held_back(name: str, p: gate.Registry, tree: dict) -> str:
    """Why a model stays on this machine, "" where it need not, and what a person can do about it."""
    scores = scores_of(name)
    if gate.may_leave(name, scores, p, simulated=simulated(tree)):
        return ""
    why = "; ".join(why for why in gate.judge(scores, p).values() if why)
    return (
        f"it was made from people's scans, and the gate refuses it ({why})\n  who has looked at "
        f'metrics/closest/{name}.png may say otherwise: `synthmri registry --override {name} --reason "..."`'
    )


def simulated(tree: dict) -> bool:
    """Whether these parameters make everything of the simulated cohort, and nothing of people."""
    return tree["data"]["source"] == "simulated"


def parameters(repo, name: str) -> dict:
    """The parameters as in params.yaml, with the values that the stages behind a model ran with, and the settings of
    the sampler that stage `sweep` chose; what these stages do not know, from the other stages.
    """
    tree: dict = {}
    lineage.hash_of(lineage.outputs(repo), MODELS / name)
    for known in (lineage.params(repo), lineage.params(repo, _own(name))):
        for key, values in known.items():
            *outer, last = key.split(".")
            section = tree
            for part in outer:
                section = section.setdefault(part, {})
            section[last] = next(iter(values.values()))
    tree["sample"] |= _files.read_json(MODELS / "sampling.json")
    made_of = _files.read_json(SLICES / "train/meta.json").get("data", {}).get("source")
    if made_of != tree["data"]["source"]:
        raise UserError(
            f"dvc.lock says data.source = {tree['data']['source']}, but data/slices was made with {made_of}: the cards "
            "would call the data what they are not; run `dvc checkout` to restore data/slices, or `dvc repro`"
        )
    return tree


def made_with(repo, name: str) -> dict[str, str]:
    """Parameter -> its value for the stages that a model, its samples and its scores come from, as text.

    Where they differ, as after a `dvc repro` of some stages alone, each with its stages. Of what `sweep` chose, that.
    """
    known = lineage.params(repo, _own(name))
    out = {}
    for key, values in known.items():
        stages: dict[str, list[str]] = {}
        for stage, value in values.items():
            stages.setdefault(str(value), []).append(stage)
        several = "; ".join(f"{value} ({', '.join(where)})" for value, where in stages.items())
        out[key] = several if len(stages) > 1 else next(iter(stages))
    chosen = {f"sample.{key}": str(value) for key, value in _files.read_json(MODELS / "sampling.json").items()}
    return out | {key: value for key, value in chosen.items() if key in out}


def scores_of(name: str) -> dict[str, float]:
    """All numbers of a model that the gate may ask for: its scores and what attacks on it found."""
    return _files.read_scores(METRICS / f"{name}.json") | _files.read_json(PRIVACY)[name]


def texts_of(tree: dict) -> list[str]:
    """Those of the training slices: the sampled prompts are drawn from them."""
    words = params.parse(tree["prompt"], "prompt", prompts.Prompt, "dvc.lock")
    return prompts.prompts(imageset.read(SLICES / "train").manifest, words)


def _curves(name: str) -> dict[str, list[tuple[int, float]]]:
    """Loss over steps, and the distances over images seen, from the CSV files."""
    losses = pd.read_csv(METRICS / f"training/{name}.csv")
    curves = {f"training/{column}": _pairs(losses, "step", column) for column in losses.columns if column != "step"}
    table = pd.read_csv(METRICS / "progression.csv")
    table = table[table["model"] == name]
    return curves | {
        f"progression/{column}": _pairs(table, "images_seen", column)
        for column in table.columns
        if column not in ("model", "images_seen")
    }


def _figures(took: dict) -> dict[str, list[tuple[int, float]]]:
    """What its training took of this machine, as MLflow names such curves."""
    rows = took.get("figures", [])
    if not rows:
        return {}
    columns = {"system/seconds_a_step": 1, "system/memory_gb": 2}
    curves = {name: [(row[0], row[place]) for row in rows] for name, place in columns.items()}
    return curves | {name: [(rows[-1][0], value)] for name, value in took.items() if name.startswith("system/")}


def identity(*hashes: str | None) -> str:
    """Of a version: its model and its samples."""
    return _files.digest(*hashes)


def _pairs(table: pd.DataFrame, x: str, y: str) -> list[tuple[int, float]]:
    return [(int(a), float(b)) for a, b in zip(table[x], table[y], strict=True) if np.isfinite(b)]


def _requirements() -> list[str]:
    from synthmri.registry import serving

    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in serving.REQUIREMENTS]


def registered(p: gate.Registry, name: str) -> str:
    """What MLflow calls the model."""
    return f"{p.prefix}-{name}"


def check(name: str) -> None:
    """Raise UserError unless there is a model of this name."""
    if name not in comparison.MODELS:
        raise UserError(f"{name!r} is no model; use one of {', '.join(comparison.MODELS)}")


def _own(name: str) -> list[Path]:
    """What is of one model alone."""
    return [MODELS / name, SAMPLES / name, METRICS / f"{name}.json"]


def files(name: str) -> list[Path]:
    """What goes into the registry or to the hub under the name of a model."""
    prompted = [AUTOENCODER] if generators.find(name).prompted else []
    return [*_own(name), *prompted, *(METRICS / f"{file}.json" for file in OF_SCORES)]
