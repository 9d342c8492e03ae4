"""Pretraining at its smallest: it runs, resumes to the same weights, and writes what plain diffusers opens."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_parameters

from commands import draw
from stages import _cli, _files
from synthmri import generators, imageset, params, streams
from synthmri.errors import UserError
from synthmri.simulation import pretraining
from synthmri.training import loop


@pytest.fixture(scope="module")
def run():
    whole = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    autoencoder = whole.autoencoder.model_copy(
        update=dict(
            width=8, encoder_blocks=(0, 1, 0, 1), decoder_blocks=(1, 0, 1, 0), steps=4, batch_size=2, crop_px=64
        )
    )
    unet = whole.unet.model_copy(
        update=dict(channels=(16, 32), text_width=16, text_layers=1, steps=4, batch_size=2, reuse=2)
    )
    return whole.model_copy(update=dict(image_size=64, checkpoint_steps=2, autoencoder=autoencoder, unet=unet))


def l2(x, y):
    return (x - y).square().mean()


def write_heads(run, folder):
    heads = pretraining.draw_heads(run, 12, streams.generator(0))
    imageset.write(folder, imageset.ImageSet(heads.images, heads.manifest, draw.drawn_by(run)))
    return folder


class Killed(Exception):
    pass


def kill_at(step):
    def tick(done, loss, rate):
        if done == step:
            raise Killed

    return tick


def flat(module):
    return torch.cat([w.detach().flatten() for w in module.parameters()])


def test_both_parts_resume_to_the_same_weights_and_load_as_a_pipeline(run, tmp_path):
    from diffusers import StableDiffusionPipeline

    vaes, pipes, tokenizer = [], [], pretraining.new_tokenizer()
    heads = pretraining.draw_heads(run, 12, streams.generator(0))
    for name in ("whole", "killed"):
        for fit in ("autoencoder", "unet"):
            for attempt in range(2):
                tick = kill_at(2) if name == "killed" and attempt == 0 else lambda step, loss, rate: None
                path = tmp_path / f"{name}-{fit}.pt"
                try:
                    if fit == "autoencoder":
                        vae, _ = pretraining.fit_autoencoder(run.autoencoder, run, l2, path, "cpu", tick)
                    else:
                        pipe = pretraining.new_pipeline(run, vae, tokenizer)
                        pretraining.fit_unet(pipe, heads, run, path, "cpu", tick)
                except Killed:
                    continue
                break
        vaes.append(vae)
        pipes.append(pipe)
    assert torch.equal(flat(vaes[0]), flat(vaes[1]))
    assert torch.equal(flat(pipes[0].unet), flat(pipes[1].unet))

    z = torch.cat([pipes[0].vae.encode(pretraining.rgb(torch.rand(4, 64, 64))).latents])
    assert torch.isfinite(z).all()
    _files.save_pipeline(pipes[0], tmp_path / "pipe", half=True)
    back = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", safety_checker=None)
    assert back.scheduler.config.prediction_type == "v_prediction"
    assert back("T1w axial brain MRI", num_inference_steps=2).images[0].size == (64, 64)


def test_training_goes_on_from_a_pipeline_and_the_decoder_alone_keeps_its_latents(run, tmp_path, monkeypatch):
    import yaml

    from commands import pretrain as stage
    from synthmri.generators import latent_diffusion
    from synthmri.training import perceptual

    vae = pretraining.new_autoencoder(run.autoencoder)
    _files.save_pipeline(pretraining.new_pipeline(run, vae, pretraining.new_tokenizer()), tmp_path / "old", half=True)
    copy_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(perceptual, "lpips_model", lambda device: l2)
    _cli.PRETRAINING.write_text(yaml.safe_dump({"pretrain": run.model_dump(mode="json")}), encoding="utf-8")
    changed, _ = {}, write_heads(run, tmp_path / "heads")
    for part in ("decoder", "unet"):
        stage.main(
            out=tmp_path / part, part=part, start=tmp_path / "old", checkpoints=tmp_path / "checkpoints",
            images=tmp_path / "heads",
        )  # fmt: skip
        old, new = latent_diffusion.load(tmp_path / "old"), latent_diffusion.load(tmp_path / part)
        pieces = {"encoder": "vae.encoder", "decoder": "vae.decoder", "unet": "unet", "text": "text_encoder"}
        changed[part] = {
            name
            for name, where in pieces.items()
            if not torch.equal(flat(attribute(old, where)), flat(attribute(new, where)))
        }
    assert changed == {"decoder": {"decoder"}, "unet": {"unet", "text"}}
    with pytest.raises(UserError, match="--part decoder needs --start"):
        stage.main(out=tmp_path / "none", part="decoder", start=None, checkpoints=tmp_path / "checkpoints")


def test_a_unet_is_trained_on_the_latents_of_its_autoencoder(run, tmp_path, monkeypatch):
    """Longer training of the autoencoder moves its latents: a UNet of the old ones must not stand beside it."""
    import yaml

    from commands import pretrain as stage
    from synthmri.generators import latent_diffusion
    from synthmri.training import perceptual

    monkeypatch.setattr(perceptual, "lpips_model", lambda device: l2)
    copy_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)

    def pretrained(steps, **how):
        longer = run.model_copy(update={"autoencoder": run.autoencoder.model_copy(update={"steps": steps})})
        _cli.PRETRAINING.write_text(yaml.safe_dump({"pretrain": longer.model_dump(mode="json")}), encoding="utf-8")
        stage.main(
            out=tmp_path / "base", start=None, checkpoints=tmp_path / "checkpoints", images=tmp_path / "heads", **how
        )
        return flat(latent_diffusion.load(tmp_path / "base").unet)

    write_heads(run, tmp_path / "heads")
    first = pretrained(4)
    with pytest.raises(UserError, match="has 4 of pretrain.autoencoder.steps = 8; finish it with --part autoencoder"):
        pretrained(8, part="unet")
    assert not torch.equal(first, pretrained(8))
    effort = _files.read_json(tmp_path / "base/pretraining.json")
    assert effort["images_seen"] == 4 * 2 and effort["teraflop"] > 0
    (tmp_path / "models").mkdir()
    (tmp_path / "models/vae.safetensors").write_bytes(b"trained")
    with pytest.raises(UserError, match="models holds something else than a pipeline"):
        stage.main(out=tmp_path / "models", start=None, checkpoints=tmp_path / "checkpoints")


def test_a_training_that_was_killed_keeps_its_tokenizer(run, tmp_path, monkeypatch):
    """Learnt once more it may number pieces otherwise, and the embeddings that were trained would be of other words."""
    import yaml

    from commands import pretrain as stage
    from synthmri.generators import latent_diffusion
    from synthmri.training import perceptual

    monkeypatch.setattr(perceptual, "lpips_model", lambda device: l2)
    copy_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)
    _cli.PRETRAINING.write_text(yaml.safe_dump({"pretrain": run.model_dump(mode="json")}), encoding="utf-8")
    write_heads(run, tmp_path / "heads")
    whole, learnt, fit = pretraining.new_tokenizer, [], pretraining.fit_unet

    def learn():
        assert not learnt, "it was learnt before"
        learnt.append(whole())
        return learnt[0]

    def killed(*given, **how):
        raise Killed

    monkeypatch.setattr(pretraining, "new_tokenizer", learn)
    monkeypatch.setattr(pretraining, "fit_unet", killed)
    how = dict(out=tmp_path / "base", start=None, checkpoints=tmp_path / "checkpoints", images=tmp_path / "heads")
    with pytest.raises(Killed):
        stage.main(**how)
    monkeypatch.setattr(pretraining, "fit_unet", fit)
    stage.main(**how)
    assert latent_diffusion.load(tmp_path / "base").tokenizer.get_vocab() == learnt[0].get_vocab()


def test_an_autoencoder_is_a_folder_of_its_own_that_training_and_a_unet_start_from(run, tmp_path, monkeypatch):
    import yaml

    from commands import pretrain as stage
    from synthmri.generators import autoencoder, latent_diffusion
    from synthmri.training import perceptual

    monkeypatch.setattr(perceptual, "lpips_model", lambda device: l2)
    copy_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)
    _cli.PRETRAINING.write_text(yaml.safe_dump({"pretrain": run.model_dump(mode="json")}), encoding="utf-8")
    settings = dict(images=write_heads(run, tmp_path / "heads"), checkpoints=tmp_path / "checkpoints")
    stage.main(**settings, part="autoencoder", start=None)
    first = tmp_path / "pretrained/autoencoder"
    stage.main(**settings, part="autoencoder", start=first, out=tmp_path / "second")
    one, two = (_files.read_json(folder / "pretraining.json") for folder in (first, tmp_path / "second"))
    assert one["images_seen"] == 0 and two["teraflop"] == pytest.approx(2 * one["teraflop"])
    assert not torch.equal(flat(autoencoder.load(first)), flat(autoencoder.load(tmp_path / "second")))
    stage.main(**settings, part="unet", start=tmp_path / "second", out=tmp_path / "base")
    pipe = latent_diffusion.load(tmp_path / "base")
    assert torch.equal(flat(pipe.vae), flat(autoencoder.load(tmp_path / "second")))
    assert _files.read_json(tmp_path / "base/pretraining.json")["teraflop"] > two["teraflop"]
    with pytest.raises(UserError, match="heads is no pipeline; name a pipeline"):
        stage.main(**settings, part="unet", start=tmp_path / "heads")
    with pytest.raises(UserError, match="heads holds something else than an autoencoder"):
        stage.main(**settings, part="autoencoder", start=None, out=tmp_path / "heads")


def test_a_baseline_is_pretrained_on_the_drawn_slices_and_goes_on_from_its_weights(run, tmp_path, monkeypatch):
    import yaml

    from commands import pretrain as stage
    from synthmri.generators import dcgan

    small = {"width": 4, "latent_dim": 4, "steps": 6, "batch_size": 2}
    tree = {"pretrain": run.model_dump(mode="json"), "baselines": {"dcgan": small | {"learning_rate": 1e-3}}}
    copy_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)
    _cli.PRETRAINING.write_text(yaml.safe_dump(tree), encoding="utf-8")
    settings = dict(model="dcgan", images=write_heads(run, tmp_path / "heads"), checkpoints=tmp_path / "checkpoints")
    stage.main(**settings)
    out = tmp_path / "pretrained/dcgan"
    names = ["config.json", "discriminator.safetensors", "model.safetensors", "pretraining.json"]
    assert [file.name for file in sorted(out.iterdir())] == names
    first = dcgan.DCGAN.load(out)
    assert list((tmp_path / "checkpoints").glob("dcgan-*-20.png"))
    stage.main(**settings, start=out, out=tmp_path / "longer")
    longer = _files.read_json(tmp_path / "longer/pretraining.json")
    assert longer["images_seen"] == 24
    assert longer["teraflop"] == pytest.approx(2 * _files.read_json(out / "pretraining.json")["teraflop"])
    assert not torch.equal(flat(first.network), flat(dcgan.DCGAN.load(tmp_path / "longer").network))

    tree["pretrain"]["seed"] = 1
    _cli.PRETRAINING.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(UserError, match=r"heads was drawn by other settings than pretrain.seed"):
        stage.main(**settings)
    with pytest.raises(UserError, match="`synthmri draw` draws the slices"):
        stage.main(**settings | {"images": tmp_path / "nowhere"})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="models holds something else than a model"):
        stage.main(**settings, out=tmp_path / "models")


@pytest.mark.parametrize("name", [name for name in generators.GENERATORS if name != "latent_diffusion"])
def test_a_baseline_begins_with_the_weights_that_lie_here(name):
    """Those of its discriminator too, which are drawn from nothing but its own section."""
    run = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain)
    p = params.read(_cli.PRETRAINING, f"baselines.{name}", generators.find(name).Params)
    folder = Path("pretrained") / name
    model = generators.find(name).untrained(p, run.image_size, seed=0, image_px=run.baselines_px)
    parts, _ = model.learner(p, lambda generator: None, seed=0, precision="fp32")
    beside = {key: part for key, part in parts.items() if isinstance(part, torch.nn.Module)}
    before = flat(model.network).clone()
    model._begin(folder, {"model": model.network} | beside)
    assert not torch.equal(flat(model.network), before) and flat(model.network).isfinite().all()
    effort = _files.pretraining(folder)
    assert effort["pretraining_images_seen"] > 0 and effort["pretraining_teraflop"] > 0


def test_the_weights_that_lie_here_are_small():
    sizes = [file.stat().st_size / 1e6 for file in Path("pretrained").rglob("*") if file.is_file()]
    assert sum(sizes) < 60 and max(sizes) < 16


def attribute(module, path):
    for name in path.split("."):
        module = getattr(module, name)
    return module


def test_tokenizer_is_clips_and_knows_the_words(tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = pretraining.new_tokenizer()
    words = tokenizer.tokenize("FLAIR axial brain MRI, level 12")
    assert words == ["flair</w>", "axial</w>", "brain</w>", "mri</w>", ",</w>", "level</w>", "1</w>", "2</w>"]
    tokenizer.save_pretrained(tmp_path)
    back = CLIPTokenizer.from_pretrained(tmp_path)
    text = "Zürich, sub-042: any other text"
    assert back(text).input_ids == tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(
        " ", ""
    ) == text.lower().replace(" ", "")


def test_a_compiled_unet_learns_the_same(run, tmp_path, monkeypatch):
    """Through dynamo and autograd, without the code generation that wants minutes."""
    traced, tokenizer = [], pretraining.new_tokenizer()
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend=lambda graph, inputs: traced.append(1) or graph)
    )
    heads, pipes, operations = pretraining.draw_heads(run, 12, streams.generator(0)), [], []
    for on in (False, True):
        each = run.model_copy(update={"unet": run.unet.model_copy(update={"compile": on})})
        with streams.weights(0):
            vae = pretraining.new_autoencoder(each.autoencoder).eval()
        pipes.append(pretraining.new_pipeline(each, vae, tokenizer))
        operations.append(pretraining.fit_unet(pipes[-1], heads, each, tmp_path / f"{on}.pt", "cpu", lambda *_: None))
    assert traced and operations[0] == operations[1]
    torch.testing.assert_close(flat(pipes[1].unet), flat(pipes[0].unet), rtol=0, atol=1e-4)
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="pretrain.unet.compile = true needs a C.. compiler"):
        pretraining.fit_unet(pipes[1], heads, each, tmp_path / "c.pt", "cpu", lambda *_: None)


def test_prompts_name_what_was_drawn(run):
    p = run.unet.model_copy(update=dict(batch_size=120, cond_drop_prob=0.2))
    heads = pretraining.draw_heads(run.model_copy(update={"image_size": 16}), 120, streams.generator(0))
    images, prompts = pretraining.prompted(heads, p, streams.generator(0))
    assert images.shape == (120, 16, 16) and images.dtype == np.uint8 and images.std() > 10
    assert 10 < prompts.count("") < 40
    named = re.compile(
        r"((?P<label>none|lesions|tumour|glioma|meningioma|pituitary) )?"
        r"(T1w|T2w|FLAIR|T1ce|PD) (?P<plane>axial|coronal|sagittal) brain MRI(?P<level>, level \d+)?"
    )
    full = [named.fullmatch(text) for text in prompts if text]
    assert all(full)
    levels, labels = (sum(bool(found[part]) for found in full) for part in ("level", "label"))
    assert 0.65 < levels / len(full) < 0.93 and 0.65 < labels / len(full) < 0.93
    assert {found["plane"] for found in full} == {"axial", "coronal", "sagittal"}


def test_template_of_the_base_is_that_of_the_pipeline_and_its_words_are_known(run):
    from synthmri.scans.prompts import Prompt
    from synthmri.simulation import lesions, slices

    assert run.unet.template == params.read("params.yaml", "prompt", Prompt).template
    tokenizer = pretraining.new_tokenizer()
    words = {*slices.PLANES, *slices.VISIBLE_MM2, "FLAIR", "PD", "none"}
    words |= {lesions.WORDS.get(kind, kind) for kind in lesions.KINDS}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
