"""What a profile's trainings ask of a GPU: floating-point operations, counted on one small step of each, and the hours.

python -m benchmarks.effort gpu --slices 1500

Counted by torch on a step of two images on this machine, and carried on to the profile's batch and steps, in which
they are linear. Drawing is reckoned at a third of a training step for each image and evaluation of the network, since
backward takes about twice what forward takes. The hours are these operations over --teraflops a second, which is an
assumption and no measurement.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

from benchmarks import measure
from commands import profile
from stages import _cli
from synthmri import generators
from synthmri.evaluation import sweep
from synthmri.generators import finetuning, latent_diffusion
from synthmri.training import sampling


def baseline(name: str, tree: dict, size: int) -> dict[str, float]:
    """Petaflop of training a baseline as `tree` says, and of drawing sample.n images."""
    generator = generators.find(name)
    p = generator.Params.model_validate(tree["baselines"][name], strict=False)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        *_, operations = generator.fit(
            images, p.model_copy(update={"steps": generator.kinds, "batch_size": 2}), seed=0, points=1,
            checkpoint=Path(folder) / "one.pt", tick=lambda step, loss, rate: None, snapshot=lambda point, model: None,
        )  # fmt: skip
    evaluations = getattr(p, "sample_steps", 1)
    return _petaflop(operations / generator.kinds / 2, p.steps * p.batch_size, tree["sample"]["n"] * evaluations)


def of_latent_diffusion(tree: dict, slices: int) -> dict[str, float]:
    """The same of fine-tuning and drawing with the base that `tree` names, and of the sweep of its sampler."""
    p = finetuning.Finetune.model_validate(tree["finetune"], strict=False)
    drawing = sampling.Sample.model_validate(tree["sample"], strict=False)
    pipe = latent_diffusion.load(p.base_model)
    edge = tree["data"]["image_size"] // 8
    mean = np.random.default_rng(0).standard_normal((2, 1, pipe.unet.config.in_channels, edge, edge), np.float32)
    small = p.model_copy(update={"epochs": 1, "batch_size": 2})
    with tempfile.TemporaryDirectory() as folder:
        _, operations = finetuning.finetune(
            pipe, finetuning.Lessons(mean, 0 * mean, ["", ""]), small, seed=0, checkpoint=Path(folder) / "one.pt"
        )
    evaluations = sampling.evaluations(["a prompt"], drawing)
    tried = sweep.Sweep.model_validate(tree["sweep"], strict=False)
    swept = sum(sampling.evaluations(["a prompt"], each) for each in sweep.grid(tried, drawing, guided=True))
    return _petaflop(operations / 2, p.epochs * slices, 2 * drawing.n * evaluations) | {  # of the base too
        "sweep_petaflop": _petaflop(operations / 2, 0, drawing.n * swept)["drawing_petaflop"]
    }


def _petaflop(operations_an_image: float, seen: int, drawn: int) -> dict[str, float]:
    training, drawing = operations_an_image * seen / 1e15, operations_an_image / 3 * drawn / 1e15
    return {"training_petaflop": training, "drawing_petaflop": drawing, "images_seen": seen}


def main(
    name: Annotated[str, typer.Argument(help="a file of profiles/, without .yaml")] = "gpu",
    slices: Annotated[int, typer.Option(min=1, help="training slices, which decide the steps of fine-tuning")] = 1500,
    teraflops: Annotated[float, typer.Option(min=0.1, help="sustained, of the GPU")] = 100,
):
    """Write benchmarks/results/effort.json."""
    _cli.start()
    tree = yaml.safe_load(_cli.PARAMS.read_text(encoding="utf-8"))
    overlay = yaml.safe_load((Path("profiles") / f"{name}.yaml").read_text(encoding="utf-8"))
    here = {section: values for section, values in overlay.items() if section not in profile.ELSEWHERE}
    profile.merge(tree, here, _cli.PARAMS)
    rows = {model: baseline(model, tree, tree["data"]["image_size"]) for model in tree["baselines"]}
    rows["latent_diffusion"] = of_latent_diffusion(tree, slices)
    for row in rows.values():
        petaflop = sum(value for key, value in row.items() if key.endswith("_petaflop"))
        row["hours"] = petaflop * 1000 / teraflops / 3600
    result = {model: {key: float(f"{value:.3g}") for key, value in row.items()} for model, row in rows.items()}
    measure.write("effort", {"profile": name, "slices": slices, "assumed_teraflops": teraflops, **result})


if __name__ == "__main__":
    _cli.run(main)
