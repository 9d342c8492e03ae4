"""The gate of the registry: which models may become champion and may leave this machine, and which of them leads."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from synthmri.params import Section

CHAMPION = "val_kid_effnet"  # lower is better; of validation people: the test split must not choose


class Override(Section):
    """Section `registry.override`: a person's word for a model, whatever the gate says of it, and the reason.

    scores: `fingerprint` of those that the person saw. The word holds for a model that has them, and for no later one.
    """

    model: str
    reason: str
    scores: str = Field(pattern=r"^([0-9a-f]{16})?$")

    @model_validator(mode="after")
    def _whole(self):
        if len({bool(self.model), bool(self.reason.strip()), bool(self.scores)}) > 1:
            raise ValueError(
                "an override names a model, a reason and the hash of its scores, or none of them; "
                "`synthmri registry --override MODEL --reason ...` fills it in"
            )
        return self


class Registry(Section):
    """Section `registry`."""

    prefix: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")
    tracking_uri: str
    largest_memorised: float = Field(ge=0, le=1)
    smallest_coverage: float = Field(ge=0, le=1)
    largest_mia_auroc: float = Field(ge=0.5, le=1)
    largest_mia_auroc_high: float = Field(ge=0.5, le=1)
    override: Override


class Rule(NamedTuple):
    """admits: whether a value passes; asked: for what, in words; worst: the worst value there is; unknown: why a value
    may not be known.
    """

    admits: Callable[[float, Registry], bool]
    asked: str
    worst: float
    unknown: str = ""


# Score -> its rule. A rule more is an entry more.
RULES = {
    CHAMPION: Rule(
        lambda value, p: math.isfinite(value), "a number, to choose the champion by", math.inf,
        "fewer validation slices than evaluate.min_images",
    ),
    "memorised": Rule(lambda value, p: value <= p.largest_memorised, "at most {p.largest_memorised:g}", 1.0),
    "coverage": Rule(lambda value, p: value >= p.smallest_coverage, "at least {p.smallest_coverage:g}", 0.0),
    # Both: a sure attack of small success and an unsure one are two things that people are to be kept from.
    "mia_auroc": Rule(lambda value, p: value <= p.largest_mia_auroc, "at most {p.largest_mia_auroc:g}", 1.0),
    "mia_auroc_high": Rule(
        lambda value, p: value <= p.largest_mia_auroc_high, "at most {p.largest_mia_auroc_high:g}", 1.0,
        "too few people: docs/utility_privacy.md",
    ),
}  # fmt: skip


def judge(scores: dict[str, float], p: Registry) -> dict[str, str]:
    """Rule -> why a model with these scores fails it, "" where it does not: each of RULES, and `finite` over all.

    A score that is not known fails: only a rule that is `off` lets it pass.
    """
    bad = sorted(name for name, value in scores.items() if not math.isfinite(value))
    reasons = {"finite": f"{', '.join(bad)}: not finite" if bad else ""}
    for name, rule in RULES.items():
        asked = f"where the rule asks for {rule.asked.format(p=p)}"
        if name not in scores and name not in off(p):
            reasons[name] = f"{name} is not known{f' ({rule.unknown})' if rule.unknown else ''}, {asked}"
        elif name in scores and not (math.isfinite(scores[name]) and rule.admits(scores[name], p)):
            reasons[name] = f"{name} = {scores[name]:.4g}, {asked}"
        else:
            reasons[name] = ""
    return reasons


def off(p: Registry) -> list[str]:
    """The rules that a bound switches off, since it admits the worst value there is."""
    return [name for name, rule in RULES.items() if rule.admits(rule.worst, p)]


def states(scores: dict[str, float], p: Registry) -> dict[str, Literal["holds", "fails", "unknown"]]:
    """Rule -> whether it holds for a model with these scores; `unknown` where what it judges is."""
    return {
        rule: "holds" if not why else "fails" if rule in scores or rule not in RULES else "unknown"
        for rule, why in judge(scores, p).items()
    }


def fingerprint(scores: dict[str, float]) -> str:
    """A short hash of scores."""
    return hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()[:16]


def overridden(model: str, scores: dict[str, float], p: Registry) -> bool:
    """Whether a person has given their word for this model with these scores."""
    return p.override.model == model and p.override.scores == fingerprint(scores)


def may_leave(model: str, scores: dict[str, float], p: Registry, *, simulated: bool) -> bool:
    """Whether a model, and what it drew, may go to where others can see it: into git, to a server elsewhere, to a hub.

    What was made from people's scans must pass the gate, or have a person's word. Simulated people need no guard.
    """
    return simulated or not any(judge(scores, p).values()) or overridden(model, scores, p)


def ranking(scores: dict[object, dict[str, float]], p: Registry) -> list:
    """Those of the keys of `scores` that pass the gate, best validation KID first; of equal ones the first given."""
    passed = [key for key in scores if not any(judge(scores[key], p).values())]
    return sorted(passed, key=lambda key: scores[key][CHAMPION])
