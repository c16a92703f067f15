"""The streams of batches: `train_stream` (endless, augmented) and `eval_stream` (every sample exactly once).

Each is a `webdataset.DataPipeline`: places, samples and crops in worker processes, batches here. The loader is never
handed to accelerate: `cssr/data/sampler.py` maps a place in the stream, which is one number, to a sample. A set
without masks gives masks of 0, and distances of 0. A set may store the LQ images of its samples: in training they are
used where `degradation=stored` says so, in evaluation unless another is asked for.
"""

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import webdataset as wds

from cssr.config.schema import DataConfig
from cssr.data.batch import Batch
from cssr.data.cache import Prefetcher
from cssr.data.checks import check_lq
from cssr.data.dataset import Sample, eval_seed, read_sample
from cssr.data.remote import DataError, Unreachable
from cssr.data.sampler import MixedPlan, rng
from cssr.data.shards import ShardSet, parse_sets
from cssr.data.stages import Read, own_stages
from cssr.data.transforms import augment, augment_stored, signed_distance
from cssr.data.workers import load, worker_share

_MAX_SUBSTITUTES = 20  # damaged substitutes in a row before a worker gives up


class _Loaded(NamedTuple):
    """A sample as it comes from a worker; arrays as in `Batch`, but for its first dimension."""

    hr: np.ndarray
    mask: np.ndarray
    distance: np.ndarray | None
    seed: int
    key: str
    lq: np.ndarray | None
    kernel: np.ndarray | None
    damaged: list[str]  # what could not be used in its place
    notices: list[str]  # what else there was to say
    valid: np.ndarray | None = None


class _ShardSamples(ABC):
    """Samples of shards; what there is to say of them is kept until one is loaded."""

    def __init__(self, indices: range):
        self.indices = indices
        self.notices: list[str] = []
        self._prefetcher: Prefetcher | None = None

    def places(self) -> Iterator[int]:
        """The places of this worker, in order; shards of those to come are fetched meanwhile."""
        try:
            for position in worker_share(self.indices):
                self.soon(position)
                yield position
        finally:
            if self._prefetcher:
                self._prefetcher.close()
            self._prefetcher = None

    @abstractmethod
    def soon(self, position: int) -> None:
        """Fetch ahead what follows a place."""

    def take_notices(self) -> list[str]:
        """Messages since the last call."""
        notices = [*self.notices]
        del self.notices[: len(notices)]  # not what the other thread has added meanwhile
        return notices

    def prefetch(self, shards: ShardSet, shard: int) -> None:
        """Begin to download a shard, if it is elsewhere."""
        if shards.cache:
            # made here, in the worker, where its thread is to run
            self._prefetcher = self._prefetcher or Prefetcher(self.notices.append)
            self._prefetcher.want(shards.cache, shards.entry(shard))


class _TrainSamples(_ShardSamples):
    """The samples of one rank's places; `scale`: of the stored LQ images, None where they are not wanted."""

    def __init__(
        self,
        sets: Sequence[ShardSet],
        plan: MixedPlan,
        data: DataConfig,
        seed: int,
        positions: range,
        distance: bool,
        scale: int | None = None,
    ):
        self.sets, self.plan, self.data, self.seed = sets, plan, data, seed
        self.distance, self.scale = distance, scale
        self.with_kernel = all(shards.kernel == sets[0].kernel for shards in sets)
        self.with_valid = any(shards.valid for shards in sets)
        super().__init__(positions)

    def read(self, position: int) -> Read:
        """The sample at a place, or a seeded substitute of its lane."""
        at, damaged = self.plan.locate(position), []
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                sample = read_sample(self.sets[at[0]], *at[1:], self.notices.append, self.scale is not None)
                self._check_size(sample, self.sets[at[0]].address(at[1]))
                return Read(position, sample, damaged)
            except Unreachable:
                raise
            except DataError as error:
                damaged.append(str(error))
                at = self.plan.substitute(position, attempt)
        raise DataError(f"{_MAX_SUBSTITUTES} damaged samples in a row, the last: {damaged[-1]}; check the shards")

    def _check_size(self, sample: Sample, address: str) -> None:
        """DataError for an image that is too small for a crop, which none of the set is by its index."""
        height, width = sample.mask.shape
        if min(height, width) < self.data.crop and not self.data.resized_crop:
            raise DataError(
                f"damaged sample: {address} key {sample.key}: its image has {width} x {height} pixels, smaller than "
                f"its index says and than data.crop={self.data.crop}"
            )

    def cut(self, read: Read) -> _Loaded:
        """A crop, mirrored, with its distance map."""
        position, sample, damaged = read
        draws = rng(self.seed, position, 0xA6)
        try:
            image, mask, lq, kernel = self._augment(sample, draws)
        except ValueError as error:  # what `data.stages` has made of it
            raise DataError(f"data.stages: key {sample.key}: {error}") from error
        distance = signed_distance(mask)[None] if self.distance else None
        seed = int(draws.integers(2**62))
        valid = (image[None, ..., 3] > 127).view(np.uint8) if self.with_valid else None
        rest = lq, kernel, damaged, self.take_notices(), valid
        return _Loaded(_planes(image[..., :3]), mask[None], distance, seed, sample.key, *rest)

    def soon(self, position: int) -> None:
        if any(shards.cache for shards in self.sets):
            owner, shard, _ = self.plan.later(position)
            self.prefetch(self.sets[owner], shard)

    def _augment(self, sample: Sample, draws: np.random.Generator) -> tuple:
        """Image, mask, LQ image (3 h w) and kernel (1 k k); None for the last two where they are not wanted."""
        image = np.dstack([sample.image, 255 * _valid_of(sample)]) if self.with_valid else sample.image
        if self.scale is None:
            return *augment(image, sample.mask, self.data, draws), None, None
        kernel = sample.kernel if self.with_kernel else None
        image, mask, lq, kernel = augment_stored(image, sample.mask, sample.lq, kernel, self.scale, self.data, draws)
        return image, mask, _planes(lq), None if kernel is None else kernel[None]


def _valid_of(sample: Sample) -> np.ndarray:
    """H W uint8, 1 where a pixel holds data."""
    return np.ones(sample.mask.shape, np.uint8) if sample.valid is None else sample.valid


def _planes(image: np.ndarray) -> np.ndarray:
    """H W 3 to 3 H W; cv2 does it several times faster than numpy."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [*planes])
    return planes


class _EvalSamples(_ShardSamples):
    """Every `world`-th sample of the sets, in shard order; `stored`: with the LQ images that they store."""

    def __init__(self, sets: Sequence[ShardSet], indices: range, multiple: int, seed: int, stored: bool):
        self.sets, self.multiple, self.seed, self.stored = sets, multiple, seed, stored
        self.with_valid = any(shards.valid for shards in sets)
        self.shards = [(number, shard) for number, one in enumerate(sets) for shard in range(len(one.counts))]
        self.ends = np.cumsum([count for one in sets for count in one.counts])
        super().__init__(indices)

    def load(self, index: int) -> _Loaded:
        """A whole sample."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        number, shard = self.shards[at]
        index -= int(self.ends[at - 1]) if at else 0
        sample = read_sample(self.sets[number], shard, index, self.notices.append, self.stored)
        height, width = (side // self.multiple * self.multiple for side in sample.mask.shape)
        lq = None if sample.lq is None else _planes(sample.lq)
        kernel = None if sample.kernel is None else sample.kernel[None]
        image, mask = _planes(sample.image[:height, :width]), sample.mask[None, :height, :width]
        valid = _valid_of(sample)[None, :height, :width] if self.with_valid else None
        rest = lq, kernel, [], self.take_notices(), valid
        return _Loaded(image, mask, None, eval_seed(self.seed, sample.key), sample.key, *rest)

    def soon(self, index: int) -> None:
        position = int(np.searchsorted(self.ends, index, side="right")) + 1
        if position < len(self.shards):
            self.prefetch(self.sets[self.shards[position][0]], self.shards[position][1])


class Damage:
    """Samples that a stream could not use, each by its message, and what else there was to say."""

    def __init__(self):
        self.seen = 0
        self.messages: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()

    def count(self, damaged: Sequence[str], limit: float, total: float = float("inf")) -> list[str]:
        """Count the damage met for a place of the stream, each damaged sample once however often it is met.

        Args:
            damaged: messages of the sample and its substitutes.
            limit: share of damaged samples, of those seen (of 100, or all, at first).
            total: samples of all sets.
        Returns: messages that have not been reported yet.
        Raises: DataError above the limit.
        """
        self.seen += 1
        new = [message for message in dict.fromkeys(damaged) if message not in self.messages]
        self.messages.update(damaged)
        count, seen = len(self.messages), min(self.seen, total)
        if new and count > limit * max(seen, min(total, 100)):
            raise DataError(
                f"{count} of {max(seen, count)} samples are damaged, more than data.max_damaged={limit}; "
                f"the last: {new[-1]}"
            )
        return new

    def note(self, notices: Sequence[str]) -> list[str]:
        """Count what was noticed, a slow server, say; returns what has not been reported yet."""
        new = [notice for notice in dict.fromkeys(notices) if notice not in self.notices]
        self.notices.update(notices)
        return new


def train_stream(
    sets: Sequence[ShardSet],
    data: DataConfig,
    seed: int,
    start: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    distance: bool = True,
    damage: Damage | None = None,
    report: Any = print,
    scale: int | None = None,
) -> Iterator[Batch]:
    """Endless training batches of one rank, on the CPU, from place `start` of the run on.

    Args:
        sets: those of `data.train`, opened by `open_train_sets`. data: settings; `data.train` has the sets' weights.
        seed: of order, crops and degradations.
        start: samples seen so far by all ranks together (a multiple of `world`).
        micro_batch: samples a batch.
        distance: whether the signed distance maps are wanted.
        damage: counts damaged samples; `report` is called with each new message.
        scale: of the stored LQ images that the batches are to hold; None: none.
    """
    weights = parse_sets(data.train, "data.train").values()
    plan = MixedPlan([s.counts for s in sets], [*weights], data.lanes, seed, data.shuffle_window)
    positions = range(start + rank, 2**62, world)
    samples = _TrainSamples(sets, plan, data, seed, positions, distance, scale)
    damage = damage or Damage()
    pipeline = [samples.places, wds.map(samples.read), *own_stages(data.stages, seed), wds.map(samples.cut)]
    counted = partial(_counted, damage=damage, limit=data.max_damaged, report=report, total=sum(map(len, sets)))
    stages = [counted, partial(_batched, micro_batch)]
    with closing(load(pipeline, data.workers, 2 * micro_batch, stages)) as stream:
        yield from stream


def _counted(
    samples: Iterator[_Loaded], damage: Damage, limit: float, report: Any, total: float = float("inf")
) -> Iterator[_Loaded]:
    """Pass samples on; report what was damaged, and what else there was to say."""
    for sample in samples:
        for message in damage.count(sample.damaged, limit, total):
            report(f"{message}; replaced")
        for message in damage.note(sample.notices):
            report(message)
        yield sample


def _batched(size: int, samples: Iterator[_Loaded]) -> Iterator[Batch]:
    """Batches of `size` samples, each as soon as its last has come: `wds.batched` waits for one more."""
    while part := [*islice(samples, size)]:
        yield _collate(part)


def _collate(samples: Sequence[_Loaded]) -> Batch:
    parts = _Loaded(*zip(*samples))
    hr, mask, distance, lq, kernel, valid = map(
        _stack, (parts.hr, parts.mask, parts.distance, parts.lq, parts.kernel, parts.valid)
    )
    return Batch(hr, mask, distance, torch.tensor(parts.seed, dtype=torch.int64), [*parts.key], lq, kernel, valid)


def _stack(arrays: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    return None if arrays[0] is None else torch.stack([torch.as_tensor(a) for a in arrays])


def eval_stream(
    sets: Sequence[ShardSet],
    scale: int,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    workers: int = 0,
    name: str = "data.val",
    stored: bool = True,
) -> Iterator[Batch]:
    """Every sample of the sets once: rank r takes samples r, r + world, ...; batches hold images of one size.

    Images are cut at the right and bottom to multiples of `scale`. The degradation's seed depends on `seed` and the key
    alone. A damaged sample is an error here: an evaluation that skips is not the evaluation that was asked for.
    Where a set stores LQ images, the batches hold them, unless `stored` is False, or `scale` is 1: the LQ image is HR.
    `name` is the setting of the sets, for errors.
    """
    stored = stored and scale > 1
    for shards in sets if stored else ():
        if shards.lq:
            check_lq([shards], scale, name)
    total = sum(map(len, sets))
    samples = _EvalSamples(sets, range(rank, min(total, limit or total), world), scale, seed, stored)
    pipeline = [samples.places, wds.map(samples.load)]
    report = partial(print, file=sys.stderr)
    stages = [partial(_counted, damage=Damage(), limit=0, report=report), partial(_batched_by_form, batch_size)]
    with closing(load(pipeline, workers, batch_size, stages)) as stream:
        yield from stream


def _batched_by_form(size: int, samples: Iterator[_Loaded]) -> Iterator[Batch]:
    """Batches of at most `size` samples that follow each other and have one form."""
    for _, alike in groupby(samples, lambda s: [None if x is None else x.shape for x in (s.hr, s.lq, s.kernel)]):
        while part := [*islice(alike, size)]:
            yield _collate(part)
