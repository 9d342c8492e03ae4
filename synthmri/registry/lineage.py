"""Where a model comes from: what DVC's lock file says of it, whether that still holds, and which commit made it."""

import hashlib
import json
import subprocess
from pathlib import Path

import yaml

from synthmri.errors import UserError


def outputs(text: str) -> dict[str, str]:
    """Path -> hash of all outputs in the text of a dvc.lock."""
    return {out["path"]: out["md5"] for stage in stages(text) for out in stage.get("outs", [])}


def stages(text: str) -> list[dict]:
    """All stages in the text of a dvc.lock."""
    tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    return list(tree.get("stages", {}).values())


def hash_of(locked: dict[str, str], path: Path) -> str:
    """The hash of an output, of what `outputs` gave. Raises UserError where the lock file does not know it."""
    if str(path) not in locked:
        raise UserError(f"dvc.lock does not know {path}; run `dvc repro`")
    return locked[str(path)]


def check(text: str, paths: list[Path]) -> None:
    """Raise UserError unless these are what the text of dvc.lock says, and made from what it says of the rest.

    So nothing is registered under another's hash, and no model with the scores of the one before it, as where `dvc
    repro` was stopped between the two.
    """
    locked = outputs(text)
    for path in paths:
        if not path.exists() or dvc_hash(path) != hash_of(locked, path):
            raise UserError(f"{path} is not what dvc.lock says; run `dvc checkout` to restore it, or `dvc repro`")
    makers = {out["path"]: stage for stage in stages(text) for out in stage.get("outs", [])}
    todo, seen = [str(path) for path in paths], set()
    while todo:
        path = todo.pop()
        if path in seen or path not in makers:
            continue
        seen.add(path)
        for dep in makers[path].get("deps", []):
            if dep["md5"] != locked.get(dep["path"], dep["md5"]):
                raise UserError(f"{path} was made from another {dep['path']} than the one of now; run `dvc repro`")
            todo.append(dep["path"])


def dvc_hash(path: Path) -> str:
    """The hash that DVC gives a file or a folder."""
    if path.is_file():
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest()
    inside = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    listed = [{"md5": dvc_hash(path / name), "relpath": name} for name in inside]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def git(root: Path, *command: str) -> str:
    """What git says in the folder `root`; "" where it fails, or there is no git."""
    try:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def origin(root: Path, tags: dict[str, str]) -> dict[str, str]:
    """`git_commit`, the first commit whose dvc.lock holds this model and these samples, and its experiment, if any.

    Stages run before there is such a commit, so it is looked for at each sync until found; experiments are commits too.
    """
    wanted = (tags["dvc_model"], tags["dvc_samples"])
    candidates = []
    for value in wanted:
        candidates += reversed(git(root, "log", "--all", "--format=%H", f"-S{value}", "--", "dvc.lock").splitlines())
    candidates.append("HEAD")  # a shallow clone knows no more
    for commit in candidates:
        text = git(root, "show", f"{commit}:dvc.lock")
        if all(value in text for value in wanted):
            found = {"git_commit": git(root, "rev-parse", commit)}
            refs = git(
                root, "for-each-ref", "--points-at", found["git_commit"], "--format=%(refname)", "refs/exps"
            ).split()
            named = [ref.rsplit("/", 1)[1] for ref in refs if "/exec/" not in ref]
            return found | ({"experiment": named[0]} if named and "experiment" not in tags else {})
    return {}
