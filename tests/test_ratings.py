"""The statistics of the reader study: against published examples, statistics libraries, and simulated readers.

All readers here are simulated; nothing of them is kept.
"""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reader_study import design, ratings
from stages import readers as stage
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
P = ratings.Readers(min_readers=3, min_cases=10)


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


def test_what_a_reader_rated_on_one_side_alone_does_not_count():
    real, model = np.ones((2, 10)), np.zeros((2, 10))
    model[1] = NAN
    real[1] = 0
    assert ratings.against_chance(real, model)["accuracy"] == 1
    assert ratings.against_chance(real[1:], model[1:]) is None


def test_several_readers_of_one_image_are_one_trial():
    real, model = np.ones((5, 10)), np.zeros((5, 10))
    assert ratings.against_chance(real, model)["accuracy_images"] == 20


def test_interval_of_one_reader_is_that_of_cases():
    scores = np.random.default_rng(0).normal(3, 1, (1, 400))
    mean, low, high, error = ratings.interval(scores, rounds=4000, seed=0)
    assert mean == pytest.approx(scores.mean())
    assert error == pytest.approx(scores.std() / 20, rel=0.05)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.01)


def test_interval_covers_the_truth_with_readers_who_differ():
    """Simulated: 8 readers with leanings of their own. 95 % is nominal; few readers make it a little less."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        truth = 3 + rng.normal(0, 0.3, (8, 1)) + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, 0.6, (8, 30))
        _, low, high, _ = ratings.interval(truth, rounds=400, seed=seed)
        hits += low <= 3 <= high
    assert 0.88 <= hits / 200 <= 0.99


# Simulated readers ---------------------------------------------------------------------------------------------------

EFFECTS = {"real": 4.2, "vae": 1.3, "latent_diffusion": 3.2}


def simulated(effects=EFFECTS, readers=4, cases=20, seed=0, repeats=2) -> pd.DataFrame:
    """Ratings of readers that exist in this test alone: known means, readers' leanings, noise; some images twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for reader in range(readers):
        leaning, position = rng.normal(0, 0.2), 0
        for source, mean in effects.items():
            for case in [*range(cases), *range(repeats)]:
                opinion = mean + leaning + rng.normal(0, 0.7)
                rows.append(
                    {
                        "packet": "0" * 16, "reader": f"reader{reader}.{reader:06x}", "position": position,
                        "revision": 0, "repeat": int(position % (cases + repeats) >= cases),
                        "image": f"{source}{case}", "sha256": design.sha256(picture(source, case)), "source": source,
                        "case": case, "realism": int(np.clip(round(opinion), 1, 5)),
                        "verdict": "real" if opinion > 3 else "synthetic",
                        "plausibility": int(np.clip(round(opinion), 1, 5)), "seconds": "4.0", "tags": "", "comment": "",
                    }
                )  # fmt: skip
                position += 1
    return pd.DataFrame(rows, columns=ratings.COLUMNS)


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
    assert real["ratings"] == 80 and real["readers"] == 4 and real["cases"] == 20 and real["few"] == 0
    assert "above_real" not in real
    assert tree["agreement"]["realism_icc_2_k"] > 0.8
    assert tree["agreement"]["intra_reader_pairs"] == 4 * 3 * 2


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
    assert with_repeats == without["models"]["vae"] and "intra_reader_pairs" not in without["agreement"]


@pytest.mark.parametrize("readers, cases, few", [(2, 20, 1), (4, 5, 1), (3, 10, 0)])
def test_few_readers_or_cases_are_marked_and_cannot_lead(readers, cases, few):
    group = ratings.summary(simulated(readers=readers, cases=cases), ["vae"], P)["models"]["vae"]
    assert group["few"] == few and ("manual_score_std" in group) == (not few)


def test_one_reader_of_one_case_is_scored_without_what_is_not_defined():
    frame = simulated(readers=1, cases=1, repeats=0)
    tree = ratings.summary(frame, list(comparison.MODELS), P)
    assert tree["real"]["manual_score"] == frame[frame["source"] == "real"]["realism"].iloc[0]
    assert "agreement" not in tree
    json.dumps(tree, allow_nan=False)


def test_an_unfinished_reader_counts_as_far_as_they_came():
    frame = simulated()
    left = frame[(frame["reader"] != "reader3.000003") | (frame["position"] < 30)]
    tree = ratings.summary(left, list(comparison.MODELS), P)
    assert tree["real"]["ratings"] == 80 and tree["models"]["latent_diffusion"]["readers"] == 3


# Files ---------------------------------------------------------------------------------------------------------------


def test_exports_merge_without_double_counting(tmp_path):
    frame = simulated()
    half = frame[frame["reader"] < "reader2"]
    merged = ratings.merge([half, frame, frame.sample(frac=1, random_state=0)])
    assert len(merged) == len(frame)
    for name, frames in (("a", [half, frame]), ("b", [frame, half])):
        ratings.write(tmp_path / name, ratings.merge(frames))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert ratings.merge([ratings.read(tmp_path / "a"), frame]).equals(ratings.read(tmp_path / "a"))


def test_of_a_withdrawn_rating_the_later_one_stays():
    frame = simulated(readers=1)
    again = frame.iloc[:1].assign(revision=1, realism=1)
    merged = ratings.merge([again, frame])
    assert len(merged) == len(frame) and merged["realism"].iloc[0] == 1


def test_exports_that_contradict_each_other_are_refused():
    frame = simulated(readers=1)
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
    frame = simulated(readers=1).astype(str)
    frame.loc[4, column] = value
    frame.to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(UserError, match=f"rating 5: .*{message}"):
        ratings.read(tmp_path / "r.csv")


def test_the_committed_file_can_be_read():
    ratings.read("data/reader_study/ratings.csv")


# The stage -----------------------------------------------------------------------------------------------------------


def sets(folder, cases=20, source="raw"):
    for name in ["real", *comparison.MODELS]:
        images = np.stack([picture(name, case) for case in range(cases)])
        manifest = pd.DataFrame({"model": [name] * cases})
        imageset.write(folder / name, imageset.ImageSet(images, manifest, {"data": {"source": source}}))


def score(folder, frame) -> dict:
    ratings.write(folder / "ratings.csv", frame)
    stage.main(folder / "ratings.csv", folder / "real", folder, folder / "readers.json")
    return json.loads((folder / "readers.json").read_text())


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
    assert "vae" not in less["models"] and less["counts"] == {"ratings": 176, "of_other_images": 88, "simulated": 0}
    assert "88 ratings of packet 0000000000000000" in capsys.readouterr().err
    assert whole["models"]["latent_diffusion"]["manual_score"] == less["models"]["latent_diffusion"]["manual_score"]


def test_the_table_shows_scores_intervals_warnings_and_packets(tmp_path):
    sets(tmp_path, source="simulated")
    few = score(tmp_path, simulated(readers=2))
    base = {"fd_effnet": 1.0, "n": 20.0}
    models = {name: dict(base) for name in comparison.MODELS}
    references = {name: dict(base) for name in comparison.REFERENCES}
    for name, group in few["models"].items():
        models[name] |= comparison.manual(group)
    references["real"] |= comparison.manual(few["real"])
    text = comparison.markdown(models, references, {}, 0.95, comparison.readers_note(few))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert rows["VAE"].count("⚠ 2 readers, 20 cases") == 1 and "–" in rows["VAE"]
    assert "⚠" in rows["*real, other people*"] and "⚠" not in rows["DCGAN"]
    assert "**" not in rows["latent diffusion"]
    assert "packet 0000000000000000 (132 ratings)" in text and "a rehearsal" in text
    assert comparison.readers_note({"counts": {"ratings": 0.0, "of_other_images": 0.0}}) == ""
    frame = comparison.table(models, references)
    assert frame["manual_score"]["vae"] == few["models"]["vae"]["manual_score"] and np.isnan(
        frame["manual_score"]["ddpm"]
    )
