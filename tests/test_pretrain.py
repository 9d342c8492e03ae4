"""Pretraining at its smallest: it runs, resumes to the same weights, and writes what plain diffusers opens."""

import pytest
import torch

from stages import common
from synthmri import params, pretrain


@pytest.fixture(scope="module")
def run():
    whole = params.read("params.yaml", "pretrain", pretrain.Pretrain)
    autoencoder = whole.autoencoder.model_copy(update=dict(width=8, blocks=1, steps=4, batch=2, crop_px=64))
    unet = whole.unet.model_copy(
        update=dict(channels=(16, 32), text_width=16, text_layers=1, steps=4, batch=2, reuse=2)
    )
    return whole.model_copy(
        update=dict(image_size=64, checkpoint_steps=2, bf16=False, autoencoder=autoencoder, unet=unet)
    )


def l2(x, y):
    return (x - y).square().mean()


class Killed(Exception):
    pass


def kill_at(step):
    def tick(done, loss):
        if done == step:
            raise Killed

    return tick


def flat(module):
    return torch.cat([w.detach().flatten() for w in module.parameters()])


def test_both_parts_resume_to_the_same_weights_and_load_as_a_pipeline(run, tmp_path):
    from diffusers import StableDiffusionPipeline

    vaes, pipes, tokenizer = [], [], pretrain.new_tokenizer()
    for name in ("whole", "killed"):
        for fit in ("autoencoder", "unet"):
            for attempt in range(2):
                tick = kill_at(2) if name == "killed" and attempt == 0 else lambda step, loss: None
                path = tmp_path / f"{name}-{fit}.pt"
                try:
                    if fit == "autoencoder":
                        vae = pretrain.fit_autoencoder(run.autoencoder, run, l2, path, "cpu", tick)
                    else:
                        pipe = pretrain.fit_unet(run, vae, tokenizer, path, "cpu", tick)
                except Killed:
                    continue
                break
        vaes.append(vae)
        pipes.append(pipe)
    assert torch.equal(flat(vaes[0]), flat(vaes[1]))
    assert torch.equal(flat(pipes[0].unet), flat(pipes[1].unet))

    z = torch.cat([pipes[0].vae.encode(pretrain.rgb(torch.rand(4, 64, 64))).latents])
    assert torch.isfinite(z).all()
    common.save_pipeline(pipes[0], tmp_path / "pipe", half=True)
    back = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", safety_checker=None)
    assert back.scheduler.config.prediction_type == "v_prediction"
    assert back("T1w axial brain MRI", num_inference_steps=2).images[0].size == (64, 64)


def test_tokenizer_is_clips_and_knows_the_words(tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = pretrain.new_tokenizer()
    words = tokenizer.tokenize("FLAIR axial brain MRI, level 12")
    assert words == ["flair</w>", "axial</w>", "brain</w>", "mri</w>", ",</w>", "level</w>", "1</w>", "2</w>"]
    tokenizer.save_pretrained(tmp_path)
    back = CLIPTokenizer.from_pretrained(tmp_path)
    text = "Zürich, sub-042: any other text"
    assert back(text).input_ids == tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(
        " ", ""
    ) == text.lower().replace(" ", "")


def test_prompts_name_what_was_drawn(run):
    from synthmri import anatomy, training

    p = run.unet.model_copy(update=dict(batch=200, empty_prompt=0.2))
    images, prompts = pretrain.unet_images(anatomy.load_atlas(), p, 16, training.step_generator(0, 0))
    assert images.shape == (200, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert 20 < prompts.count("") < 60
    assert all(t == "" or t.startswith(("T1w axial", "T2w axial", "FLAIR axial")) for t in prompts)
