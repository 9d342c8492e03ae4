"""The registry on a small repository made up for it: real models and samples at their smallest, invented scores."""

import base64
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from test_study_browser import CHROMIUM

from commands import _shield
from stages import _files, _results, _store, _watch, register, sample
from stages import gate as gate_stage
from synthmri import generators, imageset, params
from synthmri.errors import UserError
from synthmri.generators.finetuning import Finetune
from synthmri.registry import gate, lineage, mlflow_store, pages, serving
from synthmri.reporting import comparison

ROOT = Path(__file__).parent.parent
SMALL = {
    "vae": dict(width=4, latent_dim=4), "dcgan": dict(width=4, latent_dim=4), "unet_gan": dict(width=4, latent_dim=4),
    "ddpm": dict(channels=(16, 32), sample_steps=2),
}  # fmt: skip
SCORES = {
    "kid_effnet": 0.1,
    "fd_effnet": 9.0,
    "memorised": 0.02,
    "coverage": 0.3,
    "largest_correlation": 0.8,
    "n": 6.0,
}
SIMULATED = {"data": {"source": "simulated"}}  # what preprocess writes beside the slices
KIDS = {"vae": 0.3, "dcgan": 0.4, "ddpm": 0.5, "unet_gan": 0.6, "latent_diffusion": 0.2}
pytestmark = pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)


@pytest.fixture(scope="module")
def template(tiny_model, tmp_path_factory):
    """A repository after a pipeline that nobody ran: all files that the registry is made from, and an empty store."""
    folder = tmp_path_factory.mktemp("registry") / "template"
    shutil.copytree(
        ROOT / "metrics", folder / "metrics", ignore=shutil.ignore_patterns("samples", "real_beside", "closest")
    )
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = (
        re.sub(r"  n: 200 .*", "  n: 6", text)
        .replace("  steps: 14 ", "  steps: 2 ")
        .replace("  batch_size: 20 ", "  batch_size: 4 ")
    )
    (folder / "params.yaml").write_text(text.replace("precision: auto ", "precision: fp32 "))
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/cohort.yaml", folder / "data")
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        images = np.random.default_rng(0).integers(0, 255, (8, 64, 64)).astype(np.uint8)
        cells = {
            "subject": list("aabbccdd"),
            "contrast": "T1w",
            "plane": "axial",
            "label": "none",
            "depth_mm": [str(20 * k) for k in range(8)],
        }
        for split in ("train", "val", "test"):
            imageset.write(Path("data/slices") / split, imageset.ImageSet(images, pd.DataFrame(cells), SIMULATED))
        for name in comparison.MODELS:
            if name == "latent_diffusion":
                shutil.copytree(tiny_model, "models/latent_diffusion")
                config = Path("models/latent_diffusion/vae/config.json")
                config.write_text(json.dumps(json.loads(config.read_text()) | {"third_channel": "mask"}))
                chosen = {
                    "guidance_scale": 1.0,
                    "steps": 3,
                    "scheduler": "dpmsolver++",
                }  # not what section `sample` says
                Path("models/sampling.json").write_text(json.dumps(chosen))
            else:
                baseline(name, seed=0)
            draw(name)
            score(name, val_kid_effnet=KIDS[name])
        attacks = {name: {"mia_auroc": 0.55, "mia_auroc_high": 0.65} for name in comparison.MODELS}
        Path("metrics/privacy.json").write_text(json.dumps(attacks))
        Path("metrics/references.json").write_text(json.dumps({"real": SCORES}))
        Path("dvc.yaml").write_text(yaml.safe_dump(pipeline()), encoding="utf-8")
        shutil.copytree(ROOT / ".dvc", ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
        git(folder, "init", "-q")
        lock()
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    mlflow_store._make_sqlite(folder / "mlflow.db", folder / "mlruns")
    return folder


def baseline(name, seed):
    """An untrained network, as `stages.train` would save a trained one."""
    generator = generators.find(name)
    p = params.read("params.yaml", f"baselines.{name}", generator.Params).model_copy(update=SMALL[name])
    shutil.rmtree(f"models/{name}", ignore_errors=True)
    generator.untrained(p, 64, seed=seed).save(Path("models") / name)


def draw(name):
    sample.main(
        generator=name, model=Path("models") / name, images=Path("data/slices/train"),
        out=Path("data/samples") / name, sheet=Path("metrics/samples") / f"{name}.png",
        settings=Path("models/sampling.json") if name == "latent_diffusion" else None,
    )  # fmt: skip
    for kind in ("real_beside", "closest", "progression"):
        Path("metrics", kind).mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(f"metrics/{kind}/{name}.png")


def score(name, **change):
    Path("metrics", f"{name}.json").write_text(json.dumps(SCORES | change))


def pipeline() -> dict:
    """Stages of the kind of dvc.yaml's, whose commands nobody runs."""
    splits = [f"data/slices/{split}" for split in ("train", "val", "test")]
    stages = {
        "preprocess": (["runtime", "data", {"data/cohort.yaml": ["cohort"]}], [], splits),
        "adapt": (["runtime"], splits[:1], ["metrics/autoencoder.json"]),
    }
    for name in comparison.MODELS:
        ldm = name == "latent_diffusion"
        own, words = (["finetune", "prompt"], ["prompt"]) if ldm else ([f"baselines.{name}"], [])
        reads = [splits[0], f"models/{name}", *(["models/sampling.json"] if ldm else [])]
        stages[f"train_{name}"] = (["runtime", *own], splits[:1], [f"models/{name}", f"metrics/training/{name}.json"])
        drawn = ["runtime", "sample.n", "sample.seed", "sample.batch_size", *words]
        stages[f"sample_{name}"] = (drawn, reads, [f"data/samples/{name}"])
        stages[f"evaluate_{name}"] = (["evaluate"], [f"data/samples/{name}"], [f"metrics/{name}.json"])
    settings = ["sample.guidance_scale", "sample.steps", "sample.scheduler"]
    stages["sweep"] = (settings, ["models/latent_diffusion"], ["models/sampling.json"])
    scores = [f"metrics/{name}.json" for name in comparison.MODELS]
    stages["scores"] = ([], [*scores, "metrics/training"], [f"metrics/{name}.json" for name in _results.OF_SCORES])
    tree = {
        name: {"cmd": "false", "params": asked, "deps": deps, "outs": [{path: {"cache": False}} for path in outs]}
        for name, (asked, deps, outs) in stages.items()
    }
    return {"stages": tree}


def lock():
    """The verdicts, and a dvc.lock by DVC of what lies here, as if its stages had just made it."""
    from dvc.repo import Repo

    gate_stage.main(scores=Path("metrics"), verdicts=Path("metrics/gate.json"), reasons=Path("metrics/gate.md"))
    with Repo(".") as repo:
        for stage in repo.index.stages:
            stage.save()
            stage.dump(update_pipeline=False)


def locked() -> dict[str, str]:
    with lineage.opened(Path()) as repo:
        return lineage.outputs(repo)


def git(folder, *command):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return folder


def client():
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow itself sets it, to the store of the test before
    return _store.connect(params.read("params.yaml", "registry", gate.Registry))


def state() -> dict:
    """All that a person sees of the registry, without numbers that MLflow makes up."""
    from mlflow.entities import ViewType

    api, experiment = client()
    runs = api.search_runs([experiment], run_view_type=ViewType.ACTIVE_ONLY)
    out = {"runs": sorted((run.info.run_name, run.info.status) for run in runs)}
    out["logged"] = len(api.search_logged_models([experiment]))
    for model in api.search_registered_models():
        found = {}
        for version in mlflow_store.versions(api, model.name):
            run = api.get_run(version.run_id)
            assert version.tags.items() <= run.data.tags.items()
            files = sorted(below(api, version.run_id, None))
            curve = [(m.step, m.value) for m in api.get_metric_history(version.run_id, "training/loss")]
            data = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
            found[int(version.version)] = (version.tags, run.data.params, run.data.metrics, files, curve, data)
        out[model.name] = (found, {alias: str(number) for alias, number in model.aliases.items()})
    return out


def version_of(name):
    return mlflow_store.versions(client()[0], f"synthmri-{name}")[0]


def below(api, run, folder) -> list[str]:
    found = api.list_artifacts(run, folder)
    return [path for item in found for path in (below(api, run, item.path) if item.is_dir else [item.path])]


def where(alias: str) -> tuple[str, str] | None:
    found = [
        (name, value[1][alias]) for name, value in state().items() if name.startswith("synthmri-") and alias in value[1]
    ]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_sync_registers_every_model_with_all_that_is_known_of_it(project):
    register._sync()
    seen = state()
    assert seen["runs"] == sorted((title, "FINISHED") for title in comparison.MODELS.values()) and seen["logged"] == 5
    for name in comparison.MODELS:
        tags, parameters, metrics, files, curve, data = seen[f"synthmri-{name}"][0][1]
        hashes = mlflow_store.lineage(version_of(name).run_id)
        assert hashes["model"] == locked()[f"models/{name}"] and hashes["slices"]["val"] == locked()["data/slices/val"]
        assert len(tags) <= 12 and not [
            key for key, value in tags.items() if re.search(r"\.dir|[0-9a-f]{32}$", value) and key != "git_commit"
        ]
        assert tags["git_commit"] == git(project, "rev-parse", "HEAD") and tags["gate"] == "passed"
        assert metrics["val_kid_effnet"] == KIDS[name] and any(key.startswith("progression/fd_") for key in metrics)
        own = "finetune.epochs" if name == "latent_diffusion" else f"baselines.{name}.steps"
        assert own in parameters and "sample.n" in parameters
        others = {key.split(".")[1] for key in parameters if key.startswith("baselines.")}
        assert others == (set() if name == "latent_diffusion" else {name})
        table = pd.read_csv(f"metrics/training/{name}.csv")
        assert curve == [(step, pytest.approx(loss)) for step, loss in zip(table["step"], table["loss"], strict=True)]
        assert data["data/slices/train"] == locked()["data/slices/train"]
        pictures = {f"pictures/{kind}/{name}.png" for kind in ("samples", "real_beside", "closest", "progression")}
        assert pictures | {"cards/README.md", "lineage/dvc.lock", "results/gate.json"} <= set(files)
    assert where("champion") == ("synthmri-latent_diffusion", "1") and where("challenger") == ("synthmri-vae", "1")


def test_a_version_is_described_and_its_run_took_as_long_as_the_training(project):
    """And of one that DVC restored, nobody knows how long: no time, in place of that of registering."""
    vae = Path("models/vae")
    Path(_watch.KEPT).mkdir(parents=True)
    figures = [[step, 0.5, 1.25] for step in (10, 20)]
    took = {"seconds": 5400.0, "ended": 1.7e9, "figures": figures, "system/gpu_memory_gb": 7.5}
    Path(_watch.KEPT, f"{_files.digest(vae)}.json").write_text(json.dumps(took))
    references = {"real": SCORES | {"fd_effnet": 3.0}}
    Path("metrics/references.json").write_text(json.dumps(references))
    score("dcgan", val_kid_effnet=0.01, memorised=0.9)
    lock()
    register._sync()
    api, _ = client()
    for name, seconds in (("vae", 5400), ("dcgan", 0)):
        run = api.get_run(version_of(name).run_id)
        assert (run.info.end_time - run.info.start_time) / 1000 == seconds, name
        assert run.data.metrics["fd_ratio"] == 3  # 9 / 3
        assert version_of(name).description == run.data.tags["mlflow.note.content"]
    run = api.get_run(version_of("vae").run_id)
    assert run.info.end_time == 1.7e12 and run.data.metrics["system/gpu_memory_gb"] == 7.5
    curve = [(m.step, m.value) for m in api.get_metric_history(run.info.run_id, "system/memory_gb")]
    assert curve == [(10, 1.25), (20, 1.25)]
    text = version_of("dcgan").description
    assert text.startswith(
        f"![samples](get-artifact?path=pictures%2Fsamples%2Fdcgan.png&run_uuid={version_of('dcgan').run_id})"
    )
    assert (
        "fd_effnet **9** · kid_effnet **0.1** · coverage **0.3** · memorised **0.9** · mia_auroc **0.55**" in text
        and "is 3 times the floor, which real slices of other people set at 3." in text
    )
    assert "The gate refuses it: memorised = 0.9, where the rule asks for at most 0.1." in text
    assert f"`git checkout {git(project, 'rev-parse', 'HEAD')} && dvc checkout`" in text


def test_the_example_is_kept_as_mlflow_reads_it(served, monkeypatch):
    import mlflow

    monkeypatch.chdir(served)
    client()
    folder = mlflow.artifacts.download_artifacts(version_of("vae").source)
    logged, asked = mlflow.models.Model.load(folder), [{"seed": 1000, "n": 1}]
    assert logged.load_input_example(folder) == asked
    assert json.loads(logged.get_serving_input(folder)) == {"inputs": asked}


def test_links_of_a_store_without_champion_name_the_nearest(project):
    for name in comparison.MODELS:
        score(name, val_kid_effnet=KIDS[name], memorised=0.9)
    lock()
    register._sync()
    api, experiment = client()
    found = pages.links(api, experiment, "7", [f"synthmri-{name}" for name in comparison.MODELS], ("fd_ratio",))
    assert list(found) == ["all models", "no champion; nearest to people", "the best two, compared", "trainings, live"]
    assert "synthmri-latent_diffusion/versions/1" in found["no champion; nearest to people"]
    best = [version_of(name).run_id for name in ("latent_diffusion", "vae")]
    assert all(run in found["the best two, compared"] for run in best)
    assert pages.links(api, experiment, None, ["synthmri-none"], ()).keys() == {"all models"}


def test_adapters_are_logged_as_mlflow_keeps_them(project, tiny_model):
    import mlflow
    import torch
    from peft import LoraConfig

    from synthmri.generators import finetuning, latent_diffusion

    pipe = latent_diffusion.load(tiny_model)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    pipe.save_lora_weights(Path("models/latent_diffusion/lora"), finetuning.fuse(pipe)["unet"])
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("pretrained/base", str(tiny_model)), encoding="utf-8")
    draw("latent_diffusion")
    lock()
    register._sync()
    api, experiment = client()
    logged = api.search_logged_models([experiment])
    assert len(logged) == 6  # five that draw, and the adapters alone
    adapters = next(model for model in logged if model.name == "adapters")
    opened = mlflow.diffusers.load_model(adapters.model_uri).load_pipeline(torch_dtype=torch.float32)
    assert any("lora" in name for name, _ in opened.unet.named_parameters())


def test_a_second_sync_changes_nothing_and_a_new_store_is_the_same(project, template):
    register._sync()
    before = state()
    register._sync()
    assert state() == before
    again = project.parent / "again"  # MLflow keeps a file open in this process: another place for the new store
    shutil.copytree(template, again, ignore=shutil.ignore_patterns("mlflow.db"))
    subprocess.run([sys.executable, "-m", "stages.register", "--sync"], cwd=again, check=True, env=environment(again))
    os.chdir(again)
    assert state() == before


def environment(folder):
    return {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))} | {"PYTHONPATH": str(ROOT)}


def test_killed_in_the_middle_and_synced_again(project, template):
    """SIGKILL while the second and the fourth model are being registered."""
    for name, wait_s in (("dcgan", 0.0), ("unet_gan", 0.2)):
        with subprocess.Popen(
            [sys.executable, "-m", "stages.register", "--sync"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(project),
        ) as process:
            for line in process.stderr:
                if f"synthmri-{name}" in line:
                    break
            else:
                pytest.fail("it ended before it was killed")
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    register._sync()
    seen = state()
    os.chdir(project.parent)
    shutil.copytree(template, "calm")
    os.chdir("calm")
    register._sync()
    assert seen == state()


def test_two_experiments_register_at_once(project, template):
    """As the queue does: from folders of their own into the store of the repository."""
    other = project.parent / "other"
    shutil.copytree(template, other)
    os.chdir(other)
    baseline("vae", seed=1)
    draw("vae")
    score("vae", val_kid_effnet=0.1)
    lock()
    os.chdir(project)
    command = [sys.executable, "-m", "stages.register", "--sync"]
    both = [
        subprocess.Popen(
            command, cwd=folder, env=environment(folder) | {"DVC_ROOT": str(project)}, stderr=subprocess.PIPE
        )
        for folder in (project, other)
    ]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    seen = state()
    models = {name: seen[f"synthmri-{name}"] for name in comparison.MODELS}
    assert {name: len(versions) for name, (versions, _) in models.items()} == dict.fromkeys(models, 1) | {"vae": 2}
    assert [name for name, (_, aliases) in models.items() if "champion" in aliases] == ["vae"]
    assert {status for _, status in seen["runs"]} == {"FINISHED"}
    assert len(seen["runs"]) == 6 and not (other / "mlruns").exists()


def test_a_second_experiment_becomes_a_second_version_and_the_better_one_champion(project):
    register._sync()
    first = git(project, "rev-parse", "HEAD")
    baseline("vae", seed=1)
    draw("vae")
    score("vae", val_kid_effnet=0.1)
    lock()
    register._sync()
    assert where("champion") == ("synthmri-vae", "2") and where("challenger") == ("synthmri-latent_diffusion", "1")
    assert "git_commit" not in state()["synthmri-vae"][0][2][0]  # nothing is committed yet
    git(project, "commit", "-qam", "second")
    register._sync()
    second = git(project, "rev-parse", "HEAD")
    versions = state()["synthmri-vae"][0]
    assert [versions[k][0]["git_commit"] for k in (1, 2)] == [first, second]
    assert len(state()["synthmri-dcgan"][0]) == 1
    # Scored anew without another model or other samples: the same version, with the new scores.
    score("vae", val_kid_effnet=0.9)
    lock()
    register._sync()
    versions = state()["synthmri-vae"][0]
    assert len(versions) == 2 and versions[2][2]["val_kid_effnet"] == 0.9
    assert where("champion") == ("synthmri-latent_diffusion", "1")


def test_versions_judged_on_other_validation_slices_do_not_compete(project):
    score("dcgan", val_kid_effnet=0.01)
    lock()
    register._sync()
    assert where("champion") == ("synthmri-dcgan", "1")
    whole = imageset.read(Path("data/slices/val"))
    imageset.write(Path("data/slices/val"), imageset.ImageSet(255 - np.array(whole.images), whole.manifest))
    baseline("dcgan", seed=1)
    draw("dcgan")
    score("dcgan", val_kid_effnet=0.4)
    lock()
    register._sync()  # models that stayed the same are scored on these slices now; version 1 of DCGAN is not
    assert where("champion") == ("synthmri-latent_diffusion", "1")


def test_scores_that_are_no_longer_there_count_no_more(project):
    register._sync()
    assert where("champion") == ("synthmri-latent_diffusion", "1")
    score("latent_diffusion")  # of too few validation slices now
    lock()
    register._sync()
    assert where("champion") == ("synthmri-vae", "1")


def test_a_model_that_copies_cannot_become_champion_unless_a_person_says_so(project, capsys):
    score("latent_diffusion", val_kid_effnet=0.01, memorised=1.0)
    lock()
    register._sync()
    assert where("champion") == ("synthmri-vae", "1")
    tags = state()["synthmri-latent_diffusion"][0][1][0]
    assert tags["gate"] == "refused" and "memorised = 1, where the rule asks for at most 0.1" in tags["gate_reasons"]
    with pytest.raises(UserError, match="needs a reason"):
        register._override("latent_diffusion", "")
    with pytest.raises(UserError, match="no model"):
        register._override("gan", "because")
    comments = Path("params.yaml").read_text().count("#")
    register._override("latent_diffusion", 'a look at "all" pairs: none is a copy')
    assert Path("params.yaml").read_text().count("#") == comments
    lock()
    register._sync()
    assert where("champion") == ("synthmri-latent_diffusion", "1") and where("challenger") == ("synthmri-vae", "1")
    tags = state()["synthmri-latent_diffusion"][0][1][0]
    assert tags["override"] == 'a look at "all" pairs: none is a copy' and tags["gate"] == "refused"
    register._override("", "")
    lock()
    register._sync()
    assert where("champion") == ("synthmri-vae", "1")
    assert "override" not in state()["synthmri-latent_diffusion"][0][1][0]


def test_nothing_is_registered_under_the_hash_of_another(project):
    baseline("vae", seed=1)  # and dvc.lock knows nothing of it
    with pytest.raises(UserError, match="models/vae is not what dvc.lock says; run `dvc checkout`"):
        register._sync()
    assert "synthmri-vae" not in state()


def test_a_new_model_does_not_go_out_with_the_scores_of_the_one_before(project):
    """`dvc repro` was stopped between the two: each file is what dvc.lock says, and they do not match."""
    text = Path("dvc.lock").read_text()
    tree = yaml.safe_load(text)
    read = next(dep for dep in tree["stages"]["sample_vae"]["deps"] if dep["path"] == "models/vae")
    read["md5"] = "0" * 32 + ".dir"  # of the model before
    Path("dvc.lock").write_text(yaml.safe_dump(tree))
    for act in (register._sync, lambda: register.export(model="vae", out=Path("out"))):
        with pytest.raises(UserError, match="data/samples/vae was made from another models/vae than the one of now"):
            act()
    assert "synthmri-vae" not in state() and not Path("out").exists()
    Path("dvc.lock").write_text(text)
    register.export(model="vae", out=Path("out"))


def test_the_shield_compares_with_what_the_model_was_trained_on_alone(project):
    """The slices of another site, or a partner's model in the place of one's own."""
    _shield.check(Path("models/latent_diffusion"))
    text = Path("dvc.lock").read_text()
    pictures = Path("data/slices/train/images.npy")
    before = pictures.read_bytes()
    pictures.write_bytes(before[:-1] + b"x")
    with pytest.raises(UserError, match="what models/latent_diffusion was trained on: data/slices/train is not what"):
        _shield.check(Path("models/latent_diffusion"))
    pictures.write_bytes(before)
    tree = yaml.safe_load(text)
    made = next(out for out in tree["stages"]["train_latent_diffusion"]["deps"] if out["path"] == "data/slices/train")
    made["md5"] = "0" * 32 + ".dir"
    Path("dvc.lock").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="was made from another data/slices/train .*--no-shield"):
        _shield.check(Path("models/latent_diffusion"))


def test_a_folder_of_outputs_that_scores_were_made_from_is_the_one_of_now(project):
    """A training's effort is written anew, by its own stage alone: the comparison tells the old one."""
    from dvc.repo import Repo

    effort = Path("metrics/training/vae.json")
    effort.write_text(json.dumps(json.loads(effort.read_text()) | {"images_seen": 7}))
    with Repo(".") as repo:
        stage = next(stage for stage in repo.index.stages if stage.addressing.endswith("train_vae"))
        stage.save()
        stage.dump(update_pipeline=False)
    with pytest.raises(UserError, match="was made from another metrics/training than the one of now"):
        register._sync()


def test_a_version_tells_how_to_restore_it_and_a_commit_its_versions(project, capsys):
    register._sync()
    capsys.readouterr()
    register._show("latent_diffusion", "champion")
    text = capsys.readouterr().out
    assert "version 1 champion" in text and f"git checkout {git(project, 'rev-parse', 'HEAD')}" in text
    register._commit("HEAD")
    assert capsys.readouterr().out.count("version 1") == 5
    with pytest.raises(UserError, match="no version '7'; there is 1, champion"):
        register._show("latent_diffusion", "7")
    with pytest.raises(UserError, match="git knows no dvc.lock at 'nowhere'"):
        register._commit("nowhere")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///damaged.db"])
def test_a_store_that_cannot_be_used_is_told_with_remedies(project, monkeypatch, uri):
    Path("damaged.db").write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="cannot be used(.|\n)*remedies"):
        register._sync()


# Serving


@pytest.fixture(scope="module")
def served(template, tmp_path_factory):
    """URIs of the logged models, and where their project is."""
    folder = tmp_path_factory.mktemp("served") / "project"
    shutil.copytree(template, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        register._sync()
    return folder


def load(served, monkeypatch, name):
    import mlflow

    monkeypatch.chdir(served)
    client()
    return mlflow.pyfunc.load_model(f"models:/synthmri-{name}/1")


@pytest.mark.parametrize("name", comparison.MODELS)
def test_served_pixels_are_the_sampled_ones(served, monkeypatch, name):
    model = load(served, monkeypatch, name)
    there = imageset.read(Path("data/samples") / name)
    made = model.predict([{"seed": 1000, "n": 3, "format": "array"}, {"seed": 1004}])
    assert [image["seed"] for image in made] == [1000, 1001, 1002, 1004]
    for row, image in zip((0, 1, 2), made, strict=False):
        assert np.array_equal(image["array"], there.images[row]) and image["prompt"] == there.manifest["prompt"][row]
    assert made[3]["png"] == (Path("data/samples") / name / "png/001004.png").read_bytes()


def test_masks_are_served_beside_their_images(served, monkeypatch):
    model = load(served, monkeypatch, "latent_diffusion")
    there = imageset.read(Path("data/samples/latent_diffusion"))
    (plain, shown) = model.predict(
        [{"seed": 1000, "format": "array"}, {"seed": 1000, "format": "array", "masks": True}]
    )
    assert np.array_equal(shown["array"], plain["array"]) and "mask" not in plain
    assert np.array_equal(shown["mask"], there.masks[0])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"sed": 1}, "Extra inputs are not permitted"),
        ({"n": 65}, "less than or equal to 64"),
        ({"steps": -1}, "greater than or equal to 1"),
        ({"guidance_scale": 51}, "less than or equal to 50"),
        ({"prompt": "a" * 301}, "at most 300 characters"),
        ({"seed": "1"}, "valid integer"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"format": "gif"}, "match pattern"),
    ],
)
def test_bad_requests_are_answered_with_400_and_the_reason(served, monkeypatch, request_, words):
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    app = TestClient(scoring_server.init(load(served, monkeypatch, "latent_diffusion")))
    answer = app.post("/invocations", json={"inputs": [request_]})
    assert answer.status_code == 400 and words in answer.json()["message"] and "Traceback" not in answer.text


def test_bounds_over_requests_and_requests_that_a_model_cannot_follow(served, monkeypatch):
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    app = TestClient(scoring_server.init(load(served, monkeypatch, "vae")))
    for inputs, words in (
        ([{"n": 40}, {"n": 40}], "these requests ask for 80"),
        ([], "ask for 0"),
        ({"seed": 1}, "Expected list"),
        ([{"prompt": "x"}], "draws from the seed alone"),
        ([{"steps": 3}], "draws from the seed alone"),
        ([{"masks": True}], "draws none"),
    ):
        answer = app.post("/invocations", json={"inputs": inputs})
        assert answer.status_code == 400 and words in answer.json()["message"], inputs
    answer = app.post("/invocations", json={"inputs": [{"seed": 1000}]})
    picture = base64.b64decode(answer.json()["predictions"][0]["png"])
    assert picture == (served / "data/samples/vae/png/001000.png").read_bytes()


def test_a_refused_request_changes_no_later_picture(served, monkeypatch):
    """The scheduler of the sampler is lent to the pipeline for a drawing; its own comes back whatever happens."""
    from mlflow.exceptions import MlflowException

    model = load(served, monkeypatch, "latent_diffusion")
    inner = model.unwrap_python_model()
    pipe = getattr(inner.trained, "pipe", inner.trained)
    own, ask = pipe.scheduler, {"seed": 1000, "format": "array"}
    before = model.predict([ask])[0]["array"]
    uneven = next(n for n in range(2, 1000) if len(np.arange(1000, 0, -1000 / n)) != n)
    with pytest.raises(MlflowException, match="do not space evenly"):
        model.predict([ask | {"steps": uneven}])
    assert pipe.scheduler is own
    with monkeypatch.context() as patch, pytest.raises(MlflowException, match="not finite"):
        patch.setattr(pipe.vae, "decode", lambda z, **_: (torch.full((len(z), 3, 64, 64), torch.nan),))
        model.predict([ask])
    assert pipe.scheduler is own
    assert np.array_equal(model.predict([ask])[0]["array"], before)


def test_a_prompt_changes_the_picture(served, monkeypatch):
    model = load(served, monkeypatch, "latent_diffusion")
    ask = {"seed": 1000, "format": "array", "guidance_scale": 7}
    one, other = (model.predict([ask | {"prompt": text}])[0]["array"] for text in ("T1w brain", "FLAIR lesions"))
    assert not np.array_equal(one, other)


def test_requirements_hold_all_that_drawing_imports(tiny_model):
    import ast
    import importlib.metadata

    named = importlib.metadata.packages_distributions()
    found = set()
    files = [
        ROOT / f"synthmri/{name}.py" for name in ("registry/serving", "scans/prompts", "imageset", "params", "errors")
    ]
    for file in [*files, *(ROOT / "synthmri/generators").glob("*.py"), *(ROOT / "synthmri/training").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.split(".")[0] for name in names}
    outside = {named[name][0].lower() for name in found if name in named and not name.startswith("mlflow")}
    of_training, of_mlflow = {"accelerate", "peft"}, {"pyyaml"}
    assert outside - {"synthmri"} - of_training - of_mlflow <= {*serving.REQUIREMENTS}
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in _results._requirements())


# Other processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(command, folder, alive: str, **more):
    """A server, from its first answer at the address `alive` to the end of the block; then all of its group ends."""
    with open(folder / "server.log", "w") as log:
        started = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment(folder) | more, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(1800):
            assert started.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(alive, timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail((folder / "server.log").read_text())
        yield
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(timeout=30)


def test_mlflow_serves_the_champion_by_the_documented_command(served):
    port = free_port()
    uri = "models:/synthmri-latent_diffusion@champion"
    command = [
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        uri,
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with process(command, served, f"http://127.0.0.1:{port}/ping", MLFLOW_TRACKING_URI=f"sqlite:///{served}/mlflow.db"):
        status, answer = post(port, {"inputs": [{"seed": 1002}]})
        assert status == 200
        picture = base64.b64decode(answer["predictions"][0]["png"])
        assert picture == (served / "data/samples/latent_diffusion/png/001002.png").read_bytes()
        status, answer = post(port, {"inputs": [{"steps": -1}]})
        assert status == 400 and "greater than or equal to 1" in answer["message"]


def post(port, body):
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data, kind)
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: `apt-get install chromium`, or set CHROMIUM")
def test_what_a_person_sees_in_a_browser(served, monkeypatch, tmp_path):
    """Models, champion, metrics and a picture on MLflow's own pages. Screenshots go to $SHOTS where that is set."""
    from playwright.sync_api import expect, sync_playwright

    monkeypatch.chdir(served)
    api, experiment = client()
    run = mlflow_store.versions(api, "synthmri-latent_diffusion")[0].run_id
    port, shots = free_port(), Path(os.environ.get("SHOTS", tmp_path))
    address = f"http://127.0.0.1:{port}"
    command = ["-m", "stages.register", "--ui", "--port", str(port)]
    with process(command, served, f"{address}/health"), sync_playwright() as tool:
        with pytest.raises(urllib.error.HTTPError, match="403"):  # MLflow's default, which stays
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(120_000)

        def look(name: str, path: str, *texts: str) -> None:
            page.goto("about:blank")
            page.goto(f"{address}/#/{path}")
            for text in texts:
                expect(page.get_by_text(text, exact=True).first).to_be_visible(timeout=120_000)
            page.screenshot(path=shots / f"{name}.png")

        # The links that the command prints.
        found = dict(line.split(": ", 1) for line in (served / "server.log").read_text().splitlines() if "/#/" in line)
        assert list(found) == ["all models", "champion", "champion and challenger"]
        for (what, link), texts in zip(
            found.items(),
            (
                ["latent diffusion", "fd_ratio", "memorised"],
                ["@ champion", "lineage"],
                ["Comparing 2 Runs from 1 Experiment"],
            ),
            strict=True,
        ):
            look(what.replace(" ", "_"), link.split("/#/")[1], *texts)
            assert page.get_by_text("Model training").is_visible()  # and not the pages about chat
            if what == "champion":  # the picture of its description
                page.wait_for_function("[...document.images].some(image => image.naturalWidth > 200)", timeout=120_000)
                expect(page.get_by_text("It passes the gate: every rule holds.")).to_be_visible()
            page.screenshot(path=shots / f"{what.replace(' ', '_')}.png")
        look("models", "models", *(f"synthmri-{name}" for name in comparison.MODELS))
        page.keyboard.press("Escape")  # MLflow's welcome
        expect(page.get_by_text("@ champion").first).to_be_visible()
        page.screenshot(path=shots / "models.png")
        look("model", "models/synthmri-latent_diffusion", "@ champion")
        look("version", "models/synthmri-latent_diffusion/versions/1", "@ champion", "lineage")
        look("runs", f"experiments/{experiment}/runs", *comparison.MODELS.values())
        look("run", f"experiments/{experiment}/runs/{run}", "val_kid_effnet", "0.2")
        look("curves", f"experiments/{experiment}/runs/{run}/model-metrics", "loss")
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=120_000)
        page.screenshot(path=shots / "curves.png")
        look("compare", f"experiments/{experiment}/runs?compareRunsMode=CHART")
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=120_000)
        page.screenshot(path=shots / "compare.png")
        look("picture", f"experiments/{experiment}/runs/{run}/artifacts/pictures/samples/latent_diffusion.png")
        image = page.locator("img[src^='blob:'], img[src*='get-artifact'], img[src^='data:image/png']").first
        expect(image).to_be_visible(timeout=120_000)
        page.wait_for_function("[...document.images].some(image => image.naturalWidth > 200)", timeout=120_000)
        page.screenshot(path=shots / "picture.png")
        browser.close()


POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextmanager
def postgres():
    """The URI of a database of its own on loopback."""
    name = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # it refuses to run as root
    folder, port = Path(tempfile.mkdtemp()), free_port()
    user = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, name)
    data = str(folder / "data")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder}
    subprocess.run([POSTGRES[-1] / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], **quiet, **user)
    options = f"-p {port} -h 127.0.0.1 -k {folder}"
    control = [POSTGRES[-1] / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **quiet, **user)
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet, **user)
        shutil.rmtree(folder)


@pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL below /usr/lib/postgresql (Debian's package postgresql)")
def test_the_same_on_a_server_with_postgresql_and_an_artifact_folder(project, monkeypatch):
    import mlflow

    pytest.importorskip("psycopg2", reason="no psycopg2 (pip install -e '.[postgres]')")
    register._sync()
    before = state()
    port = free_port()
    with postgres() as uri:
        command = ["-m", "mlflow", "server", "--backend-store-uri", uri, "--artifacts-destination", "./artifacts"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        with process(command, project, f"http://127.0.0.1:{port}/health"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            register._sync()
            register._sync()
            assert state() == before
            made = mlflow.pyfunc.load_model("models:/synthmri-vae@challenger").predict([{"seed": 1001}])
            assert made[0]["png"] == Path("data/samples/vae/png/001001.png").read_bytes()


# Cards


def test_export_is_a_folder_for_the_hub(project, capsys):
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import DatasetCard, ModelCard

    register.export(model="latent_diffusion", out=Path("out"))
    StableDiffusionPipeline.from_pretrained("out", safety_checker=None)
    card = ModelCard.load("out/README.md")
    assert card.data.library_name == "diffusers" and "simulated-data" in card.data.tags
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["val_kid_effnet"] == 0.2 and values["memorised"] == 0.02
    assert "not for clinical use" in card.text and "passes the gate" in card.text
    assert " 8 slices" not in card.text
    seen = json.loads((ROOT / "metrics/data.json").read_text())["train"]
    assert f"{seen['images']} slices of {seen['subjects']} subjects" in card.text
    assert DatasetCard.load("out/DATASET.md").data.pretty_name == "simulated brain MRI slices"
    assert str(project) not in card.text
    with pytest.raises(UserError, match="exists already"):
        register.export(model="latent_diffusion", out=Path("out"))
    with pytest.raises(UserError, match="no model"):
        register.export(model="gan", out=Path("other"))


def private():
    """The project as it is after a run on own scans."""
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("source: simulated ", "source: raw "))
    Path("data/slices/train/meta.json").write_text(json.dumps({"data": {"source": "raw"}}))
    lock()


def test_a_version_has_the_parameters_that_it_was_made_with(project):
    """params.yaml is edited after the training, and nothing is run: neither version, card nor server may follow it."""
    register._sync()
    before = state()
    was = dict(before["synthmri-latent_diffusion"][0][1][1])
    assert was["finetune.epochs"] == str(params.read("params.yaml", "finetune", Finetune).epochs)
    assert (was["sample.steps"], was["sample.guidance_scale"]) == ("3", "1.0")  # of models/sampling.json
    text = Path("params.yaml").read_text()
    text = re.sub(r"  epochs: \d+ ", "  epochs: 999 ", text).replace("  n: 6", "  n: 7")
    text = text.replace("precision: fp32", "precision: bf16").replace("source: simulated ", "source: raw ")
    Path("params.yaml").write_text(text)
    register._sync()
    assert state() == before
    again = project.parent / "again"
    shutil.copytree(project, again, ignore=shutil.ignore_patterns("mlflow.db", "mlruns"))
    os.chdir(again)
    register._sync()
    made = state()["synthmri-latent_diffusion"][0][1]
    assert made[1] == was and made[0]["data"] == "simulated, not patients"
    assert (
        client()[0].get_run(mlflow_store.versions(client()[0], "synthmri-vae")[0].run_id).data.params["sample.n"] == "6"
    )
    register.export(model="vae", out=Path("out"))
    assert "**simulated** cohort" in Path("out/README.md").read_text()


def test_stages_that_ran_with_different_parameters_are_told_apart(project):
    """After `dvc repro --single-item`, say: one value for both would be wrong for one of them."""
    tree = yaml.safe_load(Path("dvc.lock").read_text())
    tree["stages"]["train_vae"]["params"]["params.yaml"]["runtime"]["threads"] = 9
    Path("dvc.lock").write_text(yaml.safe_dump(tree))
    register._sync()
    found = state()["synthmri-vae"][0][1][1]["runtime.threads"]
    assert found == "9 (train_vae); 2 (sample_vae, preprocess)"
    assert state()["synthmri-dcgan"][0][1][1]["runtime.threads"] == "2"


def test_cards_do_not_follow_slices_that_the_model_was_not_made_from(project):
    private()
    git(project, "checkout", "params.yaml")  # the default's, as after a look at another profile: no matter
    register.export(model="vae", out=Path("out"))
    assert "private" in Path("out/README.md").read_text()
    Path("data/slices/train/meta.json").write_text(json.dumps(SIMULATED))
    for act in (register._sync, lambda: register.export(model="vae", out=Path("other"))):
        with pytest.raises(UserError, match="data.source = raw, but data/slices was made with simulated"):
            act()
    assert not Path("other").exists()


@pytest.fixture
def elsewhere(project, monkeypatch):
    """A store that cannot be proven to be here: a database outside of the repository, as on a mounted share."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.parent}/share.db")
    return project


def sent(monkeypatch) -> dict:
    """What lies in the store elsewhere: registered model -> its files."""
    import mlflow

    api = mlflow.MlflowClient()
    return {
        model.name: [path for v in mlflow_store.versions(api, model.name) for path in below(api, v.run_id, None)]
        for model in api.search_registered_models()
    }


def test_what_the_gate_refuses_of_people_does_not_go_to_another_machine(elsewhere, monkeypatch, capsys):
    score("dcgan", val_kid_effnet=0.01, memorised=0.9)
    private()
    register._sync()
    there, said = sent(monkeypatch), capsys.readouterr()
    assert set(there) == {f"synthmri-{name}" for name in comparison.MODELS if name != "dcgan"}
    assert "dcgan does not go to sqlite" in said.err and "the gate refuses it (memorised = 0.9" in said.err
    assert "synthmri registry --override dcgan --reason" in said.err and "people's slices stay here" in said.err
    # Of those that pass, pictures of people's slices stay here all the same.
    for files in there.values():
        kinds = {path.split("/")[1] for path in files if path.startswith("pictures/")}
        assert kinds == {"samples", "progression"}
    with pytest.raises(UserError, match=r"dcgan is not exported: .* refuses it \(memorised = 0.9,"):
        register.export(model="dcgan", out=Path("out"))
    assert not Path("out").exists()

    register._override("dcgan", "all ten closest pairs looked at: none is a copy")
    lock()
    register._sync()
    assert "synthmri-dcgan" in sent(monkeypatch)
    tags = mlflow_store.versions(mlflow_client(), "synthmri-dcgan")[0].tags
    assert tags["override"] == "all ten closest pairs looked at: none is a copy" and tags["gate"] == "refused"
    register.export(model="dcgan", out=Path("out"))
    text = Path("out/README.md").read_text()
    assert "refuses it: memorised = 0.9" in text and "their word for it: all ten closest pairs" in text

    score("dcgan", val_kid_effnet=0.01, memorised=0.95)  # scored anew: nobody has looked at that
    lock()
    with pytest.raises(UserError, match="is not exported: .*memorised = 0.95,"):
        register.export(model="dcgan", out=Path("other"))
    before = sent(monkeypatch)["synthmri-dcgan"]
    register._sync()
    said = capsys.readouterr()
    assert "dcgan has its version 1 on sqlite" in said.err and sent(monkeypatch)["synthmri-dcgan"] == before
    tags = mlflow_store.versions(mlflow_client(), "synthmri-dcgan")[0].tags
    assert "memorised = 0.95" in tags["gate_reasons"] and "override" not in tags
    assert mlflow_client().get_registered_model("synthmri-latent_diffusion").aliases["champion"] == 1


def mlflow_client():
    import mlflow

    return mlflow.MlflowClient()


def test_simulated_people_need_no_guard(elsewhere, monkeypatch):
    score("dcgan", memorised=0.9)
    lock()
    register._sync()
    assert set(sent(monkeypatch)) == {f"synthmri-{name}" for name in comparison.MODELS}
    register.export(model="dcgan", out=Path("out"))
    assert "refuses it: " in Path("out/README.md").read_text()


def test_a_store_here_that_puts_its_files_elsewhere_is_not_here(project, capsys):
    import mlflow

    api, _ = client()
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    p = params.read("params.yaml", "registry", gate.Registry)
    found = api.get_experiment_by_name(p.prefix)
    api.rename_experiment(found.experiment_id, "another")
    api.create_experiment(p.prefix, artifact_location=(project.parent / "share").as_uri())
    score("dcgan", memorised=0.9)
    private()
    register._sync()
    assert "synthmri-dcgan" not in state() and "dcgan does not go to" in capsys.readouterr().err


def test_a_card_about_private_data_says_so(project):
    private()
    register.export(model="vae", out=Path("out"))
    text = Path("out/README.md").read_text()
    of_the_data = text.replace("simulated slices (", "")  # those of pretraining, which the card names
    assert "license: other" in text and "simulated" not in of_the_data and "private" in text
