"""The latent diffusion model, on tiny random pipelines of the same layout as Stable Diffusion's."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from synthmri import params, streams
from synthmri.errors import UserError
from synthmri.generators import finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.training import denoising_loss, sampling, snapshots


def section(name, cls, **change):
    return params.read("params.yaml", name, cls).model_copy(update=change)


SAMPLE = dict(steps=3, batch_size=2, scheduler="dpmsolver++")
FINETUNE = dict(epochs=2, batch_size=4, train_text_encoder=False)


def data(n=6, views=2, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(n, views, 4, 8, 8)).astype(np.float32) * 5
    return mean, np.full_like(mean, 0.1), ["T1w axial brain MRI"] * (n // 2) + ["FLAIR axial brain MRI"] * (n - n // 2)


def weights(pipe):
    return torch.cat([w.detach().flatten() for w in pipe.unet.parameters()])


# prompts -------------------------------------------------------------------------------------------------------------


def test_prompts_leave_out_what_is_not_known():
    manifest = pd.DataFrame(
        {
            "contrast": ["FLAIR", "", "unknown"],
            "plane": ["axial"] * 3,
            "depth_mm": ["64.0", "", "8"],
            "label": ["", "glioma", ""],
        }
    )
    template = "{contrast} {plane} brain MRI, level {level}, {label}"
    assert prompts.prompts(manifest, prompts.Prompt(template=template, token="")) == [
        "FLAIR axial brain MRI, level 6",
        "axial brain MRI, glioma",
        "axial brain MRI, level 1",
    ]
    assert prompts.prompts(manifest, prompts.Prompt(template="", token="")) == ["", "", ""]


@pytest.mark.parametrize("template", ["{subject} MRI", "{contrast", "{0}"])
def test_template_with_unknown_field_is_refused(template):
    with pytest.raises(UserError, match="prompt.template"):
        params.parse({"template": template, "token": ""}, "prompt", prompts.Prompt)


# loading -------------------------------------------------------------------------------------------------------------


def test_missing_model_names_both_remedies(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="(?s)nobody/nothing.*local directory.*hf auth login"):
        latent_diffusion.load("nobody/nothing")


def test_directory_of_another_format_is_told(tmp_path):
    with pytest.raises(UserError, match="model_index.json is missing"):
        latent_diffusion.load(tmp_path)


def test_damaged_weights_are_told(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "m")
    file = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be opened"):
        latent_diffusion.load(tmp_path / "m")


def layout(source, folder, index=None, scheduler=None):
    """A copy of a checkpoint with keys of its two configs set, or taken out by None."""
    shutil.copytree(source, folder)
    for name, change in (("model_index.json", index), ("scheduler/scheduler_config.json", scheduler)):
        config = json.loads((folder / name).read_text()) | (change or {})
        (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_opens_without_the_parts_that_judge_photographs(tiny_model, tmp_path):
    """Named in model_index.json, as Stable Diffusion's own is, or not; their folders are not there."""
    parts = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    named = layout(tiny_model, tmp_path / "named", index=parts)
    unnamed = layout(tiny_model, tmp_path / "unnamed", index=dict.fromkeys([*parts, "image_encoder"]))
    assert torch.equal(weights(latent_diffusion.load(named)), weights(latent_diffusion.load(unnamed)))


def test_no_prediction_type_means_epsilon(tiny_model, tmp_path):
    folder = layout(tiny_model, tmp_path / "m", scheduler={"prediction_type": None})
    pipe = latent_diffusion.load(folder)
    for name in ("dpmsolver++", "ddpm"):
        assert latent_diffusion.new_scheduler(pipe, name).config.prediction_type == "epsilon"


@pytest.mark.parametrize("name", ["sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm", "euler"])
@pytest.mark.parametrize("steps", [3, 1000])
def test_every_scheduler_walks_any_number_of_steps(tiny_model, name, steps):
    scheduler = latent_diffusion.new_scheduler(latent_diffusion.load(tiny_model), name)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.min() >= 0 and scheduler.timesteps.max() == scheduler.config.num_train_timesteps - 1


def test_of_ddim_what_its_steps_would_leave_out_is_refused(tiny_model):
    """It goes 1000 // steps down: of 600 steps one in place of 1.67, so that 40 % of the noise is never taken away."""
    scheduler = latent_diffusion.new_scheduler(latent_diffusion.load(tiny_model), "ddim")
    for steps, instead in ((600, 500), (150, 142), (60, 58)):
        with pytest.raises(UserError, match=f"{steps} denoising steps do not space evenly .* take {instead}"):
            sampling.set_steps(scheduler, steps)
    for steps in (10, 14, 25, 30, 50, 100, 250, 1000):
        sampling.set_steps(scheduler, steps)
        lost = 1 - steps * (1000 // steps) / 1000
        assert lost <= sampling.LAG


def test_steps_that_would_go_past_the_first_are_refused(tiny_model):
    """Of 1 to 1000, diffusers' trailing steps of 62 numbers end at t = -1, where the image is its noise."""
    scheduler = latent_diffusion.new_scheduler(latent_diffusion.load(tiny_model), "ddpm")
    refused = {}
    for steps in range(1, 1001):
        try:
            sampling.set_steps(scheduler, steps)
            assert len(scheduler.timesteps) == steps and scheduler.timesteps.min() >= 0
        except UserError as error:
            refused[steps] = int(re.search(r"take (\d+)", str(error))[1])
    assert len(refused) == 62 and refused[61] == 60 and refused[122] == 120  # 121 is one of them
    assert not set(refused.values()) & set(refused)
    with pytest.raises(UserError, match="61 denoising steps do not space evenly .* take 60"):
        draw(tiny_model, [0], steps=61)


def test_opens_half_precision_variants_in_float32(tiny_model, tmp_path):
    import diffusers

    folder = tmp_path / "m"
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model, dtype=torch.float16)
    pipe.save_pretrained(folder, variant="fp16")
    assert all(".fp16." in file.name for file in folder.rglob("*.safetensors"))
    opened = latent_diffusion.load(folder)
    assert {part.dtype for part in (opened.unet, opened.vae, opened.text_encoder)} == {torch.float32}
    assert torch.equal(weights(opened), weights(pipe).float())


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    from safetensors.torch import load_file

    folder = layout(tiny_model, tmp_path / "m")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UserError, match=r"(?s)safetensors.*remedies.*\*\.safetensors"):
        latent_diffusion.load(folder)


def test_unet_for_inpainting_is_told(tiny_model, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = layout(tiny_model, tmp_path / "m")
    config = UNet2DConditionModel.load_config(folder / "unet") | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match="inpainting"):
        latent_diffusion.load(folder)


def test_gated_model_names_both_remedies(monkeypatch):
    """What the hub's client raises for a model whose terms nobody has accepted."""
    import httpx2
    from diffusers import StableDiffusionPipeline
    from huggingface_hub.errors import GatedRepoError

    reply = httpx2.Response(401, request=httpx2.Request("GET", "https://huggingface.co/x/y"))

    def gated(*args, **kwargs):
        raise GatedRepoError("401 Client Error. Access to model x/y is restricted", response=reply)

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", gated)
    with pytest.raises(UserError, match="(?s)x/y.*restricted.*local directory.*hf auth login"):
        latent_diffusion.load("x/y")


def test_another_prediction_type_is_refused(tiny_model, tmp_path):
    folder = layout(tiny_model, tmp_path / "m", scheduler={"prediction_type": "sample"})
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE)
    with pytest.raises(UserError, match="'sample'"):
        finetuning.finetune(
            latent_diffusion.load(folder), finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "c.pt"
        )


# the loss ------------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Knows x0, and so predicts epsilon or v exactly."""

    def __init__(self, x0, scheduler):
        super().__init__()
        self.x0, self.scheduler = x0, scheduler

    def forward(self, noisy, t):
        alpha = self.scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        noise = (noisy - alpha * self.x0) / sigma
        v = alpha * noise - sigma * self.x0
        return type("Out", (), {"sample": noise if self.scheduler.config.prediction_type == "epsilon" else v})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [0.0, 5.0])
def test_perfect_prediction_has_no_loss(kind, snr_gamma):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=kind)
    x0 = torch.randn(8, 4, 4, 4)
    value = denoising_loss.loss(
        Oracle(x0, scheduler), x0, scheduler, torch.Generator().manual_seed(0), snr_gamma=snr_gamma
    )
    assert value.item() < 1e-6


def test_v_target_is_the_schedulers_own():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type="v_prediction")
    x0, seen = torch.randn(8, 4, 4, 4), {}

    class Zero(torch.nn.Module):
        def forward(self, noisy, t):
            seen.update(noisy=noisy, t=t)
            return type("Out", (), {"sample": torch.zeros_like(noisy)})

    value = denoising_loss.loss(Zero(), x0, scheduler, torch.Generator().manual_seed(0), snr_gamma=0.0)
    alpha = scheduler.alphas_cumprod[seen["t"]].sqrt()[:, None, None, None]
    noise = (seen["noisy"] - alpha * x0) / (1 - alpha**2).sqrt()
    torch.testing.assert_close(
        value, scheduler.get_velocity(x0, noise, seen["t"]).square().mean(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_are_those_of_the_paper(kind):
    """Hang 2023: min-SNR-gamma weighs the error in x0; that in epsilon is SNR, that in v SNR + 1 times as much."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=kind)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    found = denoising_loss.weight(scheduler, 5.0)
    of_x0 = found * (snr if kind == "epsilon" else snr + 1)
    torch.testing.assert_close(of_x0, snr.clamp_max(5.0) + (0 if kind == "epsilon" else 1))
    assert torch.equal(denoising_loss.weight(scheduler, 0.0), torch.ones(1000))


def test_emphasis_weighs_places():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type="v_prediction")
    rng = torch.Generator().manual_seed(0)

    def network(noisy, t):
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    x0, noise = (torch.randn(3, 4, 8, 8, generator=rng) for _ in range(2))
    t, places = torch.tensor([10, 500, 900]), torch.ones(3, 1, 8, 8)
    plain = denoising_loss.errors(network, x0, noise, t, scheduler)
    torch.testing.assert_close(denoising_loss.errors(network, x0, noise, t, scheduler, emphasis=places), plain)
    places[:, :, 4:] = 3.0
    halves = [
        denoising_loss.errors(network, x0[:, :, rows], noise[:, :, rows], t, scheduler)
        for rows in (slice(4), slice(4, 8))
    ]
    found = denoising_loss.errors(network, x0, noise, t, scheduler, emphasis=places)
    torch.testing.assert_close(found, (halves[0] + 3 * halves[1]) / 2)


@pytest.mark.parametrize("snr_gamma", [0.0, 1.0, 5.0])
def test_every_timestep_where_sampling_starts_is_trained(snr_gamma):
    """On the noise schedule of the base, whose last timestep is pure noise."""
    scheduler = latent_diffusion.load("pretrained/base").scheduler
    assert scheduler.alphas_cumprod[-1] < 1e-6
    noisy = scheduler.alphas_cumprod < 0.5
    assert noisy.sum() > 500 and denoising_loss.weight(scheduler, snr_gamma)[noisy].min() >= 0.99


def test_every_timestep_a_default_sampler_visits_is_trained():
    p = section("finetune", finetuning.Finetune)
    pipe = latent_diffusion.load("pretrained/base")
    drawing = section("sample", sampling.Sample)
    scheduler = latent_diffusion.new_scheduler(pipe, drawing.scheduler)
    sampling.set_steps(scheduler, drawing.steps)
    assert denoising_loss.weight(pipe.scheduler, p.snr_gamma)[scheduler.timesteps.long()].min() > 0.1


def test_a_row_is_seen_at_every_noise_level():
    """Timesteps are stratified over the batch, and which row has which stratum is drawn for each step."""
    from diffusers import DDPMScheduler

    scheduler, seen = DDPMScheduler(prediction_type="v_prediction"), []

    class Zero(torch.nn.Module):
        def forward(self, noisy, t):
            seen.append(t)
            return type("Out", (), {"sample": torch.zeros_like(noisy)})

    for step in range(200):
        denoising_loss.loss(Zero(), torch.zeros(8, 1, 2, 2), scheduler, streams.generator(0, "step", step))
    t = torch.stack(seen)
    assert (t.sort(dim=1).values // 125 == torch.arange(8)).all()  # one of each eighth in every batch
    assert (t.float().mean(dim=0) - 499.5).abs().max() < 100  # and every row has its share of them


# fine-tuning ---------------------------------------------------------------------------------------------------------


def test_loss_falls_when_there_is_one_thing_to_learn(tiny_model, tmp_path):
    pipe = latent_diffusion.load(tiny_model)
    mean = np.zeros((8, 1, 4, 8, 8), np.float32)  # v and epsilon are then a linear function of the noisy input
    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(epochs=40, batch_size=8, learning_rate=3e-3))
    history, _ = finetuning.finetune(
        pipe, finetuning.Lessons(mean, mean, [""] * 8), p, seed=0, checkpoint=tmp_path / "c.pt"
    )
    losses = [loss for _, loss, _ in history]
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:4])


def test_a_killed_run_ends_like_an_undisturbed_one(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE)
    whole, halves = latent_diffusion.load(tiny_model), latent_diffusion.load(tiny_model)
    full, operations = finetuning.finetune(
        whole, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "a.pt"
    )

    class Killed(Exception):
        pass

    def kill(step, loss, rate):
        if step == 3:  # within the second epoch: its first steps are done again
            raise Killed

    with pytest.raises(Killed):
        finetuning.finetune(
            latent_diffusion.load(tiny_model),
            finetuning.Lessons(mean, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / "b.pt",
            tick=kill,
        )
    again, counted = finetuning.finetune(
        halves, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "b.pt"
    )
    assert again == full and counted == operations > 0
    assert torch.equal(weights(whole), weights(halves))


def test_the_best_snapshot_is_kept_and_training_stops_after_it_however_interrupted(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(epochs=9))

    class Killed(Exception):
        pass

    def run(name, kill_at=None, verdicts=True):
        pipe, seen = latent_diffusion.load(tiny_model), {}

        def tick(step, loss, rate):
            if step == kill_at:
                raise Killed

        def snapshot(epoch):
            seen[epoch] = weights(pipe).clone()
            return snapshots.Verdict(best=epoch in (0, 1, 3), stop=epoch == 5) if verdicts else None

        history, operations = finetuning.finetune(
            pipe,
            finetuning.Lessons(mean, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / name,
            tick=tick,
            snapshot=snapshot,
        )
        return weights(pipe), seen, history, operations

    kept, seen, history, operations = run("a.pt")
    assert max(seen) == 5 and len(history) == 5 * 2
    assert torch.equal(kept, seen[3]) and not torch.equal(kept, seen[5])
    for kill_at in (3, 8):  # before the best one, and after it
        with pytest.raises(Killed):
            run(f"{kill_at}.pt", kill_at)
        again, _, history_again, operations_again = run(f"{kill_at}.pt")
        assert torch.equal(again, kept) and history_again == history and operations_again == operations
    stopped, later, _, _ = run("a.pt")  # killed between its end and its outputs
    assert torch.equal(stopped, kept) and later == {}
    to_the_end, seen, *_ = run("c.pt", verdicts=False)
    assert torch.equal(to_the_end, seen[9])


def test_a_compiled_unet_learns_the_same(tiny_model, tmp_path, monkeypatch):
    """Through dynamo and autograd, without the code generation that wants minutes: that is torch's own."""
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE)
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    pipes = [latent_diffusion.load(tiny_model) for _ in range(2)]
    (plain, operations), (compiled, counted) = (
        finetuning.finetune(
            pipe,
            finetuning.Lessons(mean, std, texts),
            p.model_copy(update={"compile": on}),
            seed=0,
            checkpoint=tmp_path / f"{on}.pt",
        )
        for pipe, on in zip(pipes, (False, True), strict=True)
    )
    assert traced and counted == operations
    assert [loss for _, loss, _ in compiled] == pytest.approx([loss for _, loss, _ in plain], rel=1e-4)
    torch.testing.assert_close(weights(pipes[1]), weights(pipes[0]), rtol=0, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("tiny_model", ["v_prediction"], indirect=True)
def test_generated_code_learns_the_same(tiny_model, tmp_path):
    """As it runs with profile gpu, but on the CPU: by torch's own compiler."""
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE)
    pipes = [latent_diffusion.load(tiny_model) for _ in range(2)]
    for pipe, on in zip(pipes, (False, True), strict=True):
        finetuning.finetune(
            pipe,
            finetuning.Lessons(mean, std, texts),
            p.model_copy(update={"compile": on}),
            seed=0,
            checkpoint=tmp_path / f"{on}.pt",
        )
    torch.testing.assert_close(weights(pipes[1]), weights(pipes[0]), rtol=0, atol=1e-4)


def test_compiling_without_a_compiler_is_told(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(compile=True))
    with pytest.raises(UserError, match="finetune.compile"):
        finetuning.finetune(
            latent_diffusion.load(tiny_model),
            finetuning.Lessons(mean, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / "c.pt",
        )


def test_no_epochs_leave_the_base_as_it_is(tiny_model, tmp_path):
    mean, std, texts = data()
    pipe = latent_diffusion.load(tiny_model)
    before = weights(pipe).clone()
    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(epochs=0))
    assert finetuning.finetune(pipe, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "c.pt") == (
        [],
        0,
    )
    assert torch.equal(weights(pipe), before)


def test_text_encoder_is_trained_by_param_alone_and_learns_a_new_token(tiny_model, tmp_path):
    mean, std, texts = data()
    frozen, trained = latent_diffusion.load(tiny_model), latent_diffusion.load(tiny_model)
    rows = len(frozen.tokenizer)
    before = frozen.text_encoder.get_input_embeddings().weight.clone()
    finetuning.finetune(
        frozen,
        finetuning.Lessons(mean, std, texts),
        section("finetune", finetuning.Finetune, **FINETUNE),
        seed=0,
        checkpoint=tmp_path / "a.pt",
    )
    assert torch.equal(frozen.text_encoder.get_input_embeddings().weight, before)

    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(train_text_encoder=True))
    texts = [f"{text} <site-a>" for text in texts]
    finetuning.finetune(
        trained, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "b.pt", token="<site-a>"
    )
    assert len(trained.tokenizer) == rows + 1
    mri = trained.tokenizer("mri", add_special_tokens=False).input_ids
    moved = trained.text_encoder.get_input_embeddings().weight[-1] - before[mri].mean(0)
    assert 0 < moved.abs().max() < 0.1


def test_a_token_that_is_there_keeps_what_it_has_learnt(tiny_model):
    pipe = latent_diffusion.load(tiny_model)
    finetuning.add_token(pipe, "<site-a>")
    table = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[-1] += 1
    before = table[-1].clone()
    finetuning.add_token(pipe, "<site-a>")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[-1], before)


def test_a_token_that_no_prompt_holds_is_refused(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(train_text_encoder=True))
    with pytest.raises(UserError, match="no prompt holds it; write {token} into prompt.template"):
        finetuning.finetune(
            latent_diffusion.load(tiny_model), finetuning.Lessons(mean, std, texts), p, seed=0,
            checkpoint=tmp_path / "c.pt", token="<site-a>",
        )  # fmt: skip


def test_token_without_training_is_refused(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE)
    with pytest.raises(UserError, match="train_text_encoder"):
        finetuning.finetune(
            latent_diffusion.load(tiny_model),
            finetuning.Lessons(mean, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / "c.pt",
            token="<site-a>",
        )


def test_what_is_dropped_is_the_label_alone(tiny_model, tmp_path, monkeypatch):
    mean, std, _ = data()
    texts = [f"{label} T1w axial" for label in ("lesions", "none") * 3]
    p = section("finetune", finetuning.Finetune, **FINETUNE | dict(epochs=8, cond_drop_prob=0.5, batch_size=3))
    pipe, seen, places = latent_diffusion.load(tiny_model), [], []

    def loss(unet, x0, scheduler, generator, *, encoder_hidden_states, emphasis, **rest):
        seen.extend(encoder_hidden_states)
        places.append(emphasis)
        return sum(weight.sum() for weight in unet.parameters()) * 0.0

    monkeypatch.setattr(denoising_loss, "loss", loss)
    latent_diffusion.mark_labels(pipe, ["none", "lesions", "unknown", ""])

    def emphasis(rows, view, generator):
        return torch.full((len(rows), 1, 1, 1), 2.0)

    lessons = finetuning.Lessons(mean, std, texts, emphasis)
    finetuning.finetune(pipe, lessons, p, seed=0, checkpoint=tmp_path / "d.pt")
    kinds = dict(zip(("lesions", "none", ""), latent_diffusion.embed(pipe, [*texts[:2], "T1w axial"]), strict=True))
    counts = {name: sum(torch.equal(state, kind) for state in seen) for name, kind in kinds.items()}
    assert sum(counts.values()) == len(seen) == 48 and min(counts.values()) > 5 and counts[""] > 15
    assert all((each == 2).all() for each in places)


def test_divergence_is_told_and_writes_no_checkpoint(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **FINETUNE)
    with pytest.raises(UserError, match="finetune.learning_rate"):
        finetuning.finetune(
            latent_diffusion.load(tiny_model),
            finetuning.Lessons(mean * np.nan, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / "c.pt",
        )
    assert not (tmp_path / "c.pt").exists()


# adapters ------------------------------------------------------------------------------------------------------------


LORA = FINETUNE | dict(
    method="lora", lora=finetuning.Lora(rank=2, alpha=6.0, targets=("to_q", "to_v", "conv1")), epochs=4
)


def adapted(model, tmp_path, **change):
    """A pipeline fine-tuned by adapters that are not yet added to its weights."""
    mean, std, texts = data()
    pipe = latent_diffusion.load(model)
    p = section("finetune", finetuning.Finetune, **LORA | change)
    history, _ = finetuning.finetune(
        pipe, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "c.pt"
    )
    return pipe, history


def pictures(pipe):
    p = section("sample", sampling.Sample, **SAMPLE)
    return latent_diffusion.draw(pipe, ["T1w axial brain MRI"] * 2, [1, 2], p, size=64)[:, 0].astype(int)


@pytest.mark.parametrize("text", [False, True])
def test_adapters_are_the_difference_between_base_and_fused_model(tiny_model, tmp_path, text):
    """Loaded on the base by plain diffusers, the saved adapters draw what the fused pipeline draws."""
    from diffusers import StableDiffusionPipeline

    base = latent_diffusion.load(tiny_model)
    fused, _ = adapted(tiny_model, tmp_path, train_text_encoder=text, learning_rate=0.01)
    learned = pictures(fused)
    adapters = finetuning.fuse(fused)
    assert set(adapters) == ({"unet", "text_encoder"} if text else {"unet"})
    assert fused.unet.state_dict().keys() == base.unet.state_dict().keys()  # a plain pipeline again
    fused.save_lora_weights(tmp_path / "lora", adapters["unet"], adapters.get("text_encoder"))
    assert [file.name for file in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]

    plain = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(tmp_path / "lora")
    assert np.abs(pictures(fused) - learned).max() <= 1
    assert np.abs(pictures(plain) - learned).max() <= 1
    assert np.abs(pictures(base) - learned).max() > 1


def test_adapters_alone_are_trained(tiny_model, tmp_path):
    base, (pipe, _) = latent_diffusion.load(tiny_model), adapted(tiny_model, tmp_path)
    before = base.unet.state_dict()
    for name, weight in pipe.unet.state_dict().items():
        if "lora" not in name:
            assert torch.equal(weight, before[name.replace("base_layer.", "")]), name
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["network"] and all("lora" in name for name in state["network"])


def test_adapters_learn(tiny_model, tmp_path):
    pipe = latent_diffusion.load(tiny_model)
    mean = np.zeros((8, 1, 4, 8, 8), np.float32)
    lora = finetuning.Lora(rank=8, alpha=16.0, targets=("conv_in", "conv_out", "conv1", "conv2"))
    p = section("finetune", finetuning.Finetune, **LORA | dict(lora=lora, epochs=60, batch_size=8, learning_rate=0.01))
    history, _ = finetuning.finetune(
        pipe, finetuning.Lessons(mean, mean, [""] * 8), p, seed=0, checkpoint=tmp_path / "c.pt"
    )
    losses = [loss for _, loss, _ in history]
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:4])


def test_a_killed_run_of_adapters_ends_like_an_undisturbed_one(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **LORA)
    whole, half = latent_diffusion.load(tiny_model), latent_diffusion.load(tiny_model)
    shown = []
    full, _ = finetuning.finetune(
        whole, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "a.pt", snapshot=shown.append
    )
    assert shown == [0, 1, 2, 3, 4]

    def kill(step, loss, rate):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetuning.finetune(
            latent_diffusion.load(tiny_model),
            finetuning.Lessons(mean, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / "b.pt",
            tick=kill,
        )
    torch.manual_seed(5)  # the state of torch's own generator must not matter
    again, _ = finetuning.finetune(half, finetuning.Lessons(mean, std, texts), p, seed=0, checkpoint=tmp_path / "b.pt")
    finetuning.fuse(whole), finetuning.fuse(half)
    assert again == full and torch.equal(weights(whole), weights(half))


def test_layers_that_are_not_there_are_told(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"(?s)finetune.lora.targets = \['to_w'\].*conv1.*to_out\.0.*to_q"):
        adapted(tiny_model, tmp_path, lora=finetuning.Lora(rank=2, alpha=2.0, targets=("to_w",)))


def test_adapters_take_no_new_token(tiny_model, tmp_path):
    mean, std, texts = data()
    p = section("finetune", finetuning.Finetune, **LORA | dict(train_text_encoder=True))
    with pytest.raises(UserError, match="finetune.method"):
        finetuning.finetune(
            latent_diffusion.load(tiny_model),
            finetuning.Lessons(mean, std, texts),
            p,
            seed=0,
            checkpoint=tmp_path / "c.pt",
            token="<site-a>",
        )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_stage_writes_a_pipeline_of_the_size_of_the_data(tiny_model, tmp_path, monkeypatch, method):
    """Of a checkpoint made for 512 px, with the adapters beside the weights; the second time the same bytes."""
    from diffusers import StableDiffusionPipeline

    from stages import _files, base, finetune
    from synthmri import imageset

    source = layout(tiny_model, tmp_path / "source")
    config = json.loads((source / "unet/config.json").read_text()) | {"sample_size": 64}
    (source / "unet/config.json").write_text(json.dumps(config))
    tree = YAML().load(Path("params.yaml"))
    lora = {"rank": 2, "alpha": 2.0, "targets": ["to_q"]}
    change = {"base_model": str(source), "method": method, "lora": lora}
    tree["finetune"].update(FINETUNE | change)
    tree["runtime"]["precision"] = "fp32"
    tree["progression"].update({"n": 4, "points": 1})
    YAML().dump(tree, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    mean, std, _ = data()
    rows = pd.DataFrame({"subject": list("abcdef"), "contrast": "T1w", "plane": "axial"})
    imageset.write(Path("train"), imageset.ImageSet(np.zeros((6, 64, 64), np.uint8), rows))
    rng = np.random.default_rng(0)
    imageset.write(Path("val"), imageset.ImageSet(rng.integers(0, 255, (6, 64, 64)).astype(np.uint8), rows))
    for name in ("latents", "features"):
        Path(name).mkdir()
    np.save("features/effnet.npy", rng.random((6, 1280)).astype(np.float32))
    np.save("latents/mean.npy", mean)
    np.save("latents/std.npy", std)
    base.main(Path("base"))

    def train(out):
        finetune.main(
            images=Path("train"), validation=Path("val"), validation_features=Path("features"), latents=Path("latents"),
            base=Path("base"), vae=Path("base/vae"), out=out,
            log=out.with_suffix(".csv"), snapshots=out.with_suffix(".npy"), effort=out.with_suffix(".json"),
            checkpoints=Path(f"ckpt_{out}"),
        )  # fmt: skip

    train(Path("first"))
    pipe = StableDiffusionPipeline.from_pretrained("first", safety_checker=None)
    assert pipe("T1w axial brain MRI", num_inference_steps=2).images[0].size == (64, 64)
    adapters = [str(file) for file in Path("first/lora").glob("*")]
    assert adapters == (["first/lora/pytorch_lora_weights.safetensors"] if method == "lora" else [])
    effort = json.loads(Path("first.json").read_text())
    assert effort["precision"] == "fp32"
    assert (effort["trained_parameters"] < 0.05 * effort["parameters"]) == (method == "lora")
    train(Path("second"))
    assert _files.digest(Path("first")) == _files.digest(Path("second"))


# sampling ------------------------------------------------------------------------------------------------------------


def draw(model, seeds, precision="fp32", **change):
    p = section("sample", sampling.Sample, **SAMPLE | change)
    return latent_diffusion.draw(
        latent_diffusion.load(model), ["T1w axial brain MRI"] * len(seeds), seeds, p, size=64, precision=precision
    )[:, 0]


@pytest.mark.parametrize("scheduler", ["sde-dpmsolver++", "dpmsolver++"])  # one draws noise at every step, one does not
def test_image_depends_on_its_seed_alone(tiny_model, scheduler):
    five = draw(tiny_model, [1, 2, 3, 4, 5], scheduler=scheduler)
    np.testing.assert_array_equal(five[[3, 0]], draw(tiny_model, [4, 1], scheduler=scheduler))
    np.testing.assert_array_equal(five[2:3], draw(tiny_model, [3], scheduler=scheduler))
    assert (five[0] != five[1]).mean() > 0.1
    other = draw(tiny_model, [1, 2, 3, 4, 5], scheduler=scheduler, batch_size=5).astype(int)
    assert np.abs(other - five).max() <= 1  # another batch size may round one grey level otherwise, no more


def test_equals_the_plain_pipeline(tiny_model):
    """Sampling is diffusers' own, with the schedule and prediction type of the checkpoint."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    kind = pipe.scheduler.config.prediction_type
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert pipe.scheduler.config.prediction_type == kind == tiny_model.name
    expected = pipe(
        "T1w axial brain MRI", generator=torch.Generator().manual_seed(7), num_inference_steps=3, guidance_scale=1.0,
        height=64, width=64, output_type="np",
    ).images[0].mean(-1)  # fmt: skip
    assert np.abs(draw(tiny_model, [7])[0] / 255 - expected).max() < 2 / 255


@pytest.mark.parametrize("scheduler", ["sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm", "euler"])
def test_every_scheduler_draws(tiny_model, scheduler):
    assert draw(tiny_model, [1], scheduler=scheduler).std() > 0


def test_bfloat16_draws_nearly_the_same(tiny_model):
    """Seen: 0.2 (v) and 0.4 (epsilon) grey levels on average, 3 at most."""
    plain, quick = (draw(tiny_model, [0, 1], each).astype(float) for each in ("fp32", "bf16"))
    assert 0 < np.abs(plain - quick).mean() < 2


def test_guidance_changes_the_image(tiny_model):
    assert (draw(tiny_model, [1], guidance_scale=1.0) != draw(tiny_model, [1], guidance_scale=7.0)).any()


def test_guidance_is_against_the_prompt_without_its_label(tiny_model):
    """As the plain pipeline does it when it is told that prompt; and against an empty one where no label is named."""
    from diffusers import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe = latent_diffusion.load(tiny_model)
    p = sampling.Sample(n=1, seed=0, steps=3, guidance_scale=5.0, scheduler="ddim", batch_size=2)
    texts = ["lesions T1w axial", "T2w axial"]
    latent_diffusion.mark_labels(pipe, ["lesions", "none"])
    drawn = latent_diffusion.draw(pipe, texts, [3, 4], p, size=64)[:, 0]
    plain.scheduler = latent_diffusion.new_scheduler(plain, "ddim")
    for image, text, bare, seed in zip(drawn, texts, ["T1w axial", ""], (3, 4), strict=True):
        expected = plain(
            text, negative_prompt=bare, generator=torch.Generator().manual_seed(seed), num_inference_steps=3,
            guidance_scale=5.0, height=64, width=64, output_type="np",
        ).images[0].mean(-1)  # fmt: skip
        assert np.abs(image / 255 - expected).max() < 2 / 255


def test_labels_stay_with_the_model(tiny_model, tmp_path):
    pipe = latent_diffusion.load(tiny_model)
    assert list(latent_diffusion.labels(pipe)) == []
    latent_diffusion.mark_labels(pipe, ["tumour", "none", "", "unknown", "none"])
    pipe.save_pretrained(tmp_path / "tuned", safe_serialization=True)
    assert list(latent_diffusion.labels(latent_diffusion.load(tmp_path / "tuned"))) == ["none", "tumour"]


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("lesions FLAIR axial brain MRI, level 6", "FLAIR axial brain MRI, level 6"),
        ("FLAIR axial brain MRI, level 6, none", "FLAIR axial brain MRI, level 6"),
        ("high-grade glioma, FLAIR", "FLAIR"),
        ("nonesuch FLAIR", ""),
        ("FLAIR axial", ""),
        ("none", ""),
        ("", ""),
    ],
)
def test_a_prompt_without_its_label(text, bare):
    assert sampling.unlabelled(text, ["none", "lesions", "glioma", "high-grade glioma"]) == bare
    assert sampling.unlabelled(text, []) == ""
