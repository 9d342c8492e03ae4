"""The autoencoder, on the tiny random pipelines and on a tiny AutoencoderTiny: both kinds there are."""

import numpy as np
import pytest
import torch

from synthmri import params
from synthmri.errors import UserError
from synthmri.evaluation import pairs
from synthmri.generators import autoencoder, autoencoder_training, latent_diffusion


def section(**change):
    small = dict(steps=3, batch_size=2)
    return params.read("params.yaml", "adapt", autoencoder_training.Adapt).model_copy(update=small | change)


def images(n=3, size=64):
    return np.random.default_rng(0).integers(0, 256, (n, size, size), dtype=np.uint8)


def l2(x, y):
    return (x - y).square().mean()


def flat(module):
    return torch.cat([w.detach().flatten() for w in module.parameters()])


@pytest.fixture
def tiny():
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    )  # fmt: skip


@pytest.fixture(params=["kl", "tiny"])
def vae(request, tiny, tiny_model):
    return latent_diffusion.load(tiny_model).vae if request.param == "kl" else tiny


def test_encode_gives_the_posterior_and_not_a_sample(tiny_model):
    vae = latent_diffusion.load(tiny_model).vae
    mean, std = autoencoder.encode(vae, images(), batch_size=2)
    again, _ = autoencoder.encode(vae, images(), batch_size=3)
    np.testing.assert_allclose(mean, again, atol=1e-5)
    with torch.no_grad():
        posterior = vae.encode(autoencoder.to_tensor(images())).latent_dist
    np.testing.assert_allclose(mean, posterior.mean, atol=1e-5)
    np.testing.assert_allclose(std, posterior.std, atol=1e-5)


def test_deterministic_autoencoder_has_no_deviation(tiny):
    mean, std = autoencoder.encode(tiny, images(), batch_size=2)
    assert mean.shape == std.shape == (3, 4, 8, 8) and not std.any()


def test_grey_levels_survive_the_way_to_the_autoencoder_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    levels.flags.writeable = False  # as a memory map is
    shown = autoencoder.to_tensor(levels) / 2 + 0.5
    np.testing.assert_array_equal(autoencoder.to_planes(shown, masked=False)[:, 0], levels)


def test_an_image_and_its_mask_survive_the_way_back():
    levels, mask = np.arange(256, dtype=np.uint8).reshape(1, 16, 16), np.zeros((1, 16, 16), np.uint8)
    mask[0, 3:9, 4:6] = 255
    shown = autoencoder.to_tensor(levels, mask) / 2 + 0.5
    np.testing.assert_array_equal(autoencoder.to_planes(shown, masked=True), np.stack([levels, mask], axis=1))


def test_reconstruct_is_decode_after_encode(vae):
    out = autoencoder.reconstruct(vae, images(), batch_size=2)
    assert out.shape == (3, 64, 64) and out.dtype == np.uint8
    mean, _ = autoencoder.encode(vae, images(), batch_size=3)
    with torch.no_grad():
        expected = autoencoder.to_planes(vae.decode(torch.from_numpy(mean)).sample / 2 + 0.5, masked=False)[:, 0]
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_one_image_at_a_time_gives_what_a_batch_gives(vae):
    autoencoder.quicker(vae)
    assert vae.use_slicing
    quick = autoencoder.encode(vae, images(), batch_size=3), autoencoder.reconstruct(vae, images(), batch_size=3)
    vae.disable_slicing()
    plain = autoencoder.encode(vae, images(), batch_size=3), autoencoder.reconstruct(vae, images(), batch_size=3)
    np.testing.assert_allclose(quick[0], plain[0], atol=1e-5)
    assert np.abs(quick[1].astype(int) - plain[1]).max() <= 1


def test_saved_and_opened_again_it_is_the_same(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    back = autoencoder.load(tmp_path)
    assert type(back) is type(vae) and torch.equal(flat(back), flat(vae))


@pytest.mark.parametrize("part", ["decoder", "full"])
def test_adapt_moves_what_it_is_told_to(vae, part, tmp_path):
    before_in, before_out = flat(vae.encoder).clone(), flat(vae.decoder).clone()
    autoencoder_training.adapt(vae, images(), part, section(), l2, seed=0, checkpoint=tmp_path / "c.pt")
    assert not torch.equal(flat(vae.decoder), before_out)
    assert torch.equal(flat(vae.encoder), before_in) == (part == "decoder")
    assert not any(w.requires_grad for w in vae.parameters()) and not vae.training


def test_adapted_decoder_rebuilds_its_images_better(tiny, tmp_path):
    flat_images = np.full((4, 64, 64), 200, np.uint8)
    before = autoencoder.reconstruct(tiny, flat_images, batch_size=4)
    p = section(steps=60, learning_rate=5e-3)
    autoencoder_training.adapt(tiny, flat_images, "decoder", p, l2, seed=0, checkpoint=tmp_path / "c.pt")
    after = autoencoder.reconstruct(tiny, flat_images, batch_size=4)
    assert np.abs(after.astype(int) - 200).mean() < 0.2 * np.abs(before.astype(int) - 200).mean()


def test_a_killed_adaptation_ends_like_an_undisturbed_one(tiny, tmp_path):
    import copy

    other = copy.deepcopy(tiny)
    p = section(steps=103)
    autoencoder_training.adapt(tiny, images(), "decoder", p, l2, seed=0, checkpoint=tmp_path / "a.pt")

    class Killed(Exception):
        pass

    def kill(step, loss, rate):
        if step == 101:
            raise Killed

    with pytest.raises(Killed):
        autoencoder_training.adapt(
            copy.deepcopy(other), images(), "decoder", p, l2, seed=0, checkpoint=tmp_path / "b.pt", tick=kill
        )
    steps = []
    autoencoder_training.adapt(
        other,
        images(),
        "decoder",
        p,
        l2,
        seed=0,
        checkpoint=tmp_path / "b.pt",
        tick=lambda step, loss, rate: steps.append(step),
    )
    assert steps == [100, 101, 102]
    assert torch.equal(flat(tiny), flat(other))


def test_divergence_is_told(tiny, tmp_path):
    with pytest.raises(UserError, match="adapt.learning_rate"):
        autoencoder_training.adapt(
            tiny,
            images(),
            "decoder",
            section(),
            lambda x, y: (x - y).mean() * torch.nan,
            seed=0,
            checkpoint=tmp_path / "c.pt",
        )
    assert not (tmp_path / "c.pt").exists()


def bright_squares(n=12, size=64):
    """Dark slices with noise, each with a bright square, which is its lesion."""
    rng = np.random.default_rng(0)
    slices, masks = rng.integers(20, 60, (n, size, size)).astype(np.uint8), np.zeros((n, size, size), np.uint8)
    for image, mask, (top, left) in zip(slices, masks, rng.integers(4, size - 20, (n, 2)), strict=True):
        image[top : top + 16, left : left + 16] += 150
        mask[top : top + 16, left : left + 16] = 255
    return slices, masks


def test_a_decoder_learns_to_draw_masks_and_says_so_wherever_it_goes(tmp_path):
    vae = autoencoder.load("pretrained/base/vae")
    slices, masks = bright_squares()
    latents = autoencoder.encode(vae, slices, batch_size=4)[0]
    p = section(steps=40, mask_weight=1.0, batch_size=4)
    autoencoder_training.adapt(vae, slices, "decoder", p, l2, lesions=masks, seed=0, checkpoint=tmp_path / "c.pt")
    vae.save_pretrained(tmp_path / "vae")
    back = autoencoder.load(tmp_path / "vae")
    found = autoencoder.rebuilt(back, slices, batch_size=4)
    assert found.shape == (12, 2, 64, 64) and set(np.unique(found[:, 1])) == {0, 255}
    assert pairs.dice(found[:, 1], masks) > 0.7
    np.testing.assert_array_equal(autoencoder.reconstruct(back, slices, batch_size=4), found[:, 0])
    np.testing.assert_array_equal(autoencoder.encode(back, slices, batch_size=4)[0], latents)  # the UNet's, as before


@pytest.mark.parametrize("weight, lesions", [(0.0, True), (1.0, False)])
def test_without_masks_or_weight_it_draws_none(tiny, tmp_path, weight, lesions):
    slices, masks = bright_squares()
    p = section(mask_weight=weight)
    given = masks if lesions else None
    autoencoder_training.adapt(tiny, slices, "decoder", p, l2, lesions=given, seed=0, checkpoint=tmp_path / "c.pt")
    assert not autoencoder.draws_masks(tiny)
    assert autoencoder.rebuilt(tiny, slices, batch_size=4).shape[1] == 1


def test_a_base_that_draws_masks_gives_grey_again_where_slices_have_none(tiny, tmp_path):
    """All three channels are the image then, whatever blue was."""
    autoencoder.mark_masked(tiny, True)
    slices = np.full((4, 64, 64), 200, np.uint8)
    p = section(steps=60, learning_rate=5e-3)
    autoencoder_training.adapt(tiny, slices, "decoder", p, l2, seed=0, checkpoint=tmp_path / "c.pt")
    assert not autoencoder.draws_masks(tiny)
    latents = torch.from_numpy(autoencoder.encode(tiny, slices, batch_size=4)[0])
    with torch.no_grad():
        blue = tiny.decode(latents).sample[:, 2]
    assert (blue - (200 / 127.5 - 1)).abs().mean() < 0.2


def test_the_encoder_does_not_see_masks(tiny):
    slices, masks = bright_squares(4)
    generator, losses = torch.Generator(), autoencoder_training.Losses(perceptual=1.0)
    _, with_mask, _ = autoencoder_training.rebuild(
        tiny, autoencoder.to_tensor(slices, masks), losses._replace(masks=1.0), l2, generator
    )
    _, without, _ = autoencoder_training.rebuild(tiny, autoencoder.to_tensor(slices), losses, l2, generator)
    torch.testing.assert_close(with_mask, without)
