"""Samples of shards as workers make them: read, cropped and mirrored for training, whole for evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cssr.config.schema import DataConfig
from cssr.data.cache import Prefetcher
from cssr.data.dataset import Sample, eval_seed, read_sample
from cssr.data.remote import DataError, Unreachable
from cssr.data.sampler import MixedPlan, rng
from cssr.data.shards import ShardSet
from cssr.data.stages import ReadSample
from cssr.data.transforms import augment, augment_stored, signed_distance
from cssr.data.workers import worker_share

_MAX_SUBSTITUTES = 20  # damaged substitutes in a row before a worker gives up


class Loaded(NamedTuple):
    """A sample as it comes from a worker; arrays as in `Batch`, but for its first dimension."""

    hr: np.ndarray
    mask: np.ndarray
    distance: np.ndarray | None
    seed: int
    key: str
    lq: np.ndarray | None
    kernel: np.ndarray | None
    damaged: list[str]  # messages of damaged samples that it replaces
    notices: list[str]  # other messages
    valid: np.ndarray | None = None


class _ShardSamples(ABC):
    """Samples of shards; notices are kept until the next sample is loaded."""

    def __init__(self, indices: range):
        self.indices = indices
        self.notices: list[str] = []
        self._prefetcher: Prefetcher | None = None

    def positions(self) -> Iterator[int]:
        """The positions of this worker, in order; shards of later ones are fetched meanwhile."""
        try:
            for position in worker_share(self.indices):
                self.prefetch_after(position)
                yield position
        finally:
            if self._prefetcher:
                self._prefetcher.close()
            self._prefetcher = None

    @abstractmethod
    def prefetch_after(self, position: int) -> None:
        """Start to fetch the shard of samples after a position."""

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
            self._prefetcher.request(shards.cache, shards.entry(shard))


class TrainSamples(_ShardSamples):
    """The samples of one rank's positions; `scale`: of the stored LQ images, None where they are not wanted."""

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

    def read(self, position: int) -> ReadSample:
        """The sample at a position, or a seeded substitute of its lane."""
        place, damaged = self.plan.locate(position), []
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                sample = read_sample(self.sets[place[0]], *place[1:], self.notices.append, self.scale is not None)
                self._check_size(sample, self.sets[place[0]].address(place[1]))
                return ReadSample(position, sample, damaged)
            except Unreachable:
                raise
            except DataError as error:
                damaged.append(str(error))
                place = self.plan.substitute(position, attempt)
        raise DataError(f"{_MAX_SUBSTITUTES} damaged samples in a row, the last: {damaged[-1]}; check the shards")

    def _check_size(self, sample: Sample, address: str) -> None:
        """DataError for an image that is too small for a crop, which none of the set is by its index."""
        height, width = sample.mask.shape
        if min(height, width) < self.data.crop and not self.data.resized_crop:
            raise DataError(
                f"damaged sample: {address} key {sample.key}: its image has {width} x {height} pixels, smaller than "
                f"its index says and than data.crop={self.data.crop}"
            )

    def cut(self, read: ReadSample) -> Loaded:
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
        return Loaded(_planes(image[..., :3]), mask[None], distance, seed, sample.key, *rest)

    def prefetch_after(self, position: int) -> None:
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


class EvalSamples(_ShardSamples):
    """Every `world`-th sample of the sets, in shard order; `stored`: with the LQ images that they store."""

    def __init__(self, sets: Sequence[ShardSet], indices: range, multiple: int, seed: int, stored: bool):
        self.sets, self.multiple, self.seed, self.stored = sets, multiple, seed, stored
        self.with_valid = any(shards.valid for shards in sets)
        self.shards = [(number, shard) for number, shards in enumerate(sets) for shard in range(len(shards.counts))]
        self.ends = np.cumsum([count for shards in sets for count in shards.counts])
        super().__init__(indices)

    def load(self, index: int) -> Loaded:
        """A whole sample."""
        row = int(np.searchsorted(self.ends, index, side="right"))
        number, shard = self.shards[row]
        index -= int(self.ends[row - 1]) if row else 0
        sample = read_sample(self.sets[number], shard, index, self.notices.append, self.stored)
        height, width = (side // self.multiple * self.multiple for side in sample.mask.shape)
        lq = None if sample.lq is None else _planes(sample.lq)
        kernel = None if sample.kernel is None else sample.kernel[None]
        image, mask = _planes(sample.image[:height, :width]), sample.mask[None, :height, :width]
        valid = _valid_of(sample)[None, :height, :width] if self.with_valid else None
        rest = lq, kernel, [], self.take_notices(), valid
        return Loaded(image, mask, None, eval_seed(self.seed, sample.key), sample.key, *rest)

    def prefetch_after(self, index: int) -> None:
        position = int(np.searchsorted(self.ends, index, side="right")) + 1
        if position < len(self.shards):
            self.prefetch(self.sets[self.shards[position][0]], self.shards[position][1])
