"""What a person reads first about a version: a picture, five numbers, the floor, the gate's verdict, the way back."""

from urllib.parse import quote

NUMBERS = ("fd_effnet", "kid_effnet", "coverage", "memorised", "mia_auroc")


def text(
    picture: str,
    run: str,
    scores: dict[str, float],
    ratio: float | None,
    why: list[str],
    commit: str | None,
    word: str = "",
) -> str:
    """Markdown. picture: an artifact of the run with this id, which every MLflow server shows under this address.

    ratio: of fd_effnet to the floor's; why: the rules of the gate that the version fails, in words; commit: of git,
    None while no commit holds the version; word: why a person chose it whatever the gate says, "" if none did.
    """
    known = [name for name in NUMBERS if name in scores]
    floor = "The floor, what real slices of other people reach, is not known."
    if ratio and "fd_effnet" in scores:
        floor = (
            f"Its fd_effnet is {ratio:.2g} times the floor, which real slices of other people set at "
            f"{scores['fd_effnet'] / ratio:.3g}."
        )
    back = f"`git checkout {commit} && dvc checkout`" if commit else "commit dvc.lock, then `synthmri registry --sync`"
    parts = [
        f"![samples](get-artifact?path={quote(picture, safe='')}&run_uuid={run})",
        " · ".join(f"{name} **{scores[name]:.3g}**" for name in known),  # a table's columns stand too close there
        f"{floor} {verdict(why, word)}",
        f"To get it back: {back}. Research only, not for clinical use.",
    ]
    return "\n\n".join(filter(None, parts))


def verdict(why: list[str], word: str) -> str:
    """Sentences on a model that fails the gate for these reasons, or for none; word: as in `text`."""
    gate = f"The gate refuses it: {'; '.join(why)}." if why else "It passes the gate: every rule holds."
    return gate + (f" A person has given their word for it: {word.rstrip('.')}." if word else "")
