"""How many people the gate's bounds on membership inference need: who passes, of harmless models and of leaking ones.

python -m benchmarks.membership

Simulated scores, normal, those of the people trained on shifted so that the true AUROC of the attack is `area`. Two
ends of how alike one person's slices are: `one`, where a person's slices all say the same (as one slice each), and
`several`, where eight of a person correlate by 0.1, about what the attack by distance had in the default run.
"""

from typing import Annotated

import numpy as np
import typer
from scipy.stats import norm

from benchmarks import measure
from stages import _cli
from synthmri import params
from synthmri.evaluation import membership
from synthmri.registry import gate

AREAS, PEOPLE = (0.5, 0.7, 0.8), (5, 8, 16, 32, 64)
SLICES = {"one": (1, 1.0), "several": (8, 0.1)}  # of a person, and their correlation


def scores(people: int, slices: int, alike: float, shift: float, rng: np.random.Generator) -> np.ndarray:
    """(people * slices,) of mean `shift` and variance 1."""
    own, rest = rng.standard_normal((people, 1)), rng.standard_normal((people, slices))
    return (shift + np.sqrt(alike) * own + np.sqrt(1 - alike) * rest).ravel()


def passed(people: int, kind: str, area: float, models: int, p: membership.Privacy, rules: gate.Registry) -> dict:
    """Of `models` with that true area and so many people on each side: the share that passes, the mean upper end, and
    how often that lies above the truth.
    """
    slices, alike = SLICES[kind]
    who, rng = np.repeat(np.arange(people), slices), np.random.default_rng([people, slices, round(100 * area)])
    found = []
    for _ in range(models):
        sides = [scores(people, slices, alike, shift, rng) for shift in (np.sqrt(2) * norm.ppf(area), 0.0)]
        found.append(membership.worst({"loss": membership.attack(*sides, who, who, p)}))
    reasons = [gate.judge(each, rules) for each in found]
    upper = np.array([each["mia_auroc_high"] for each in found])
    return {
        "passes": round(float(np.mean([not (why["mia_auroc"] or why["mia_auroc_high"]) for why in reasons])), 3),
        "mean_auroc_high": round(float(upper.mean()), 3),
        "auroc_high_above_truth": round(float(np.mean(upper >= area)), 3),
    }


def table(result: dict) -> str:
    """Markdown: who passes, by the people a side; of each cell the two kinds of SLICES."""
    head = [f"true AUROC {area}" for area in AREAS]
    lines = ["| people a side | " + " | ".join(head) + " | mean upper end at 0.5 |", "|---" * (len(AREAS) + 2) + "|"]
    for people in result["people_a_side"]["one"]:
        kinds = [result["people_a_side"][kind][people] for kind in SLICES]
        cells = [" to ".join(f"{100 * kind[str(area)]['passes']:.0f} %" for kind in kinds) for area in AREAS]
        ends = " to ".join(f"{kind['0.5']['mean_auroc_high']:.2f}" for kind in kinds)
        lines.append(f"| {people} | {' | '.join(cells)} | {ends} |")
    return "\n".join(lines)


def main(models: Annotated[int, typer.Option(min=1, help="simulated of each kind")] = 300) -> None:
    """By sections `privacy` and `registry` of params.yaml."""
    p = params.read(_cli.PARAMS, "privacy", membership.Privacy)
    rules = params.read(_cli.PARAMS, "registry", gate.Registry)
    cases = {
        kind: {
            str(people): {str(area): passed(people, kind, area, models, p, rules) for area in AREAS}
            for people in _cli.progress(PEOPLE, f"{kind} slice of a person")
        }
        for kind in SLICES
    }
    bounds = {name: getattr(rules, name) for name in ("largest_mia_auroc", "largest_mia_auroc_high")}
    measure.write("membership", {"models": models, "bounds": bounds, "people_a_side": cases})


if __name__ == "__main__":
    _cli.run(main)
