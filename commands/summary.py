"""Say what the last `dvc repro` gave: three answers, on what data, and where to read on."""

from pathlib import Path

from rich.console import Console

from stages import _cli, _files
from synthmri.errors import UserError
from synthmri.reporting import answers, comparison

SPLITS = ("train", "val", "test")


def main():
    """Print three answers about the fine-tuned model, with their evidence."""
    metrics = Path("metrics")
    data, scores = _files.read_json(metrics / "data.json"), _files.read_json(metrics / "comparison.json")
    privacy, verdicts = (_files.read_json(metrics / f"{name}.json") for name in ("privacy", "gate"))
    try:
        use, masks = (
            (metrics / name).read_text(encoding="utf-8").split("\n\n")[0] for name in ("utility.md", "segmentation.md")
        )
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); run `dvc repro`") from None
    model = scores["models"]["latent_diffusion"]
    found = [
        answers.near(model, scores["references"]),
        # The line above the answers says whether the people are simulated.
        answers.safe(model, privacy["latent_diffusion"], verdicts["latent_diffusion"], simulated=False),
        answers.helps(use, masks),
    ]
    console = Console(highlight=False, soft_wrap=True)  # a terminal breaks lines where it likes, a log not at all
    counts = [f"{data[name]['images']} {name} slices of {data[name]['subjects'] or '?'} people" for name in SPLITS]
    console.print(f"\n{', '.join(counts)}{' (simulated, not patients)' if data['simulated'] else ''}")
    for answer in found:
        console.print(f"[bold]{answer.question} {answer.short}.[/]", end=" ")
        console.print(answer.evidence, markup=False)
    console.print(comparison.finetuning(scores["models"], scores["references"]))
    console.print("\nall of it on one page: metrics/report.html")
    console.print("models in MLflow: `make ui`, which prints the addresses of their pages at http://127.0.0.1:5000")
    console.print(
        "to try, after `source .venv/bin/activate`: `dvc exp run -S finetune.epochs=20 && dvc metrics diff`. "
        "Research only. Not for clinical use."
    )


if __name__ == "__main__":
    _cli.run(main)
