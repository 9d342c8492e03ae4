"""The gate: every rule refuses what it should, and the ranking is by validation KID alone."""

import json
import math
from pathlib import Path

import pytest

from stages import gate as stage
from synthmri import params
from synthmri.errors import UserError
from synthmri.registry import gate
from synthmri.reporting import comparison

GOOD = {"val_kid_alexnet": 0.02, "kid_alexnet": 0.03, "memorised": 0.05, "coverage": 0.3, "mia_auroc_low": 0.5}


def section(**change) -> gate.Registry:
    tree = {
        "prefix": "a",
        "tracking_uri": "",
        "largest_memorised": 0.1,
        "smallest_coverage": 0.2,
        "largest_mia_auroc_low": 0.55,
    }
    return params.parse(tree | {"override": {"model": "", "reason": ""}} | change, "registry", gate.Registry)


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        ({"memorised": 0.11}, "memorised", "memorised = 0.11; the rule asks for at most 0.1"),
        ({"coverage": 0.19}, "coverage", "coverage = 0.19; the rule asks for at least 0.2"),
        ({"coverage": None}, "coverage", "coverage is not known; the rule asks for at least 0.2"),
        ({"val_kid_alexnet": None}, "val_kid_alexnet", "val_kid_alexnet is not known"),
        ({"fd_alexnet": math.inf}, "finite", "fd_alexnet: not finite"),
        ({"mia_auroc_low": 0.6}, "mia_auroc_low", "mia_auroc_low = 0.6; the rule asks for at most 0.55"),
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
    models = {"a": GOOD | {"kid_alexnet": 0.001}, "b": GOOD | {"val_kid_alexnet": 0.01}, "c": GOOD}
    assert gate.ranking(models, section()) == ["b", "a", "c"]  # of equal ones the first


def test_an_override_needs_both_model_and_reason():
    with pytest.raises(UserError, match="both a model and a reason"):
        section(override={"model": "vae", "reason": " "})


def test_stage_writes_finite_floats_and_words(tmp_path, monkeypatch):
    text = Path("params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(
        text.replace('{model: "", reason: ""}', '{model: dcgan, reason: "seen by eye"}')
    )
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(comparison.MODELS):
        (tmp_path / f"{name}.json").write_text(json.dumps(GOOD | {"val_kid_alexnet": 0.1 - 0.01 * k}))
    attacks = {name: {"mia_auroc_low": 0.8 if name == "vae" else 0.4} for name in comparison.MODELS}
    (tmp_path / "privacy.json").write_text(json.dumps(attacks))
    (tmp_path / "ddpm.json").write_text(json.dumps(GOOD | {"memorised": 0.5}))
    stage.main(scores=tmp_path, verdicts=tmp_path / "gate.json", reasons=tmp_path / "gate.md")
    tree, words = json.loads((tmp_path / "gate.json").read_text()), (tmp_path / "gate.md").read_text()
    assert tree["latent_diffusion"]["rank"] == 1.0 and tree["unet_gan"]["rank"] == 2.0 and "rank" not in tree["ddpm"]
    assert tree["ddpm"]["passed"] == 0.0 and tree["ddpm"]["rules"]["memorised"] == 0.0
    assert tree["vae"]["passed"] == 0.0 and tree["vae"]["rules"]["mia_auroc_low"] == 0.0
    assert tree["dcgan"]["override"] == 1.0 and "made champion by a person: seen by eye" in words
    assert "memorised = 0.5; the rule asks for at most 0.1" in words
