"""The statistics of the reader study: against published examples, statistics libraries, and simulated raters.

All raters here are simulated; nothing of them is kept.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from commands import study as commands
from reader_study import attention, choices, design, imrmc, ratings
from stages import raters as stage
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.reporting import comparison

NAN = np.nan
# Shrout and Fleiss 1979, table 2: six targets, four judges.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]).T
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C and D: four observers, twelve units.
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)
P = ratings.Raters(min_raters=3, min_cases=10)


def test_icc_of_shrout_and_fleiss():
    single, mean = ratings.icc(SHROUT_FLEISS.astype(float))
    assert (round(single, 2), round(mean, 2)) == (0.29, 0.62)


def test_icc_leaves_out_cases_that_someone_missed():
    missing = np.column_stack([SHROUT_FLEISS.astype(float), [5, NAN, 5, 5]])
    assert ratings.icc(missing) == ratings.icc(SHROUT_FLEISS.astype(float))


@pytest.mark.parametrize("level, value", [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_of_krippendorff(level, value):
    assert ratings.krippendorff_alpha(KRIPPENDORFF, level) == pytest.approx(value, abs=5e-4)


def test_alpha_is_one_where_all_agree_and_about_zero_by_chance():
    rng = np.random.default_rng(0)
    once = rng.integers(1, 6, 400).astype(float)
    assert ratings.krippendorff_alpha(np.stack([once, once]), "ordinal") == pytest.approx(1)
    guesses = rng.integers(1, 6, (3, 4000)).astype(float)
    assert abs(ratings.krippendorff_alpha(guesses, "ordinal")) < 0.03


@pytest.mark.parametrize("scores", [np.full((3, 5), 4.0), np.array([[1.0, 2.0, 3.0]]), np.full((2, 2), NAN)])
def test_agreement_is_not_defined_without_spread_or_company(scores):
    assert ratings.icc(scores) is None
    assert ratings.krippendorff_alpha(scores, "ordinal") is None


def test_holm():
    """Holm 1979: sorted p values times what is left to test, never falling."""
    assert ratings.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ratings.holm([]) == []


def test_paired_test_is_that_of_scipy_over_cases():
    rng = np.random.default_rng(1)
    model, real = rng.integers(1, 6, (2, 3, 15)).astype(float)
    expected = stats.wilcoxon((model - real).sum(axis=0)).pvalue  # whole numbers: ties are exact
    assert ratings.paired_p(model, real) == pytest.approx(expected)
    assert ratings.paired_p(model, model) == 1.0
    assert ratings.paired_p(model, np.full_like(real, NAN)) is None


def test_accuracy_is_a_half_for_whoever_says_the_same_of_all():
    """Also where most images are synthetic: answering "synthetic" throughout is no skill."""
    never = np.zeros((3, 12))
    found = ratings.against_chance(never, never)
    assert found["accuracy"] == 0.5 and found["accuracy_p"] == 1.0


def test_accuracy_has_the_exact_binomial_p():
    """Both images of 10 cases; 17 of 20 right: p = 2 * sum C(20, k) for k from 17, over 2^20 = 0.00258."""
    real, model = np.ones((1, 10)), np.zeros((1, 10))
    real[0, :3] = 0
    found = ratings.against_chance(real, model)
    assert found["accuracy"] == pytest.approx(0.85)
    assert found["accuracy_p"] == pytest.approx(2 * (1140 + 190 + 20 + 1) / 2**20)


def test_what_a_rater_rated_on_one_side_alone_does_not_count():
    real, model = np.ones((2, 10)), np.zeros((2, 10))
    model[1] = NAN
    real[1] = 0
    assert ratings.against_chance(real, model)["accuracy"] == 1
    assert ratings.against_chance(real[1:], model[1:]) is None


def test_several_raters_of_one_image_are_one_trial():
    real, model = np.ones((5, 10)), np.zeros((5, 10))
    assert ratings.against_chance(real, model)["accuracy_images"] == 20


def test_interval_of_one_rater_is_that_of_cases():
    scores = np.random.default_rng(0).normal(3, 1, (1, 400))
    mean, low, high, error = ratings.interval(scores, rounds=4000, seed=0)
    assert mean == pytest.approx(scores.mean())
    assert error == pytest.approx(scores.std() / 20, rel=0.05)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.01)


def test_interval_covers_the_truth_with_raters_who_differ():
    """Simulated: 8 raters with leanings of their own. 95 % is nominal; few raters make it a little less."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        truth = 3 + rng.normal(0, 0.3, (8, 1)) + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, 0.6, (8, 30))
        _, low, high, _ = ratings.interval(truth, rounds=400, seed=seed)
        hits += low <= 3 <= high
    assert 0.88 <= hits / 200 <= 0.99


# Simulated raters ---------------------------------------------------------------------------------------------------

EFFECTS = {"real": 4.2, "vae": 1.3, "latent_diffusion": 3.2}


def simulated(effects=EFFECTS, raters=4, cases=20, seed=0, repeats=2) -> pd.DataFrame:
    """Ratings of raters that exist in this test alone: known means, raters' leanings, noise; some images twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for rater in range(raters):
        leaning, position = rng.normal(0, 0.2), 0
        for source, mean in effects.items():
            for case in [*range(cases), *range(repeats)]:
                opinion = mean + leaning + rng.normal(0, 0.7)
                rows.append(
                    {
                        "packet": "0" * 16, "reader": f"rater{rater}.{rater:06x}", "position": position,
                        "revision": 0, "repeat": int(position % (cases + repeats) >= cases),
                        "image": f"{source}{case}", "sha256": design.sha256(picture(source, case)), "source": source,
                        "case": case, "realism": int(np.clip(round(opinion), 1, 5)),
                        "verdict": "real" if opinion > 3 else "synthetic",
                        "plausibility": int(np.clip(round(opinion), 1, 5)), "seconds": "4.0", "tags": "", "comment": "",
                    }
                )  # fmt: skip
                position += 1
    return pd.DataFrame(rows, columns=ratings.COLUMNS["rating"])


def picture(source: str, case: int) -> np.ndarray:
    return np.random.default_rng([sum(map(ord, source)), case]).integers(0, 255, (8, 8)).astype(np.uint8)


def test_a_known_effect_is_recovered():
    tree = ratings.summary(simulated(), list(comparison.MODELS), P)
    assert list(tree["models"]) == ["vae", "latent_diffusion"]  # in the table's order, unrated ones absent
    real, vae, diffusion = tree["real"], tree["models"]["vae"], tree["models"]["latent_diffusion"]
    assert diffusion["manual_score_low"] < 3.2 < diffusion["manual_score_high"]
    assert diffusion["above_real_low"] < -1.0 < diffusion["above_real_high"]  # 3.2 - 4.2; the scale ends at 5
    assert vae["above_real_p_holm"] < 0.001 and diffusion["above_real_p_holm"] < 0.001
    assert vae["accuracy"] > 0.9 and vae["accuracy_p_holm"] < 0.001
    assert vae["manual_score"] < diffusion["manual_score"] < real["manual_score"]
    assert real["ratings"] == 80 and real["raters"] == 4 and real["cases"] == 20 and real["few"] == 0
    assert "above_real" not in real
    assert tree["agreement"]["realism_icc_2_k"] > 0.8
    assert tree["agreement"]["intra_rater_pairs"] == 4 * 3 * 2


def test_no_effect_is_seldom_found():
    found = 0
    for seed in range(6):
        frame = simulated({"real": 3.5, "vae": 3.5, "dcgan": 3.5}, seed=seed, repeats=0)
        tree = ratings.summary(frame, list(comparison.MODELS), P)
        found += any(model["above_real_p_holm"] < 0.05 for model in tree["models"].values())
    assert found <= 2  # of 6, each with a chance of 5 %: more than 2 has one of 0.2 %


def test_repeats_do_not_count_in_the_score():
    frame = simulated()
    with_repeats = ratings.summary(frame, ["vae"], P)["models"]["vae"]
    without = ratings.summary(frame[frame["repeat"] == 0], ["vae"], P)
    assert with_repeats == without["models"]["vae"] and "intra_rater_pairs" not in without["agreement"]


@pytest.mark.parametrize("raters, cases, few", [(2, 20, 1), (4, 5, 1), (3, 10, 0)])
def test_few_raters_or_cases_are_marked_and_cannot_lead(raters, cases, few):
    group = ratings.summary(simulated(raters=raters, cases=cases), ["vae"], P)["models"]["vae"]
    assert group["few"] == few and ("manual_score_std" in group) == (not few)


def test_one_rater_of_one_case_is_scored_without_what_is_not_defined():
    frame = simulated(raters=1, cases=1, repeats=0)
    tree = ratings.summary(frame, list(comparison.MODELS), P)
    assert tree["real"]["manual_score"] == frame[frame["source"] == "real"]["realism"].iloc[0]
    assert "agreement" not in tree
    json.dumps(tree, allow_nan=False)


def test_an_unfinished_rater_counts_as_far_as_they_came():
    frame = simulated()
    left = frame[(frame["reader"] != "rater3.000003") | (frame["position"] < 30)]
    tree = ratings.summary(left, list(comparison.MODELS), P)
    assert tree["real"]["ratings"] == 80 and tree["models"]["latent_diffusion"]["raters"] == 3


# Controls ------------------------------------------------------------------------------------------------------------


def with_controls(frame: pd.DataFrame, called: dict[str, list[str]]) -> pd.DataFrame:
    """Four known bad images more for each rater, called real or synthetic as told."""
    rows = []
    for rater, verdicts in called.items():
        one = frame[frame["reader"] == rater].iloc[0].to_dict()
        for k, verdict in enumerate(verdicts):
            change = {"source": design.CONTROL, "verdict": verdict, "position": 900 + k, "case": 100 + k, "repeat": 0}
            change |= {"image": f"bad{k}", "sha256": design.sha256(design.spoiled(picture("real", k)))}
            rows.append(one | change | {"realism": 5 if verdict == "real" else 1})
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)[list(ratings.COLUMNS["rating"])]


GOOD, BAD = ["synthetic"] * 4, ["real"] * 4


def test_who_misses_controls_is_named_and_counts_all_the_same(tmp_path):
    sets(tmp_path)
    names = sorted(simulated()["reader"].unique())
    frame = with_controls(simulated(), {name: BAD if name == names[1] else GOOD for name in names})
    tree, plain = score(tmp_path, frame), score(tmp_path, simulated())
    assert [tree["attention"][name]["inattentive"] for name in names] == [0, 1, 0, 0]
    assert tree["attention"][names[0]] == {"controls": 6, "right": 1, "one_answer": 0, "inattentive": 0}
    assert tree["attention"][names[1]]["right"] <= 0.3334  # whatever of the two real slices that came again
    assert tree["counts"]["inattentive"] == 1 and tree["models"]["vae"]["inattentive"] == 1
    for name in ("manual_score", "manual_score_low", "above_real_p", "accuracy", "cases", "ratings"):
        assert tree["models"]["vae"][name] == plain["models"]["vae"][name], name  # nothing is dropped
    assert tree["agreement"] == plain["agreement"]
    note = comparison.raters_note(tree)
    assert "⚠ 1 of 4 raters missed controls" in note and "⚠" not in comparison.raters_note(plain)
    assert "⚠ 1 of 4 raters inattentive" in comparison._manual(comparison.manual(tree["models"]["vae"]))
    assert "4 raters saw too few controls" in comparison.raters_note(plain)


def test_a_real_slice_shown_twice_is_a_control_and_one_answer_throughout_is_none():
    frame = simulated(raters=2, repeats=4)
    real_again = (frame["source"] == "real") & (frame["repeat"] == 1) & (frame["reader"] == "rater0.000000")
    frame.loc[real_again, "realism"] = 1
    frame.loc[frame["reader"] == "rater1.000001", "realism"] = 3
    answers = frame.assign(answer=frame["realism"])
    found = attention.summary(attention.of_ratings(frame), answers)
    assert found["rater0.000000"] == {"controls": 4, "right": 0, "one_answer": 0, "inattentive": 1}
    assert found["rater1.000001"] == {"controls": 4, "right": 1, "one_answer": 1, "inattentive": 1}


def test_how_often_a_rater_who_guesses_is_found():
    """4 bad images, 2 repeats: right by chance with 1/2, and 13/25 within one of five points; 5 of 6 pass 0.75."""
    rng = np.random.default_rng(0)
    passed = ((rng.random((20_000, 4)) < 1 / 2).sum(axis=1) + (rng.random((20_000, 2)) < 13 / 25).sum(axis=1)) / 6
    assert (passed >= attention.RIGHT).mean() == pytest.approx(0.115, abs=0.01)  # as docs/reader_study.md says: 1 in 9


# Forced choices ------------------------------------------------------------------------------------------------------


def chosen(right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Choices of source -> 1 or 0, (raters, cases); of raters that exist in this test alone."""
    rows = []
    for start, (source, values) in enumerate(right.items()):
        for rater, row in enumerate(values):
            for case, hit in enumerate(row):
                side = ("left", "right")[(rater + case) % 2]
                rows.append(
                    {
                        "packet": "1" * 16, "reader": f"rater{rater}.{rater:06x}", "position": start * 100 + case,
                        "revision": 0, "repeat": 0, "image": f"{source}{case}",
                        "sha256": design.sha256(design.spoiled(picture("real", case)) if source == design.CONTROL
                                                else picture(source, case)),
                        "source": source, "case": start * 100 + case,
                        "sha256_real": design.sha256(picture("real", case)),
                        "real": side, "chosen": side if hit else {"left": "right", "right": "left"}[side],
                        "seconds": "2.0", "comment": "",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows, columns=ratings.COLUMNS["forced_choice"])


def test_the_proportion_correct_has_the_exact_binomial_p_and_holm():
    """15 of 20 pairs found by both raters: p = 2 P(X >= 15), X of 20 trials of a half = 0.0414 (tables)."""
    right = np.tile(np.arange(20) < 15, (2, 1)).astype(float)
    frame = chosen({"vae": right, "latent_diffusion": np.tile(np.arange(20) % 2, (2, 1)).astype(float)})
    tree = choices.summary(frame, list(comparison.MODELS), ratings.Raters(min_raters=2, min_cases=20))
    assert list(tree) == ["vae", "latent_diffusion"]
    assert tree["vae"]["proportion_correct"] == 0.75 and tree["vae"]["proportion_p"] == pytest.approx(0.0414, abs=5e-5)
    assert tree["vae"]["proportion_p_holm"] == pytest.approx(2 * tree["vae"]["proportion_p"])
    assert tree["latent_diffusion"]["proportion_correct"] == 0.5 and tree["latent_diffusion"]["proportion_p"] == 1
    assert tree["vae"]["proportion_correct_low"] < 0.75 < tree["vae"]["proportion_correct_high"]
    assert (tree["vae"]["raters"], tree["vae"]["cases"], tree["vae"]["ratings"], tree["vae"]["few"]) == (2, 20, 40, 0)


def test_the_interval_of_choices_covers_the_truth():
    """Simulated: 6 raters, 30 pairs of unlike difficulty about 0.7; 95 % is nominal, few raters make it less."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        chance = np.clip(0.7 + rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.1, (1, 30)), 0, 1)
        _, low, high = choices.proportion((rng.random((6, 30)) < chance).astype(float))
        hits += low <= 0.7 <= high
    assert hits >= 88


def test_all_right_is_not_certain():
    """The exact interval of 20 of 20: 0.025 ** (1 / 20) = 0.8316 to 1 (Clopper and Pearson)."""
    mean, low, high = choices.proportion(np.ones((3, 20)))
    assert (mean, high) == (1, 1) and low == pytest.approx(0.025 ** (1 / 20))
    mean, low, high = choices.proportion(np.zeros((3, 20)))
    assert (mean, low) == (0, 0) and high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_forced_choices_are_scored_beside_ratings(tmp_path):
    sets(tmp_path)
    right = {"vae": np.ones((4, 20)), design.CONTROL: np.ones((4, 4))}
    tree = score(tmp_path, simulated(), chosen(right))
    assert tree["forced_choice"]["vae"]["cases"] == 20 and tree["models"]["vae"]["cases"] == 20
    assert tree["packets"] == {"0" * 16: 264, "1" * 16: 96}
    note = comparison.raters_note(tree)
    assert "the real one was found (0.5 is guessing): VAE 1.00 (0.83–1.00; 4 raters, 20 pairs)" in note
    tree = score(tmp_path, simulated()[:0], chosen(right).assign(sha256_real="0" * 64))  # other people were tested
    assert tree == {"counts": tree["counts"]} and tree["counts"]["of_other_images"] == 96


def test_ratings_and_choices_are_not_mixed(tmp_path):
    with pytest.raises(UserError, match="join each kind by itself"):
        ratings.merge([simulated(raters=1), chosen({"vae": np.ones((1, 4))})])
    ratings.write(tmp_path / "choices.csv", chosen({"vae": np.ones((1, 4))}))
    assert len(ratings.read(tmp_path / "choices.csv")) == 4
    with pytest.raises(UserError, match="ratings have packet, reader"):
        ratings.read(tmp_path / "choices.csv", "rating")
    bad = chosen({"vae": np.ones((1, 4))}).assign(chosen="middle")
    ratings.write(tmp_path / "choices.csv", bad)
    with pytest.raises(UserError, match="rating 1: chosen = 'middle' is none of left, right"):
        ratings.read(tmp_path / "choices.csv", "forced_choice")


# iMRMC ---------------------------------------------------------------------------------------------------------------


def area(table: pd.DataFrame, model: str, rater: str) -> float:
    """As iMRMC takes a rater's area for a modality: over all pairs of a case with and one without signal."""
    truth = table[table["readerID"] == "truth"].set_index("caseID")["score"]
    own = table[(table["readerID"] == rater) & (table["modalityID"] == model)]
    there = own["caseID"].map(truth)
    present, absent = own["score"][there == 1].to_numpy(), own["score"][there == 0].to_numpy()
    return float(((present[:, None] > absent) + 0.5 * (present[:, None] == absent)).mean())


def test_imrmc_gives_the_area_under_the_curve_of_a_rater():
    """Against scikit-learn's, of realism as the score; every case has one truth, real slices are under each model."""
    frame = with_controls(simulated(), {"rater0.000000": GOOD})
    table = imrmc.rows(frame)
    assert list(table.columns) == ["readerID", "caseID", "modalityID", "score"]
    truth = table[table["readerID"] == "truth"]
    assert truth["caseID"].is_unique and set(truth["caseID"]) == set(table["caseID"]) and len(truth) == 3 * 20
    assert set(truth["modalityID"]) == {"truth"} and truth["score"].sum() == 2 * 20
    assert len(table) == len(truth) + 4 * 2 * 2 * 20 and not table["caseID"].str.contains("control").any()
    first = frame[(frame["repeat"] == 0) & (frame["reader"] == "rater0.000000")]
    part = first[first["source"].isin(["real", "vae"])]
    assert area(table, "vae", "rater0.000000") == pytest.approx(
        roc_auc_score(part["source"] != "real", -part["realism"])
    )


def test_imrmc_gives_the_proportion_correct_of_choices():
    right = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 1, 0]], float)
    table = imrmc.rows(chosen({"vae": right, design.CONTROL: np.ones((2, 3))}))
    assert area(table, "vae", "rater0.000000") == pytest.approx(0.6)
    assert area(table, "vae", "rater1.000001") == pytest.approx(0.2)


def test_imrmc_files_have_the_form_of_its_manual(tmp_path):
    """4.1.1: sizes as N0, N1, NR, NM, a line BEGIN DATA:, then four fields with commas and no spaces."""
    ratings.write(tmp_path / "ratings.csv", simulated(raters=3))
    commands.to_imrmc(tmp_path / "study.imrmc", tmp_path / "ratings.csv")
    text = (tmp_path / "study.imrmc").read_text()
    head, _, data = text.partition("BEGIN DATA:\n")
    sizes = dict(re.findall(r"^(\w\w): (\d+)$", head, flags=re.M))
    assert sizes == {"N0": "20", "N1": "40", "NR": "3", "NM": "2"}
    assert all(re.fullmatch(r"[^, ]+,[^, ]+,[^, ]+,[0-9.]+", line) for line in data.splitlines())
    commands.to_imrmc(tmp_path / "study.csv", tmp_path / "ratings.csv")
    table = pd.read_csv(tmp_path / "study.csv")
    assert list(table.columns) == imrmc.COLUMNS and len(table) == len(data.splitlines())
    with pytest.raises(UserError, match="no .imrmc and no .csv"):
        commands.to_imrmc(tmp_path / "study.txt", tmp_path / "ratings.csv")
    with pytest.raises(UserError, match="holds no answers yet"):
        commands.to_imrmc(tmp_path / "study.csv", Path("data/reader_study/choices.csv"))


# Files ---------------------------------------------------------------------------------------------------------------


def test_exports_merge_without_double_counting(tmp_path):
    frame = simulated()
    half = frame[frame["reader"] < "rater2"]
    merged = ratings.merge([half, frame, frame.sample(frac=1, random_state=0)])
    assert len(merged) == len(frame)
    for name, frames in (("a", [half, frame]), ("b", [frame, half])):
        ratings.write(tmp_path / name, ratings.merge(frames))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert ratings.merge([ratings.read(tmp_path / "a"), frame]).equals(ratings.read(tmp_path / "a"))


def test_of_a_withdrawn_rating_the_later_one_stays():
    frame = simulated(raters=1)
    again = frame.iloc[:1].assign(revision=1, realism=1)
    merged = ratings.merge([again, frame])
    assert len(merged) == len(frame) and merged["realism"].iloc[0] == 1


def test_exports_that_contradict_each_other_are_refused():
    frame = simulated(raters=1)
    with pytest.raises(UserError, match="edited by hand"):
        ratings.merge([frame, frame.iloc[:1].assign(realism=frame["realism"].iloc[0] % 5 + 1)])


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("realism", "6", "realism = 6 is not from 1 to 5"), ("realism", "4.5", "is no count"),
        ("verdict", "maybe", "'maybe' is none of real, synthetic"), ("sha256", "0", "is no SHA-256"),
    ],
)  # fmt: skip
def test_bad_ratings_are_named(tmp_path, column, value, message):
    frame = simulated(raters=1).astype(str)
    frame.loc[4, column] = value
    frame.to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(UserError, match=f"rating 5: .*{message}"):
        ratings.read(tmp_path / "r.csv")


def test_the_committed_file_can_be_read():
    ratings.read("data/reader_study/ratings.csv", "rating")
    ratings.read("data/reader_study/choices.csv", "forced_choice")


# The stage -----------------------------------------------------------------------------------------------------------


def sets(folder, cases=20, source="raw"):
    for name in ["real", *comparison.MODELS]:
        images = np.stack([picture(name, case) for case in range(cases)])
        manifest = pd.DataFrame({"model": [name] * cases})
        imageset.write(folder / name, imageset.ImageSet(images, manifest, {"data": {"source": source}}))


def score(folder, frame, chosen=None) -> dict:
    ratings.write(folder / "ratings.csv", frame)
    none = pd.DataFrame(columns=ratings.COLUMNS["forced_choice"])
    ratings.write(folder / "choices.csv", none if chosen is None else chosen)
    stage.main(folder / "ratings.csv", folder / "choices.csv", folder / "real", folder, folder / "raters.json")
    return json.loads((folder / "raters.json").read_text())


def test_without_ratings_the_stage_says_so_and_invents_nothing(tmp_path):
    sets(tmp_path)
    assert score(tmp_path, simulated()[:0]) == {"counts": {"ratings": 0.0, "of_other_images": 0.0}}


def test_ratings_of_other_images_are_left_out_and_named(tmp_path, capsys):
    sets(tmp_path)
    whole = score(tmp_path, simulated())
    assert whole["counts"]["of_other_images"] == 0 and whole["packets"] == {"0" * 16: 264.0}
    again = np.stack([picture("vae", case + 100) for case in range(20)])  # the model was trained anew
    imageset.write(tmp_path / "vae", imageset.ImageSet(again, pd.DataFrame({"model": ["vae"] * 20})))
    less = score(tmp_path, simulated())
    assert "vae" not in less["models"] and less["counts"]["ratings"] == 176 and less["counts"]["of_other_images"] == 88
    assert "88 ratings of packet 0000000000000000" in capsys.readouterr().err
    assert whole["models"]["latent_diffusion"]["manual_score"] == less["models"]["latent_diffusion"]["manual_score"]


def test_the_table_shows_scores_intervals_warnings_and_packets(tmp_path):
    sets(tmp_path, source="simulated")
    few = score(tmp_path, simulated(raters=2))
    base = {"fd_effnet": 1.0, "n": 20.0}
    models = {name: dict(base) for name in comparison.MODELS}
    references = {name: dict(base) for name in comparison.REFERENCES}
    for name, group in few["models"].items():
        models[name] |= comparison.manual(group)
    references["real"] |= comparison.manual(few["real"])
    text = comparison.markdown(models, references, {}, 0.95, comparison.raters_note(few))
    first = text.split(comparison.OTHERS)[0]
    rows = {line.split("|")[1].strip(): line for line in first.splitlines() if line.startswith("|")}
    assert rows["VAE"].count("⚠ 2 raters, 20 cases") == 1 and "–" in rows["VAE"]
    assert "⚠" in rows["*real, other people*"] and "⚠" not in rows["DCGAN"]
    assert "**" not in rows["latent diffusion"]
    assert "packet 0000000000000000 (132 ratings)" in text and "a rehearsal" in text
    assert comparison.raters_note({"counts": {"ratings": 0.0, "of_other_images": 0.0}}) == ""
    frame = comparison.table(models, references)
    assert frame["manual_score"]["vae"] == few["models"]["vae"]["manual_score"] and np.isnan(
        frame["manual_score"]["ddpm"]
    )
