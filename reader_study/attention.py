"""Does a rater attend? What the planted controls say: pictures that are known to be bad, and real ones shown twice."""

import pandas as pd

from reader_study.design import CONTROL, REAL

RIGHT = 0.75  # share of the controls; a rater below it does not attend
LEAST = 4  # controls that a rater must have seen to be judged by: of fewer, one slip would be too large a share


def of_ratings(frame: pd.DataFrame) -> pd.DataFrame:
    """reader, right (bool): a row a control. Right is a bad picture called synthetic, and a real slice that is rated
    within one point of realism the second time."""
    bad = frame[frame["source"] == CONTROL]
    told = pd.DataFrame({"reader": bad["reader"], "right": bad["verdict"] == "synthetic"})
    real = frame[frame["source"] == REAL]
    image = ["packet", "reader", "image"]
    twice = real[real["repeat"] == 0].merge(real[real["repeat"] == 1], on=image, suffixes=("_a", "_b"))
    near = (twice["realism_a"] - twice["realism_b"]).abs() <= 1
    return pd.concat([told, pd.DataFrame({"reader": twice["reader"], "right": near})], ignore_index=True)


def of_choices(frame: pd.DataFrame) -> pd.DataFrame:
    """The same of forced choices: right is the real slice found beside a bad picture."""
    bad = frame[frame["source"] == CONTROL]
    return pd.DataFrame({"reader": bad["reader"], "right": bad["chosen"] == bad["real"]})


def summary(controls: pd.DataFrame, answers: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Rater -> controls seen, share of them right, whether all their answers are one and the same, and `inattentive`:
    1 for that, or for a share below RIGHT of at least LEAST controls.

    controls: as above; answers: reader, answer (any value) of everything that they rated.
    """
    out = {}
    for rater, given in answers.groupby("reader"):
        seen = controls.loc[controls["reader"] == rater, "right"]
        one_answer = len(given) > 1 and given["answer"].nunique() == 1
        missed = len(seen) >= LEAST and seen.mean() < RIGHT
        out[str(rater)] = {
            "controls": float(len(seen)),
            **({"right": float(seen.mean())} if len(seen) else {}),
            "one_answer": float(one_answer),
            "inattentive": float(one_answer or missed),
        }
    return out
