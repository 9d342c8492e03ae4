"""Answers in the format of iMRMC, software of the FDA for studies of several raters and cases.

Its manual, 4.1.1 "Study Raw Data" (didsr.github.io/iMRMC), and its R package's `dfMRMC_example`: a row an observation,
readerID, caseID, modalityID, score; and of each case one row of readerID and modalityID "truth" whose score is 0
(signal absent) or 1 (present). A model is a modality, and the signal is that an image is synthetic. So an area under
the curve of 0.5 says that nobody tells them apart, and 1 that everybody does.
"""

import pandas as pd

from reader_study.design import CONTROL, REAL

COLUMNS = ["readerID", "caseID", "modalityID", "score"]
TRUTH = "truth"


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    """readerID, caseID, modalityID, score of the first views of ratings or forced choices (`ratings.read`).

    Controls do not count, and of a rating study the real slices stand under each model. The score of a rating is 6 -
    realism. That of a choice is 1 where the real one was found, else 0; iMRMC then gives the proportion correct as the
    area, by five cases without signal whose score is 0.5 for each rater and model (its wiki, "MRMC analysis of binary
    data").
    """
    first = frame[(frame["repeat"] == 0) & (frame["source"] != CONTROL)]
    models = [name for name in dict.fromkeys(sorted(first["source"])) if name != REAL]
    case = first["packet"] + "-" + first["source"] + "-" + first["case"].astype(str)
    chosen = "chosen" in first
    score = (first["chosen"] == first["real"]).astype(float) if chosen else 6.0 - first["realism"]
    observed = pd.DataFrame(
        {"readerID": first["reader"], "caseID": case, "modalityID": first["source"], "score": score}
    )
    if chosen:
        guessing = observed[["readerID", "modalityID"]].drop_duplicates()
        absent = pd.concat([guessing.assign(caseID=f"guessing-{i}", score=0.5) for i in range(5)])
        present = observed
    else:
        real = observed[observed["modalityID"] == REAL]
        absent = pd.concat([real.assign(modalityID=name) for name in models]) if models else real[:0]
        present = observed[observed["modalityID"] != REAL]
    truth = pd.concat(
        [
            pd.DataFrame({"readerID": TRUTH, "caseID": sorted(set(cases)), "modalityID": TRUTH, "score": signal})
            for signal, cases in ((0.0, absent["caseID"]), (1.0, present["caseID"]))
        ]
    )
    order = ["modalityID", "readerID", "caseID"]
    return pd.concat([truth, absent.sort_values(order), present.sort_values(order)], ignore_index=True)[COLUMNS]


def text(table: pd.DataFrame, *, header: bool) -> str:
    """As text: with the description that the program reads, or as the CSV with a line of columns that R reads."""
    lines = [f"{r},{c},{m},{s:g}" for r, c, m, s in table.itertuples(index=False)]
    if not header:
        return "\n".join([",".join(COLUMNS), *lines]) + "\n"
    truth = table[table["readerID"] == TRUTH]
    seen = table[table["readerID"] != TRUTH]
    sizes = [
        f"N0: {int((truth['score'] == 0).sum())}", f"N1: {int((truth['score'] == 1).sum())}",
        f"NR: {seen['readerID'].nunique()}", f"NM: {seen['modalityID'].nunique()}",
    ]  # fmt: skip
    return "\n".join(["Synthetic (1) against real (0) brain MRI slices", *sizes, "", "BEGIN DATA:", *lines]) + "\n"
