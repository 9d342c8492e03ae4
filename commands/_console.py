"""`synthmri`: what a person types, one command with a word for each task. What DVC runs are the stages themselves."""

import importlib
import sys

from stages import _cli

# Word -> module with a command line of its own, and what `synthmri --help` says of it.
COMMANDS = {
    "generate": ("commands.generate", "draw more slices from the fine-tuned model, as PNG, NPY, NIfTI, BIDS or DICOM"),
    "profile": ("commands.profile", "overlay a file of profiles/ on params.yaml: quick, gpu, open_ms, ..."),
    "check": ("commands.check", "whose the scans in data/raw are and what they show; a table that you may mend"),
    "summary": ("commands.summary", "what the last `dvc repro` gave"),
    "demo": ("commands.demo", "a page on this machine that draws eight slices of a prompt, and judges each"),
    "registry": ("stages.register", "synchronise, browse and ask the MLflow registry; export a model"),
    "study": ("commands.study", "make, serve and export a blinded reader study"),
    "draw": ("commands.draw", "draw simulated slices, many and once, for pretraining"),
    "pretrain": ("commands.pretrain", "train a base model, or a baseline, on simulated heads, for hours"),
}


def main() -> None:
    """Run the command that the first word names, with the words after it."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("-h", "--help", "help"):
        print("Usage: synthmri COMMAND [OPTIONS]; `synthmri COMMAND --help` tells of its options\n")
        for name, (_, about) in COMMANDS.items():
            print(f"  {name:10s} {about}")
        print("\nThe pipeline itself: `dvc repro`, or `make repro`.")
        return
    if word not in COMMANDS:
        print(f"error: {word!r} is no command; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"synthmri {word}", *sys.argv[2:]]
    module = importlib.import_module(COMMANDS[word][0])
    if hasattr(module, "cli"):
        _cli.guarded(module.cli)
    else:
        _cli.run(*(module.COMMANDS if hasattr(module, "COMMANDS") else (module.main,)))


if __name__ == "__main__":
    main()
