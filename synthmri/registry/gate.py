"""The gate of the registry: which models may become champion, by rules on their scores, and which of them leads."""

import math
from collections.abc import Callable

from pydantic import Field, model_validator

from synthmri.params import Section

CHAMPION = "val_kid_alexnet"  # lower is better; of validation people: the test split must not choose


class Override(Section):
    """Section `registry.override`: a person's choice of the champion, with the reason."""

    model: str
    reason: str

    @model_validator(mode="after")
    def _both(self):
        if bool(self.model) != bool(self.reason.strip()):
            raise ValueError("an override names both a model and a reason; fill in both, or leave both empty")
        return self


class Registry(Section):
    """Section `registry`."""

    prefix: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")
    tracking_uri: str
    largest_memorised: float = Field(ge=0, le=1)
    smallest_coverage: float = Field(ge=0, le=1)
    largest_mia_auroc_low: float = Field(ge=0.5, le=1)
    override: Override


# Score -> whether a value of it is admitted, what is asked for in words, and the worst value there is. A rule more is
# an entry more.
RULES: dict[str, tuple[Callable[[float, Registry], bool], str, float]] = {
    CHAMPION: (lambda value, p: math.isfinite(value), "a number, to choose the champion by", math.inf),
    "memorised": (lambda value, p: value <= p.largest_memorised, "at most {p.largest_memorised:g}", 1.0),
    "coverage": (lambda value, p: value >= p.smallest_coverage, "at least {p.smallest_coverage:g}", 0.0),
    "mia_auroc_low": (lambda value, p: value <= p.largest_mia_auroc_low, "at most {p.largest_mia_auroc_low:g}", 1.0),
}


def judge(scores: dict[str, float], p: Registry) -> dict[str, str]:
    """Rule -> why a model with these scores fails it, "" where it does not: each of RULES, and `finite` over all.

    A score that is not known counts as the worst there is: only a rule that is switched off by its bound lets it pass.
    """
    bad = sorted(name for name, value in scores.items() if not math.isfinite(value))
    reasons = {"finite": f"{', '.join(bad)}: not finite" if bad else ""}
    for name, (admits, asked, worst) in RULES.items():
        if name not in scores and not admits(worst, p):
            reasons[name] = f"{name} is not known; the rule asks for {asked.format(p=p)}"
        elif name in scores and not (math.isfinite(scores[name]) and admits(scores[name], p)):
            reasons[name] = f"{name} = {scores[name]:.4g}; the rule asks for {asked.format(p=p)}"
        else:
            reasons[name] = ""
    return reasons


def ranking(scores: dict[object, dict[str, float]], p: Registry) -> list:
    """Those of the keys of `scores` that pass the gate, best validation KID first; of equal ones the first given."""
    passed = [key for key in scores if not any(judge(scores[key], p).values())]
    return sorted(passed, key=lambda key: scores[key][CHAMPION])
