"""The plan of a run, for any sizes: a pure function of (seed, place), nothing twice in a pass, equal work for all."""

import itertools
from collections import Counter

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cssr.data.sampler import LanePlan, MixedPlan, check_split

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)

counts = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
plans = st.tuples(counts, st.integers(1, 24), st.integers(0, 2**40), st.integers(1, 300))  # counts, lanes, seed, window
mixes = st.lists(st.tuples(counts, st.floats(0.1, 10)), min_size=1, max_size=4)


def samples_of(counts: list[int]) -> set[tuple[int, int]]:
    return {(shard, index) for shard, count in enumerate(counts) for index in range(count)}


def a_pass(plan: LanePlan, number: int) -> list[tuple[int, int]]:
    rows = range(number * plan.rows, (number + 1) * plan.rows)
    return [plan.locate(lane, row) for lane, row in itertools.product(range(plan.lanes), rows)]


@PROPERTY
@given(plan=plans, number=st.integers(0, 1000))
def test_each_pass_has_nothing_twice_and_leaves_out_fewer_than_there_are_lanes(plan, number):
    found = a_pass(LanePlan(*plan), number)
    everything = samples_of(plan[0])
    assume(len(everything) >= plan[1])  # a smaller set is repeated until every lane has a sample
    assert len(found) == len(set(found)) and set(found) <= everything
    assert len(everything) - len(found) < plan[1]


@PROPERTY
@given(counts=counts, more=st.integers(1, 50), seed=st.integers(0, 2**40), number=st.integers(0, 1000))
def test_a_set_smaller_than_the_lanes_is_used_evenly(counts, more, seed, number):
    lanes = sum(counts) + more
    times = Counter(a_pass(LanePlan(counts, lanes, seed, 10), number))
    assert set(times) <= samples_of(counts) and sum(times.values()) == lanes
    assert max(times.values()) - min(times[sample] for sample in samples_of(counts)) <= 1


@PROPERTY
@given(mix=mixes, lanes=st.integers(4, 24), seed=st.integers(0, 2**40), window=st.integers(1, 300), places=st.data())
def test_a_place_is_a_pure_function_of_seed_and_place(mix, lanes, seed, window, places):
    """Whatever was asked before, in whatever order, by whichever object: the same answer."""
    sets, weights = zip(*mix)
    one, other = (MixedPlan(sets, weights, lanes, seed, window) for _ in range(2))
    asked = places.draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
    first = {place: (one.locate(place), one.later(place), one.substitute(place, 2)) for place in asked}
    again = {place: (other.locate(place), one.later(place), other.substitute(place, 2)) for place in reversed(asked)}
    fresh = MixedPlan(sets, weights, lanes, seed, window)
    assert first == again and fresh.locate(asked[0]) == first[asked[0]][0]


@PROPERTY
@given(mix=mixes, lanes=st.integers(4, 24), seed=st.integers(0, 2**40), window=st.integers(1, 300))
def test_each_set_of_a_mix_goes_through_passes_of_its_own(mix, lanes, seed, window):
    sets, weights = zip(*mix)
    plan = MixedPlan(sets, weights, lanes, seed, window)
    assert sum(plan.share) == lanes and min(plan.share) >= 1
    rows = 2 * max(each.rows for each in plan._plans)
    seen = [[] for _ in sets]
    for place in range(rows * lanes):
        owner, *sample = plan.locate(place)
        seen[owner].append(tuple(sample))
    for found, each, share in zip(seen, plan._plans, plan.share):
        passes = [found[k : k + each.rows * share] for k in range(0, len(found), each.rows * share)]
        assert len(found) == rows * share
        if each.repeats == 1:
            assert all(len(part) == len(set(part)) for part in passes)


worlds = st.sampled_from([1, 2, 3, 4, 6])


def stream(plan: MixedPlan, world: int, workers: int, start: int, steps: int, batch: int) -> list[list]:
    """The global batches of a run, as its ranks and their workers would read them, each by its own rule."""
    per_rank = batch // world
    ranks = []
    for rank in range(world):
        places = range(start + rank, 2**62, world)
        turns = [iter(places[worker::workers]) for worker in range(workers)]
        ranks.append([next(turns[k % workers]) for k in range(steps * per_rank)])
    found = []
    for step in range(steps):
        rows = zip(*(rank[step * per_rank : (step + 1) * per_rank] for rank in ranks))
        found.append([plan.locate(place) for row in rows for place in row])
    return found


@PROPERTY
@given(
    mix=mixes,
    seed=st.integers(0, 2**40),
    window=st.integers(1, 300),
    world=worlds,
    workers=worlds,
    step=st.integers(0, 10**6),
)
def test_the_global_batch_is_the_same_for_every_world_and_number_of_workers(mix, seed, window, world, workers, step):
    sets, weights = zip(*mix)
    plan, batch = MixedPlan(sets, weights, 36, seed, window), 12
    assume(36 % (world * workers) == 0)
    check_split(36, batch, world, workers, batch // world)
    alone = [[plan.locate(batch * k + n) for n in range(batch)] for k in range(step, step + 4)]
    assert stream(plan, world, workers, step * batch, 4, batch) == alone


@PROPERTY
@given(
    mix=mixes, seed=st.integers(0, 2**40), window=st.integers(1, 300), worlds=st.lists(worlds, min_size=2, max_size=4)
)
def test_a_run_that_continues_with_another_world_repeats_and_skips_nothing(mix, seed, window, worlds):
    sets, weights = zip(*mix)
    plan, batch, found = MixedPlan(sets, weights, 24, seed, window), 12, []
    for n, world in enumerate(worlds):
        found += stream(plan, world, n + 1, len(found) * batch, 3, batch)
    whole = [[plan.locate(batch * k + n) for n in range(batch)] for k in range(len(found))]
    assert found == whole


@PROPERTY
@given(plan=plans, row=st.integers(0, 10**9))
def test_what_is_looked_ahead_is_in_the_same_set(plan, row):
    one = MixedPlan([plan[0], [7]], [1, 1], max(plan[1], 2), plan[2], plan[3])
    place = row * one.lanes
    assert one.later(place)[0] == one.locate(place)[0]
