"""Strict decoding of the members of a sample, compared with its json."""

import io
import warnings
from typing import Any

import numpy as np
import simplejpeg

from cssr.data.decode import decode_kernel
from cssr.dataset_preparation.images import BROKEN
from cssr.utils.images import any_size, open_image


def wrong_contents(members: dict[str, bytes], facts: dict[str, Any], index: dict[str, Any]) -> list[str]:
    """Faults of the decoded members, one line each."""
    decoded, faults = {}, []
    for name, data in members.items():
        if not name.endswith(("jpg", "png")):
            continue
        try:
            decoded[name] = _decode(name, data)
        except (*BROKEN, EOFError) as problem:
            faults.append(f"{name}: {problem or type(problem).__name__}")
    size = facts["height"], facts["width"]
    for name in ("jpg", "png"):
        if name in decoded:
            faults += _shape(name, decoded[name], (*size, 3))
    for name in ("lq.png", "lq.jpg"):
        if name in decoded and index.get("scale"):
            faults += _shape(name, decoded[name], (*(side // index["scale"] for side in size), 3))
    if "mask.png" in decoded:
        faults += _check_mask(decoded["mask.png"], facts)
    if "valid.png" in decoded:
        faults += _check_valid(decoded["valid.png"], facts)
    if "kernel.npy" in members and index.get("kernel"):
        try:
            decode_kernel(members["kernel.npy"], index["kernel"])
        except ValueError as problem:
            faults.append(f"kernel.npy: {problem}")
    return faults


def _decode(name: str, data: bytes) -> np.ndarray:
    if name.endswith("png"):
        with open_image(io.BytesIO(data)) as image:
            image.verify()  # checksums of the chunks
    else:
        try:  # Pillow and OpenCV pass over damage within a scan
            simplejpeg.decode_jpeg(data)
        except ValueError as problem:
            if "subsampling" not in str(problem):  # a kind that it does not know, nothing wrong
                raise
    with warnings.catch_warnings(), any_size(), open_image(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")
        return np.asarray(image)


def _shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> list[str]:
    if array.shape == shape:
        return []
    return [f"{what} is {'x'.join(map(str, array.shape))} (H W C), its json and index say {'x'.join(map(str, shape))}"]


def _check_mask(mask: np.ndarray, facts: dict[str, Any]) -> list[str]:
    faults = _shape("mask.png", mask, (facts["height"], facts["width"]))
    if "crack_share" in facts and mask.dtype != bool and not np.isin(mask, (0, 255)).all():
        return [*faults, "mask.png has other values than 0 and 255"]
    share = (mask > 0).mean()
    if "crack_share" in facts and abs(share - (facts["crack_share"] or 0)) > 1e-9:
        faults.append(f"mask.png has a crack share of {share:.6f}, its json says {facts['crack_share']}")
    return faults


def _check_valid(valid: np.ndarray, facts: dict[str, Any]) -> list[str]:
    faults, share = _shape("valid.png", valid, (facts["height"], facts["width"])), float((valid > 0).mean())
    if abs(share - facts.get("valid_share", share)) > 1e-9:
        faults.append(f"valid.png has a share of {share:.6f}, its json says {facts['valid_share']}")
    return faults
