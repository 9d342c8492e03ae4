"""What stage `utility` measured, in words and in a table."""

from synthmri.evaluation.downstream import ARMS, RIVALS, SCORES, effect
from synthmri.reporting import tables


def sentence(result: dict[str, dict[str, dict]], names: list[str]) -> str:
    """Whether synthetic slices helped, also when they did not: first with all real people, then with fewer."""
    most = list(result[RIVALS[0]])[-1]
    task = f"to tell {' from '.join(names)}"
    parts = []
    for share in reversed(result[RIVALS[0]]):
        rival = next(name for name in RIVALS if result[name][share]["rival"])
        arms = {name: result[name].get(share if arm.real else "0") for name, arm in ARMS.items() if arm.synthetic}
        arms = {name: scores for name, scores in arms.items() if scores and (ARMS[name].real or share == most)}
        best = max(arms, key=lambda name: (effect(arms[name]), arms[name]["auroc_gain"]))
        ours, theirs = arms[best], result[rival][share]
        change = (
            f"`{ARMS[best].title}` changed the AUROC by {_range(ours, 'auroc_gain', '+.3f')} from "
            f"{theirs['auroc']:.3f} of `{ARMS[rival].title}` (p = {ours['auroc_p_holm']:.3f} by Holm)"
        )
        if share != most:
            if effect(ours) > 0:
                people = f"{share} % of the people ({theirs['train_subjects']:.0f})"
                parts.append(f"With {people} **they helped**: {change}.")
            continue
        if theirs["auroc_low"] <= 0.5 and all(scores["auroc_low"] <= 0.5 for scores in arms.values()):
            return (
                "**Nothing can be said about the use of synthetic slices: even with all real training data the "
                f"classifier does not learn {task}** (AUROC {_range(theirs, 'auroc')} of `{ARMS[rival].title}`, where "
                f"0.5 is chance, and {_range(ours, 'auroc')} of `{ARMS[best].title}`)."
            )
        effects = [effect(scores) for scores in arms.values()]
        verb = {1: "helped", 0: "did not measurably help", -1: "did harm"}[effect(ours)]
        harm = effects.count(-1)
        more = f"; {harm} of {len(arms)} arms with synthetic slices did harm" if harm and harm < len(arms) else ""
        parts.append(f"**Synthetic slices {verb}** {task}: of {len(arms)} arms with all real people, {change}{more}.")
    if len(parts) == 1 and len(result[RIVALS[0]]) > 1:
        helped = "**Synthetic slices helped" in parts[0]
        parts.append(f"With fewer people they did not measurably help{'' if helped else ' either'}.")
    return " ".join(parts)


def markdown(result: dict[str, dict[str, dict]]) -> str:
    """A row for each arm and share of real people: scores and gains with their intervals; the rival in bold."""
    head = ["trained on", "real people", "AUROC", "macro F1", "Brier ↓", "recall by label"]
    rows = []
    for arm, shares in result.items():
        for share, scores in shares.items():
            title = f"**{ARMS[arm].title}**" if scores.get("rival") else ARMS[arm].title
            cells = [title, f"{share} % ({scores['train_subjects']:.0f})", *(_range(scores, name) for name in SCORES)]
            cells.append(", ".join(f"{label} {row['recall']:.2f}" for label, row in scores["labels"].items()))
            known = "auroc_gain" in scores
            cells += [_range(scores, "auroc_gain", "+.3f"), f"{scores['auroc_p_holm']:.3f}"] if known else ["", ""]
            rows.append(cells)
    return tables.markdown([*head, "AUROC against the rival", "p by Holm"], rows)


def _range(scores: dict, name: str, form: str = ".3f") -> str:
    return f"{scores[name]:{form}} ({scores[f'{name}_low']:{form}} to {scores[f'{name}_high']:{form}})"
