"""The numbers that experiments are compared by, the three answers at the end of a run, and the figures of DVC."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from commands import summary
from stages import summarise
from synthmri.errors import UserError
from synthmri.evaluation import downstream
from synthmri.reporting import comparison, headline

ROOT = Path(__file__).parent.parent
ROW = {
    "fd_effnet": 30.0, "fd_effnet_std": 1.0, "fd_alexnet": 6.0, "kid_effnet": 0.05, "recall": 0.4, "coverage": 0.2,
    "memorised": 0.05, "n": 200.0,
}  # fmt: skip
FLOOR = ROW | {"fd_effnet": 10.0, "coverage": 0.8}
MODELS = {name: ROW for name in comparison.MODELS}
REFERENCES = {
    "real": FLOOR,
    "base": ROW | {"fd_effnet": 120.0},
    "base_adapted": ROW | {"fd_effnet": 60.0},
    "blurred": ROW,
}
PRIVACY = {name: {"mia_auroc": 0.55, "mia_auroc_high": 0.65} for name in comparison.MODELS}
GAIN = {"auroc": 0.7, "auroc_gain": 0.03, "auroc_gain_low": -0.01, "auroc_gain_high": 0.07}
PASSED = {"passed": 1.0, "rules": {"finite": 1.0, "memorised": 1.0, "coverage": 1.0, "mia_auroc": 1.0}}


def stages() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_headline_numbers_are_at_most_forty_and_say_what_they_should():
    tree = headline.numbers(MODELS, REFERENCES, PRIVACY, {headline.ARM: {"50": {}, "100": GAIN}})
    assert tree["fd_ratio"] == 3 and tree["reduction"] == 0.75  # 30 / 10; 1 - 30 / 120
    assert (tree["gain"], tree["gain_low"], tree["gain_high"]) == (0.03, -0.01, 0.07)
    assert {*headline.OWN, "reduction", "gain", "gain_low", "gain_high"} | {*comparison.MODELS} - {
        headline.MODEL
    } == set(tree)
    assert set(tree["vae"]) == {*headline.OTHERS} and tree["vae"]["mia_auroc"] == 0.55
    assert sum(len(value) if isinstance(value, dict) else 1 for value in tree.values()) == 40


def test_what_is_not_known_is_left_out():
    tree = headline.numbers(MODELS, REFERENCES | {"real": FLOOR | {"fd_effnet": 0.0}}, {}, {"classes": 0.0})
    assert not {"gain", "mia_auroc", "fd_ratio"} & set(tree) and "mia_auroc" not in tree["vae"]


def test_the_arm_of_the_gain_is_one_of_stage_utility():
    assert headline.ARM in downstream.ARMS


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {name: {"images": 8, "subjects": 2} for name in ("train", "val", "test")}
    trees = {
        "data": splits | {"simulated": 1}, "comparison": {"models": MODELS, "references": REFERENCES},
        "privacy": PRIVACY, "gate": {headline.MODEL: PASSED}, "utility": {headline.ARM: {"100": GAIN}},
    }  # fmt: skip
    Path("metrics").mkdir()
    for name, tree in trees.items():
        Path("metrics", f"{name}.json").write_text(json.dumps(tree))
    Path("metrics/segmentation.md").write_text("**Synthetic pairs [did] not help** either.\n\nMore.\n")
    Path("metrics/utility.md").write_text("**Synthetic slices [did] not help**\nby much.\n\nMore.\n")
    return Path("metrics")


def test_the_summary_is_ten_lines_with_three_answers_and_two_places_to_read_on(results, capsys):
    summary.main()
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 10 and text.count("?") == 3, text
    assert "The distance to the test people (FD) is 3.0 times" in text and "The gate lets it pass" in text
    assert "8 test slices of 2 people (simulated, not patients)" in text
    said = "Synthetic slices [did] not help by much. Synthetic pairs [did] not help either."  # no markup of rich in it
    assert said in text and "More." not in text
    assert "metrics/report.html" in text and "http://127.0.0.1:5000" in text and ".png" not in text
    (results / "utility.md").unlink()
    with pytest.raises(UserError, match="utility.md cannot be read .*run `dvc repro`"):
        summary.main()


# DVC


def test_the_summary_is_the_only_metric_of_dvc():
    found = []
    for stage in stages().values():
        found += [next(iter(entry)) for entry in (stage.get("do") or stage).get("metrics", [])]
    assert found == ["metrics/summary.json"]


def dvc(folder, *command) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_experiments_fit_a_terminal_of_160_columns(results, tmp_path):
    """By the README's command, where every number of every model changes; nothing is cut off."""
    files = [f"metrics/{name}.json" for name in ("comparison", "privacy", "utility", "summary")]
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    dvc(tmp_path, "git", "init", "-q")
    dvc(tmp_path, "dvc", "init", "-q")
    # What stages depend on changes too, and has columns of its own unless they are dropped.
    changing = ["data/slices/train", "models/latent_diffusion", "metrics/x.json", "stages/report.py", "params.yaml"]
    stage = f"stages: {{all: {{cmd: 'true', deps: [{', '.join(changing)}]}}}}\n"
    Path("dvc.yaml").write_text(f"{stage}params: [params.yaml]\nmetrics: [metrics/summary.json]\n")
    for step, epochs in enumerate((5, 20)):
        Path("params.yaml").write_text(f"finetune: {{epochs: {epochs}}}\n")
        models = {name: {key: v * (1 + step / 7) for key, v in row.items()} for name, row in MODELS.items()}
        attacks = {headline.MODEL: {"mia_auroc": 0.5 + step / 70}}
        Path(files[0]).write_text(json.dumps({"models": models, "references": REFERENCES}))
        Path(files[1]).write_text(json.dumps(PRIVACY | attacks))
        Path(files[2]).write_text(json.dumps({headline.ARM: {"100": {k: v + step for k, v in GAIN.items()}}}))
        summarise.main(*map(Path, files))
        for path in map(Path, changing[:-1]):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(step))
        dvc(tmp_path, "dvc", "repro", "-q")
        if step == 0:
            dvc(tmp_path, "git", "add", "-A")
            dvc(tmp_path, "git", *who, "commit", "-qm", "first")
    dvc(tmp_path, "dvc", "exp", "save", "--name", "twenty-epochs")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if line.startswith("dvc exp show")).partition("#")[0]
    table = dvc(tmp_path, "bash", "-c", command)
    wanted = ("twenty-epochs", "finetune.epochs", "reduction", "gain", *(set(headline.OWN) - {"fd_alexnet"}))
    assert all(f" {name} " in table or f"[{name}]" in table for name in wanted), table
    assert "…" not in table and "vae" not in table and max(map(len, table.splitlines())) <= 160, table
    changed = json.loads(dvc(tmp_path, "dvc", "metrics", "diff", "--json"))["metrics/summary.json"]
    assert changed["fd_effnet"]["old"] == 30
    assert "gain_low" in changed and "fd_alexnet" in changed
