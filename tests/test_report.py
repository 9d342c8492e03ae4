"""The page of results: what it says of known scores, what it shows of known slices, and that it is safe and small."""

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from stages import report
from synthmri import imageset
from synthmri.evaluation import downstream, usefulness
from synthmri.registry import description
from synthmri.reporting import answers, comparison, inline, page

ROOT = Path(__file__).parent.parent
PX = 48
LEVELS_MM = ("20.0", "60.0", "100.0")


def grey_at(depth_mm: str, label: str) -> int:
    return int(float(depth_mm)) + 100 * (label == "lesions")


def prompted(n: int, **columns) -> pd.DataFrame:
    """Rows of every level and label in turn; each picture has the grey level of its own."""
    asked = [(depth, label) for depth in LEVELS_MM for label in ("lesions", "none")]
    rows = [("T1w", *asked[i % len(asked)]) for i in range(n)]
    return pd.DataFrame(rows, columns=["contrast", "depth_mm", "label"]).assign(**columns)


def flat(table: pd.DataFrame) -> np.ndarray:
    return np.stack(
        [np.full((PX, PX), grey_at(*row), np.uint8) for row in zip(table.depth_mm, table.label, strict=True)]
    )


def results(folder: Path, *, simulated: bool = True, noise: bool = False) -> SimpleNamespace:
    """The committed results with small pictures of no anatomy, as the arguments of the stage."""
    metrics = folder / "metrics"
    names = [*comparison.MODELS, "base", "base_adapted"]
    shutil.copytree(
        ROOT / "metrics", metrics,
        ignore=shutil.ignore_patterns("samples", "real_beside", "closest", "progression", "report.html", "slices.png"),
    )  # fmt: skip
    data = json.loads((metrics / "data.json").read_text()) | {"simulated": int(simulated)}
    (metrics / "data.json").write_text(json.dumps(data))
    rng = np.random.default_rng(0)

    def pixels(table: pd.DataFrame, px: int = PX) -> np.ndarray:
        return rng.integers(0, 256, (len(table), px, px), np.uint8) if noise else flat(table)

    for name in ("train", "test"):
        table = prompted(12, subject=[f"s{i // 4}" for i in range(12)])
        source = {"data": {"source": "simulated" if simulated else "raw"}}
        imageset.write(folder / "slices" / name, imageset.ImageSet(pixels(table, 256), table, source))
    for name in names:
        table = prompted(12, model=name, seed=[str(1000 + i) for i in range(12)])
        imageset.write(folder / "samples" / name, imageset.ImageSet(pixels(table, 256), table, {}))
    (folder / "snapshots").mkdir()
    curves = pd.read_csv(metrics / "progression.csv")
    for name in comparison.MODELS:
        points = (curves["model"] == name).sum()
        stack = (
            rng.integers(0, 256, (points, 8, 256, 256), np.uint8) if noise else np.zeros((points, 8, PX, PX), np.uint8)
        )
        np.save(folder / "snapshots" / f"{name}.npy", stack)
    for kind in ("samples", "real_beside", "closest"):
        (metrics / kind).mkdir()
        for name in comparison.MODELS:
            Image.new("L", (300, 100), 90).save(metrics / kind / f"{name}.png")
    for name in comparison.MODELS:
        couples = {"image": range(10), "train": range(9, -1, -1), "mirrored": [0, 1] * 5}
        likeness = np.linspace(0.9, 0.45, 10)
        pd.DataFrame(couples | {"likeness": likeness}).to_csv(metrics / f"closest/{name}.csv", index=False)
    sheet = rng.integers(0, 256, (712, 1024), np.uint8) if noise else np.full((PX, PX), 90, np.uint8)
    Image.fromarray(sheet).save(metrics / "slices.png")
    Image.fromarray(sheet).convert("RGB").resize((2076, 516)).save(metrics / "segmentation.png")
    return SimpleNamespace(
        metrics=metrics, slices=folder / "slices", samples=folder / "samples", snapshots=folder / "snapshots",
        params=ROOT / "params.yaml", defaults=ROOT / "profiles/default.yaml",
        out=folder / "report.html", picture=folder / "small.png",
    )  # fmt: skip


def change(file: Path, **what) -> None:
    """Values of a JSON file, by names joined with __."""
    tree = json.loads(file.read_text())
    for name, value in what.items():
        *path, last = name.split("__")
        part = tree
        for key in path:
            part = part[key]
        part[last] = value
    file.write_text(json.dumps(tree))


def made(place: SimpleNamespace) -> str:
    report.main(**vars(place))
    return place.out.read_text(encoding="utf-8")


# Answers


REAL = {"fd_effnet": 10.0, "fd_effnet_std": 1.0, "coverage": 0.8, "manual_score": 4.2}


@pytest.mark.parametrize(
    ("fd", "short", "tone"),
    [
        (9.7, "Yes", "good"), (9.8, "Not told apart", "mixed"), (12.7, "Not told apart", "mixed"),
        (12.8, "Not yet, but nearer", "mixed"), (41.0, "Not yet", "bad"),
    ],
)  # fmt: skip
def test_near_is_told_by_the_floor_and_by_blurred_slices(fd, short, tone):
    """The error of the difference is 1.96 sqrt(1 + 1) = 2.77, and a quarter of the floor is 2.5."""
    model = {"fd_effnet": fd, "fd_effnet_std": 1.0, "coverage": 0.25, "manual_score": 3.14}
    found = answers.near(model, {"real": REAL, "blurred": {"fd_effnet": 40.0}})
    assert found.short.startswith(short) and found.tone == tone
    assert f"is {fd / 10:.1f} times" in found.evidence and "blurred, is 4.0 times" in found.evidence
    assert "25 % of the test" in found.evidence and "gave 3.1 of 5 for realism, to real ones 4.2" in found.evidence


def test_near_is_not_sure_of_what_has_no_error():
    for fd, short in ((9.0, "Not told apart"), (12.0, "Not yet, but nearer")):
        references = {"real": REAL, "blurred": {"fd_effnet": 40.0}}
        assert answers.near({"fd_effnet": fd, "coverage": 0.25}, references).short.startswith(short)


def test_scores_of_too_few_raters_are_called_so():
    model = {"fd_effnet": 9.0, "fd_effnet_std": 1.0, "coverage": 0.25, "manual_score": 4.7, "manual_few": 1.0}
    found = answers.near(model, {"real": REAL, "blurred": {"fd_effnet": 40.0}})
    assert found.evidence.endswith("to real ones 4.2 (too few raters or cases to rely on).")


HOLDS = dict.fromkeys(answers.RULES, 1.0)
ATTACK = {"mia_auroc": 0.55, "mia_auroc_high": 0.65}


@pytest.mark.parametrize(
    ("verdict", "attack", "short", "tone"),
    [
        ({"rules": HOLDS}, ATTACK, "Nothing was found", "good"),
        ({"rules": HOLDS | {"memorised": 0.0}}, ATTACK, "No", "bad"),
        ({"rules": HOLDS | {"coverage": 0.0}}, ATTACK, "No sign", "mixed"),
        ({"rules": HOLDS | {"coverage": 0.0}, "unknown": {"mia_auroc": 1.0}}, {}, "Not known", "unknown"),
        ({"rules": HOLDS | {"mia_auroc": 0.0}, "override": 1.0}, ATTACK, "By a person's word", "mixed"),
    ],
)
def test_safe_is_what_the_gate_says_about_people(verdict, attack, short, tone):
    found = answers.safe({"memorised": 0.02}, attack, verdict, simulated=False)
    assert found.short.startswith(short) and found.tone == tone and "simulated" not in found.evidence
    assert found.evidence.startswith("2 % of its slices")
    assert ("AUROC 0.55 (0.5 is chance); the 95 % intervals of both end at or below 0.65" in found.evidence) == bool(
        attack
    )
    for rule, words in answers.RULES.items():
        assert (words in found.evidence) == (not verdict["rules"][rule] or rule in verdict.get("unknown", {}))
    assert "nobody is at risk" in answers.safe({"memorised": 0.02}, attack, verdict, simulated=True).evidence


@pytest.mark.parametrize(("trained", "said"), [(2.0, "cannot be protected"), (24.0, "More validation or test people")])
def test_safe_says_what_follows_where_no_interval_is_known(trained, said):
    attack = {"mia_auroc": 0.55, "mia_trained_people": trained}
    found = answers.safe({"memorised": 0.02}, attack, {"rules": HOLDS}, simulated=False)
    assert said in found.evidence and "is not known, of so few people" in found.evidence


@pytest.mark.parametrize(("rule", "words"), [("memorised", "copies of"), ("mia_auroc_high", "an attack that may find")])
def test_a_rule_that_is_switched_off_is_no_good_sign(rule, words):
    found = answers.safe({"memorised": 0.9}, ATTACK, {"rules": HOLDS, "off": {rule: 1.0}}, simulated=False)
    assert found.tone == "unknown" and found.short == "The gate was told not to ask"
    assert f"Switched off in `registry`: {words}" in found.evidence
    quality = answers.safe({"memorised": 0.02}, ATTACK, {"rules": HOLDS, "off": {"coverage": 1.0}}, simulated=False)
    assert quality.tone == "good"


def test_a_word_for_a_model_that_passes_takes_nothing_from_it():
    found = answers.safe({"memorised": 0.02}, ATTACK, {"rules": HOLDS, "override": 1.0}, simulated=False)
    assert found.short == "Nothing was found against it" and "The gate lets it pass" in found.evidence
    assert "A person has chosen it" in found.evidence
    said = description.verdict([], "the sharper of two.")
    assert said == "It passes the gate: every rule holds. A person has given their word for it: the sharper of two."


def test_every_rule_of_the_gate_has_words():
    from synthmri.registry import gate

    assert set(answers.RULES) == {*gate.RULES, "finite"}


def scores(auroc: float, gain: float = 0.0) -> dict:
    spread = {"auroc": auroc, "auroc_low": auroc - 0.05, "auroc_high": auroc + 0.05, "auroc_p_holm": 0.01}
    return spread | {"auroc_gain": gain, "auroc_gain_low": gain - 0.02, "auroc_gain_high": gain + 0.02}


@pytest.mark.parametrize(
    ("arms", "short"),
    [((0.5, 0.52, 0.0), "Not known"), ((0.8, 0.81, 0.01), "Not measurably"), ((0.8, 0.86, 0.06), "Yes"),
     ((0.8, 0.74, -0.06), "No, they do harm")],
)  # fmt: skip
def test_help_is_told_from_the_sentence_of_the_utility(arms, short):
    rival, ours, gain = arms
    result = {
        name: {"100" if arm.real else "0": scores(ours, gain) if arm.synthetic else scores(rival)}
        for name, arm in downstream.ARMS.items()
    }
    for name in downstream.RIVALS:
        result[name]["100"] |= {"rival": name == downstream.RIVALS[0], "train_subjects": 10}
    found = answers.helps(usefulness.sentence(result, ["lesions", "none"]))
    assert found.short == short and "*" not in found.evidence and "lesions" in found.evidence
    if short == "Yes":  # though one of the others does harm
        result["both_4"]["100"] = scores(0.7, -0.1)
        sentence = usefulness.sentence(result, ["lesions", "none"])
        assert "did harm" in sentence and answers.helps(sentence).short == "Yes"
    assert answers.helps("Whether synthetic slices help a classifier was not measured: why.").short == "Not measured"


@pytest.mark.parametrize(
    ("use", "masks", "short", "tone"),
    [
        ("**Synthetic slices did not measurably help** a. With 5 % **they helped**: b.", "", "Not measurably, but they "
         "help with fewer people", "mixed"),
        ("**Synthetic slices did not measurably help** a.", "**Synthetic pairs helped** to draw.", "Not measurably; to "
         "draw masks, yes", "mixed"),
        ("**Synthetic slices helped** a.", "**Synthetic pairs did harm** to draw.", "Yes; to draw masks, they do harm",
         "mixed"),
        ("**Synthetic slices did harm** a.", "**Synthetic pairs did harm** to draw.", "No, they do harm; to draw "
         "masks, they do harm", "bad"),
        ("**Synthetic slices helped** a.", "Whether pairs help was not measured: no masks.", "Yes", "good"),
        ("Whether slices help was not measured: why.", "**Synthetic pairs did not measurably help** to draw. They "
         "helped with 10 % of the people.", "Not measured; to draw masks, with fewer people", "mixed"),
        ("Whether slices help was not measured: why.", "**Synthetic pairs did not measurably help** to draw.",
         "Not measured; to draw masks, not measurably", "mixed"),
    ],
)  # fmt: skip
def test_help_with_few_people_and_with_masks_is_in_the_answer(use, masks, short, tone):
    found = answers.helps(use, masks)
    assert (found.short, found.tone) == (short, tone)
    assert ("draw" in found.evidence) == ("draw" in masks)


# Parts of the page


def test_distances_lie_where_their_ratio_to_the_floor_says():
    tree = json.loads((ROOT / "metrics/comparison.json").read_text())
    dots, ticks = page.distances(tree["models"], tree["references"])
    by_title = {dot.title: dot for dot in dots}
    floor, vae = by_title["real, other people"], by_title["VAE"]
    assert floor.text == "1.0×" and floor.kind == "floor" and by_title["latent diffusion"].kind == "ours"
    ratio = tree["models"]["vae"]["fd_effnet"] / tree["references"]["real"]["fd_effnet"]
    at = dict((text, place) for place, text in ticks)
    assert at["1×"] == floor.at and vae.text == f"{ratio:.1f}×"
    # On a logarithmic axis a ratio is a distance.
    assert (vae.at - floor.at) / (at["10×"] - at["1×"]) == pytest.approx(np.log10(ratio), abs=1e-3)
    assert [dot.at for dot in dots] == sorted(dot.at for dot in dots)
    assert all(0 <= dot.low <= dot.at <= dot.high <= 100 for dot in dots)
    assert page.distances(tree["models"], tree["references"] | {"real": {"fd_effnet": 0.0}}) == ([], [])


def test_the_short_table_has_seven_columns_of_the_scores():
    tree = json.loads((ROOT / "metrics/comparison.json").read_text())
    headings, rows = page.short_table(tree["models"], tree["references"], {"vae": {"mia_auroc": 0.612}})
    assert len(headings) == 7 and {len(cells) for *_, cells in rows} == {6}
    vae = next(cells for title, _, cells in rows if title == "VAE")
    ratio = tree["models"]["vae"]["fd_effnet"] / tree["references"]["real"]["fd_effnet"]
    assert vae == [f"{ratio:.1f}×", *(f"{tree['models']['vae'][name]:.2f}" for name in
                   ("kid_effnet", "recall", "coverage", "memorised")), "0.61"]  # fmt: skip
    assert next(cells for title, _, cells in rows if title == "DCGAN")[-1] == "–"


def grey(shot: page.Shot) -> float:
    data = base64.b64decode(shot.url.partition(",")[2])
    return float(np.asarray(Image.open(io.BytesIO(data)).convert("L")).mean())


def test_the_grid_shows_slices_of_the_label_and_level_that_it_names():
    tables = [prompted(12, seed="0"), prompted(12, seed="1")]
    tables[1].loc[tables[1]["depth_mm"] == "60.0", "label"] = "lesions"  # none without, at level 6
    sets = [imageset.ImageSet(flat(table), table) for table in tables]
    levels, kinds = page.asked_grid(*sets)
    assert levels == [2, 6, 10]
    assert [title for title, _ in kinds] == [
        "test people, T1w, lesions", "synthetic, T1w, lesions", "test people, T1w, none", "synthetic, T1w, none",
    ]  # fmt: skip
    for title, cells in kinds:
        for depth, shot in zip(LEVELS_MM, cells, strict=True):
            if shot is not None:
                assert grey(shot) == pytest.approx(grey_at(depth, title.rsplit(", ", 1)[1]), abs=2)
                assert shot.alt == f"{title}, level {round(float(depth) / 10)}"
    assert [shot is None for shot in kinds[3][1]] == [False, True, False]
    silent = imageset.ImageSet(sets[1].images, tables[1].assign(contrast=""))  # prompts that name no contrast
    assert [title for title, _ in page.asked_grid(sets[0], silent)[1]][:2] == [
        "test people, lesions", "synthetic, lesions",
    ]  # fmt: skip
    bare = imageset.ImageSet(sets[0].images, pd.DataFrame({"seed": ["0"] * 12}))
    assert page.asked_grid(sets[0], bare) == ([], [])


def test_pairs_stand_beside_each_other_turned_as_they_were_compared():
    left = np.zeros((2, 64, 64), np.uint8)
    left[:, :, :20] = 200
    table = pd.DataFrame({"image": [1, 0], "train": [0, 1], "mirrored": [1, 0], "likeness": [0.7, 0.5]})
    found = page.pairs(left // 2, left, table, 0.6)
    assert [pair["above"] for pair in found] == [True, False] and found[0]["theirs"].alt.endswith("mirrored")
    assert [pair["above"] for pair in page.pairs(left, left, table, None)] == [None, None]
    halves = []
    for pair in found:
        data = io.BytesIO(base64.b64decode(pair["theirs"].url.partition(",")[2]))
        pixels = np.asarray(Image.open(data).convert("L"))
        halves.append(bool(pixels[:, :15].mean() > pixels[:, -15:].mean()))
    assert halves == [False, True]


def test_changed_parameters_are_found_wherever_they_stand():
    ours = {"a": 1, "b": {"c": [1, 2], "d": {"e": 5}}, "new": 0}
    theirs = {"a": 1, "b": {"c": [1], "d": {"e": 6}}, "gone": 2}
    assert page.changed(ours, theirs) == [("b.c", [1, 2], [1]), ("b.d.e", 5, 6), ("new", 0, None), ("gone", None, 2)]
    assert page.changed(ours, ours) == []


def test_the_defaults_are_what_params_yaml_is_shipped_with():
    files = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", "profiles/default.yaml"))
    differ = page.changed(*files)
    assert differ == [], "a default of params.yaml has changed: write the same into profiles/default.yaml"


def test_a_picture_of_a_head_is_sharp_and_one_of_noise_is_small():
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), np.uint8)
    assert len(inline.slice_url(noise)) < inline.MOST_BYTES * 4 / 3 + 50
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    head = np.where(np.hypot(x, y) < 0.7, 90 + 60 * np.sin(9 * x) * np.cos(7 * y), 0).astype(np.uint8)
    shot = page.shots(head[None], [0], str)[0]
    assert abs(grey(shot) - head.mean()) < 1 and shot.url == inline.slice_url(head)


# The whole page


def test_the_page_is_one_file_that_runs_no_foreign_script_and_the_same_bytes_again(tmp_path):
    place = results(tmp_path)
    words = place.metrics / "utility.md"
    words.write_text(words.read_text() + "\n\n<img src=x onerror=alert(1)>\n")
    change(place.metrics / "data.json", train__label={"<script>alert(2)</script>": 3})
    text = made(place)
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script>alert" not in text and "<img src=x" not in text
    assert text.count("<script>") == 1 and f"script-src '{_hash(text)}'" in text
    assert "not patients" in text and "slices of people" not in text
    assert made(place) == text


def _hash(text: str) -> str:
    script = text.partition("<script>")[2].partition("</script>")[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_own_data_is_called_slices_of_people(tmp_path):
    text = made(results(tmp_path, simulated=False))
    assert "shows slices of people: keep it under the access rules" in text
    told = text.partition("<details><summary>All of params.yaml")[0]
    for always in ("simulated cohort", "Pretraining is on simulated heads"):
        told = told.replace(always, "")
    assert "simulated" not in told


def test_it_stays_below_3_mb_where_every_picture_is_noise(tmp_path):
    place = results(tmp_path, noise=True)
    curves = pd.read_csv(place.metrics / "progression.csv")
    epochs = 40  # more than are shown
    ours = curves[curves["model"] == "latent_diffusion"].iloc[[0] * epochs].assign(epoch=range(epochs))
    ours.drop(columns="model").to_csv(place.metrics / "fd_progression.csv", index=False)
    stack = np.random.default_rng(1).integers(0, 256, (epochs, 8, 256, 256), np.uint8)
    np.save(place.snapshots / "latent_diffusion.npy", stack)
    text = made(place)
    assert 1_500_000 < len(text) < 3_000_000
    assert "Epoch 0<" in text and "Epoch 39<" in text and text.count('<figure class="point">') == page.STEPS


def test_what_was_asked_for_stands_there_where_it_was_measured(tmp_path):
    place = results(tmp_path)
    agreed = {"level_error_cm": 1.37, "levels": {"2": 0.5, "6": 2.25}, "label_seen": 0.6, "labels": {"lesions": 0.6}}
    real = agreed | {"level_error_cm": 0.42, "labels": {}}
    tree = place.metrics / "comparison.json"
    change(tree, models__latent_diffusion__asked=agreed, models__latent_diffusion__asked_of_real=real)
    text = " ".join(made(place).split())
    assert "off by <strong>1.4 cm</strong> on average, and real slices by 0.4 cm" in text
    assert "<td>2.25</td>" in text and '<tr><th scope="row">real</th><td>–</td></tr>' in text
    scores = json.loads(tree.read_text())
    for name in ("asked", "asked_of_real"):
        scores["models"]["latent_diffusion"].pop(name)
    tree.write_text(json.dumps(scores))
    assert "was not measured in this run" in made(place)


def test_the_bound_of_memorised_marks_the_pairs_above_it(tmp_path):
    place = results(tmp_path)
    change(place.metrics / "comparison.json", references__real__likeness_bound=0.62)
    text = made(place)
    # Likenesses 0.9, 0.85 ... 0.55: six of the eight of our model are above, and of the baselines all four.
    assert text.count('class="pair above"') == 6 + 4 * 4 and "<strong>0.620</strong>" in text
    assert "6 of these 8 above the bound" in text


def test_it_tells_which_parameters_are_others(tmp_path):
    place = results(tmp_path)
    assert "None: these are the defaults" in made(place)
    place.params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    place.params.write_text(re.sub(r"epochs: \d+ ", "epochs: 77 ", text, count=1))
    assert re.search(r"finetune\.epochs</code></th><td>77</td><td>\d+</td>", made(place))
