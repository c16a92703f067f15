"""Shards to batches: `train_stream` (endless, by lanes, augmented) and `eval_stream` (every sample exactly once).

The loader is never handed to accelerate: which sample stands where in a run is for `cssr/lanes.py` to say, and a place
in the stream is one number. A set without masks gives masks of 0, and distances of 0.
"""

import atexit
import signal
import weakref
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from cssr.augment import augment
from cssr.batch import Batch
from cssr.config import DataConfig
from cssr.lanes import MixedPlan, rng
from cssr.tars import DataError, Sample, ShardSet, open_sets, parse_sets, read_sample

_GRACE = 30  # seconds that a worker outlives a SIGTERM, for the training process to finish its step and save
_MAX_SUBSTITUTES = 20  # damaged substitutes in a row before a worker gives up


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance map of a mask, pixels.

    Args: mask: H W uint8, 1 on crack pixels.
    Returns: H W float32: outside, the distance to the nearest crack pixel; inside, minus the distance to the nearest
        background pixel (-1 along the inner boundary); zero all over where the mask is empty. Exact (cv2's precise
        transform), image borders not counted as background.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    if mask.all():
        return outside - 1
    return outside - cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


class _Samples(IterableDataset):
    """Samples of `self.indices`, of which each worker takes its share in turn."""

    indices: range

    @abstractmethod
    def load(self, index: int) -> tuple:
        """One sample; DataError if it cannot be had."""

    def __iter__(self) -> Iterator[tuple | DataError]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for index in self.indices[offset::stride]:
                yield self.load(index)
        except DataError as error:
            yield error


class _TrainSamples(_Samples):
    """The samples of one rank's places: (hr, mask, distance, seed, key, damage met on the way), as numpy arrays."""

    def __init__(
        self, sets: Sequence[ShardSet], plan: MixedPlan, data: DataConfig, seed: int, places: range, distance: bool
    ):
        self.sets, self.plan, self.data, self.seed = sets, plan, data, seed
        self.indices, self.distance = places, distance

    def load(self, place: int) -> tuple:
        sample, damaged = self._read(place)
        draws = rng(self.seed, place, 0xA6)
        image, mask = augment(sample.image, sample.mask, self.data, draws)
        distance = signed_distance(mask)[None] if self.distance else None
        seed = int(draws.integers(2**62))
        return image.transpose(2, 0, 1), mask[None], distance, seed, sample.key, damaged

    def _read(self, place: int) -> tuple[Sample, list[str]]:
        """The sample at a place, or a seeded substitute of its lane, and what was damaged on the way."""
        at, damaged = self.plan.locate(place), []
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                return read_sample(self.sets[at[0]], *at[1:]), damaged
            except DataError as error:
                damaged.append(str(error))
                at = self.plan.substitute(place, attempt)
        raise DataError(f"{_MAX_SUBSTITUTES} damaged samples in a row, the last: {damaged[-1]}; check the shards")


@dataclass
class Damage:
    """How many samples a stream could not use, and what they said."""

    seen: int = 0
    messages: Counter = None  # type: ignore[assignment]

    def __post_init__(self):
        self.messages = Counter()

    def count(self, damaged: Sequence[str], limit: float) -> list[str]:
        """Count a sample's damage; returns what has not been reported yet; DataError above the limit."""
        self.seen += 1
        new = [message for message in damaged if message not in self.messages]
        self.messages.update(damaged)
        total = sum(self.messages.values())
        if damaged and total > limit * max(self.seen, 100):
            raise DataError(
                f"{total} of {self.seen} samples are damaged, more than data.max_damaged={limit}; "
                f"the last: {damaged[-1]}"
            )
        return new


def open_train_sets(data: DataConfig) -> tuple[list[ShardSet], list[float]]:
    """The sets of `data.train` and their weights, checked against the crop."""
    weights, sets = parse_sets(data.train, "data.train"), open_sets(data.train, "data.train")
    for shards in sets:
        side = shards.smallest_side()
        if side < data.crop and not data.resized_crop:
            raise DataError(
                f"data.crop={data.crop} exceeds the smallest image of {shards.root} ({side} pixels a side); "
                f"set data.crop to at most {side}, or data.resized_crop=[0.6,1]"
            )
    return sets, list(weights.values())


def train_stream(
    data: DataConfig,
    seed: int,
    start: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    distance: bool = True,
    damage: Damage | None = None,
    report: Any = print,
) -> Iterator[Batch]:
    """Endless training batches of one rank, on the CPU, from place `start` of the run on.

    Args:
        data: settings; `data.train` names the sets.
        seed: of order, crops and degradations.
        start: samples seen so far by all ranks together (a multiple of `world`).
        micro_batch: samples a batch.
        distance: whether the signed distance maps are wanted.
        damage: counts damaged samples; `report` is called with each new message.
    """
    sets, weights = open_train_sets(data)
    plan = MixedPlan([s.counts for s in sets], weights, data.lanes, seed, data.shuffle_window)
    places = range(start + rank, 2**62, world)
    samples = _TrainSamples(sets, plan, data, seed, places, distance)
    damage = damage or Damage()
    pending: list[tuple] = []
    with closing(_load(samples, data.workers, 2 * micro_batch)) as stream:
        for sample in stream:
            for message in damage.count(sample[-1], data.max_damaged):
                report(message)
            pending.append(sample)
            if len(pending) == micro_batch:
                yield _collate(pending)
                pending = []


def _load(samples: "_Samples", workers: int, prefetch: int) -> Iterator[tuple]:
    """Samples one by one, taken from the workers in turn, as plain arrays (nothing of them lives in shared memory)."""
    loader = DataLoader(
        samples,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_init_worker,
        prefetch_factor=prefetch if workers else None,
    )
    stream = _raise_errors(loader)
    _open_streams.add(stream)
    return stream


def _raise_errors(loader: DataLoader) -> Iterator[tuple]:
    """What the workers have found wrong, raised here as it was, without their tracebacks."""
    for sample in loader:
        if isinstance(sample, DataError):
            raise sample
        yield sample


_open_streams: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    """At exit, streams that something still holds end their workers, which would not heed multiprocessing's SIGTERM."""
    for stream in list(_open_streams):
        stream.close()


def _init_worker(_: int) -> None:
    """A SIGTERM to the whole group is the training process's to answer: a worker goes on for a while, then ends."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    cv2.setNumThreads(0)


def _as_is(sample: tuple) -> tuple:
    return sample


def _collate(samples: Sequence[tuple]) -> Batch:
    hr, mask, distance, seed, key, _ = zip(*samples)
    return Batch(
        hr=_stack(hr),
        mask=_stack(mask),
        distance=None if distance[0] is None else _stack(distance),
        seed=torch.tensor(seed, dtype=torch.int64),
        key=list(key),
    )


def _stack(arrays: Sequence[Any]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(a) for a in arrays])


class _EvalSamples(_Samples):
    """Every `world`-th sample of the sets, in shard order."""

    def __init__(self, sets: Sequence[ShardSet], indices: range, multiple: int):
        self.sets, self.indices, self.multiple = sets, indices, multiple
        self.where = [(s, k, i) for s, shards in enumerate(sets) for k, n in enumerate(shards.counts) for i in range(n)]

    def load(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        s, shard, i = self.where[index]
        sample = read_sample(self.sets[s], shard, i)
        height, width = (side // self.multiple * self.multiple for side in sample.mask.shape)
        image = np.ascontiguousarray(sample.image[:height, :width].transpose(2, 0, 1))
        return sample.key, image, sample.mask[None, :height, :width]


def eval_stream(
    setting: Any,
    scale: int,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    workers: int = 0,
    name: str = "data.val",
) -> Iterator[Batch]:
    """Every sample of the sets once: rank r takes samples r, r + world, ...; batches hold images of one size.

    Images are cut at the right and bottom to multiples of `scale`. The degradation's seed depends on `seed` and the key
    alone. A damaged sample is an error here: an evaluation that skips is not the evaluation that was asked for.
    """
    sets = open_sets(setting, name)
    total = sum(map(len, sets))
    samples = _EvalSamples(sets, range(rank, min(total, limit or total), world), scale)
    pending: list[tuple] = []
    with closing(_load(samples, workers, batch_size)) as stream:
        for key, image, mask in stream:
            if pending and (len(pending) == batch_size or pending[0][0].shape[-2:] != tuple(image.shape[-2:])):
                yield _collate(pending)
                pending = []
            pending.append((image, mask, None, eval_seed(seed, key), key, None))
    if pending:
        yield _collate(pending)


def eval_seed(seed: int, key: str) -> int:
    """The degradation seed of an evaluated sample: of the evaluation's seed and the key, not of the order."""
    return (seed << 32) + zlib.crc32(key.encode())
