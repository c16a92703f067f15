"""Encode an item as one sample or, cut into tiles, as several: the members of each, and its json."""

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cssr.cracks.masks import NO_DATA
from cssr.data.remote import DataError
from cssr.dataset_preparation.images import Opened, Picture, open_picture, png, size_of, store_picture
from cssr.dataset_preparation.sources import Item, MaskRule
from cssr.dataset_preparation.split import group_of
from cssr.dataset_preparation.tiles import Tile, Tiling, tile_key

MAX_SCALE, MAX_KERNEL = 64, 511  # that the reader takes: HR pixels per LQ pixel, pixels a side
Members = dict[str, bytes]  # extension -> bytes
Facts = dict[str, Any]  # what the json says


@dataclass(frozen=True)
class Form:
    """Properties that the samples of a set share.

    `rule`: None in a set without masks. `scale`: HR pixels per LQ pixel, None in a set without LQ images. `kernel`: the
    side of the blur kernels, None without. `tiling`: None where photographs are stored whole. `bits`: of image values
    that are stored in 16; None: as files say or show. `keep_blank`: store images and tiles without any data as well.
    """

    source: str
    rule: MaskRule | None = None
    scale: int | None = None
    kernel: int | None = None
    tiling: Tiling | None = None
    bits: int | None = None
    keep_blank: bool = False


def form_of(
    items: list[Item],
    source: str,
    rule: MaskRule | None,
    tiling: Tiling | None = None,
    bits: int | None = None,
    keep_blank: bool = False,
) -> Form:
    """The form of a set: its scale and kernel are those of its first item. ValueError if not every item has them."""
    for name in ("lq", "kernel"):
        with_it = [getattr(item, name) is not None for item in items]
        if any(with_it) and not all(with_it):
            raise ValueError(
                f"{items[with_it.index(False)].origin} has no {name}, but {sum(with_it)} of {len(items)} have one; "
                "give it to all or to none"
            )
    first = items[0]
    scale = _scale_of(first) if first.lq else None
    if tiling and scale:
        tiling.check_scale(scale)
    kernel = len(_kernel(first, None)) if first.kernel else None
    return Form(source, rule, scale, kernel, tiling, bits, keep_blank)


def encode(item: Item, form: Form) -> Iterator[tuple[str, Members, Facts]]:
    """Read one item, once. Yields key, members and facts of its samples, both empty for one without any data.

    Raises: ValueError naming the file at fault.
    """
    data = _readable(item, item.image, bytes)
    if _readable(item, lambda: data, lambda file: _count(file, form.tiling)) > 1:
        yield from _tiles(item, form, data)
        return
    picture = _readable(item, lambda: data, lambda file: store_picture(file, form.bits))
    size = picture.width, picture.height
    mask, valid = _mask_and_valid(item, form, *size, picture.valid)
    if _is_blank(valid) and not form.keep_blank:
        yield item.key, {}, {}
        return
    members = {picture.suffix: picture.data, **_beside(item, form, *size)}
    sample = _sample(item, form, item.key, members, mask, valid, size, picture.converted)
    yield _with_tile(*sample, Tile(0, 0, *size), size) if form.tiling else sample


def _count(data: bytes, tiling: Tiling | None) -> int:
    """Number of samples of an item with the image file `data`, which is not decoded."""
    return tiling.count(*size_of(data)) if tiling else 1


def measure(item: Item, tiling: Tiling | None) -> int:
    """Number of samples of an item; ValueError if its file cannot be read, or is refused as too small."""
    return _readable(item, item.image, lambda data: _count(data, tiling))


def _tiles(item: Item, form: Form, data: bytes) -> Iterator[tuple[str, Members, Facts]]:
    """The photograph is decoded once; beside it, one tile at a time is in memory."""
    opened: Opened = _readable(item, lambda: data, lambda file: open_picture(file, form.bits))
    image, reason = opened.image, opened.reason
    mask, valid = _mask_and_valid(item, form, *image.size, opened.valid)
    lq = _lq(item, form, *image.size, open_picture).image if form.scale else None
    beside = {"kernel.npy": _npy(_kernel(item, form.kernel))} if form.kernel else {}
    for place in form.tiling.places(*image.size):
        window = np.s_[place.y : place.y + place.height, place.x : place.x + place.width]
        tile_valid = None if valid is None or valid[window].all() else valid[window]
        if _is_blank(tile_valid) and not form.keep_blank:
            yield item.key, {}, {}
            continue
        members = {"png": png(image.crop(place.box)), **beside}
        if lq is not None:
            members["lq.png"] = png(lq.crop(place.divided(form.scale).box))
        tile_mask, size = None if mask is None else mask[window], (place.width, place.height)
        sample = _sample(item, form, tile_key(item.key, place), members, tile_mask, tile_valid, size, reason)
        yield _with_tile(*sample, place, image.size)


def _sample(
    item: Item,
    form: Form,
    key: str,
    members: Members,
    mask: np.ndarray | None,
    valid: np.ndarray | None,
    size: tuple[int, int],
    converted: str | None,
) -> tuple[str, Members, Facts]:
    if mask is not None:
        members = {**members, "mask.png": png(Image.fromarray(mask.astype(np.uint8) * 255))}
    if valid is not None:
        members = {**members, "valid.png": png(Image.fromarray(valid.astype(np.uint8) * 255))}
    facts = {
        **item.extra,
        "key": key,
        "source": form.source,
        "origin": item.origin,
        "width": size[0],
        "height": size[1],
        "crack_share": None if mask is None else float(mask.mean()),
        "converted": converted,
        "crc32": {extension: zlib.crc32(data) for extension, data in members.items()},
    }
    if group_of(item) != key:
        facts["group"] = group_of(item)
    if valid is not None:
        facts["valid_share"] = float(valid.mean())
    return key, members, facts


def _with_tile(
    key: str, members: Members, facts: Facts, place: Tile, whole: tuple[int, int]
) -> tuple[str, Members, Facts]:
    return key, members, {**facts, "tile": {**place._asdict(), "of": list(whole)}}


def to_json(facts: Facts) -> bytes:
    """A sample's json, the same for the same facts."""
    return json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()


def _readable(item: Item, read, decode, what: str = "") -> Any:
    """decode(read()), where a failure names the file and what to do."""
    try:
        return decode(read())
    except DataError:  # out of other shards: it names the sample and what to do
        raise
    except (OSError, ValueError) as problem:
        both = "the image and what belongs to it" if item.mask or item.lq else "the image"
        raise ValueError(f"{item.origin}{what}: {problem}; replace or remove {both}") from problem


def _is_blank(valid: np.ndarray | None) -> bool:
    return valid is not None and not valid.any()


def _mask_and_valid(
    item: Item, form: Form, width: int, height: int, valid: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Crack pixels (H W bool; None in a set without masks), and pixels that hold data (H W bool; None: all do).

    `valid`: by the image. Where it, or the mask, holds no data, there is no crack.
    """
    if item.valid is not None:
        valid = item.valid()
    if form.rule is None:
        return None, valid
    values, value = np.asarray(item.mask()), form.rule.only
    if value is not None and ((values > 0) & (values != value)).any():
        raise ValueError(
            f"{item.origin}: its mask was changed since the rule was chosen ({form.rule.sentence}); run it again"
        )
    mask = form.rule.apply(values)
    if mask.shape != (height, width):
        raise ValueError(
            f"{item.origin} is {width}x{height}, but its mask is "
            f"{mask.shape[1]}x{mask.shape[0]}; give both the same size"
        )
    has_data = values != NO_DATA if values.dtype != bool else None
    if has_data is not None and not has_data.all():
        valid = has_data if valid is None else valid & has_data
    return mask if valid is None else mask & valid, valid


def _beside(item: Item, form: Form, width: int, height: int) -> Members:
    """The members that go with the image: LQ image and kernel, where the set has them."""
    members: Members = {}
    if form.scale:
        lq: Picture = _lq(item, form, width, height, store_picture)
        members[f"lq.{lq.suffix}"] = lq.data
    if form.kernel:
        members["kernel.npy"] = _npy(_kernel(item, form.kernel))
    return members


def _lq(item: Item, form: Form, width: int, height: int, decode) -> Any:
    """The LQ image as `decode` gives it, its size checked against the set's scale."""
    decoded = _readable(item, item.lq, decode, ", its LQ image")
    size = (decoded.width, decoded.height) if isinstance(decoded, Picture) else decoded.image.size
    expected = size[0] * form.scale, size[1] * form.scale
    if (width, height) != expected:
        raise ValueError(
            f"{item.origin} is {width}x{height}, but its LQ image {size[0]}x{size[1]}, where the set's first is "
            f"{form.scale} times smaller; crop the image to {expected[0]}x{expected[1]}, or remove both"
        )
    return decoded


def _scale_of(item: Item) -> int:
    picture, lq = _readable(item, item.image, store_picture), _readable(item, item.lq, store_picture, ", its LQ image")
    scale = picture.width // lq.width
    if not 0 < scale <= MAX_SCALE or (picture.width, picture.height) != (lq.width * scale, lq.height * scale):
        raise ValueError(
            f"{item.origin} is {picture.width}x{picture.height}, not 1 to {MAX_SCALE} times its LQ image's "
            f"{lq.width}x{lq.height}; crop the image to a whole multiple"
        )
    return scale


def _kernel(item: Item, side: int | None) -> np.ndarray:
    """K K float32, its side checked against the set's."""
    kernel = np.asarray(item.kernel())
    square = kernel.ndim == 2 and 0 < kernel.shape[0] == kernel.shape[1] <= MAX_KERNEL
    if not square or kernel.dtype.kind != "f" or not np.isfinite(kernel).all():
        raise ValueError(
            f"{item.origin}: its kernel is {kernel.dtype} {kernel.shape}; give finite floats, k x k, k <= {MAX_KERNEL}"
        )
    if side is not None and len(kernel) != side:
        raise ValueError(
            f"{item.origin}: its kernel has {len(kernel)} pixels a side, the first of the set {side}; give all one side"
        )
    return kernel.astype(np.float32)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
