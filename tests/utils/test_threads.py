"""Reading ahead and writing behind: order, bounds, errors, and no thread left."""

import threading
import time

import pytest

from cssr.utils.threads import WriteBehind, read_ahead, side_by_side


@pytest.mark.parametrize("count", [0, 1, 3])
def test_everything_comes_in_order(count):
    assert list(read_ahead(iter(range(20)), count)) == list(range(20))


def settled(value) -> int:
    """What a counter of another thread comes to stand at."""
    before = -1
    while before != value():
        before = value()
        time.sleep(0.05)
    return before


def test_no_more_is_read_than_asked_for():
    made = []
    items = read_ahead((made.append(n) or n for n in range(20)), 2)
    assert next(items) == 0
    assert settled(lambda: len(made)) == 4  # one is in use, two wait, one finds no room
    items.close()


def test_an_error_of_the_reader_comes_in_its_turn_and_leaves_no_thread():
    def failing():
        yield 1
        raise OSError("gone")

    before, items = threading.active_count(), read_ahead(failing(), 2)
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)
    assert threading.active_count() == before


@pytest.mark.parametrize("taken", [1, 5])
def test_a_reader_that_is_left_ends(taken):
    before, items = threading.active_count(), read_ahead(iter(range(1000)), 2)
    for _ in range(taken):
        next(items)
    items.close()
    assert threading.active_count() == before


def test_a_function_of_many_items_by_several_threads():
    """In their order, however long each takes; at the end no thread is left."""
    before, begun = threading.active_count(), []
    slower_first = lambda n: time.sleep(0.02 * (n % 2 == 0)) or n * n  # noqa: E731
    results = side_by_side(slower_first, iter(range(9)), 2, lambda: begun.append(1))
    assert list(results) == [n * n for n in range(9)]
    assert 1 <= len(begun) <= 2 and threading.active_count() == before


def test_no_more_is_begun_after_an_error_or_when_nobody_asks():
    before, begun = threading.active_count(), []

    def failing(n):
        begun.append(n)
        if n == 3:
            raise OSError("gone")
        return n

    results = side_by_side(failing, range(100), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(results)
    assert max(begun) <= 6 and threading.active_count() == before
    results = side_by_side(failing, range(4, 100), 2)
    next(results)
    results.close()
    assert max(begun) <= 7 and threading.active_count() == before


def test_writes_come_in_order_and_are_done_at_the_end():
    done = []
    with WriteBehind(2) as later:
        for n in range(20):
            later(done.append, n)
    assert done == list(range(20))


def test_an_error_of_the_writer_is_raised_and_nothing_more_written():
    done = []

    def write(n):
        if n == 3:
            raise OSError("no space")
        done.append(n)

    with pytest.raises(OSError, match="no space"), WriteBehind(1) as later:
        for n in range(50):
            later(write, n)
    assert done == [0, 1, 2]


def test_an_error_in_the_block_goes_before_that_of_the_writer():
    with pytest.raises(KeyError), WriteBehind(5) as later:
        later(lambda: 1 / 0)
        raise KeyError("first")
