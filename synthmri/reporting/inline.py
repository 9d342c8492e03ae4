"""Pictures inside a page: data URLs of a bounded size, the same for the same pixels."""

import base64
import io

import numpy as np
from PIL import Image

MOST_BYTES = 6_000  # of a slice: some 2 KB to 5 KB hold one of a head, and only noise asks for more
WIDEST_PX = 1100  # of a sheet in colours, which even of noise stays below 200 KB then
TRIED = ((256, 80), (224, 60), (128, 50), (96, 30))  # largest edge in px and quality, until it is small enough


def slice_url(image: np.ndarray) -> str:
    """uint8 (H, W) as WebP of at most 256 px and MOST_BYTES, which also a slice of pure noise keeps to."""
    for edge, quality in TRIED:
        picture = Image.fromarray(np.asarray(image))
        picture.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        data = _webp(picture, quality=quality)
        if len(data) <= MOST_BYTES:
            break
    return _url(data)


def drawing_url(picture: Image.Image) -> str:
    """A chart: lossless, as what saves bytes elsewhere smears its lines. A grey sheet of slices (mode L): lossy."""
    return _url(_webp(picture, quality=60) if picture.mode == "L" else _webp(picture.convert("RGB"), lossless=True))


def sheet_url(picture: Image.Image) -> str:
    """A sheet of slices with lines in colours, of at most WIDEST_PX."""
    picture = picture.copy()
    picture.thumbnail((WIDEST_PX, WIDEST_PX), Image.Resampling.LANCZOS)
    return _url(_webp(picture, quality=60))


def _webp(picture: Image.Image, **how) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **how)
    return buffer.getvalue()


def _url(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
