"""The results in git belong together: one run, one lock file."""

import hashlib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def locked() -> list[dict]:
    return list(yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"].values())


def test_each_stage_read_what_the_stage_before_it_wrote():
    made = {out["path"]: out["md5"] for stage in locked() for out in stage.get("outs", [])}
    read = [(dep["path"], dep["md5"]) for stage in locked() for dep in stage["deps"] if dep["path"] in made]
    assert len(read) > 50
    assert [path for path, md5 in read if md5 != made[path]] == [], "`dvc repro`, then commit dvc.lock and metrics/"


def test_numbers_and_pictures_in_git_are_those_of_the_lock_file():
    outs = [(out["path"], out["md5"]) for stage in locked() for out in stage.get("outs", [])]
    here = [(path, md5) for path, md5 in outs if (ROOT / path).is_file()]
    assert len(here) > 20
    other = [path for path, md5 in here if hashlib.md5((ROOT / path).read_bytes()).hexdigest() != md5]
    assert other == [], "`dvc repro`, then commit dvc.lock and metrics/"
