"""The gate: every rule refuses what it should, and the ranking is by validation KID alone."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import _store, report
from stages import gate as stage
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.registry import gate, mlflow_store
from synthmri.reporting import comparison

GOOD = {
    "val_kid_effnet": 0.02,
    "kid_effnet": 0.03,
    "memorised": 0.05,
    "coverage": 0.3,
    "mia_auroc": 0.5,
    "mia_auroc_high": 0.6,
}


def section(**change) -> gate.Registry:
    tree = {
        "prefix": "a",
        "tracking_uri": "",
        "largest_memorised": 0.1,
        "smallest_coverage": 0.2,
        "largest_mia_auroc": 0.6,
        "largest_mia_auroc_high": 0.7,
    }
    return params.parse(
        tree | {"override": {"model": "", "reason": "", "scores": ""}} | change, "registry", gate.Registry
    )


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        ({"memorised": 0.11}, "memorised", "memorised = 0.11, where the rule asks for at most 0.1"),
        ({"coverage": 0.19}, "coverage", "coverage = 0.19, where the rule asks for at least 0.2"),
        ({"coverage": None}, "coverage", "coverage is not known, where the rule asks for at least 0.2"),
        ({"val_kid_effnet": None}, "val_kid_effnet", "val_kid_effnet is not known"),
        ({"fd_alexnet": math.inf}, "finite", "fd_alexnet: not finite"),
        ({"mia_auroc": 0.61}, "mia_auroc", "mia_auroc = 0.61, where the rule asks for at most 0.6"),
        ({"mia_auroc_high": 0.71}, "mia_auroc_high", "mia_auroc_high = 0.71, where the rule asks for at most 0.7"),
        ({"mia_auroc_high": None}, "mia_auroc_high", "mia_auroc_high is not known (too few people"),
        ({"memorised": math.nan}, "memorised", "memorised = nan"),
    ],
)
def test_each_rule_refuses_with_its_reason(change, rule, words):
    scores = {name: value for name, value in (GOOD | change).items() if value is not None}
    failed = gate.judge(scores, section())
    assert words in failed[rule]
    better = {name: -1.0 if name == gate.CHAMPION else value for name, value in scores.items()}
    assert gate.ranking({"good": GOOD, "bad": better}, section()) == ["good"]


def test_bounds_themselves_pass():
    assert not any(gate.judge(GOOD | {"memorised": 0.1, "coverage": 0.2}, section()).values())


def test_ranking_is_by_validation_kid_and_not_by_the_test_split():
    models = {"a": GOOD | {"kid_effnet": 0.001}, "b": GOOD | {"val_kid_effnet": 0.01}, "c": GOOD}
    assert gate.ranking(models, section()) == ["b", "a", "c"]  # of equal ones the first


def test_an_override_needs_model_reason_and_scores():
    for change in ({"reason": " "}, {"scores": ""}, {"model": ""}):
        with pytest.raises(UserError, match="a model, a reason and the hash of its scores"):
            section(override={"model": "vae", "reason": "seen", "scores": "0" * 16} | change)


def test_not_knowing_is_a_state_of_its_own():
    found = gate.states({name: value for name, value in GOOD.items() if name != "mia_auroc_high"}, section())
    assert found["mia_auroc_high"] == "unknown" and found["mia_auroc"] == found["finite"] == "holds"
    assert gate.states(GOOD | {"mia_auroc_high": 0.8}, section())["mia_auroc_high"] == "fails"
    off = section(largest_mia_auroc_high=1.0)
    assert gate.off(off) == ["mia_auroc_high"] and not gate.off(section())
    assert set(gate.states({k: v for k, v in GOOD.items() if k != "mia_auroc_high"}, off).values()) == {"holds"}


def test_doubt_helps_no_model():
    """Two models of one measured success of the attack: the one that less is known of must not fare better."""
    sure, unsure = (GOOD | {"mia_auroc": 0.58, "mia_auroc_high": high} for high in (0.66, 0.95))
    assert gate.ranking({"sure": sure, "unsure": unsure}, section()) == ["sure"]


def test_what_may_leave():
    """Of people's scans, what passes or has a person's word for these very scores; of simulated people, anything."""
    bad = GOOD | {"memorised": 0.5}
    word = section(override={"model": "vae", "reason": "looked at all pairs", "scores": gate.fingerprint(bad)})
    assert gate.may_leave("vae", GOOD, section(), simulated=False)
    assert gate.may_leave("vae", bad, section(), simulated=True)
    assert not gate.may_leave("vae", bad, section(), simulated=False)
    assert gate.may_leave("vae", bad, word, simulated=False)
    assert not gate.may_leave("dcgan", bad, word, simulated=False)
    assert not gate.may_leave("vae", bad | {"memorised": 0.6}, word, simulated=False)  # trained anew: nobody looked


def test_stage_writes_finite_floats_and_words(tmp_path, monkeypatch, capsys):
    text = Path("params.yaml").read_text(encoding="utf-8")
    own = {name: GOOD | {"val_kid_effnet": 0.1 - 0.01 * k} for k, name in enumerate(comparison.MODELS)}
    seen = gate.fingerprint(own["dcgan"] | {"mia_auroc_high": 0.6})
    (tmp_path / "params.yaml").write_text(
        text.replace(
            '{model: "", reason: "", scores: ""}', f'{{model: dcgan, reason: "seen by eye", scores: "{seen}"}}'
        )
    )
    monkeypatch.chdir(tmp_path)
    for name in comparison.MODELS:
        (tmp_path / f"{name}.json").write_text(json.dumps(own[name]))
    attacks = {name: {"mia_auroc_high": 0.8 if name == "vae" else 0.6} for name in comparison.MODELS}
    (tmp_path / "privacy.json").write_text(json.dumps(attacks))
    (tmp_path / "ddpm.json").write_text(json.dumps(GOOD | {"memorised": 0.5}))
    stage.main(scores=tmp_path, verdicts=tmp_path / "gate.json", reasons=tmp_path / "gate.md")
    tree, words = json.loads((tmp_path / "gate.json").read_text()), (tmp_path / "gate.md").read_text()
    assert tree["latent_diffusion"]["rank"] == 1.0 and tree["unet_gan"]["rank"] == 2.0 and "rank" not in tree["ddpm"]
    assert tree["ddpm"]["passed"] == 0.0 and tree["ddpm"]["rules"]["memorised"] == 0.0
    assert tree["vae"]["passed"] == 0.0 and tree["vae"]["rules"]["mia_auroc_high"] == 0.0
    assert tree["dcgan"]["override"] == 1.0 and "a person's word for it: seen by eye" in words
    assert "memorised = 0.5, where the rule asks for at most 0.1" in words
    (tmp_path / "dcgan.json").write_text(json.dumps(GOOD | {"val_kid_effnet": 0.3}))  # trained anew
    (tmp_path / "privacy.json").write_text(json.dumps(attacks | {"vae": {"mia_auroc": 0.5}}))
    (tmp_path / "vae.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != "mia_auroc_high"}))
    stage.main(scores=tmp_path, verdicts=tmp_path / "gate.json", reasons=tmp_path / "gate.md")
    tree = json.loads((tmp_path / "gate.json").read_text())
    assert "override" not in tree["dcgan"] and "unknown" not in tree["dcgan"]
    assert tree["vae"]["unknown"] == {"mia_auroc_high": 1.0} and "mia_auroc_high" not in tree["vae"]["rules"]
    assert "has lapsed; look again, then `synthmri registry --override dcgan --reason ...`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("simulated", "admitted"), [(True, []), (False, ["vae"]), (False, ["latent_diffusion", "ddpm"]), (False, [])]
)
def test_the_picture_in_git_shows_nothing_of_people_nor_of_a_refused_model_of_people(tmp_path, simulated, admitted):
    greys = {"test": 40} | {name: 60 + 20 * i for i, name in enumerate(comparison.MODELS)}
    for name, grey in greys.items():
        folder = tmp_path / ("slices" if name == "test" else "samples") / name
        rows = pd.DataFrame({"subject": list("abcdefghi")})
        imageset.write(folder, imageset.ImageSet(np.full((9, 64, 64), grey, np.uint8), rows))
    picture = report._for_git(tmp_path / "slices", tmp_path / "samples", simulated, admitted)
    counts = np.bincount(np.asarray(picture).ravel(), minlength=256)
    shown = {name for name, grey in greys.items() if counts[grey] > 0.05 * counts.sum()}
    assert shown == (set(greys) if simulated else set(admitted))
    if not simulated and not admitted:  # words; it does not even look
        report._for_git(tmp_path / "nowhere", tmp_path / "nowhere", simulated, admitted)
        assert counts[0] and counts[255]


@pytest.mark.parametrize(
    ("address", "stays"),
    [
        ("sqlite:///mlflow.db", True), ("sqlite:////etc/mlflow.db", False), ("sqlite:///../mlflow.db", False),
        ("sqlite:///link/mlflow.db", False), ("sqlite:///file:a.db?uri=true", False),
        ("./mlruns", True), ("/mnt/share/mlruns", False), ("file:///mnt/share", False),
        ("file:mlruns", True), ("file://server/mlruns", False), ("../mlruns", False),
        ("http://127.0.0.1:5000", True), ("http://localhost:5000", True), ("http://[::1]:5000", True),
        ("https://mlflow.example.org", False), ("http://127.0.0.1@example.org", False),
        ("http://localhost.example.org", False), ("http://127.0.0.1.example.org:80", False), ("http://0.0.0.0", False),
        ("mlflow-artifacts:/1", True), ("mlflow-artifacts://example.org/1", False),
        ("postgresql+psycopg2://a:b@db.example.org/mlflow", False), ("postgresql:///mlflow?host=example.org", False),
        ("mysql://127.0.0.1/mlflow", False), ("databricks", False), ("databricks-uc://a", False),
        ("s3://bucket/a", False), ("dbfs:/a", False), ("uc:name", False),
    ],
)  # fmt: skip
def test_an_address_is_local_where_that_is_proven_and_nowhere_else(tmp_path, monkeypatch, address, stays):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/tmp")
    assert mlflow_store.local(address, tmp_path) == stays
    assert mlflow_store.local(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)
    assert mlflow_store.local((tmp_path / "mlruns").as_uri(), tmp_path)


def test_a_password_in_an_address_is_not_shown():
    assert (
        mlflow_store.shown("postgresql+psycopg2://me:secret@db.example.org/a")
        == "postgresql+psycopg2://db.example.org/a"
    )


def test_a_relative_store_is_below_the_root_for_experiments_elsewhere_too(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for named, meant in (
        ("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"), ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"), ("", f"sqlite:///{tmp_path}/mlflow.db"),
    ):  # fmt: skip
        monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
        assert _store.uri(section()) == meant
