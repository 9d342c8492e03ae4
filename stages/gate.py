"""Judge each model by its scores: who may be champion of the registry, who leads, and why the others may not."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stages import _cli, _files
from synthmri import params
from synthmri.errors import UserError
from synthmri.registry import gate
from synthmri.reporting import comparison, tables


def main(
    scores: Annotated[Path, typer.Option(help="folder of <model>.json and privacy.json")],
    verdicts: Annotated[
        Path, typer.Option(help="JSON to write: 1 or 0 for each rule, what is unknown, and the rank of those that pass")
    ],
    reasons: Annotated[Path, typer.Option(help="Markdown to write: the same in words")],
) -> None:
    """By section `registry`. Files only: what MLflow shows follows from these."""
    p = params.read(_cli.PARAMS, "registry", gate.Registry)
    privacy = _files.read_json(scores / "privacy.json")
    found = {name: _files.read_scores(scores / f"{name}.json") | privacy[name] for name in comparison.MODELS}
    if p.override.model and p.override.model not in found:
        raise UserError(
            f"params.yaml: registry.override.model = {p.override.model!r} is no model; use {', '.join(found)}, or ''"
        )
    ranked = gate.ranking(found, p)
    tree = {}
    rows = []
    for name, title in comparison.MODELS.items():
        states = gate.states(found[name], p)
        tree[name] = {
            "passed": name in ranked,
            "rules": {rule: state == "holds" for rule, state in states.items() if state != "unknown"},
        }
        if unknown := {rule: True for rule, state in states.items() if state == "unknown"}:
            tree[name]["unknown"] = unknown
        if gate.off(p):
            tree[name]["off"] = dict.fromkeys(gate.off(p), True)
        words = [why for why in gate.judge(found[name], p).values() if why]
        if gate.CHAMPION in found[name]:
            tree[name][gate.CHAMPION] = found[name][gate.CHAMPION]
        if name in ranked:
            tree[name]["rank"] = ranked.index(name) + 1
        if gate.overridden(name, found[name], p):
            tree[name]["override"] = True
            words.append(f"a person's word for it: {p.override.reason}")
        elif name == p.override.model:
            lapsed = "a person's word for it was for other scores, and has lapsed"
            words.append(lapsed)
            again = f"`synthmri registry --override {name} --reason ...`"
            print(f"{name}: {lapsed}; look again, then {again}", file=sys.stderr)
        verdict = "passed" if name in ranked else "refused"
        rows.append((title, found[name].get(gate.CHAMPION, ""), verdict, tree[name].get("rank", ""), "; ".join(words)))
    with _files.replacing(verdicts) as numbers, _files.replacing(reasons) as text:
        _files.write_metrics(numbers, tree)
        head = ("model", "validation KID", "gate", "rank", "why")
        text.write_text(tables.markdown(head, rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _cli.run(main)
