"""Bring what the pipeline made into MLflow: `synthmri registry --help`.

The registry is made from files alone (dvc.lock, metrics, models), so it may be deleted and made again, and DVC may
restore what it likes from its cache. What a model was made with is what dvc.lock says, not what params.yaml has come to
say since. In `dvc repro` this is the last stage. It has no output: nothing that MLflow says about a run is the same
twice, and a stage without one is never taken for done because a cache knows it.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from ruamel.yaml import YAML

import synthmri
from stages import _cli, _files, _store, _watch
from synthmri import generators, imageset, params
from synthmri.errors import UserError
from synthmri.registry import description, gate, lineage, mlflow_store, pages
from synthmri.reporting import comparison, headline
from synthmri.scans import prompts

METRICS, MODELS, SLICES, SAMPLES = Path("metrics"), Path("models"), Path("data/slices"), Path("data/samples")
PRIVACY = METRICS / "privacy.json"
OF_SCORES = ("privacy", "gate", "comparison")  # files of all models that stand beside a model's own scores
cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    sync: Annotated[bool, typer.Option("--sync", help="register what is new here, and set the aliases")] = False,
    show: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="MODEL VERSION", help="what a version (1, 2, champion) is, and how to restore it"),
    ] = None,
    commit: Annotated[str | None, typer.Option(metavar="REV", help="the versions that a git commit made")] = None,
    override: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="vouch for it as it is now: champion, may leave; '' takes that back"),
    ] = None,
    reason: Annotated[str, typer.Option(help="why, for --override")] = "",
    ui: Annotated[bool, typer.Option("--ui", help="browse it: MLflow's own pages, on this machine alone")] = False,
    open_: Annotated[bool, typer.Option("--open", help="with --ui: the table of models, in the browser")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="of --ui")] = 5000,
) -> None:  # fmt: skip
    """The MLflow registry of the models: synchronise it, ask it, override its rule, export a model."""
    if context.invoked_subcommand:
        return
    if not (sync or show or commit or ui or override is not None):
        raise UserError("nothing to do: give --sync, --ui, --show, --commit or --override, or the command export")
    if override is not None:
        _override(override, reason)
    if sync:
        _sync()
    if show:
        _show(*show)
    if commit:
        _commit(commit)
    if ui:
        _ui(port, open_)


@cli.command()
def export(
    model: Annotated[str, typer.Option(help="vae, dcgan, ddpm, unet_gan or latent_diffusion")],
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist yet")],
) -> None:
    """Write a model of this workspace with its card and dataset sheet: a folder to push to the hub as it is.

    Of people's scans, only a model that passes the gate, or that a person has given their word for (--override).
    """
    _known(model)
    if out.exists():
        raise UserError(f"{out} exists already; name another folder with --out, or remove it")
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    with lineage.opened(Path()) as repo:
        lineage.check(repo, _results(model))
        tree = _tree(repo, model)
    if held := _held_back(model, p, tree):
        raise UserError(f"{model} is not exported: {held}")
    with _files.replacing(out) as folder:
        shutil.copytree(MODELS / model, folder)
        _write_cards(folder, model, p, tree, _prompts(tree))
        shutil.copyfile(METRICS / "samples" / f"{model}.png", folder / "samples.png")
    print(f"{out} holds {comparison.MODELS[model]}; for the hub: `hf upload NAME/{model.replace('_', '-')} {out}`")


def _sync() -> None:
    """Register the five models of the workspace, tell the commits of all versions, judge them, and set the aliases."""
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    with _store.lock(), tempfile.TemporaryDirectory() as scratch, lineage.opened(Path()) as repo:
        locked = lineage.outputs(repo)
        client, experiment = _store.connect(p)
        elsewhere = _store.elsewhere(p, client, experiment)
        place = mlflow_store.shown(_store.uri(p))
        here = {}
        for name in comparison.MODELS:
            tree = _tree(repo, name)
            entry = _entry(name, p, tree, _made_with(repo, name), locked, Path(scratch), elsewhere=elsewhere)
            there = mlflow_store.find(client, entry.name, entry.identity)
            if elsewhere and (held := _held_back(name, p, tree)):
                if there is None:
                    print(f"{name} does not go to {place}: {held}", file=sys.stderr)
                    continue
                print(f"{name} has its version {there.version} on {place}, delete it there: {held}", file=sys.stderr)
                entry = dataclasses.replace(entry, files=[])  # the new scores go, for the verdict to be seen
            if there is None or mlflow_store.lineage(there.run_id).get("scores") != entry.lineage["scores"]:
                lineage.check(repo, _results(name))
                texts = _prompts(tree)
                (Path(scratch) / name / "cards").mkdir(parents=True)
                _write_cards(Path(scratch) / name / "cards", name, p, tree, texts)
                Path(entry.artifacts["prompts"]).write_text(json.dumps(texts), encoding="utf-8")
            package = Path(synthmri.__file__).parent
            here[name] = mlflow_store.register(
                client,
                experiment,
                entry,
                package / "registry/serving.py",
                package,
                lambda text: print(text, file=sys.stderr),
            )
        if elsewhere and not _simulated(tree):
            print(f"pictures of people's slices stay here, none has gone to {place}", file=sys.stderr)
        names = [_registered(p, name) for name in comparison.MODELS]
        for version in _versions(client, names):
            hashes = mlflow_store.lineage(version.run_id)
            if hashes and "git_commit" not in version.tags:
                found = lineage.origin(_store.root(), hashes["model"], hashes["samples"])
                mlflow_store.tag(client, version, found | {k: v for k, v in version.tags.items() if k in found})
        _aliases(client, p, _versions(client, names), names, here, lineage.hash_of(locked, SLICES / "val"))


def _versions(client, names: list[str]) -> list:
    return [version for name in names for version in mlflow_store.versions(client, name)]


def _aliases(client, p: gate.Registry, there: list, names: list[str], here: dict, validation: str) -> None:
    """Judge every version; champion and challenger are the best of those that saw the validation slices of now."""
    hashes = [mlflow_store.lineage(version.run_id) for version in there]
    logged = [client.get_run(version.run_id).data.metrics for version in there]
    # MLflow forgets no metric: which are of the last scoring stands beside the hashes.
    scores = [
        {name: values[name] for name in known.get("metrics", []) if name in values}
        for values, known in zip(logged, hashes, strict=True)
    ]
    alike = {k: scores[k] for k in range(len(there)) if hashes[k].get("slices", {}).get("val") == validation}
    best = [there[k] for k in gate.ranking(alike, p)]
    champion = best[0] if best else None
    chosen = p.override.model
    if chosen:
        _known(chosen)
        chosen = chosen if gate.overridden(chosen, _scores(chosen), p) else ""
    if chosen:
        champion = next(v for v in there if (v.name, v.version) == (here[chosen].name, here[chosen].version))
    challenger = next((version for version in best if version is not champion), None)
    for version, values, shown in zip(there, scores, logged, strict=True):
        failed = [why for why in gate.judge(values, p).values() if why]
        tags = {
            "gate": "refused" if failed else "passed",
            "gate_reasons": "; ".join(failed) or "every rule holds",
            "override": p.override.reason if chosen and version is champion else None,
        }
        mlflow_store.tag(client, version, tags)
        picture = f"pictures/samples/{version.tags['model']}.png"
        commit = version.tags.get("git_commit")
        told = description.text(picture, version.run_id, values, shown.get("fd_ratio"), failed, commit)
        mlflow_store.describe(client, version, told)
    mlflow_store.point(client, names, "champion", champion)
    mlflow_store.point(client, names, "challenger", challenger)
    print(f"{len(there)} versions in the registry")
    for alias, version in (("champion", champion), ("challenger", challenger)):
        if version is None:
            print(f"{alias}: none; {'one model alone' if best else 'no model'} passes the gate, see metrics/gate.md")
        else:
            why = f" (chosen by a person: {p.override.reason})" if alias == "champion" and chosen else ""
            print(f"{alias}: models:/{version.name}@{alias}, version {version.version}{why}")


def _entry(
    name: str, p: gate.Registry, tree: dict, made_with: dict[str, str], locked: dict[str, str], scratch: Path, *,
    elsewhere: bool,
) -> mlflow_store.Entry:  # fmt: skip
    """What is to stand in the registry about a model. Files below `scratch` are written if it is new: `_sync`.

    elsewhere: whether the registry may be on another machine.
    """
    from synthmri.training import sampling

    runtime = params.parse(tree["runtime"], "runtime", params.Runtime, "dvc.lock")
    drawing = params.parse(tree["sample"], "sample", sampling.Sample, "dvc.lock")
    scores = _scores(name)
    effort = _files.read_json(METRICS / f"training/{name}.json")
    failed = [why for why in gate.judge(scores, p).values() if why]
    adapters = MODELS / name / "lora"  # of finetune.method: lora
    kinds = ["samples", "progression"]
    private = not _simulated(tree)
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
        name=_registered(p, name),
        title=comparison.MODELS[name],
        identity=_identity(hashes["model"], hashes["samples"]),
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


def _write_cards(folder: Path, name: str, p: gate.Registry, tree: dict, texts: list[str]) -> None:
    from synthmri.reporting import card  # and with it huggingface_hub

    scores, data = _scores(name), _files.read_json(METRICS / "data.json")
    failed = [why for why in gate.judge(scores, p).values() if why]
    if gate.overridden(name, scores, p):
        failed.append(f"a person has given their word for it: {p.override.reason}")
    compared = _files.read_json(METRICS / "comparison.json")
    text = card.model_card(
        comparison.MODELS[name], name, generators.find(name).prompted, scores,
        compared["references"]["real"], _files.read_json(METRICS / f"training/{name}.json"),
        failed, data, tree, texts[0], compared["models"][name],
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "DATASET.md").write_text(card.dataset_sheet(data, tree), encoding="utf-8")


def _held_back(name: str, p: gate.Registry, tree: dict) -> str:
    """Why a model stays on this machine, "" where it need not, and what a person can do about it."""
    scores = _scores(name)
    if gate.may_leave(name, scores, p, simulated=_simulated(tree)):
        return ""
    why = "; ".join(why for why in gate.judge(scores, p).values() if why)
    return (
        f"it was made from people's scans, and the gate refuses it ({why})\n  who has looked at "
        f'metrics/closest/{name}.png may say otherwise: `synthmri registry --override {name} --reason "..."`'
    )


def _simulated(tree: dict) -> bool:
    return tree["data"]["source"] == "simulated"


def _tree(repo, name: str) -> dict:
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


def _made_with(repo, name: str) -> dict[str, str]:
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


def _scores(name: str) -> dict[str, float]:
    return _files.read_scores(METRICS / f"{name}.json") | _files.read_json(PRIVACY)[name]


def _prompts(tree: dict) -> list[str]:
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


def _identity(*hashes: str | None) -> str:
    """Of a version: its model and its samples."""
    return _files.digest(*hashes)


def _pairs(table: pd.DataFrame, x: str, y: str) -> list[tuple[int, float]]:
    return [(int(a), float(b)) for a, b in zip(table[x], table[y], strict=True) if np.isfinite(b)]


def _requirements() -> list[str]:
    from synthmri.registry import serving

    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in serving.REQUIREMENTS]


def _registered(p: gate.Registry, name: str) -> str:
    return f"{p.prefix}-{name}"


def _known(name: str) -> None:
    if name not in comparison.MODELS:
        raise UserError(f"{name!r} is no model; use one of {', '.join(comparison.MODELS)}")


# What DVC and git know


def _own(name: str) -> list[Path]:
    """What is of one model alone."""
    return [MODELS / name, SAMPLES / name, METRICS / f"{name}.json"]


def _results(name: str) -> list[Path]:
    """What goes into the registry or to the hub under the name of a model."""
    return [*_own(name), *(METRICS / f"{file}.json" for file in OF_SCORES)]


# The store


def _ui(port: int, open_: bool) -> None:
    """The pages that matter, and MLflow's server; its own default refuses foreign hosts and posts from other pages."""
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    client, experiment = _store.connect(p)
    live = client.get_experiment_by_name(_watch.experiment(p))
    names = [_registered(p, name) for name in comparison.MODELS]
    found = pages.links(client, experiment, live and live.experiment_id, names, headline.OWN)
    served = _store.uri(p).startswith("http")  # by a server of somebody's, which has the pages
    address = mlflow_store.shown(_store.uri(p)).rstrip("/") if served else f"http://127.0.0.1:{port}"
    for what, path in found.items():
        print(f"{what}: {address}{path}", flush=True)
    first = address + next(iter(found.values()))
    if served:
        if open_:
            webbrowser.open(first)
        return
    print("MLflow starts, which takes some seconds; Ctrl-C ends it", flush=True)
    where = ["--backend-store-uri", _store.uri(p), "--default-artifact-root", (_store.root() / "mlruns").as_uri()]
    command = [sys.executable, "-m", "mlflow", "ui", *where, "--host", "127.0.0.1", "--port", str(port)]
    if open_:  # once it answers; a process of its own, since this one becomes the server
        waiting = "import sys, urllib.request as u, webbrowser as w, time\n"
        waiting += "for _ in range(120):\n try: u.urlopen(sys.argv[1]); w.open(sys.argv[2]); break\n"
        waiting += " except OSError: time.sleep(0.5)"
        subprocess.Popen([sys.executable, "-c", waiting, f"{address}/health", first])
    os.execv(sys.executable, command)


def _show(model: str, which: str) -> None:
    _known(model)
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    client, _ = _store.connect(p)
    name = _registered(p, model)
    found = mlflow_store.versions(client, name)
    aliases = client.get_registered_model(name).aliases if found else {}
    number = str(aliases.get(which, which))
    version = next((v for v in found if str(v.version) == number), None)
    if version is None:
        there = ", ".join([*(str(v.version) for v in found), *aliases]) or "none yet: run `synthmri registry --sync`"
        raise UserError(f"{name} has no version {which!r}; there is {there}")
    print(f"{name} version {number} {' '.join(sorted(a for a, v in aliases.items() if str(v) == number))}".rstrip())
    for key, value in sorted(version.tags.items()):
        print(f"  {key}: {value}")
    hashes = mlflow_store.lineage(version.run_id)
    for what, path in (("model", MODELS), ("samples", SAMPLES)):
        print(f"  {path / model}: {hashes.get(what, 'unknown')}")
    commit = version.tags.get("git_commit")
    if commit is None:
        print("no commit holds it yet: commit dvc.lock, then `synthmri registry --sync`")
        return
    print("to restore it")
    print(f"  git checkout {commit}")
    print(
        "  dvc checkout    # from the cache; where there is a remote, `dvc pull`; where there is neither, `dvc repro`"
    )


def _commit(revision: str) -> None:
    if not lineage.git(_store.root(), "show", f"{revision}:dvc.lock"):
        raise UserError(f"git knows no dvc.lock at {revision!r}; name a commit, branch or tag of this repository")
    with lineage.opened(_store.root(), revision) as repo:
        locked = lineage.outputs(repo)
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    client, _ = _store.connect(p)
    for model in comparison.MODELS:
        identity = _identity(locked.get(f"{MODELS / model}"), locked.get(f"{SAMPLES / model}"))
        version = mlflow_store.find(client, _registered(p, model), identity)
        print(f"{_registered(p, model)}: {f'version {version.version}' if version else 'not registered'}")


def _override(model: str, reason: str) -> None:
    """Into params.yaml, so that it is versioned, has an author, and outlives the store."""
    params.read(_cli.PARAMS, "registry", gate.Registry)
    if model:
        _known(model)
    if bool(model) != bool(reason.strip()):
        raise UserError("an override needs a reason: add --reason \"...\" (and `--override ''` alone takes it back)")
    round_trip = YAML()
    round_trip.width, round_trip.preserve_quotes = 200, True
    tree = round_trip.load(_cli.PARAMS)
    tree["registry"]["override"] |= {
        "model": model, "reason": reason.strip(), "scores": gate.fingerprint(_scores(model)) if model else "",
    }  # fmt: skip
    with _files.replacing(_cli.PARAMS) as part:
        round_trip.dump(tree, part)
    print(
        "params.yaml holds it (section registry.override), for the scores that the model has now; `dvc repro` applies "
        "it, and a commit records who it was"
    )


if __name__ == "__main__":
    _cli.guarded(cli)
