"""The plan of a run's samples: nothing twice in a pass, the same for any number of processes and workers."""

import itertools
import pickle
import re

import numpy as np
import pytest

import cssr.data.sampler
from cssr.data.sampler import LanePlan, MixedPlan, allocate, check_split, draw_seed, rng


def random_plans(number: int = 40, fits: bool | None = None) -> list[tuple[list[int], int, int, int]]:
    """(counts, lanes, seed, window), some within the window and some not."""
    draws, plans = np.random.default_rng(5), []
    while len(plans) < number:
        counts = draws.integers(0, 30, draws.integers(1, 9)).tolist()
        lanes, window = int(draws.integers(1, 20)), int(draws.integers(1, 150))
        if sum(counts) and (fits is None or fits == (sum(counts) <= window)) and sum(counts) >= lanes:
            plans.append((counts, lanes, int(draws.integers(100)), window))
    return plans


def a_pass(plan: LanePlan, number: int = 0) -> list[list[tuple[int, int]]]:
    """The samples of each lane in a pass."""
    rows = range(number * plan.rows, (number + 1) * plan.rows)
    return [[plan.locate(lane, row) for row in rows] for lane in range(plan.lanes)]


def flat(lanes: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return [sample for lane in lanes for sample in lane]


@pytest.mark.parametrize("counts, lanes, seed, window", random_plans())
def test_a_pass_has_no_sample_twice_and_leaves_few_out(counts, lanes, seed, window):
    plan, everything = LanePlan(counts, lanes, seed, window), {(s, i) for s, n in enumerate(counts) for i in range(n)}
    for number in range(3):
        samples = flat(a_pass(plan, number))
        assert len(samples) == len(set(samples)) and set(samples) <= everything
        assert len(everything) - len(samples) <= lanes - 1


@pytest.mark.parametrize("counts, lanes, seed, window", random_plans(12))
def test_a_plan_is_a_pure_function(counts, lanes, seed, window):
    """Asked in another order, by a fresh object, it says the same: nothing depends on what was asked before."""
    forth, back = (MixedPlan([counts], [1], lanes, seed, window) for _ in range(2))
    places = range(4 * sum(counts))
    asked = {n: forth.locate(n) for n in places}
    assert asked == {n: back.locate(n) for n in reversed(places)}


@pytest.mark.parametrize("counts, lanes, seed, window", random_plans(6))
def test_sets_are_left_out_by_turns(counts, lanes, seed, window):
    """What sits out one pass does not sit out all: within twenty passes every sample is seen."""
    plan = LanePlan(counts, lanes, seed, window)
    seen = {sample for number in range(20) for sample in flat(a_pass(plan, number))}
    assert len(seen) == sum(counts)


@pytest.mark.parametrize("window", [100, 10])
def test_passes_and_seeds_have_orders_of_their_own(window):
    plan = LanePlan([9, 11, 7, 13], 4, 0, window)
    orders = [a_pass(plan, 0), a_pass(plan, 1), a_pass(plan, 2), a_pass(LanePlan([9, 11, 7, 13], 4, 1, window))]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_a_set_within_the_window_is_permuted_whole():
    """Each lane draws from all shards, and two samples of a shard are seldom neighbours."""
    plan = LanePlan([64] * 8, 8, 0, 512)
    for lane in a_pass(plan):
        assert len({shard for shard, _ in lane}) == 8
    neighbours = np.array([a[0] == b[0] for lane in a_pass(plan) for a, b in zip(lane, lane[1:])])
    assert neighbours.mean() < 0.25  # 1/8 by chance


@pytest.mark.parametrize("counts, lanes, seed, window", random_plans(12, fits=False))
def test_lanes_of_a_larger_set_are_contiguous_stretches(counts, lanes, seed, window):
    """A lane reads few shards at a time: its samples are one run of the pass's shards laid end to end."""
    plan = LanePlan(counts, lanes, seed, window)
    order = plan.shard_order(0)
    position = {sample: k for k, sample in enumerate((int(s), i) for s in order for i in range(counts[s]))}
    for lane, samples in enumerate(a_pass(plan)):
        assert sorted(position[sample] for sample in samples) == [*range(lane * plan.rows, (lane + 1) * plan.rows)]


@pytest.mark.parametrize("window, lanes", [(40, 4), (12, 4), (3, 4)])
def test_a_larger_set_is_shuffled_within_its_windows_only(window, lanes):
    plan = LanePlan([25] * 4, lanes, 3, window)
    order = plan.shard_order(0)
    position = {sample: k for k, sample in enumerate((int(s), i) for s in order for i in range(25))}
    size = max(1, window // lanes)
    for lane, samples in enumerate(a_pass(plan)):
        places = [position[sample] - lane * plan.rows for sample in samples]
        assert all(place // size == row // size for row, place in enumerate(places))
        assert (places != sorted(places)) == (size > 1)


@pytest.mark.parametrize("total, lanes", [(1, 8), (3, 8), (7, 8), (5, 32)])
def test_fewer_samples_than_lanes(total, lanes):
    """The set is repeated: every lane has a sample, and none comes more than once more often than another."""
    plan = LanePlan([total], lanes, 0, 2)
    counts = np.bincount([index for _, index in flat(a_pass(plan))], minlength=total)
    assert plan.rows == 1 and counts.sum() == lanes and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_no_samples_are_an_error(counts):
    with pytest.raises(ValueError, match="at least one sample"):
        LanePlan(counts, 4, 0, 10)


@pytest.mark.parametrize("window", [10, 10**6])
def test_what_is_worked_out_once_a_pass_is_not_worked_out_again(window, monkeypatch):
    """Of ten thousand shards, neither the order nor the sums are made anew for each sample; two passes are kept."""
    plan, made = LanePlan([50] * 10_000, 8, 0, window), []
    work = cssr.data.sampler.rng
    monkeypatch.setattr(cssr.data.sampler, "rng", lambda *key: made.append(key) or work(*key))
    rows = range(plan.rows - 3, plan.rows + 3)  # over the border of a pass
    for _, row, lane in itertools.product(range(3), rows, range(8)):
        plan.locate(lane, row)
    assert len([key for key in made if key in ((0, 0), (0, 1), (0, 0, 0), (0, 1, 0))]) == 2
    for number in range(20):
        plan.locate(0, number * plan.rows)
    assert len(plan._passes) == 2 and len(plan._blocks) <= 8


@pytest.mark.parametrize("window, ahead", [(1000, 8), (40, 10)])
def test_what_will_be_wanted_soon_is_a_window_ahead(window, ahead):
    plan = MixedPlan([[25] * 8], [1], 4, 0, window)
    assert [plan.later(n) for n in range(40)] == [plan.locate(n + 4 * ahead) for n in range(40)]


# ---- several sets ----


@pytest.mark.parametrize("seed", range(5))
def test_sets_share_the_lanes_by_weight(seed):
    draws = np.random.default_rng(seed)
    lanes, weights = int(draws.integers(8, 64)), draws.uniform(1, 2, 4)
    share = MixedPlan([[50]] * 4, weights, lanes, seed, 100).share
    assert sum(share) == lanes and all(isinstance(n, int) for n in share)
    assert np.abs(np.array(share) / lanes - weights / weights.sum()).max() < 1 / lanes


@pytest.mark.parametrize(
    "weights, lanes, share", [([3, 1], 8, [6, 2]), ([1000, 1], 4, [3, 1]), ([1, 1, 1], 3, [1] * 3)]
)
def test_every_set_has_a_lane(weights, lanes, share):
    assert allocate(weights, lanes) == share


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_stream_keeps_the_shares_in_every_row(seed):
    plan = MixedPlan([[40, 9], [13], [70]], [2, 1, 1], 8, seed, 30)
    rows = np.array([[plan.locate(row * 8 + lane)[0] for lane in range(8)] for row in range(20)])
    assert all(np.bincount(row, minlength=3).tolist() == [4, 2, 2] for row in rows)


def test_a_pass_of_each_set_of_a_mix_has_nothing_twice():
    counts = [[20, 9], [13]]
    plan, seen = MixedPlan(counts, [1, 3], 8, 4, 1000), {0: [], 1: []}
    for place in range(8 * 14):
        owner, *sample = plan.locate(place)
        seen[owner].append(tuple(sample))
    for owner, lanes in enumerate(plan.share):
        length = sum(counts[owner]) // lanes * lanes
        first, second = seen[owner][:length], seen[owner][length : 2 * length]
        assert len(set(first)) == length and len(set(second)) == len(second)


@pytest.mark.parametrize(
    "sets, weights, message",
    [
        ([[5]] * 5, [1] * 5, "data.lanes=4 is fewer than the 5 sets of data.train; set it to 5 or more"),
        ([[5], [5]], [1, 0], "data.train: weights must be positive"),
        ([[5], [5]], [1, -2], "data.train: weights must be positive"),
        ([[5], [5]], [1, float("inf")], "data.train: weights must be positive"),
    ],
)
def test_mixes_that_cannot_be(sets, weights, message):
    with pytest.raises(ValueError, match=message):
        MixedPlan(sets, weights, 4, 0, 10)


@pytest.mark.parametrize("window", [1000, 12])
def test_substitutes_stay_in_lane_and_pass(window):
    """Five tries; a lane that is damaged throughout is helped by the other lanes of its set."""
    plan = MixedPlan([[20, 13], [19]], [1, 1], 4, 0, window)
    for place in range(0, 200, 3):
        owner, lane, row = int(plan._owner[place % 4]), place % 4, place // 4
        rows = plan._plans[owner].rows
        first = row // rows * rows
        allowed = {plan.locate(r * 4 + lane) for r in range(first, first + rows)}
        found = {plan.substitute(place, attempt) for attempt in range(5)}
        later = {plan.substitute(place, attempt) for attempt in range(5, 40)}
        assert found <= allowed and not later <= allowed
        assert {owner} == {sample[0] for sample in found | later}


def test_substitutes_are_a_pure_function_of_place_and_attempt():
    plans = [MixedPlan([[50]], [1], 4, 7, 100) for _ in range(2)]
    plans[1].locate(190)
    assert [plans[0].substitute(9, k) for k in range(5)] == [plans[1].substitute(9, k) for k in range(5)]


@pytest.mark.parametrize("window", [1000, 12])
def test_a_plan_survives_pickling(window):
    """Loader workers that are not forked (macOS, and Linux from Python 3.14 on) receive it so."""
    plan = MixedPlan([[20, 13], [19]], [1, 2], 4, 0, window)
    again = pickle.loads(pickle.dumps(plan))
    assert [again.locate(n) for n in range(80)] == [plan.locate(n) for n in range(80)]


# ---- sizes ----


@pytest.mark.parametrize(
    "lanes, batch, world, workers, micro",
    [(32, 6, 1, 2, 6), (32, 8, 2, 4, 2), (12, 12, 3, 4, 1), (32, 5, 1, 0, 5), (4, 4, 4, 0, 1)],
)
def test_sizes_that_fit(lanes, batch, world, workers, micro):
    check_split(lanes, batch, world, workers, micro)


@pytest.mark.parametrize(
    "sizes, remedy",
    [
        ((32, 12, 2, 1, 4), r"train.micro_batch may be \[1, 2, 3, 6\]"),
        ((32, 6, 4, 1, 1), "train.batch_size must be a multiple of 4"),
        ((32, 2, 4, 1, 1), "train.batch_size must be a multiple of 4"),
        ((32, 6, 1, 3, 6), r"data.workers may be \[1, 2, 4, 8, 16, 32\]"),
        ((12, 6, 2, 4, 3), r"data.workers may be \[1, 2, 3, 6\]"),
        ((32, 6, 3, 1, 2), "make data.lanes a multiple of 3"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_those_that_do(sizes, remedy):
    with pytest.raises(ValueError, match=remedy) as caught:
        check_split(*sizes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lanes, batch, world, workers, micro",
    [(32, 24, 2, 1, 5), (32, 24, 2, 3, 12), (30, 60, 5, 4, 12), (30, 60, 5, 2, 7)],
)
def test_every_size_that_an_error_names_is_accepted(lanes, batch, world, workers, micro):
    with pytest.raises(ValueError) as caught:
        check_split(lanes, batch, world, workers, micro)
    key, values = re.search(r"(micro_batch|workers) may be \[(.*)\]", str(caught.value)).groups()
    for value in map(int, values.split(",")):
        check_split(lanes, batch, world, **{"workers": workers, "micro_batch": micro, key: value})


# ---- generators ----


def test_generators_depend_on_all_of_their_key():
    keys = [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (3, 2, 1), (1, 2)]
    assert len({int(rng(*key).integers(2**62)) for key in keys}) == len(keys)
    assert rng(5, 6).random() == rng(5, 6).random()


def test_seeds_fit_a_signed_64_bit_number():
    seeds = [draw_seed(0, n) for n in range(1000)]
    assert len(set(seeds)) == 1000 and min(seeds) >= 0 and max(seeds) < 2**62


def test_the_drawn_example_is_true():
    """At the top of the module, of a set larger than its window, whose lanes' windows hold one sample each."""
    lanes = re.findall(r"lane (\d): (.*) at positions (.*)", cssr.data.sampler.__doc__)
    plan = MixedPlan([[4, 3, 5]], [1], lanes=3, seed=0, window=3)
    assert [int(lane) for lane, *_ in lanes] == [0, 1, 2]
    for _, samples, positions in lanes:
        found = [plan.locate(int(position))[1:] for position in positions.split()]
        assert ["ABC"[shard] + str(index) for shard, index in found] == samples.split()
    batch = ["ABC"[shard] + str(index) for _, shard, index in map(plan.locate, range(6))]
    assert f"A batch of 6 is {' '.join(batch)};" in cssr.data.sampler.__doc__
    assert f"the first takes {' '.join(batch[::2])}, the second {' '.join(batch[1::2])}." in cssr.data.sampler.__doc__
