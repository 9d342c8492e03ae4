"""Which contrast a scan has: by its BIDS suffix, else its header, else the words of its own name.

Each function gives the contrast (T1w, T1ce, T2w, FLAIR, PD, or "" where nothing tells) and what is doubtful about it
("" where nothing is).
"""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

WORDS = {
    "FLAIR": {"flair", "t2flair", "t2f", "darkfluid"},
    "T1ce": {"t1ce", "t1c", "t1gd", "t1post", "t1km", "t1wce", "t1cw", "ce1"},
    "T1w": {"t1", "t1w", "t1n", "mprage", "t1weighted", "t1wi", "spgr", "fspgr", "bravo", "mp2rage"},
    "T2w": {"t2", "t2w", "t2weighted", "t2wi"},
    "PD": {"pd", "pdw", "pdweighted"},
}
_AGENT = (
    "ce c gd gado gad gadolinium gadovist dotarem magnevist prohance multihance km kontrastmittel mdc contrast "
    "postcontrast postgd postgad postkm enhanced injected injection"
)
AGENT = set(_AGENT.split())
NO_AGENT = re.compile(
    r"(^|[^a-z])(pre|precontrast|non?e?|without|w/o|wo|w o|ohne|sans|senza|native?|o\.? km)($|[^a-z])"
)
BIDS = re.compile(r"sub-[a-z0-9]+(?P<entities>(_[a-z]+-[a-z0-9]+)*)_(?P<suffix>[a-z0-9]+)$", re.I)
_SUFFIXES = {
    "T1w": "T1w", "inplaneT1": "T1w", "T2w": "T2w", "inplaneT2": "T2w", "FLAIR": "FLAIR", "PD": "PD", "PDw": "PD",
    "T2star": "", "T2starw": "", "angio": "", "UNIT1": "", "PDT2": "", "MEGRE": "", "MESE": "", "IRT1": "",
    "MP2RAGE": "", "T1map": "", "T2map": "", "R1map": "", "R2map": "", "PDmap": "", "FLASH": "", "VFA": "",
    "MPM": "", "MTR": "",
}  # fmt: skip


def is_contrast_word(word: str) -> bool:
    """Whether it says a contrast by itself, in lower case: "flair", "t1w"."""
    return any(word in words for words in WORDS.values())


def contrast_of(text: str) -> str:
    """By the words of a series' description, or of a name."""
    text = text.lower().replace("*", "star").replace("+", " ")
    words = set(re.split(r"[^a-z0-9]+", text))
    if {"dark", "fluid"} <= words:
        words.add("flair")
    found = next((contrast for contrast, known in WORDS.items() if words & known), "")
    if found == "FLAIR" and words & WORDS["T1w"]:  # inversion for contrast, not against fluid
        found = "T1w"
    return "T1ce" if found == "T1w" and words & (AGENT | {"post"}) and not NO_AGENT.search(text) else found


def of_scan(name: str, head: Mapping, vocabulary: Collection[str] = (), *, root: str = "") -> tuple[str, str]:
    """By a path below the root and a header (keyword of DICOM -> value; of NIfTI that of its sidecar).

    vocabulary: the words of all names, lower case, which tell whether T1 is a time point (beside T0) and PD a disease
    (beside controls). root: name of the root, which is asked last.
    """
    if (told := of_bids(name)) is not None:
        return told, ""
    told, doubt = of_header(head)
    return (told, doubt) if told else of_name(name, vocabulary, root=root)


def of_bids(name: str) -> str | None:
    """By the suffix of BIDS, and the entities ce and acq; None where there is none."""
    match = BIDS.fullmatch(PurePosixPath(name).name.split(".")[0])
    if not match or match["suffix"] not in _SUFFIXES:
        return None
    found, values = _SUFFIXES[match["suffix"]], dict(re.findall(r"_(ce|acq)-([a-z0-9]+)", match["entities"].lower()))
    agent = values.get("ce", "none") not in ("none", "no", "pre", "without")
    return "T1ce" if found == "T1w" and (agent or values.get("acq") in AGENT | {"post"}) else found


def of_header(head: Mapping) -> tuple[str, str]:
    """By what the scanner wrote; whatever is absent tells nothing."""
    words = " ".join(str(head.get(keyword) or "") for keyword in ("SeriesDescription", "ProtocolName"))
    agent = str(head.get("ContrastBolusAgent") or "").strip().lower()
    said = contrast_of(words)
    if said == "T1w" and agent not in ("", "none", "no", "n", "0") and not NO_AGENT.search(words.lower()):
        said = "T1ce"
    measured = _measured(head)
    if not said:
        given = agent not in ("", "none", "no", "n", "0")
        return ("T1ce" if measured == "T1w" and given else measured), ""
    if measured and measured != said.replace("T1ce", "T1w"):
        return said, f"its description says {said}, its times (TR, TE, TI) {measured}"
    return said, ""


def _measured(head: Mapping) -> str:
    """By repetition, echo and inversion time in ms, for spin echoes and inversion recovery at 1 to 3 T.

    Bounds: ACR accreditation's sequences and the usual protocols of brain imaging, with a wide belt left unnamed.
    """

    def number(keyword: str) -> float:
        try:
            return float(head.get(keyword) or 0)
        except (TypeError, ValueError):
            return 0.0

    repetition, echo, inversion = (number(k) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    sequence = str(head.get("ScanningSequence") or "").upper()
    name, options = (str(head.get(k) or "").lower() for k in ("SequenceName", "ScanOptions"))
    if "EP" in sequence or repetition <= 0 or echo <= 0:
        return ""
    if 1500 <= inversion <= 3200 and repetition >= 4000 and echo >= 60:
        return "FLAIR"
    if 400 <= inversion < 1500 and echo < 40:  # MPRAGE, MP2RAGE, T1 FLAIR
        return "T1w"
    if inversion or "GR" in sequence or "ir" in re.split(r"[^a-z]+", options) or name.startswith(("*tir", "*spcir")):
        return ""  # STIR, gradient echoes, and inversions whose time is not given
    if repetition < 1000 and echo < 30:
        return "T1w"
    if repetition >= 1800 and echo >= 65:
        return "T2w"
    return "PD" if repetition >= 1800 and echo < 35 else ""


def of_name(name: str, vocabulary: Collection[str] = (), *, root: str = "") -> tuple[str, str]:
    """By the words of a file, else of the nearest folder that has such."""
    path = PurePosixPath(name)
    own = path.name.split(".")[0]
    own = re.sub(r"(^|_)ses-[A-Za-z0-9]+", "", own)
    for text in [own, *[parent.name for parent in path.parents], root]:
        text = _without_others(text, vocabulary)
        if found := contrast_of(text):
            return found, _ambiguous(text, found)
    return "", ""


def _without_others(text: str, vocabulary: Collection[str]) -> str:
    """A name less T1 and T2 where they are time points, and PD where it is a disease."""
    words = re.split(r"([^A-Za-z0-9]+)", text)
    drop = {"t1", "t2"} if {"t0", "t3"} & set(vocabulary) else set()
    if {"hc", "cn", "nc", "control", "controls", "healthy"} & set(vocabulary):
        drop.add("pd")
    return "".join("" if word.lower() in drop else word for word in words)


def _ambiguous(text: str, found: str) -> str:
    """`T1_post` is after a contrast agent; `anna_post_T1` may be after an operation."""
    words = re.split(r"[^a-z0-9]+", text.lower())
    if found == "T1ce" and "post" in words and not set(words) & (AGENT | WORDS["T1ce"]):
        before = words[words.index("post") - 1] if words.index("post") else ""
        if before not in WORDS["T1w"]:
            return "`post` in its name may be after a contrast agent (T1ce) or after a treatment (T1w)"
    return ""
