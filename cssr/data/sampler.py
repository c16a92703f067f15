"""Deterministic, resumable sampler: maps (seed, position in the run) to a sample.

For each pass the shards, in a seeded order, are laid end to end and cut into equal lanes; position n of a run is the
next sample of lane n mod lanes. Rank n mod world takes it, so the global batch at a step is the same for any number of
processes and workers, no sample comes twice in a pass, and the state of the stream is one number.

Three shards A, B and C of 4, 3 and 5 samples in three lanes, in a pass whose order of shards is C, A, B:

    lane 0: C0 C1 C2 C3 at positions 0 3 6 9
    lane 1: C4 A0 A1 A2 at positions 1 4 7 10
    lane 2: A3 B0 B1 B2 at positions 2 5 8 11

A batch of 6 is C0 C4 A3 C1 A0 B0; of two ranks the first takes C0 A3 A0, the second C4 C1 B0. Within a lane samples are
then shuffled by windows, and a set that fits one window is shuffled as a whole instead.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

_SOON = 8  # rows that `later` looks ahead in a set that is permuted whole
_IN_LANE = 5  # substitutes looked for in a damaged sample's own lane before its set's others are tried


class LanePlan:
    """The order of one set's samples.

    A set that fits the shuffle window is permuted whole, each pass anew. A larger one is read in a seeded order of its
    shards, each lane a contiguous stretch, permuted within windows of `window / lanes` samples. A set with fewer
    samples than lanes is repeated (each repetition permuted) until every lane has one.

    Args:
        counts: samples in each shard.
        lanes: equal parts of a pass; at most `lanes - 1` samples sit out a pass.
        seed: of the order.
        window: samples among which the order is random.
    """

    def __init__(self, counts: Sequence[int], lanes: int, seed: int, window: int):
        self.counts, self.lanes, self.seed, self.window = np.asarray(counts, dtype=np.int64), lanes, seed, window
        self.total = int(self.counts.sum())
        if not self.total:
            raise ValueError("a training set needs at least one sample")
        self.repeats = -(-lanes // self.total)
        self.rows = self.total * self.repeats // lanes  # samples of a lane in a pass
        self.whole = self.total <= window or self.repeats > 1  # whether a pass is permuted as one
        self._starts = _starts(self.counts)
        self._passes: dict[int, Any] = {}  # what is computed once a pass, of the last two
        self._blocks: dict[int, tuple[tuple[int, int], np.ndarray]] = {}  # the window that each lane is in, permuted

    def locate(self, lane: int, row: int) -> tuple[int, int]:
        """(shard, index in it) of the `row`-th sample of `lane`, rows counted over all passes."""
        number, row = divmod(row, self.rows)
        if self.whole:
            return _split(self._starts, int(self._of_pass(number)[lane * self.rows + row]))
        size = max(1, self.window // self.lanes)
        block, offset = divmod(row, size)
        if self._blocks.get(lane, (None,))[0] != (number, block):
            order = rng(self.seed, number, lane, block).permutation(min(size, self.rows - block * size))
            self._blocks[lane] = (number, block), order
        row = block * size + int(self._blocks[lane][1][offset])
        order, starts = self._of_pass(number)
        position, index = _split(starts, lane * self.rows + row)
        return int(order[position]), index

    def shard_order(self, number: int) -> np.ndarray:
        """The order in which pass `number` of a set larger than the window goes through its shards."""
        return rng(self.seed, number).permutation(len(self.counts))

    def _of_pass(self, number: int) -> Any:
        """Order of the samples of a set that is permuted whole; else of its shards, and where each begins."""
        if number not in self._passes:
            order = self._sample_order(number) if self.whole else self.shard_order(number)
            self._passes = dict([*self._passes.items()][-1:])
            self._passes[number] = order if self.whole else (order, _starts(self.counts[order]))
        return self._passes[number]

    def _sample_order(self, number: int) -> np.ndarray:
        orders = [rng(self.seed, number, k).permutation(self.total) for k in range(self.repeats)]
        return np.concatenate(orders).astype(np.int32 if self.total < 2**31 else np.int64)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Beginnings of shards laid end to end, and the end of the last one."""
    return np.concatenate([[0], np.cumsum(counts)])


def _split(starts: np.ndarray, position: int) -> tuple[int, int]:
    """The shard of a position, and the index in that shard."""
    shard = int(np.searchsorted(starts, position, side="right")) - 1
    return shard, position - int(starts[shard])


class MixedPlan:
    """Several sets in one stream: each owns a share of the lanes, by weight.

    Args:
        sets: the shards' sample counts of each set.
        weights: relative weight of each set; the shares are rounded to whole lanes, at least one a set.
    Raises:
        ValueError: more sets than lanes, or a weight that is not positive.
    """

    def __init__(self, sets: Sequence[Sequence[int]], weights: Sequence[float], lanes: int, seed: int, window: int):
        if len(sets) > lanes:
            raise ValueError(
                f"data.lanes={lanes} is fewer than the {len(sets)} sets of data.train; set it to {len(sets)} or more"
            )
        self.lanes = lanes
        self.share = allocate(weights, lanes)
        owners = np.repeat(np.arange(len(sets)), self.share)
        self._owner = rng(seed, 0x1A9E).permutation(owners) if len(sets) > 1 else owners
        self._lane_in_set = [int((self._owner[:lane] == owner).sum()) for lane, owner in enumerate(self._owner)]
        self._plans = [LanePlan(counts, n, seed + k, window) for k, (counts, n) in enumerate(zip(sets, self.share))]

    def locate(self, position: int) -> tuple[int, int, int]:
        """(set, shard, index) of the sample at a position of the run."""
        row, lane = divmod(position, self.lanes)
        owner = int(self._owner[lane])
        return (owner, *self._plans[owner].locate(self._lane_in_set[lane], row))

    def later(self, position: int) -> tuple[int, int, int]:
        """The sample a window ahead in the lane of a position: in a shard that will be needed soon."""
        row, lane = divmod(position, self.lanes)
        owner = int(self._owner[lane])
        plan = self._plans[owner]
        ahead = _SOON if plan.whole else max(1, plan.window // plan.lanes)
        return (owner, *plan.locate(self._lane_in_set[lane], row + ahead))

    def substitute(self, position: int, attempt: int) -> tuple[int, int, int]:
        """A seeded replacement for a damaged sample, from its pass and lane, then from its set's other lanes."""
        row, lane = divmod(position, self.lanes)
        owner, own_lane = int(self._owner[lane]), self._lane_in_set[lane]
        plan = self._plans[owner]
        random_row = row // plan.rows * plan.rows + int(rng(plan.seed, position, attempt, 0x5B).integers(plan.rows))
        return (owner, *plan.locate((own_lane + max(attempt - _IN_LANE + 1, 0)) % plan.lanes, random_row))


def allocate(weights: Sequence[float], lanes: int) -> list[int]:
    """Divide lanes by weight: whole numbers by largest remainder, at least one each."""
    weights = np.asarray(weights, dtype=float)
    if (weights <= 0).any() or not np.isfinite(weights).all():
        raise ValueError(f"data.train: weights must be positive numbers, got {weights.tolist()}")
    exact = weights / weights.sum() * lanes
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: lanes - share.sum()]] += 1
    while (share == 0).any():
        share[share.argmax()] -= 1
        share[share.argmin()] += 1
    return share.tolist()


def check_split(lanes: int, batch_size: int, world: int, workers: int, micro_batch: int) -> None:
    """Refuse sizes that cannot give every process the same work; ValueError names the valid ones."""
    if batch_size % (world * micro_batch):
        per_rank = batch_size // world
        sizes = [n for n in range(1, per_rank + 1) if per_rank % n == 0] if batch_size % world == 0 else []
        remedy = f"train.micro_batch may be {sizes}" if sizes else f"train.batch_size must be a multiple of {world}"
        raise ValueError(
            f"train.batch_size={batch_size} cannot be split over {world} processes "
            f"in micro-batches of {micro_batch}: {remedy}"
        )
    if lanes % (world * max(workers, 1)):
        valid = [n for n in range(1, lanes + 1) if lanes % (world * n) == 0]
        remedy = f"data.workers may be {valid}" if valid else f"make data.lanes a multiple of {world}"
        raise ValueError(
            f"data.lanes={lanes} is not a multiple of processes x workers = {world} x {max(workers, 1)}: {remedy}"
        )


def rng(*key: int) -> np.random.Generator:
    """A generator that depends on `key` alone: the same on every machine, process and worker."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([k % 2**32 for k in key])))


def draw_seed(*key: int) -> int:
    """A seed for another generator, 0..2^62, that depends on `key` alone."""
    return int(rng(*key).integers(2**62))
