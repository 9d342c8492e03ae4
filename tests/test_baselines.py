"""The four baselines at their smallest: they learn, resume to the same weights, and draw by seed alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from synthmri import generators, params
from synthmri.errors import UserError
from synthmri.generators import ddpm, unet_gan, vae
from synthmri.generators.gan import adversarial, diffaugment
from synthmri.training import denoising_loss, loop, sampling

NAMES = ["vae", "dcgan", "ddpm", "unet_gan"]
SIZE = 64  # px: the least for a perceptual distance at half the size
SMALL = {
    "vae": dict(width=4, latent_dim=4), "dcgan": dict(width=4, latent_dim=4), "unet_gan": dict(width=4, latent_dim=4),
    "ddpm": dict(channels=(16, 32), sample_steps=2),
}  # fmt: skip


def section(name, **change):
    small = SMALL[name] | dict(steps=4, batch_size=2)
    return params.read("params.yaml", f"baselines.{name}", generators.find(name).Params).model_copy(
        update=small | change
    )


def images(n=6, size=SIZE):
    rows = np.linspace(40, 220, size)
    one = np.sqrt(np.outer(rows, rows))
    return np.stack([np.clip(one + 5 * i, 0, 255) for i in range(n)]).astype(np.uint8)


def fit(
    name, p, path, *, of=None, seed=0, tick=lambda step, loss, rate: None, points=2, snapshot=lambda point, model: None
):
    return generators.find(name).fit(
        images() if of is None else of, p, seed=seed, points=points, checkpoint=path, tick=tick, snapshot=snapshot
    )


def draw(model, seeds, batch_size=2):
    p = params.read("params.yaml", "sample", sampling.Sample).model_copy(update={"batch_size": batch_size})
    return model.sample(seeds, p)


def flat(model):
    return torch.cat([w.detach().flatten().float() for w in model.network.state_dict().values()])


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_ends_like_an_undisturbed_one(name, tmp_path):
    class Killed(Exception):
        pass

    def kill(step, loss, rate):
        if step == 3:  # after the checkpoint of step 2
            raise Killed

    p = section(name)
    whole, history, operations = fit(name, p, tmp_path / "a.pt")
    with pytest.raises(Killed):
        fit(name, p, tmp_path / "b.pt", tick=kill)
    again, history_again, operations_again = fit(name, p, tmp_path / "b.pt")
    assert torch.equal(flat(whole), flat(again))
    assert history_again == history and len(history) == 4
    assert operations_again == operations > 0
    target = "image" if name == "ddpm" else ""
    assert whole.config == {"params": p.model_dump(), "size": SIZE, "px": SIZE, "target": target}


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_is_other_luck(name, tmp_path):
    p = section(name)
    one, other = (fit(name, p, tmp_path / f"{seed}.pt", seed=seed) for seed in (0, 1))
    assert not torch.equal(flat(one[0]), flat(other[0])) and one[1] != other[1]


@pytest.mark.parametrize("name", NAMES)
def test_image_depends_on_its_seed_alone_and_survives_the_disk(name, tmp_path):
    model, *_ = fit(name, section(name), tmp_path / "c.pt")
    five = draw(model, [1, 2, 3, 4, 5])
    assert five.shape == (5, SIZE, SIZE) and five.dtype == np.uint8
    np.testing.assert_array_equal(draw(model, [4, 1]), five[[3, 0]])
    np.testing.assert_array_equal(draw(model, [3]), five[2:3])
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(draw(generators.find(name).load(tmp_path / "model"), [2]), five[1:2])


@pytest.mark.parametrize("name", NAMES)
def test_snapshots_are_taken_from_start_to_end(name, tmp_path):
    seen = []
    fit(name, section(name), tmp_path / "c.pt", snapshot=lambda point, model: seen.append(point))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_divergence_names_the_learning_rate(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "batch", lambda images, count, *_: torch.full((count, 1, SIZE, SIZE), torch.nan))
    with pytest.raises(UserError, match=f"baselines.{name}.learning_rate"):
        fit(name, section(name), tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


@pytest.mark.parametrize("name", ["vae", "ddpm"])
def test_loss_falls(name, tmp_path):
    p = section(name, steps=60, batch_size=4, learning_rate=3e-3)
    _, history, _ = fit(name, p, tmp_path / "c.pt")
    losses = [row["loss"] for row in history]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - (0.05 if name == "ddpm" else 0.5)


def test_a_generator_approaches_its_one_image(tmp_path):
    """A DCGAN shown one grey level comes to draw about that grey level."""
    p = section("dcgan", steps=150, batch_size=8, learning_rate=2e-3)
    flat_images = np.full((8, SIZE, SIZE), 200, np.uint8)
    model, *_ = fit("dcgan", p, tmp_path / "c.pt", of=flat_images, points=1)
    drawn = draw(model, range(8), batch_size=8).astype(float)
    assert abs(drawn.mean() - 200) < abs(128 - 200)


def test_sizes_that_do_not_halve_to_four_are_refused(tmp_path):
    with pytest.raises(UserError, match="or data.image_size where that is less, is 48"):
        fit("vae", section("vae"), tmp_path / "c.pt", of=images(size=48))


def test_damaged_model_is_told(tmp_path):
    model, *_ = fit("vae", section("vae"), tmp_path / "c.pt")
    model.save(tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be opened"):
        vae.VAE.load(tmp_path / "m")


# the pieces ----------------------------------------------------------------------------------------------------------


def test_elbo_is_that_of_the_closed_forms():
    """Divergence against torch.distributions; likelihood against the normal density at the variance that fits best."""
    torch.manual_seed(0)
    x, y = torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8)
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    likelihood, divergence = vae.negative_elbo(x, y, mean, log_variance)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(divergence, expected)
    best = (x - y).square().mean().sqrt()
    torch.testing.assert_close(likelihood, -normal(y, best).log_prob(x).flatten(1).sum(1).mean())


def test_ddpm_noise_is_that_of_the_shifted_cosine():
    """Where the plain cosine has as much signal as noise, at u = 1/2, four times the edge has 1/16 of the SNR."""
    plain, shifted = (ddpm.new_scheduler(size).alphas_cumprod.double() for size in (64, 256))
    assert plain[499].item() == pytest.approx(0.5, abs=1e-5)
    snr = [each[:-1] / (1 - each[:-1]) for each in (plain, shifted)]
    torch.testing.assert_close(snr[1] * 16, snr[0], rtol=0.01, atol=0)  # of float32 betas
    assert plain[-1] == shifted[-1] == 0  # sampling starts from noise alone
    assert plain[299].item() == pytest.approx(np.cos(0.15 * np.pi) ** 2, rel=1e-4)


def test_ddpm_draws_from_pure_noise_whatever_its_number_of_steps():
    scheduler = ddpm.new_scheduler(256)
    for steps in (1, 12, 600, 700, 1000):
        sampling.set_steps(scheduler, steps)
        assert scheduler.timesteps[0] == 999 and len(scheduler.timesteps) == steps


def test_ddpm_that_knows_the_distribution_draws_from_it():
    """Where pixels are N(mean, spread^2), what is to be predicted has a closed form, and samples are of that kind."""
    spread, picture = 0.2, torch.linspace(-0.3, 0.4, 32 * 32).view(1, 1, 32, 32)
    mean = torch.nn.functional.pixel_unshuffle(picture, 4)

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t):
            alpha_bar = model.scheduler.alphas_cumprod[t]
            gain = alpha_bar.sqrt() * spread**2 / (alpha_bar * spread**2 + 1 - alpha_bar)
            return SimpleNamespace(sample=mean + gain * (x - alpha_bar.sqrt() * mean))

    p = section("ddpm", sample_steps=200, stem=4)
    model = ddpm.DDPM(Oracle(), {"params": p.model_dump(), "size": 32})
    away = draw(model, range(40), batch_size=20) / 127.5 - 1 - picture[0].numpy()
    assert np.abs(away.mean(0)).max() < 5 * spread / 40**0.5 and away.std() == pytest.approx(spread, rel=0.05)


def test_pictures_that_the_ddpm_cannot_halve_are_refused(tmp_path):
    with pytest.raises(UserError, match="images of 64 pixels are no multiple of 6 = .* lower stem"):
        fit("ddpm", section("ddpm", stem=3), tmp_path / "c.pt")


def test_cutmix_masks_are_rectangles_of_both_kinds():
    masks = [unet_gan.cutmix_mask(32, torch.Generator().manual_seed(i))[0, 0] for i in range(200)]
    shares = torch.stack(masks).mean(dim=(1, 2))
    assert 0.4 < shares.mean() < 0.6 and shares.std() > 0.2
    for mask in masks:
        for side in (mask, 1 - mask):
            rows, columns = side.amax(1).nonzero(), side.amax(0).nonzero()
            if len(rows) and side.sum() == len(rows) * len(columns):
                break
        else:
            pytest.fail("neither side is a rectangle")


def test_unet_discriminator_judges_the_whole_and_every_pixel():
    p = section("unet_gan")
    whole, pixels = unet_gan.Discriminator(p, 32)(torch.randn(3, 1, 32, 32))
    assert whole.shape == (3,) and pixels.shape == (3, 1, 32, 32)


def test_augmentation_lets_gradients_pass_and_is_its_generators():
    x = torch.rand(4, 1, 32, 32, requires_grad=True)
    out = diffaugment.augment(x, torch.Generator().manual_seed(0))
    assert out.shape == x.shape and not torch.equal(out, x)
    out.sum().backward()
    assert (x.grad != 0).any()
    again = diffaugment.augment(x, torch.Generator().manual_seed(0))
    assert torch.equal(out, again)


def test_augmentation_moves_each_picture_by_an_eighth_at_most_and_fills_with_black():
    x = torch.rand(50, 1, 32, 32)
    out = diffaugment.augment(x, torch.Generator().manual_seed(1))
    moves = set()
    for before, after in zip(x[:, 0], out[:, 0], strict=True):
        rows, columns = (torch.arange(32) for _ in range(2))
        found = [
            (i, j)
            for i in range(-4, 5)
            for j in range(-4, 5)
            if torch.equal(
                after,
                torch.where(
                    ((rows + i >= 0) & (rows + i < 32))[:, None] & ((columns + j >= 0) & (columns + j < 32)),
                    before.roll((-i, -j), (0, 1)),
                    torch.tensor(-1.0),
                ),
            )
        ]
        assert len(found) == 1
        moves |= set(found)
    assert len(moves) > 25  # of 81
    assert {abs(i) for move in moves for i in move} == {0, 1, 2, 3, 4}


def test_batches_are_shifted_and_mirrored_images():
    source = images(size=32)
    plain = loop.batch(source, 4, torch.Generator().manual_seed(0))  # of 32 pixels none is moved
    assert plain.shape == (4, 1, 32, 32) and plain.min() >= -1 and plain.max() <= 1
    as_grey = ((plain[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    assert all(any((g == s).all() or (g == s[:, ::-1]).all() for s in source) for g in as_grey)
    shifted = loop.batch(images(size=200), 40, torch.Generator().manual_seed(0))
    assert (shifted[:, 0, 0] == -1).all(dim=1).any()  # a black row came in


def test_checkpoint_admits_no_foreign_object(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"x": Evil()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="UnpicklingError"):
        loop.load_checkpoint(tmp_path / "c.pt")
    assert loop.load_checkpoint(tmp_path / "none.pt") is None


def test_average_is_exponential():
    model = nn.Linear(1, 1, bias=False)
    average = loop.averaged(model, 0.9)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 2)


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_from_pretrained_weights(name, tmp_path):
    first, *_ = fit(name, section(name), tmp_path / "a.pt")
    first.save(tmp_path / "start", beside=True)
    assert set(first.beside) == ({"discriminator"} if name != "ddpm" else set())
    seen = []

    def snapshot(point, model):
        if point == 0:
            seen.append(flat(model))
            seen.extend(torch.cat([w.flatten() for w in part.parameters()]).clone() for part in model.beside.values())

    found = generators.find(name)
    settings = dict(seed=3, points=1, tick=lambda step, loss, rate: None, snapshot=snapshot)
    p = section(name, learning_rate=1e-9, steps=1)
    model, *_ = found.fit(images(), p, checkpoint=tmp_path / "b.pt", start=tmp_path / "start", **settings)
    learnt = [key for key, _ in model.network.named_parameters()]
    half = {key: value.half().float() for key, value in first.network.state_dict().items()}
    torch.testing.assert_close({key: model.network.state_dict()[key] for key in learnt}, {k: half[k] for k in learnt})
    for key, part in first.beside.items():
        theirs = torch.cat([w.half().float().flatten() for w in part.parameters()])
        torch.testing.assert_close(seen[1], theirs, msg=key)
    first.save(tmp_path / "own")
    assert [file.name for file in sorted((tmp_path / "own").iterdir())] == ["config.json", "model.safetensors"]


def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    first, *_ = fit("dcgan", section("dcgan"), tmp_path / "a.pt")
    first.save(tmp_path / "start", beside=True)
    settings = dict(
        seed=0,
        points=1,
        checkpoint=tmp_path / "b.pt",
        tick=lambda step, loss, rate: None,
        snapshot=lambda point, model: None,
    )
    dcgan = generators.find("dcgan")
    words = "width 4, latent_dim 4 and 64 px; baselines.dcgan and train.image_px ask for width 8, latent_dim 4 and 64"
    with pytest.raises(UserError, match=words):
        dcgan.fit(images(), section("dcgan", width=8), start=tmp_path / "start", **settings)
    with pytest.raises(UserError, match="and 64 px; .* and 32 px: make them equal, or set train.pretrained"):
        dcgan.fit(images(size=32), section("dcgan"), start=tmp_path / "start", **settings)
    with pytest.raises(UserError, match="holds no weights to start from .*`synthmri pretrain --model dcgan`"):
        dcgan.fit(images(), section("dcgan"), start=tmp_path / "nowhere", **settings)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_pixels_are_learnt_and_drawn_larger(name, tmp_path):
    """Of 128 px 64 are learnt; the rest of the pipeline sees slices of 128, and weights of 128 are another network."""
    found, large = generators.find(name), images(size=128)
    settings = dict(seed=0, points=1, tick=lambda step, loss, rate: None, snapshot=lambda point, model: None)
    model, *_ = found.fit(large, section(name), checkpoint=tmp_path / "c.pt", image_px=SIZE, **settings)
    halved = large.reshape(len(large), SIZE, 2, SIZE, 2).mean(axis=(2, 4)).round().astype(np.uint8)
    small, *_ = found.fit(halved, section(name), checkpoint=tmp_path / "d.pt", **settings)
    assert torch.equal(flat(model), flat(small)) and model.config["size"] == 128 and model.px == SIZE
    model.save(tmp_path / "model", beside=True)
    model.save(tmp_path / "own")
    again = found.load(tmp_path / "own")
    drawn, plain = draw(again, range(2)), draw(small, range(2))
    assert drawn.shape == (2, 128, 128)
    shrunk = drawn.reshape(2, SIZE, 2, SIZE, 2).mean(axis=(2, 4))
    assert np.corrcoef(shrunk.ravel(), plain.ravel())[0, 1] > 0.9
    if name == "vae":
        assert again.reconstruct(large, batch_size=4).shape == large.shape
    if name == "ddpm":
        args = ([""] * len(large), [100, 500])
        ours = again.denoising_errors(large, *args, seed=0, batch_size=4)
        np.testing.assert_array_equal(ours, small.denoising_errors(halved, *args, seed=0, batch_size=4))
    with pytest.raises(UserError, match=f"and 64 px; baselines.{name} and train.image_px ask for .* and 128 px"):
        found.fit(large, section(name), checkpoint=tmp_path / "e.pt", start=tmp_path / "model", **settings)


def test_a_vae_is_drawn_from_the_latents_of_its_training_slices():
    """Mean and covariance of what is drawn are those of the latents, whatever N(0, 1) has."""
    p = section("vae", latent_dim=3)
    model = vae.VAE.untrained(p, 32, seed=0)

    class Encoder(torch.nn.Module):
        def forward(self, x):
            grey = x.mean(dim=(1, 2, 3))
            mean = torch.stack([grey.sign() * 3 + 5, grey, grey * 0 - 7], dim=1)
            return torch.cat([mean, torch.full_like(mean, -4.0)], dim=1)  # log variance

    model.network.down = Encoder()
    rng = np.random.default_rng(0)
    slices = np.repeat(rng.integers(0, 256, 80), 32 * 32).reshape(80, 32, 32).astype(np.uint8)
    model.fit_prior(slices)
    assert (model.network.shares > 0).sum() == 8  # one for every ten
    model.network.decode = lambda z: z
    drawn = model.draw([torch.Generator().manual_seed(i) for i in range(4000)]).double().numpy()
    latents = model.network.down(loop.to_tensor(slices))[:, :3].double().numpy()
    np.testing.assert_allclose(drawn.mean(0), latents.mean(0), atol=0.15)
    expected = np.cov(latents, rowvar=False, bias=True) + np.exp(-4) * np.eye(3)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), expected, atol=0.3)
    model.fit_prior(slices[:15])  # too few for two Gaussians
    assert (model.network.shares > 0).sum() == 1 and model.network.shares[0] == 1
    assert np.isfinite(model.draw([torch.Generator().manual_seed(0)]).numpy()).all()


def test_the_gradient_penalty_is_that_of_a_known_discriminator():
    x = torch.randn(3, 1, 4, 4, requires_grad=True)
    weights = torch.randn(1, 4, 4)
    value = adversarial.steepness((x * weights).sum(dim=(1, 2, 3)), x)  # a linear one's gradient is its weights
    torch.testing.assert_close(value, weights.square().sum())
    logits = (x * weights).sum(dim=(1, 2, 3))
    counted = [adversarial.penalty(step, (logits, x), (logits, x)) for step in range(2 * adversarial.PENALTY_STEPS)]
    mean = sum(counted) / len(counted)
    torch.testing.assert_close(mean, adversarial.PENALTY / 2 * 2 * weights.square().sum())  # of two kinds of images


def test_a_pair_that_is_told_apart_costs_less():
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0])
    expected = (np.log1p(np.exp(-1)) + np.log(2)) / 2
    torch.testing.assert_close(adversarial.relativistic_loss(real, fake), torch.tensor(expected, dtype=torch.float32))


def test_a_predicted_image_costs_what_its_v_does():
    scheduler, network = ddpm.new_scheduler(256), torch.nn.Module()
    x0, noise = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    t = torch.tensor([300, 700, 999])
    guess = torch.randn(3, 1, 4, 4)
    network.forward = lambda x, t: SimpleNamespace(sample=guess)
    alpha_bar = scheduler.alphas_cumprod[t][:, None, None, None]
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    v = (a * (a * x0 + s * noise) - guess) / s  # of the noise that the guess leaves
    expected = (v - (a * noise - s * x0)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoising_loss.errors(network, x0, noise, t, scheduler), expected)
    clean = torch.zeros(3, dtype=torch.int64)  # hardly any noise: there the factor is bounded
    expected = ((guess - x0) / denoising_loss.SMALLEST_SIGMA).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoising_loss.errors(network, x0, noise, clean, scheduler), expected)


def test_one_gradient_serves_the_penalty_of_both_heads():
    """Of linear heads the slopes are known: on average over signs, that of the whole plus the mean of the pixels'."""
    rng = torch.Generator().manual_seed(0)
    whole, pixels = torch.randn(16, generator=rng), torch.randn(16, 16, generator=rng)
    x = torch.randn(2, 1, 4, 4, generator=rng, requires_grad=True)
    found = []
    for _ in range(4000):
        signs = torch.randint(0, 2, (1, 4, 4), generator=rng) * 2.0 - 1
        logits = unet_gan.verdict(x.flatten(1) @ whole, (x.flatten(1) @ pixels).view(2, 1, 4, 4), signs)
        found.append(adversarial.steepness(logits, x).item())
    expected = whole.square().sum() + pixels.square().sum() / 16  # column i: the slope of pixel i
    assert np.mean(found) == pytest.approx(expected.item(), rel=0.05)


def test_pixels_of_a_mixture_stand_beside_the_other_kind():
    """A discriminator that knows which pixels are real, of a mixture too, pays nothing; one that is wrong, much."""
    mask = unet_gan.cutmix_mask(8, torch.Generator().manual_seed(1))
    real, fake, mixed = torch.full((1, 1, 8, 8), 9.0), torch.full((1, 1, 8, 8), -9.0), 18 * mask - 9
    assert unet_gan.beside_mixed(mask, mixed, real, fake) < 1e-6
    assert unet_gan.beside_mixed(mask, -mixed, real, fake) > 0.5


def test_cutmix_is_learnt_from(tmp_path, monkeypatch):
    """In the second half of the training, and in no step whose cost is counted."""
    seen = []
    whole = unet_gan.cutmix_mask
    monkeypatch.setattr(unet_gan, "cutmix_mask", lambda *given: seen.append(1) or whole(*given))
    p = section("unet_gan", steps=8, cutmix=1.0)
    model, history, _ = fit("unet_gan", p, tmp_path / "c.pt")
    assert len(seen) == 4 and np.isfinite([row["discriminator"] for row in history]).all()
    assert set(model.beside) == {"discriminator"}


def test_weights_that_predict_something_else_are_refused(tmp_path):
    model, *_ = fit("ddpm", section("ddpm"), tmp_path / "c.pt")
    model.save(tmp_path / "old", beside=True)
    file = tmp_path / "old/config.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "target"}))
    with pytest.raises(UserError, match="predicts 'something', this one 'image'"):
        ddpm.DDPM.load(tmp_path / "old")
    with pytest.raises(UserError, match="predicts 'something', this one 'image'"):
        generators.find("ddpm").fit(
            images(), section("ddpm"), seed=0, points=1, checkpoint=tmp_path / "d.pt", start=tmp_path / "old",
            tick=lambda *_: None, snapshot=lambda *_: None,
        )  # fmt: skip


@pytest.mark.parametrize("px", [16, 32])
def test_a_vae_of_few_pixels_is_judged_by_eye_too(px, tmp_path):
    """AlexNet has nothing left of pictures below 32 px."""
    _, history, _ = generators.find("vae").fit(
        images(size=px), section("vae", steps=1), seed=0, points=1, checkpoint=tmp_path / "a.pt",
        tick=lambda step, loss, rate: None, snapshot=lambda point, model: None,
    )  # fmt: skip
    assert np.isfinite(history[0]["loss"])
