"""Checks of shard sets before work starts: sizes against crops, stored LQ images and kernels, the cache."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from cssr.config.schema import DataConfig
from cssr.data.dataset import read_sample
from cssr.data.sampler import allocate
from cssr.data.shards import DataError, ShardSet, open_sets, parse_sets
from cssr.data.stages import find_stages


def open_train_sets(data: DataConfig, scale: int | None = None) -> list[ShardSet]:
    """The sets of `data.train`, in its order, checked against the settings; `scale`: as for `train_stream`."""
    find_stages(data.stages)
    weights, sets = parse_sets(data.train, "data.train"), open_sets(data.train, "data.train", data)
    for shards in sets:
        side = shards.smallest_side()
        if side < data.crop and not data.resized_crop:
            raise DataError(
                f"data.crop={data.crop} exceeds the smallest image of {shards.root} ({side} pixels a side); "
                f"set data.crop to at most {side}, or data.resized_crop=[0.6,1]"
            )
    if scale is not None:
        for name in ("resized_crop", "photometric"):
            if getattr(data, name):
                raise DataError(
                    f"data.{name} changes HR images, degradation=stored takes LQ images as they are: unset it"
                )
        check_lq(sets, scale, "data.train")
    _check_cache(data, sets, list(weights.values()))
    return sets


def check_lq(sets: Sequence[ShardSet], scale: int, setting: str) -> None:
    """Refuse sets without LQ images, or with those of another scale; DataError names the `setting` of the sets."""
    for shards in sets:
        if not shards.lq:
            raise DataError(
                f"{setting}: {shards.root} stores no LQ images, which degradation=stored takes: "
                "give sets that do, or another degradation"
            )
        if shards.scale != scale:
            raise DataError(
                f"{setting}: the LQ images of {shards.root} are {shards.scale} times smaller, model.scale={scale}: "
                "give sets of that scale, or another degradation"
            )


def check_kernels(sets: Sequence[ShardSet], side: int | None, setting: str) -> None:
    """Refuse sets without kernels, or with those of another `side` (None: any one) than the SR network's."""
    for shards in sets:
        if shards.kernel is None:
            raise DataError(
                f"{setting}: {shards.root} stores no blur kernels, which loss.sr or a phase's true_kernel needs: "
                "give sets that do, or another loss"
            )
        if shards.kernel != (side or sets[0].kernel):
            raise DataError(
                f"{setting}: the kernels of {shards.root} have {shards.kernel} pixels a side, "
                f"{side or sets[0].kernel} are needed: set model.sr.kernel_size={shards.kernel}, or give other sets"
            )


def check_sides(sets: Sequence[ShardSet], scale: int, setting: str) -> None:
    """Refuse to evaluate images of which no LQ pixel is left; DataError names the set."""
    for shards in sets:
        side = shards.smallest_side()
        if side < scale:
            raise DataError(
                f"{setting}: {shards.root} has an image of {side} pixels a side, less than one LQ pixel at "
                f"model.scale={scale}: write the set again without it"
            )


def is_stored(component: Any) -> bool:
    """Return whether a degradation is to use what the sets store."""
    return component == "stored" or (isinstance(component, Mapping) and component.get("name") == "stored")


def stored_or(component: Any, sets: Sequence[ShardSet], scale: int, setting: str, given: bool) -> Any:
    """The degradation of an evaluation: `stored` where the sets store LQ images and no other one was `given`.

    Raises: DataError if only some of the sets store them, or at another scale.
    """
    use_stored = not given and scale > 1 and any(shards.lq for shards in sets)
    if not use_stored and not is_stored(component):
        return component
    check_lq(sets, scale, setting)
    return {"name": "stored"}


def recorded_degradation(sets: Sequence[ShardSet]) -> dict[str, Any]:
    """Degradation of the LQ images that sets store, where their indexes name it, and the same one.

    Returns: `benchmark`, its name or None; `degradation` (a component), `resampler` and `seed` where they are known.
    """
    kinds = {"benchmark": str, "degradation": dict, "resampler": str, "degradation_seed": int}
    first = sets[0].index
    shared = {
        key: first[key]
        for key, kind in kinds.items()
        if type(first.get(key)) is kind and all(shards.index.get(key) == first[key] for shards in sets)
    }
    seed = {"seed": shared.pop("degradation_seed")} if "degradation_seed" in shared else {}
    return {"benchmark": None, **shared, **seed}


def _check_cache(data: DataConfig, sets: Sequence[ShardSet], weights: Sequence[float]) -> None:
    """Refuse a cache that could not keep what is read at a time: each sample would be a download."""
    need = sum(
        _bytes_in_use(shards, lanes, data.shuffle_window)
        for shards, lanes in zip(sets, allocate(weights, max(data.lanes, len(sets))))
        if shards.cache
    )
    if need > data.cache_gib * 2**30:
        raise DataError(
            f"data.cache_gib={data.cache_gib:g} is less than the {need / 2**30:.3g} GiB of shards that are read at a "
            "time: raise it, or lower data.shuffle_window or data.lanes"
        )


def _bytes_in_use(shards: ShardSet, lanes: int, window: int) -> int:
    """Bytes of shards that are read at a time: all of a set within the shuffle window, else a window of each lane."""
    sizes = [shard["bytes"] for shard in shards.index["shards"]]
    if len(shards) <= window or len(shards) < lanes:
        return sum(sizes)
    shards_per_lane = window / lanes / (len(shards) / len(sizes)) + 2
    return min(sum(sizes), int(lanes * shards_per_lane * max(sizes)))


def iterate_images(sets: Sequence[ShardSet], limit: int = 200) -> Iterator[np.ndarray]:
    """HR images (H W 3 uint8) of at most so many samples, evenly over all sets; damaged ones are passed over."""
    samples = [(shards, shard, index) for shards in sets for shard, n in enumerate(shards.counts) for index in range(n)]
    for shards, shard, index in samples[:: -(-len(samples) // limit)]:
        with suppress(DataError):
            yield read_sample(shards, shard, index, with_lq=False).image
