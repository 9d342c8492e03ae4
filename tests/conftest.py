"""Tests run in the repository's root, where params.yaml stands."""

import os
import shutil
import sys
from pathlib import Path

# Before numpy and torch read them: tests run side by side, and a thread that waits must not keep a core from others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `dvc` and `python`


# The longest first, for workers that take a file at a time: at the end each has about as much left as the other.
LONG = [
    f"test_{name}.py"
    for name in ("pipeline", "registry", "interruption", "parallel", "sharing", "ldm", "workers", "benchmarks")
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def copy_parameters(folder: Path) -> None:
    """params.yaml, and those of the simulation, into another folder."""
    for name in ("params.yaml", "data/cohort.yaml", "pretrained/params.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SYNTHMRI_WORKERS", "1")
    monkeypatch.setenv("SYNTHMRI_CLUSTER", "")
    yield
    torch.set_num_threads(1)  # stages set what their parameters say
    if "accelerate" in sys.modules:  # it keeps the precision of a process's first training for all that follow
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def tiny_model(request, tmp_path_factory):
    """A random pipeline in the layout of Stable Diffusion: KL autoencoder (f8), UNet, CLIP, DDPM-style scheduler."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from synthmri.simulation.pretraining import new_tokenizer

    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    blocks = 4
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8,) * blocks, norm_num_groups=4, latent_channels=4, scaling_factor=0.18215,
            sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        ),
        unet=UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
            norm_num_groups=8, cross_attention_dim=16, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True,
            set_alpha_to_one=False, prediction_type=request.param,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / request.param
    pipe.save_pretrained(folder)
    return folder
