"""Which contrast a name or a description tells of."""

import re

WORDS = {
    "FLAIR": {"flair", "t2flair", "t2f"},
    "T1ce": {"t1ce", "t1c", "t1gd", "t1post"},
    "T1w": {"t1", "t1w", "t1n", "mprage"},
    "T2w": {"t2", "t2w"},
    "PD": {"pd", "pdw"},
}
AGENT = {"ce", "c", "gd", "gad", "gadolinium", "post"}
NO_AGENT = re.compile(r"(^|[^a-z])(pre|no|non|without|w/o|wo)($|[^a-z])")


def contrast_of(text: str) -> str:
    """T1w, T1ce, T2w, FLAIR or PD, by the words of a name or of a series' description; "" where they do not tell."""
    words = set(re.split(r"[^a-z0-9]+", text.lower().replace("*", "star")))
    found = next((contrast for contrast, known in WORDS.items() if words & known), "")
    if found == "FLAIR" and words & WORDS["T1w"]:  # inversion for contrast, not against fluid
        found = "T1w"
    return "T1ce" if found == "T1w" and words & AGENT and not NO_AGENT.search(text.lower()) else found
