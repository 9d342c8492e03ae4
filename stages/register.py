"""Bring what the pipeline made into MLflow: `synthmri registry --help`.

The registry is made from files alone (dvc.lock, metrics, models), so it may be deleted and made again, and DVC may
restore what it likes from its cache. What a model was made with is what dvc.lock says, not what params.yaml has come to
say since. In `dvc repro` this is the last stage. It has no output: nothing that MLflow says about a run is the same
twice, and a stage without one is never taken for done because a cache knows it.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from ruamel.yaml import YAML

import synthmri
from stages import _cli, _files, _results, _store, _watch
from stages._results import METRICS, MODELS, SAMPLES, SLICES
from synthmri import params
from synthmri.errors import UserError
from synthmri.registry import description, gate, lineage, mlflow_store, pages
from synthmri.reporting import comparison, headline

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
    model: Annotated[str, typer.Option(help=f"one of {', '.join(comparison.MODELS)}")],
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist yet")],
) -> None:
    """Write a model of this workspace with its card and dataset sheet: a folder to push to the hub as it is.

    Of people's scans, only a model that passes the gate, or that a person has given their word for (--override).
    """
    _results.check(model)
    if out.exists():
        raise UserError(f"{out} exists already; name another folder with --out, or remove it")
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    with lineage.opened(Path()) as repo:
        lineage.check(repo, _results.files(model))
        tree = _results.parameters(repo, model)
    if held := _results.held_back(model, p, tree):
        raise UserError(f"{model} is not exported: {held}")
    with _files.replacing(out) as folder:
        shutil.copytree(MODELS / model, folder)
        _results.write_cards(folder, model, p, tree, _results.texts_of(tree))
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
            tree = _results.parameters(repo, name)
            entry = _results.entry(
                name, p, tree, _results.made_with(repo, name), locked, Path(scratch), elsewhere=elsewhere
            )
            there = mlflow_store.find(client, entry.name, entry.identity)
            if elsewhere and (held := _results.held_back(name, p, tree)):
                if there is None:
                    print(f"{name} does not go to {place}: {held}", file=sys.stderr)
                    continue
                print(f"{name} has its version {there.version} on {place}, delete it there: {held}", file=sys.stderr)
                entry = dataclasses.replace(entry, files=[])  # the new scores go, for the verdict to be seen
            if there is None or mlflow_store.lineage(there.run_id).get("scores") != entry.lineage["scores"]:
                lineage.check(repo, _results.files(name))
                texts = _results.texts_of(tree)
                (Path(scratch) / name / "cards").mkdir(parents=True)
                _results.write_cards(Path(scratch) / name / "cards", name, p, tree, texts)
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
        if elsewhere and not _results.simulated(tree):
            print(f"pictures of people's slices stay here, none has gone to {place}", file=sys.stderr)
        names = [_results.registered(p, name) for name in comparison.MODELS]
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
        _results.check(chosen)
        chosen = chosen if gate.overridden(chosen, _results.scores_of(chosen), p) else ""
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
        word = tags["override"] or ""
        told = description.text(picture, version.run_id, values, shown.get("fd_ratio"), failed, commit, word)
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


# The store


def _ui(port: int, open_: bool) -> None:
    """The pages that matter, and MLflow's server; its own default refuses foreign hosts and posts from other pages."""
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    with _store.lock():
        client, experiment = _store.connect(p)
    live = client.get_experiment_by_name(_watch.experiment(p))
    names = [_results.registered(p, name) for name in comparison.MODELS]
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
    _results.check(model)
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    with _store.lock():
        client, _ = _store.connect(p)
    name = _results.registered(p, model)
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
    with _store.lock():
        client, _ = _store.connect(p)
    for model in comparison.MODELS:
        identity = _results.identity(locked.get(f"{MODELS / model}"), locked.get(f"{SAMPLES / model}"))
        version = mlflow_store.find(client, _results.registered(p, model), identity)
        print(f"{_results.registered(p, model)}: {f'version {version.version}' if version else 'not registered'}")


def _override(model: str, reason: str) -> None:
    """Into params.yaml, so that it is versioned, has an author, and outlives the store."""
    params.read(_cli.PARAMS, "registry", gate.Registry)
    if model:
        _results.check(model)
    if bool(model) != bool(reason.strip()):
        raise UserError("an override needs a reason: add --reason \"...\" (and `--override ''` alone takes it back)")
    round_trip = YAML()
    round_trip.width, round_trip.preserve_quotes = 200, True
    tree = round_trip.load(_cli.PARAMS)
    scores = gate.fingerprint(_results.scores_of(model)) if model else ""
    tree["registry"]["override"] |= {"model": model, "reason": reason.strip(), "scores": scores}
    with _files.replacing(_cli.PARAMS) as part:
        round_trip.dump(tree, part)
    print(
        "params.yaml holds it (section registry.override), for the scores that the model has now; `dvc repro` applies "
        "it, and a commit records who it was"
    )


if __name__ == "__main__":
    _cli.guarded(cli)
