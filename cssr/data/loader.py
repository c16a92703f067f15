"""The streams of batches: `train_stream` (endless, augmented) and `eval_stream` (every sample exactly once).

Each is a `webdataset.DataPipeline`: positions, samples and crops in worker processes, batches here. The loader is never
handed to accelerate: `cssr/data/sampler.py` maps a position, which is one number, to a sample. A set
without masks gives masks of 0, and distances of 0. A set may store the LQ images of its samples: in training they are
used where `degradation=stored` says so, in evaluation unless another is asked for.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
import webdataset as wds

from cssr.config.schema import DataConfig
from cssr.data.batch import Batch
from cssr.data.checks import check_lq
from cssr.data.remote import DataError
from cssr.data.sampler import MixedPlan
from cssr.data.samples import EvalSamples, Loaded, TrainSamples
from cssr.data.shards import ShardSet, parse_sets
from cssr.data.stages import own_stages
from cssr.data.workers import load


def train_stream(
    sets: Sequence[ShardSet],
    data: DataConfig,
    seed: int,
    start: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    distance: bool = True,
    damage: "Damage | None" = None,
    report: Any = print,
    scale: int | None = None,
) -> Iterator[Batch]:
    """Endless training batches of one rank, on the CPU, from position `start` of the run on.

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
    samples = TrainSamples(sets, plan, data, seed, positions, distance, scale)
    damage = damage or Damage()
    pipeline = [samples.positions, wds.map(samples.read), *own_stages(data.stages, seed), wds.map(samples.cut)]
    counted = partial(_counted, damage=damage, limit=data.max_damaged, report=report, total=sum(map(len, sets)))
    stages = [counted, partial(_batched, micro_batch)]
    with closing(load(pipeline, data.workers, 2 * micro_batch, stages)) as stream:
        yield from stream


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
    samples = EvalSamples(sets, range(rank, min(total, limit or total), world), scale, seed, stored)
    pipeline = [samples.positions, wds.map(samples.load)]
    report = partial(print, file=sys.stderr)
    stages = [partial(_counted, damage=Damage(), limit=0, report=report), partial(_batched_by_shape, batch_size)]
    with closing(load(pipeline, workers, batch_size, stages)) as stream:
        yield from stream


def _counted(
    samples: Iterator[Loaded], damage: "Damage", limit: float, report: Any, total: float = float("inf")
) -> Iterator[Loaded]:
    """Pass samples on, and report damage and notices."""
    for sample in samples:
        for message in damage.count(sample.damaged, limit, total):
            report(f"{message}; replaced")
        for message in damage.note(sample.notices):
            report(message)
        yield sample


def _batched(size: int, samples: Iterator[Loaded]) -> Iterator[Batch]:
    """Batches of `size` samples, each as soon as its last has come: `wds.batched` waits for one more."""
    while part := [*islice(samples, size)]:
        yield _collate(part)


def _batched_by_shape(size: int, samples: Iterator[Loaded]) -> Iterator[Batch]:
    """Batches of at most `size` consecutive samples with equal shapes."""
    for _, group in groupby(samples, lambda s: [None if x is None else x.shape for x in (s.hr, s.lq, s.kernel)]):
        while part := [*islice(group, size)]:
            yield _collate(part)


def _collate(samples: Sequence[Loaded]) -> Batch:
    parts = Loaded(*zip(*samples))
    hr, mask, distance, lq, kernel, valid = map(
        _stack, (parts.hr, parts.mask, parts.distance, parts.lq, parts.kernel, parts.valid)
    )
    return Batch(hr, mask, distance, torch.tensor(parts.seed, dtype=torch.int64), [*parts.key], lq, kernel, valid)


def _stack(arrays: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    return None if arrays[0] is None else torch.stack([torch.as_tensor(a) for a in arrays])


class Damage:
    """Messages of the samples that a stream could not use, and other notices."""

    def __init__(self):
        self.seen = 0
        self.messages: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()

    def count(self, damaged: Sequence[str], limit: float, total: float = float("inf")) -> list[str]:
        """Count the damage met at a position of the stream; a damaged sample counts once, however often it is met.

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
