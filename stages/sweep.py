"""Choose guidance, steps and scheduler on the VALIDATION slices: a table, a heat map, and the settings of `sample`.

The test slices take no part in it: they score what was chosen.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from stages import _cli, _files
from synthmri import imageset, params
from synthmri.evaluation import auroc, distances, features, scorecard, sweep
from synthmri.generators import latent_diffusion
from synthmri.reporting import plots
from synthmri.scans import prompts
from synthmri.training import sampling


def main(
    model: Annotated[Path, typer.Option(help="fine-tuned pipeline")],
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices, whose prompts are drawn from")],
    validation: Annotated[Path, typer.Option(help="ImageSet of the validation slices")],
    validation_features: Annotated[Path, typer.Option(help="features of that set, folder of stages.features")],
    table: Annotated[Path, typer.Option(help="CSV to write: one row a combination")],
    picture: Annotated[Path, typer.Option(help="PNG to write: KID as a heat map, a panel a scheduler")],
    choice: Annotated[Path, typer.Option(help="JSON to write: guidance, steps and scheduler for `sample`")],
) -> None:
    """Section `sample` stands unless another combination of section `sweep` is better by more than the uncertainty."""
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "sweep", sweep.Sweep)
    own = params.read(_cli.PARAMS, "sample", sampling.Sample)
    words = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
    seeds = list(range(own.seed + own.n, own.seed + 2 * own.n))  # those that `sample` draws would know their choice
    texts = prompts.drawn(prompts.prompts(imageset.read(images).manifest, words), seeds)
    guided = any(texts)
    if not guided and len({own.guidance_scale, *p.guidance_scale}) > 1:
        print(
            f"every prompt is empty, so guidance changes nothing: only {own.guidance_scale:g} is tried", file=sys.stderr
        )
    tried = sweep.grid(p, own, guided=guided)
    rows = [
        {
            "guidance_scale": one.guidance_scale, "steps": one.steps, "scheduler": one.scheduler,
            "network_evaluations": sampling.evaluations(texts, one), "n": 0,
        }
        for one in tried
    ]  # fmt: skip
    best = 0
    val = imageset.read(validation)
    if len(tried) > 1 and len(val) > 1:  # nothing is drawn where there is nothing to choose, or to choose by
        reference = _files.read_features(validation_features, len(val))[scorecard.JUDGE]
        pipe = latent_diffusion.load(model, device=runtime.device)
        drawn = []
        for one in _cli.progress(tried, "combinations"):
            made = latent_diffusion.draw(pipe, texts, seeds, one, size=val.images.shape[1], precision=precision)[:, 0]
            drawn.append(features.extract(scorecard.JUDGE, made, device=runtime.device))
        people = auroc.people(val.manifest, val.meta.get("data", {}).get("border_gap", 1))
        for k, row in enumerate(rows):
            row |= {
                "n": own.n,
                f"kid_{scorecard.JUDGE}": distances.kernel_distance(drawn[k], reference),
                scorecard.NAMES[scorecard.JUDGE]: distances.frechet_distance(drawn[k], reference),
            }
        if len(set(people)) < sweep.LEAST_PEOPLE:
            print(
                f"{len(set(people))} validation people are too few to choose by; section `sample` stands",
                file=sys.stderr,
            )
        else:
            gain, spread = sweep.gains(drawn, reference, people, seed=_cli.seed())
            best = sweep.choose(gain, spread, len(set(people)))
            for k, row in enumerate(rows):
                row |= {"kid_gain": gain[k], "kid_gain_std": spread[k]}
    frame = pd.DataFrame(rows).assign(chosen=[int(k == best) for k in range(len(rows))])
    settings = {name: rows[best][name] for name in ("guidance_scale", "steps", "scheduler")}
    print(f"{'kept' if best == 0 else 'chosen'} on validation slices, of {len(tried)}: {settings}", file=sys.stderr)
    with _files.replacing(table) as csv, _files.replacing(picture) as chart, _files.replacing(choice) as file:
        frame.to_csv(csv, index=False, float_format="%.6g", lineterminator="\n")
        plots.save(plots.heat_map(frame, f"kid_{scorecard.JUDGE}"), chart)
        file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _cli.run(main)
