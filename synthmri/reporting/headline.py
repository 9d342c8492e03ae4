"""The numbers that experiments are compared by: few enough to be read side by side."""

JUDGE = "fd_effnet"  # the distance that decides
# Of each model. `recall` is of the fine-tuned model alone, which leaves 40 numbers in all.
OWN = ("fd_effnet", "fd_alexnet", "fd_ratio", "kid_effnet", "recall", "coverage", "memorised", "mia_auroc")
OTHERS = tuple(name for name in OWN if name != "recall")
MODEL = "latent_diffusion"
ARM = "both_1"  # of stage `utility`, at all real people: named beforehand, since the best of many flatters


def numbers(
    models: dict[str, dict[str, float]],
    references: dict[str, dict[str, float]],
    privacy: dict[str, dict[str, float]],
    utility: dict,
) -> dict:
    """At most 40 numbers: the fine-tuned model's, without a prefix so that columns stay narrow, then each baseline's.

    fd_ratio: `fd_effnet` over that of the floor, real slices of other people. reduction: the share of the base's
    `fd_effnet` that fine-tuning and its decoder took away; below 0, they added. gain, gain_low, gain_high: what
    synthetic slices add to a classifier's AUROC, and its 95 % interval. What is not known is left out.
    """
    floor = references["real"][JUDGE]

    def row(name: str, wanted: tuple[str, ...]) -> dict[str, float]:
        known = models[name] | privacy.get(name, {})
        known |= {"fd_ratio": known[JUDGE] / floor} if floor > 0 else {}
        return {key: known[key] for key in wanted if key in known}

    tree: dict = row(MODEL, OWN)
    if (before := references["base"][JUDGE]) > 0:
        tree["reduction"] = 1 - models[MODEL][JUDGE] / before
    return tree | gain(utility) | {name: row(name, OTHERS) for name in models if name != MODEL}


def gain(utility: dict) -> dict[str, float]:
    """Of metrics/utility.json; nothing where no classifier could be trained."""
    found = utility.get(ARM, {}).get("100", {})
    return {name: found[f"auroc_{name}"] for name in ("gain", "gain_low", "gain_high") if f"auroc_{name}" in found}
