"""Responses of the page's server: a photograph read from bytes, and a prediction as pictures in bytes."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cssr.inference.predictor import Prediction, predict
from cssr.models.joint import JointModel
from cssr.utils.images import encode_image
from cssr.utils.photographs import read_with_valid

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
PNG_PIXELS = 20_000_000  # a larger SR image goes as JPEG, which takes a tenth of the bytes
_MEGA = 1_000_000


class Part(NamedTuple):
    """A picture of the answer."""

    name: str  # lq, sr, prob or kernel
    type: str  # media type
    data: bytes


def open_photograph(body: bytes, max_pixels: int) -> tuple[np.ndarray, list[str]]:
    """Read the photograph in `body` as H W 3 uint8 (H W 4 where pixels are missing), upright, and what is to be said.

    Raises: ValueError, one sentence for the page, for what is no photograph, is damaged, or has more than `max_pixels`
        pixels, before pixels are decoded where the head of the file says so.
    """
    with warnings.catch_warnings(), io.BytesIO(body) as file:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is the limit here
        opened = _open(file)
        _check_pixels(opened.size, max_pixels)
        try:
            frames = getattr(opened, "n_frames", 1)
            image, valid = read_with_valid(body)
        except Exception:  # decoders raise many kinds of errors on damaged files, and the server must survive
            raise ValueError("The file is a damaged or unusual picture: it cannot be decoded.") from None
    if valid is not None:
        image = np.dstack([image, valid.astype(np.uint8) * 255])
    if frames > 1 and opened.format != "MPO":  # a camera's JPEG with a preview behind it
        return image, [f"The file has {frames} pictures; the first one is taken."]
    return image, []


def _open(file: io.BytesIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError("The picture has far too many pixels.") from None
    except UnidentifiedImageError:
        raise ValueError(f"The file is no picture of a kind that can be read: {', '.join(FORMATS)}.") from None
    except Exception:  # as above
        raise ValueError("The file is a damaged or unusual picture: its head cannot be read.") from None


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"The photograph has {width} x {height} = {width * height / _MEGA:.1f} million pixels, and this page takes "
            f"{max_pixels / _MEGA:g} million: choose a part of it, or use python -m cssr.predict for the whole."
        )


def predict_parts(model: JointModel, image: np.ndarray, tile: int, progress) -> list[Part]:
    """The pictures of a prediction: the photograph as it was taken in (lq), SR, and what else the model gives."""
    prediction = predict(model, image, tile, progress=progress)
    return [Part("lq", "image/png", _encode(image)), *_parts(prediction)]


def _parts(prediction: Prediction) -> list[Part]:
    lossless = prediction.sr.shape[0] * prediction.sr.shape[1] <= PNG_PIXELS
    kind = "PNG" if lossless else "JPEG"
    sr = (
        prediction.sr
        if prediction.valid is None or not lossless
        else np.dstack([prediction.sr, prediction.valid.astype(np.uint8) * 255])
    )
    parts = [Part("sr", f"image/{kind.lower()}", _encode(sr, kind))]
    if prediction.prob is not None:
        parts.append(Part("prob", "image/png", _encode((prediction.prob * 255).round().astype(np.uint8))))
    if prediction.kernel is not None:
        grey = (prediction.kernel / max(prediction.kernel.max(), 1e-12) * 255).clip(0, 255).astype(np.uint8)
        parts.append(Part("kernel", "image/png", _encode(grey)))
    return parts


def _encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    return encode_image(image, kind, **({} if kind == "PNG" else {"quality": 95, "subsampling": 0}))
