"""Where on MLflow's own pages the registry's answers are: the table of models, the champion, a comparison."""

import json
import math
from urllib.parse import quote

from synthmri.registry import gate, mlflow_store

VIEW = "models"  # the name under which MLflow keeps the columns of the table, as its button "Share" would
TRAINING = "workflowType=machine_learning"  # MLflow opens its pages about chat otherwise


def links(client, experiment: str, live: str | None, names: list[str], columns: tuple[str, ...]) -> dict[str, str]:
    """What a page shows -> its address on a server of MLflow, from `/#/`. The table's columns are set by the way.

    live: the experiment of trainings that are being watched; names: the registered models; columns: metrics of the
    table. Where there is no champion or challenger, those of least validation KID stand in for them.
    """
    state = {
        "selectedColumns": ["attributes.`Duration`", *(f"metrics.`{name}`" for name in columns), "tags.`gate`"],
        "orderByKey": f"metrics.`{gate.CHAMPION}`",
        "orderByAsc": True,
    }
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", json.dumps(state))
    found = {"all models": f"/#/experiments/{experiment}/runs?{TRAINING}&viewStateShareKey={VIEW}"}
    there = [version for name in names for version in mlflow_store.versions(client, name)]
    champion, challenger = (mlflow_store.pointed(client, names, alias) for alias in ("champion", "challenger"))
    kids = {v.run_id: client.get_run(v.run_id).data.metrics.get(gate.CHAMPION, math.inf) for v in there}
    others = sorted((v for v in there if v.run_id not in {champion, challenger}), key=lambda v: kids[v.run_id])
    first, second, *_ = [*filter(None, (champion, challenger)), *(v.run_id for v in others), None, None]
    shown = next((v for v in there if v.run_id == first), None)
    if shown is not None:
        who = "champion" if champion else "no champion; nearest to people"
        found[who] = f"/#/models/{quote(shown.name)}/versions/{shown.version}?{TRAINING}"
    if second is not None:
        runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in ([first, second], [experiment]))
        what = "champion and challenger" if champion and challenger else "the best two, compared"
        found[what] = f"/#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"
    if live is not None:
        found["trainings, live"] = f"/#/experiments/{live}/runs?{TRAINING}&compareRunsMode=CHART"
    return found
