"""Three answers about a model, each a few words and their evidence: near to real people, safe to share, of use?"""

import math
import re
from typing import Literal, NamedTuple

from synthmri.reporting import comparison

# Rules of the gate, as people say them; the first three are about people, and the others about quality.
RULES = {
    "memorised": "copies of training slices",
    "mia_auroc": "an attack that finds who was trained on",
    "mia_auroc_high": "an attack that may find who was trained on",
    "coverage": "too little variety",
    "val_kid_effnet": "no score on validation people",
    "finite": "scores that are no numbers",
}
CLOSE = 0.25  # by how much of the distance between real people a model may lie beyond it and still be as near
LEAST_PEOPLE = 5  # on each side of an attack; a bootstrap of fewer would be sure of what it cannot know
ABOUT_PEOPLE = ("memorised", "mia_auroc", "mia_auroc_high")
# What `usefulness.sentence`, or stage `utility` where nothing could be measured, says -> in short, and how good it is.
USE = {
    "Synthetic slices did not measurably help": ("Not measurably", "mixed"),
    "Synthetic slices did harm": ("No, they do harm", "bad"),
    "Nothing can be said": ("Not known", "unknown"),
    "was not measured": ("Not measured", "unknown"),
    "Synthetic slices helped": ("Yes", "good"),
}


class Answer(NamedTuple):
    """question and short (a few words): text; evidence: sentences with numbers; tone: how good it is."""

    question: str
    short: str
    evidence: str
    tone: Literal["good", "mixed", "bad", "unknown"]


def three(
    models: dict, references: dict, privacy: dict, verdict: dict, use: str, masks: str, *, simulated: bool
) -> list[Answer]:
    """Of the fine-tuned model, from metrics/comparison.json (models, references), privacy.json, its block of gate.json
    and the first paragraphs of utility.md and segmentation.md.
    """
    model = models[comparison.FINE_TUNED]
    attack = privacy.get(comparison.FINE_TUNED, {})
    return [near(model, references), safe(model, attack, verdict, simulated=simulated), helps(use, masks)]


def near(model: dict[str, float], references: dict[str, dict[str, float]]) -> Answer:
    """Whether images are as near to real people as those are to each other; by FD, against two references.

    model and references: scores by name, as of metrics/comparison.json. "Yes" where the distance is with 95 %
    confidence at most 1 + CLOSE times that of real slices of other people. Both errors come from the same test people,
    so that of the difference is rather less than is taken here.
    """
    real, blurred = references["real"], references["blurred"]
    beyond = model["fd_effnet"] - real["fd_effnet"]
    known = "fd_effnet_std" in model and "fd_effnet_std" in real
    error = 1.96 * math.hypot(model["fd_effnet_std"], real["fd_effnet_std"]) if known else 0.0
    if known and beyond + error <= CLOSE * real["fd_effnet"]:
        short, tone = "Yes, as near as other real people", "good"
    elif beyond <= error:
        short, tone = "Not told apart from other real people, but there are too few to be sure", "mixed"
    elif model["fd_effnet"] < blurred["fd_effnet"]:
        short, tone = "Not yet, but nearer than blurred real slices", "mixed"
    else:
        short, tone = "Not yet", "bad"
    evidence = (
        f"The distance to the test people (FD) is {times(model['fd_effnet'], real)} that of other real people; that of "
        f"real slices, blurred, is {times(blurred['fd_effnet'], real)}. {_percent(model['coverage'])} of the test "
        "slices have a synthetic slice as near as their neighbours, "
        f"{_percent(real['coverage'])} a real one of other people."
    )
    if "manual_score" in model:
        theirs = f", to real ones {real['manual_score']:.1f}" if "manual_score" in real else ""
        doubt = " (too few raters or cases to rely on)" if model.get("manual_few") else ""
        evidence += f" Blinded raters gave {model['manual_score']:.1f} of 5 for realism{theirs}{doubt}."
    return Answer("Is it near to real people?", short, evidence, tone)


def safe(model: dict[str, float], attack: dict[str, float], verdict: dict, *, simulated: bool) -> Answer:
    """Whether it may be shared, by the gate's verdict.

    model: its scores, attack: its block of metrics/privacy.json, verdict: its block of metrics/gate.json.
    """
    failed = [rule for rule, holds in verdict["rules"].items() if not holds]
    off = [rule for rule in verdict.get("off", {}) if rule in ABOUT_PEOPLE]
    unknown = list(verdict.get("unknown", {}))
    if [rule for rule in failed if rule in ABOUT_PEOPLE]:
        short, tone = "No", "bad"
    elif [rule for rule in unknown if rule in ABOUT_PEOPLE]:
        short, tone = "Not known, so no", "unknown"
    elif off:
        short, tone = "The gate was told not to ask", "unknown"
    elif failed or unknown:
        short, tone = "No sign of it giving anybody away, but the gate refuses it", "mixed"
    else:
        short, tone = "Nothing was found against it", "good"
    evidence = (
        f"{_percent(model['memorised'])} of its slices are nearer to a training slice than 95 % of other people's "
    )
    evidence += "(5 % is what honest data gives). "
    if "mia_auroc" in attack:
        evidence += f"The better of two attacks tells who was trained on with AUROC {attack['mia_auroc']:.2f} (0.5 is "
        if "mia_auroc_high" in attack:
            evidence += f"chance); the 95 % intervals of both end at or below {_above(attack['mia_auroc_high'])}. "
        else:
            evidence += f"chance; how sure that is, is not known, of so few people). {too_few(attack)} "
    else:
        evidence += "Nobody could be attacked, so what an attacker would find is not known. "
    why = "; ".join([*(RULES[rule] for rule in failed), *(f"not known: {RULES[rule]}" for rule in unknown)])
    evidence += f"The gate refuses it: {why}." if why else "The gate lets it pass, which is no proof."
    if off:
        evidence += f" Switched off in `registry`: {'; '.join(RULES[rule] for rule in off)}."
    if verdict.get("override") and why:
        evidence += " A person has given their word for it all the same."
        short, tone = "By a person's word alone", "mixed"
    elif verdict.get("override"):
        evidence += " A person has chosen it besides."
    if simulated:
        evidence += " The people here are simulated, so nobody is at risk: of real ones this is what it would mean."
    return Answer("Is it safe to share?", short, evidence, tone)


def too_few(attack: dict[str, float]) -> str:
    """What follows where an attack has no interval, by which side has fewer than LEAST_PEOPLE."""
    if attack["mia_trained_people"] < LEAST_PEOPLE:
        return "So few people cannot be protected: what fits their slices fits them."
    return "More validation or test people would tell."


def measured(sentence: str) -> bool:
    """Whether the first paragraph of metrics/utility.md or segmentation.md says what was found."""
    return bool(sentence) and "was not measured" not in sentence


def helps(use: str, masks: str = "") -> Answer:
    """Whether training on its slices helps to tell labels and to draw masks.

    use, masks: the first paragraphs of metrics/utility.md and segmentation.md, which give the numbers; "": not tried.
    """
    short, tone = next((answer for words, answer in USE.items() if words in use), ("See the numbers", "unknown"))
    if tone in ("mixed", "bad") and "**they helped**" in use:
        short, tone = f"{short}, but they help with fewer people", "mixed"
    if "**Synthetic pairs did harm**" in masks:
        short, tone = f"{short}; to draw masks, they do harm", "mixed" if tone == "good" else "bad"
    elif "**Synthetic pairs helped**" in masks and tone != "good":
        short, tone = f"{short}; to draw masks, yes", "mixed"
    elif "They helped with" in masks and tone != "good":
        short, tone = f"{short}; to draw masks, with fewer people", "mixed"
    elif measured(masks) and tone == "unknown":
        short, tone = f"{short}; to draw masks, not measurably", "mixed"
    evidence = " ".join([use, masks] if measured(masks) else [use])
    return Answer("Does it help?", short, " ".join(re.sub(r"\*\*|`", "", evidence).split()), tone)


def times(distance: float, real: dict[str, float]) -> str:
    """A Frechet distance as a multiple of that of real slices of other people."""
    return (
        f"{distance / real['fd_effnet']:.1f} times" if real["fd_effnet"] > 0 else f"{distance:.3g}, not comparable with"
    )


def _above(bound: float) -> str:
    """To two digits, rounded up: what is said to bound a number must not be below it."""
    return f"{math.ceil(100 * bound) / 100:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
