"""Where a model comes from: what DVC's lock file says of it, whether that still holds, and which commit made it.

The lock file is read by DVC itself. DVC is imported when it is used: that takes a second.
"""

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synthmri.errors import UserError


@contextmanager
def opened(root: Path, revision: str | None = None) -> Iterator[Any]:
    """DVC's `Repo` of the folder `root`, or of a git revision of it. Raises UserError where DVC cannot read it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root), rev=revision) as repo:
            list(repo.index.stages)
            yield repo
    except DvcException as error:
        raise UserError(f"DVC cannot read dvc.yaml and dvc.lock ({error}); `dvc status` tells more") from None


def outputs(repo) -> dict[str, str]:
    """Path -> hash of all outputs that the lock file of DVC's `repo` knows."""
    return {path: out.hash_info.value for path, out in _outs(repo).items() if out.hash_info}


def hash_of(locked: dict[str, str], path: Path) -> str:
    """The hash of an output, of what `outputs` gave. Raises UserError where the lock file does not know it."""
    if str(path) not in locked:
        raise UserError(f"dvc.lock does not know {path}; run `dvc repro`")
    return locked[str(path)]


def check(repo, paths: list[Path]) -> None:
    """Raise UserError unless these are what dvc.lock says, and made from what it says of the rest.

    So nothing is registered under another's hash, and no model with the scores of the one before it, as where `dvc
    repro` was stopped between the two.
    """
    outs, locked = _outs(repo), outputs(repo)
    for path in paths:
        hash_of(locked, path)
        if not outs[str(path)].exists or outs[str(path)].changed_checksum():
            raise UserError(f"{path} is not what dvc.lock says; run `dvc checkout` to restore it, or `dvc repro`")
    for stage in _makers(repo, paths):
        for dep in stage.deps:
            if dep.def_path in locked:
                stale = dep.hash_info.value != locked[dep.def_path]
            else:  # a folder of outputs, of which the lock file has no hash but this stage's
                stale = bool(_below(dep.def_path, outs)) and dep.changed_checksum()
            if stale:
                made = stage.outs[0].def_path
                raise UserError(f"{made} was made from another {dep.def_path} than the one of now; run `dvc repro`")


def params(repo, paths: list[Path] | None = None) -> dict[str, dict[str, Any]]:
    """Parameter (`outer.inner`) -> stage -> the value that it ran with, of all stages that these paths come from.

    The stages nearest to the paths come first. Without paths, of all stages.
    """
    from dvc.dependency.param import ParamsDependency

    found: dict[str, dict[str, Any]] = {}
    for stage in repo.index.stages if paths is None else _makers(repo, paths):
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                for name, value in flat(dep.hash_info.value or {}).items():
                    found.setdefault(name, {})[stage.addressing] = value
    return found


def flat(tree: dict, head: str = "") -> dict[str, Any]:
    """A tree of maps as one map, its keys joined by dots."""
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{head}{key}.") if isinstance(value, dict) else {f"{head}{key}": value}
    return out


def _outs(repo) -> dict:
    return {out.def_path: out for stage in repo.index.stages for out in stage.outs}


def _makers(repo, paths: list[Path]) -> list:
    """The stages that made these paths, those that made what these were made from, and so on, each once."""
    maker = {out.def_path: stage for stage in repo.index.stages for out in stage.outs}
    todo, found = [str(path) for path in paths], {}
    while todo:
        stage = maker.get(todo.pop(0))
        if stage is not None and stage.addressing not in found:
            found[stage.addressing] = stage
            for dep in stage.deps:
                todo += [dep.def_path, *_below(dep.def_path, maker)]
    return list(found.values())


def _below(folder: str, paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.startswith(f"{folder}/")]


def git(root: Path, *command: str) -> str:
    """What git says in the folder `root`; "" where it fails, or there is no git."""
    try:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def origin(root: Path, *wanted: str) -> dict[str, str]:
    """`git_commit`, the first commit whose dvc.lock holds these hashes, and its `experiment`, if any.

    Stages run before there is such a commit, so it is looked for at each sync until found; experiments are commits too.
    """
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
            return found | ({"experiment": named[0]} if named else {})
    return {}
