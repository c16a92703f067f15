"""Streams of samples: the same for any workers, ranks and resumption; damage; every evaluated sample once."""

import contextlib
import errno
import gc
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from hand_made import mask_png, write_index, write_pairs, write_tar
from helpers import coordinates, mask_of, spoil, write_set
from PIL import Image
from scipy.ndimage import distance_transform_edt

import cssr.data.tar_reader
from cssr.config.schema import DataConfig
from cssr.data.batch import Batch
from cssr.data.checks import open_train_sets
from cssr.data.dataset import eval_seed
from cssr.data.decode import decode_image
from cssr.data.loader import Damage, DataError, eval_stream, train_stream
from cssr.data.shards import open_sets, parse_sets
from cssr.data.tar_reader import read_members
from cssr.data.transforms import signed_distance
from cssr.data.workers import worker_share

FIELDS = ("hr", "mask", "distance", "seed")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twenty-one pictures of 20 x 24 pixels in six shards."""
    return write_set(tmp_path_factory.mktemp("data") / "a", 21)


@pytest.fixture
def own(tmp_path):
    """Thirty-two pictures in eight shards, for a test to spoil."""
    return write_set(tmp_path / "own", 32)


@pytest.fixture(autouse=True)
def end_workers():
    """What a failed test leaves behind is no other test's trouble."""
    yield
    if multiprocessing.active_children():
        gc.collect()


def settings(train, **changes) -> DataConfig:
    defaults = {"crop": 12, "lanes": 8, "vflip": 0.5, "workers": 0, "max_damaged": 0.5}
    train = str(train) if isinstance(train, Path) else train
    return DataConfig(**{"train": train, **defaults, **changes})


def batches(train, count: int, start: int = 0, micro: int = 4, rank: int = 0, world: int = 1, **changes) -> list[Batch]:
    """The first batches of a stream; the stream is closed."""
    seed, options = (
        changes.pop("seed", 3),
        {k: changes.pop(k) for k in ("distance", "damage", "report") if k in changes},
    )
    data = settings(train, **changes)
    stream = train_stream(open_train_sets(data), data, seed, start, micro, rank, world, **options)
    try:
        return list(itertools.islice(stream, count))
    finally:
        stream.close()


def samples(found: list[Batch]) -> list[dict]:
    """Batches as samples: one mapping each."""
    return [{"key": b.key[i], **{f: getattr(b, f)[i] for f in FIELDS}} for b in found for i in range(len(b))]


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert [sample["key"] for sample in found] == [sample["key"] for sample in expected]
    for one, other in zip(found, expected):
        assert all(torch.equal(one[name], other[name]) for name in FIELDS)


def one_line(caught) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- the training stream is a function of seed and place ----


def test_what_a_batch_holds(shards):
    (batch,) = batches(shards, 1)
    assert batch.hr.shape == (4, 3, 12, 12) and batch.hr.dtype == torch.uint8
    assert batch.mask.shape == (4, 1, 12, 12) and batch.mask.dtype == torch.uint8
    assert batch.distance.shape == (4, 1, 12, 12) and batch.distance.dtype == torch.float32
    assert batch.seed.shape == (4,) and batch.seed.dtype == torch.int64 and len(batch.key) == 4
    assert batch.lq is None and batch.kernel is None


def test_no_distance_map_where_none_is_wanted(shards):
    assert batches(shards, 1, distance=False)[0].distance is None


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_do_not_change_the_stream(shards, workers):
    """Over the border of a pass (16 of 21 samples) too."""
    assert_same(samples(batches(shards, 6, workers=workers)), samples(batches(shards, 6)))


@pytest.mark.parametrize("start, workers", [(1, 0), (4, 0), (16, 0), (17, 0), (40, 0), (6, 2)])
def test_a_stream_from_a_place_is_the_rest_of_the_whole(shards, start, workers):
    whole = samples(batches(shards, 12))
    assert_same(samples(batches(shards, 2, start, workers=workers)), whole[start : start + 8])


@pytest.mark.parametrize("world, workers", [(2, 0), (4, 0), (2, 2)])
def test_ranks_together_are_one_rank(shards, world, workers):
    ranks = [samples(batches(shards, 3, 8, 2, rank, world, workers=workers)) for rank in range(world)]
    woven = [sample for row in zip(*ranks) for sample in row]
    assert_same(woven, samples(batches(shards, 3, 8, 2 * world)))


def test_micro_batches_do_not_change_the_stream(shards):
    assert_same(samples(batches(shards, 12, micro=1)), samples(batches(shards, 3, micro=4)))


@pytest.mark.parametrize("world, workers", [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2), (3, 4)])
def test_ranks_and_workers_share_the_places_out(monkeypatch, world, workers):
    """Every place of the run is taken by one worker of one rank, and the loader's turns put them in order."""
    taken = {}
    for rank, worker in itertools.product(range(world), range(workers)):
        info = type("Info", (), {"id": worker, "num_workers": workers})
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
        taken[rank, worker] = worker_share(range(rank, 2**62, world))[:5]
    turns = [taken[rank, k % workers][k // workers] for k in range(5 * workers) for rank in range(world)]
    assert turns == [*range(5 * workers * world)]


def test_a_pass_has_nothing_twice_and_passes_differ(shards):
    keys = [sample["key"] for sample in samples(batches(shards, 8))]
    assert len(set(keys[:16])) == len(set(keys[16:])) == 16
    assert keys[:16] != keys[16:]


def test_a_sample_is_cut_anew_in_every_pass(shards):
    by_key = {}
    for sample in samples(batches(shards, 16)):
        by_key.setdefault(sample["key"], []).append(sample["hr"])
    pairs = [(crops[0], crops[1]) for crops in by_key.values() if len(crops) > 1]
    assert sum(torch.equal(*pair) for pair in pairs) < len(pairs) / 4


def test_seeds_give_streams_of_their_own(shards):
    one, other = (samples(batches(shards, 4, seed=seed)) for seed in (0, 1))
    assert [s["key"] for s in one] != [s["key"] for s in other]
    seeds = {int(s["seed"]) for s in one + other}
    assert len(seeds) == 32 and min(seeds) >= 0


def test_picture_mask_and_distance_belong_together(shards):
    """The pictures hold coordinates from which the mask follows, however it was cut and mirrored."""
    for sample in samples(batches(shards, 8)):
        mask = mask_of(sample["hr"].permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(sample["mask"][0].numpy(), mask)
        np.testing.assert_array_equal(sample["distance"][0].numpy(), signed_distance(mask))
        assert int(sample["hr"][2, 0, 0]) == int(sample["key"][-3:])


def test_sets_are_mixed_by_weight(shards, own):
    found = batches({str(shards): 3, str(own): 1}, 10)
    assert [sum(key.startswith("own") for key in batch.key) for batch in zip_pairs(found)] == [2] * 5


def zip_pairs(found: list[Batch]) -> list[Batch]:
    """Batches of 4 as rows of the 8 lanes."""
    return [Batch(a.hr, a.mask, key=a.key + b.key) for a, b in zip(found[::2], found[1::2])]


STAGES = """
import numpy as np

def darker(sample, rng):
    sample.image = (sample.image * rng.uniform(0.2, 0.9)).astype(np.uint8)
    return sample

def nothing(sample, rng):
    pass

def small(sample, rng):
    sample.image, sample.mask = sample.image[:8], sample.mask[:8]
    return sample

def floats(sample, rng):
    sample.image = sample.image / 255
    return sample

def alone(sample):
    return sample

def keyword(sample, rng, *, strength):
    return sample

def no_image(sample, rng):
    sample.image = None
    return sample

def fails(sample, rng):
    return sample.colour
"""


@pytest.fixture
def my_stages(tmp_path, monkeypatch):
    """A module `my_stages` of the user's in the working directory."""
    (tmp_path / "my_stages.py").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield
    sys.modules.pop("my_stages", None)


def test_a_users_stage_changes_images_and_nothing_else(shards, my_stages):
    """The same for any ranks and workers: its draws are of the place."""
    plain, darker = (samples(batches(shards, 4, stages=stages)) for stages in ([], ["my_stages.darker"]))
    for one, other in zip(plain, darker):
        assert one["key"] == other["key"] and one["hr"].float().mean() > 1.05 * other["hr"].float().mean()
        assert all(torch.equal(one[name], other[name]) for name in ("mask", "distance", "seed"))
    assert_same(samples(batches(shards, 4, stages=["my_stages.darker"], workers=2)), darker)
    ranks = [samples(batches(shards, 4, 0, 2, rank, 2, stages=["my_stages.darker"])) for rank in range(2)]
    assert_same([sample for row in zip(*ranks) for sample in row], darker)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "stage, message",
    [
        ("my_stages.darkr", "data.stages: my_stages has no function 'darkr'.*darker"),
        ("no_such_lab.stage", "data.stages: no_such_lab cannot be imported"),
        ("darker", "data.stages: 'darker' names no module"),
        ("my_stages.nothing", "data.stages: my_stages.nothing returned NoneType for a-000: return the sample"),
        ("my_stages.floats", "data.stages: my_stages.floats made image float64"),
        ("my_stages.alone", "my_stages.alone cannot be called with a sample and a generator: too many positional"),
        ("my_stages.keyword", "my_stages.keyword cannot be called .*: missing a required .*'strength'"),
        ("my_stages.no_image", r"data.stages: my_stages.no_image made image object \(\)"),
        ("my_stages.fails", r"my_stages.fails failed on a-000: AttributeError: .*'colour' \(.*my_stages.py:\d+\)"),
        ("my_stages.small", r"data.stages: key a-000: image of \d+x8 pixels is smaller than data.crop=12"),
    ],
)
def test_a_stage_that_cannot_be_used(shards, my_stages, stage, message, workers):
    with pytest.raises(ValueError, match=message) as caught:
        batches(shards, 1, stages=[stage], workers=workers)
    one_line(caught)


def test_places_have_no_end(shards):
    """A place far on in the run is found at once."""
    assert len(batches(shards, 1, start=10**12)[0]) == 4


# ---- the distance map ----


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("shape", [(40, 40), (13, 57), (1, 9)])
def test_signed_distance_is_the_exact_euclidean_one(share, shape):
    mask = (np.random.default_rng(1).random(shape) < share).astype(np.uint8)
    mask.flat[3] = 1
    mask.flat[5] = 0
    expected = distance_transform_edt(1 - mask) - distance_transform_edt(mask)
    found = signed_distance(mask)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_signed_distance_is_the_same_to_the_bit_wherever_its_memory_lies():
    mask = (np.random.default_rng(0).random((224, 224)) < 0.002).astype(np.uint8)
    first, kept = signed_distance(mask), []
    for n in range(40):
        kept.append(np.zeros(37 * n + 1, np.uint8))
        assert np.array_equal(signed_distance(mask.copy()), first)
    squares = np.rint(distance_transform_edt(1 - mask) ** 2) - (distance_transform_edt(mask) ** 2)
    assert np.array_equal(first, (np.sign(squares) * np.sqrt(np.abs(squares))).astype(np.float32))


@pytest.mark.parametrize(
    "area", [np.s_[:, 3:5], np.s_[2:4, :], np.s_[:, :-1], np.s_[1:, 1:], np.s_[0, 0], np.s_[-1, -1]]
)
def test_signed_distance_of_cracks_along_the_borders(area):
    mask = np.zeros((9, 8), np.uint8)
    mask[area] = 1
    expected = distance_transform_edt(1 - mask) - distance_transform_edt(mask)
    np.testing.assert_allclose(signed_distance(mask), expected, atol=1e-5)


def test_signed_distance_of_an_empty_mask_is_zero():
    assert not signed_distance(np.zeros((5, 7), np.uint8)).any()


def test_signed_distance_of_a_full_mask_is_finite_and_negative():
    found = signed_distance(np.ones((5, 7), np.uint8))
    assert np.isfinite(found).all() and (found < 0).all() and found.dtype == np.float32


# ---- damage ----


@pytest.mark.parametrize("extension", ["png", "mask.png"])
def test_a_damaged_sample_is_replaced_and_reported_once(own, extension):
    before = samples(batches(own, 16))
    spoil(own, "own-004", extension)
    damage, output = Damage(), []
    after = samples(batches(own, 16, damage=damage, report=output.append))
    hurt = [place for place, sample in enumerate(before) if sample["key"] == "own-004"]
    assert len(hurt) == 2 and all(after[place]["key"] != "own-004" for place in hurt)
    others = [place for place in range(64) if place not in hurt]
    assert_same([after[n] for n in others], [before[n] for n in others])
    assert len(output) == 1 and "own-004" in output[0] and "\n" not in output[0]
    assert damage.seen == 64 and sum(damage.messages.values()) >= len(hurt)


def test_one_damaged_place_counts_once(own):
    spoil(own, "own-004")
    damage = Damage()
    found = batches(own, 8, damage=damage)  # a pass
    assert sum(damage.messages.values()) == 1 and sum(map(len, found)) == 32


def test_damage_in_a_set_hardly_larger_than_the_lanes(tmp_path):
    """A lane of one sample has no substitute in its pass; the run goes on all the same, within data.max_damaged."""
    root = write_set(tmp_path / "own", 10)
    spoil(root, "own-004")
    keys = [sample["key"] for sample in samples(batches(root, 8, report=lambda _: None))]
    assert len(keys) == 32 and "own-004" not in keys


@pytest.mark.parametrize("workers", [0, 2])
def test_substitutes_are_the_same_for_any_workers_and_start(own, workers):
    for key in ("own-001", "own-004", "own-008"):
        spoil(own, key)
    whole = samples(batches(own, 8))
    assert_same(samples(batches(own, 6, 8, workers=workers)), whole[8:])


def test_too_much_damage_stops_the_run(own):
    for number in range(5):
        spoil(own, f"own-{number:03d}")
    with pytest.raises(DataError, match="data.max_damaged=0.01") as caught:
        batches(own, 30, max_damaged=0.01, report=lambda _: None)
    one_line(caught)


def test_no_damage_is_tolerated_at_0_and_none_found_is_fine(own):
    batches(own, 3, max_damaged=0)
    spoil(own, "own-004")
    with pytest.raises(DataError, match="own-004"):
        batches(own, 8, max_damaged=0, report=lambda _: None)


def test_the_share_of_damage_is_that_of_the_samples_seen():
    """One in a hundred is at the limit, not above it; the first hundred samples count as a hundred."""
    damage = Damage()
    for n in range(300):
        damage.count([f"m{n}"] if n % 100 == 99 else [], 0.01)
    with pytest.raises(DataError, match="4 of 301 samples"):
        damage.count(["m300"], 0.01)


def test_a_damaged_sample_counts_once_however_often_it_is_met(tmp_path):
    root, damage, output = write_set(tmp_path / "own", 40), Damage(), []
    spoil(root, "own-004")
    batches(root, 100, max_damaged=0.05, damage=damage, report=output.append)  # ten passes
    assert len(output) == len(damage.messages) == 1 and damage.messages.total() > 5
    for key in ("own-005", "own-006"):
        spoil(root, key)
    with pytest.raises(DataError, match=r"3 of \d+ samples are damaged, more than data.max_damaged=0.05") as caught:
        batches(root, 10, max_damaged=0.05, report=lambda _: None)
    one_line(caught)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_smaller_than_the_index_says_is_damage(tmp_path, workers):
    root, output = write_set(tmp_path / "own", 40, sizes=[(40, 40)] * 39 + [(20, 24)]), []
    index = json.loads((root / "index.json").read_text())
    (root / "index.json").write_text(json.dumps({**index, "image_sizes": {"40x40": 40}}))
    keys = [
        s["key"] for s in samples(batches(root, 20, crop=32, workers=workers, max_damaged=0.05, report=output.append))
    ]
    assert len(keys) == 80 and "own-039" not in keys and len(output) == 1
    expected = (
        r"-000009.tar key own-039: its image has 24 x 20 pixels, smaller than its index says and than data.crop=32"
    )
    assert re.search(f"{expected}; replaced$", output[0])
    with pytest.raises(DataError, match=f"1 of .*max_damaged=0.0; .*{expected}$") as caught:
        batches(root, 20, crop=32, workers=workers, max_damaged=0.0, report=output.append)
    one_line(caught)


def test_messages_are_reported_once_but_counted_always():
    damage = Damage()
    assert damage.count(["x"], 1.0) == ["x"] and damage.count(["x", "y"], 1.0) == ["y"]
    assert damage.messages == {"x": 2, "y": 1} and damage.seen == 2


def spoil_all(root: Path) -> Path:
    for number in range(32):
        spoil(root, f"own-{number:03d}")
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_damage_is_answered_in_one_line(own, workers):
    with pytest.raises(DataError, match="damaged samples.*own-") as caught:
        batches(spoil_all(own), 1, workers=workers)
    one_line(caught)


def test_a_stream_that_fails_leaves_no_worker_behind(own):
    """Workers ignore SIGTERM, and the interpreter waits for those that live at its exit: a failed run would hang."""
    spoil_all(own)
    before = workers()
    gc.disable()  # the interpreter's exit does not collect cycles either, until it is too late
    try:
        with pytest.raises(DataError):
            batches(own, 1, workers=1)
        assert gone_within(2, workers() - before)
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_stream_that_is_abandoned_alive_does_not_keep_the_program(shards, tmp_path):
    """After an uncaught error the traceback holds the stream's frame until the very end, workers and all."""
    script = tmp_path / "fails.py"
    script.write_text(
        "from cssr.config.schema import DataConfig\nfrom cssr.data.checks import open_train_sets\n"
        "from cssr.data.loader import train_stream\n"
        f"data = DataConfig(train={str(shards)!r}, crop=12, lanes=8, workers=1)\n"
        "def main():\n    stream = train_stream(open_train_sets(data), data, 0, 0, 2)\n"
        "    next(stream)\n    raise RuntimeError('as told')\n"
        "main()\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail("the program still waits for its loader's workers")
    finally:
        end_group(process.pid)
    assert process.returncode == 1 and "as told" in errors


def end_group(group: int) -> None:
    """End a process started in a session of its own, and its workers, which ignore SIGTERM."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def workers() -> set[int]:
    return {child.pid for child in multiprocessing.active_children()}


def gone_within(seconds: float, those: set[int]) -> bool:
    end = time.monotonic() + seconds
    while workers() & those and time.monotonic() < end:
        time.sleep(0.02)
    return not workers() & those


ENDLESS = """
import sys, time
from cssr.config.schema import DataConfig
from cssr.data.checks import open_train_sets
from cssr.data.loader import train_stream
from cssr.data.shards import DataError
def main():
    data = DataConfig(train=sys.argv[1], crop=12, lanes=8, workers=2)
    stream = train_stream(open_train_sets(data), data, 0, 0, 2)
    for batch in stream:
        print("batch", flush=True)
        end = time.monotonic() + float(sys.argv[2])
        while time.monotonic() < end:  # as a training step, between batches
            sum(range(1000))
try:
    main()
except ValueError as error:
    sys.exit(f"error: {error}")
"""


def endless(shards: Path, pause: float) -> subprocess.Popen:
    """A program that reads batches for ever, `pause` seconds each, and has read its first."""
    command = [sys.executable, "-c", ENDLESS, str(shards), str(pause)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "batch\n"
    return process


def children(process: subprocess.Popen) -> list[psutil.Process]:
    """Its loader workers."""
    return [child for child in psutil.Process(process.pid).children() if "resource_tracker" not in str(child.cmdline())]


def test_workers_without_shared_memory_are_one_line(shards, monkeypatch):
    monkeypatch.setattr("cssr.data.workers._SEMAPHORES", 1 << 50)
    with pytest.raises(DataError, match="/dev/shm, the shared memory, has less than .*: set data.workers=0"):
        next(eval_stream(open_sets(str(shards), "data.val"), 1, 1, 0, workers=2))
    next(eval_stream(open_sets(str(shards), "data.val"), 1, 1, 0, workers=0))


def test_workers_that_cannot_be_started_are_one_line(shards, monkeypatch):
    def refuse(process):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    with pytest.raises(
        DataError, match=r"data.workers: .* \(Resource temporarily unavailable\).*data.workers=0"
    ) as caught:
        next(eval_stream(open_sets(str(shards), "data.val"), 1, 1, 0, workers=2))
    one_line(caught)


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0, 60], ids=["while it reads", "while it computes, the pipe full"])
def test_a_worker_that_is_killed_is_named_in_one_line(shards, pause):
    process = endless(shards, pause)
    try:
        time.sleep(0.3)  # for the workers to fill the pipe
        victim = children(process)[0].pid
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=90)
    finally:
        end_group(process.pid)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and "Traceback" not in errors
    assert re.match(rf"error: a loader worker \(pid\D* {victim}\) (is killed by signal|exited unexp)", line)
    assert "data.workers" in line


def test_an_error_of_another_kind_stays_what_it_is():
    from cssr.data.workers import _data_error

    error = RuntimeError("CUDA out of memory")
    assert _data_error(error) is error
    assert isinstance(_data_error(RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly")), DataError)


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False], ids=["the group", "the main process"])
def test_kill_9_leaves_nothing_behind(shards, group):
    """No file in shared memory, and no worker for long."""
    before = set(os.listdir("/dev/shm"))
    process = endless(shards, 0)
    left = children(process)
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    try:
        process.wait(60)
        gone, alive = psutil.wait_procs(left, timeout=60)
        assert not alive and not {name for name in os.listdir("/dev/shm") if name not in before and "torch" in name}
        assert not [name for name in os.listdir("/dev/shm") if f"_{process.pid}_" in name]
    finally:
        end_group(process.pid)


def test_a_stream_that_is_closed_leaves_no_worker_behind(shards):
    data = settings(shards, workers=2)
    before, stream = workers(), train_stream(open_train_sets(data), data, 0, 0, 2)
    next(stream)
    own = workers() - before
    stream.close()
    assert len(own) == 2 and gone_within(5, own)


# ---- faults of shards that were whole when they were opened ----


def test_a_shard_that_vanishes_or_shrinks_in_a_run_is_damage(own):
    before, damage, output = samples(batches(own, 16)), Damage(), []
    data = settings(own)
    stream = train_stream(open_train_sets(data), data, 3, 0, 4, damage=damage, report=output.append)
    next(stream)
    tars = sorted(own.glob("*.tar"))
    tars[0].unlink()
    with tars[1].open("r+b") as file:
        file.truncate(2048)
    after = samples(list(itertools.islice(stream, 15)))
    for one, other in zip(after, before[4:]):
        lost = int(other["key"][-3:]) < 8
        assert not (lost and one["key"] == other["key"]) or int(other["key"][-3:]) == 4
        assert lost or torch.equal(one["hr"], other["hr"])
    assert damage.messages and all("\n" not in line and str(own) in line and "replaced" in line for line in output)


def jpeg_set(root: Path, checksums: bool) -> Path:
    """Twelve photographs of noise, one of which has a byte changed in the middle of its data."""
    root.mkdir()
    members = []
    for n in range(12):
        noise, buffer = np.random.default_rng(n).integers(0, 256, (20, 24, 3), dtype=np.uint8), io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", quality=95)
        parts = {"jpg": buffer.getvalue(), "mask.png": mask_png(mask_of(noise))}
        sums = {"crc32": {name: zlib.crc32(data) for name, data in parts.items()}} if checksums else {}
        if n == 5:
            place = len(parts["jpg"]) * 3 // 4
            parts["jpg"] = parts["jpg"][:place] + b"\xff\xd1" + parts["jpg"][place + 2 :]
        members += [(f"k-{n:03d}.{name}", data) for name, data in parts.items()]
        members += [(f"k-{n:03d}.json", json.dumps(sums).encode())]
    write_tar(root / "s0.tar", members)
    return write_index(root, {"s0.tar": 12})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("checksums", [True, False])
def test_a_changed_byte_is_found_by_the_checksum_or_reported_by_the_decoder(tmp_path, checksums, workers):
    """With checksums the sample is replaced; without, a JPEG that can be decoded is used as ever, but reported."""
    root, damage, output = jpeg_set(tmp_path / "set", checksums), Damage(), []
    keys = [s["key"] for s in samples(batches(root, 8, damage=damage, report=output.append, workers=workers))]
    assert len(output) == 1 and "key k-005" in output[0] and ("checksum" in output[0]) == checksums
    if checksums:
        assert "k-005" not in keys and damage.messages and not damage.notices
    else:
        assert sum(damage.notices.values()) == keys.count("k-005") > 0 and not damage.messages


def test_photographs_are_decoded_as_opencv_decodes_them(tmp_path):
    """To the bit: streams of runs that began with another decoder go on unchanged."""
    draws = np.random.default_rng(0)
    picture = cv2.GaussianBlur(draws.integers(0, 256, (50, 61, 3), dtype=np.uint8), (0, 0), 1.5)
    for quality, subsampling, progressive in itertools.product((30, 75, 95), (0, 1, 2), (False, True)):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        expected = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(decode_image(buffer.getvalue(), pytest.fail), expected)


def test_headers_are_read_once_for_all_that_a_window_needs(tmp_path, monkeypatch):
    """Eighty shards, more than any small number of open tars: each is listed once in a pass, not once a sample."""
    root = write_set(tmp_path / "many", 160, 2, sizes=((12, 12),))
    listed = Counter()

    def count(file, length):
        listed[os.fstat(file).st_ino] += 1
        return read_members(file, length)

    monkeypatch.setattr("cssr.data.tar_reader.read_members", count)
    batches(root, 80)
    assert len(listed) == 80 and set(listed.values()) == {1}


def test_what_is_remembered_of_headers_is_bounded(tmp_path, monkeypatch):
    root = write_set(tmp_path / "many", 40, 2, sizes=((12, 12),))
    monkeypatch.setattr("cssr.data.tar_reader._REMEMBERED", 10)
    batches(root, 10)
    assert sum(len(known.keys) for known in cssr.data.tar_reader._cache.values()) <= 10


# ---- shards of any sizes ----

SIZES = {"one sample": [1], "one each": [1, 1, 1], "uneven": [7, 1, 13, 2], "fewer shards than workers": [30, 9]}


@pytest.mark.parametrize("counts", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("world, workers", [(1, 0), (1, 4), (2, 2), (4, 0), (4, 2)])
def test_steps_are_equal_on_all_ranks_whatever_the_shards(counts, world, workers, tmp_path):
    root = write_pairs(tmp_path / "set", counts)
    ranks = [samples(batches(root, 5, 0, 2, rank, world, workers=workers)) for rank in range(world)]
    assert [len(rank) for rank in ranks] == [10] * world
    woven = [sample for row in zip(*ranks) for sample in row]
    assert_same(woven, samples(batches(root, 5, 0, 2 * world)))


# ---- what cannot be opened ----


def change_index(root: Path, **changes) -> None:
    path = root / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_shards(root: Path, **changes) -> None:
    change_index(root, shards=[{**s, **changes} for s in json.loads((root / "index.json").read_text())["shards"]])


def first_tar(root: Path) -> Path:
    return sorted(root.glob("*.tar"))[0]


FAULTS = {
    "no directory": lambda root: root.rename(root.with_name("gone")),
    "neither index nor tars": lambda root: [path.unlink() for path in root.iterdir()],
    "no json": lambda root: (root / "index.json").write_text('{"format"'),
    "no text": lambda root: (root / "index.json").write_bytes(b"\xff\xfe\x00"),
    "a list": lambda root: (root / "index.json").write_text("[]"),
    "null": lambda root: (root / "index.json").write_text("null"),
    "another format": lambda root: change_index(root, format="cssr-shards-0"),
    "no shards": lambda root: change_index(root, shards=[]),
    "shards without names": lambda root: change_index(root, shards=[{}]),
    "shards of another type": lambda root: change_index(root, shards=[3]),
    "no samples": lambda root: change_shards(root, samples=0),
    "fewer than no samples": lambda root: change_shards(root, samples=-4),
    "no image sizes": lambda root: change_index(root, image_sizes={}),
    "strange image sizes": lambda root: change_index(root, image_sizes={"wide": 3}),
    "a missing tar": lambda root: first_tar(root).unlink(),
    "a truncated tar": lambda root: first_tar(root).write_bytes(first_tar(root).read_bytes()[:-700]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_shards_that_cannot_be_used_are_named_with_the_remedy(own, fault):
    FAULTS[fault](own)
    with pytest.raises(DataError, match="data.train.*make_shards") as caught:
        batches(own, 1)
    assert str(own) in one_line(caught)


@pytest.mark.parametrize("fault", ["neither index nor tars", "a missing tar", "a list"])
def test_validation_shards_likewise(own, fault):
    FAULTS[fault](own)
    with pytest.raises(DataError, match="data.val.*make_shards"):
        list(eval_stream(open_sets(str(own), "data.val"), 2, 4, 0))


def test_an_index_that_promises_too_much_does_not_hang(own):
    change_shards(own, samples=50)
    with pytest.raises(DataError, match="damaged"):
        batches(own, 40, max_damaged=0.01, report=lambda _: None)


@pytest.mark.parametrize("setting", [None, [], {}, 3, True, {"a": None}, {"a": "much"}])
@pytest.mark.parametrize("name", ["data.train", "data.val"])
def test_a_setting_that_names_no_sets(setting, name):
    with pytest.raises(ValueError, match=name) as caught:
        parse_sets(setting, name)
    one_line(caught)


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_weights_are_positive(own, weight):
    with pytest.raises(ValueError, match="data.train.*weight"):
        batches({str(own): weight}, 1)


@pytest.mark.parametrize(
    "setting, sets",
    [("a", {"a": 1}), (Path("a"), {"a": 1}), (["a", "b"], {"a": 1, "b": 1}), ({"a": 3, "b": 1}, {"a": 3, "b": 1})],
)
def test_ways_to_name_sets(setting, sets):
    assert parse_sets(setting, "data.train") == sets


@pytest.mark.parametrize("crop, fits", [(20, True), (21, False)])
def test_the_crop_is_checked_against_the_smallest_picture(shards, crop, fits):
    if fits:
        assert batches(shards, 1, crop=crop)[0].hr.shape[-1] == crop
    else:
        with pytest.raises(DataError, match="data.crop=21 exceeds.*at most 20, or data.resized_crop"):
            batches(shards, 1, crop=crop)


def test_a_resized_crop_may_exceed_the_picture(shards):
    assert batches(shards, 1, crop=32, resized_crop=[0.6, 1.0])[0].hr.shape[-1] == 32


# ---- evaluation ----


def evaluated(setting, **options) -> list[Batch]:
    options = {"scale": 4, "batch_size": 3, "seed": 0, **options}
    setting = str(setting) if isinstance(setting, Path) else setting
    return list(eval_stream(open_sets(setting, "data.val"), **options))


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (3, 0), (5, 0), (1, 2), (2, 3)])
def test_every_sample_is_evaluated_once(shards, world, workers):
    keys = [b.key for rank in range(world) for b in evaluated(shards, rank=rank, world=world, workers=workers)]
    assert sorted(sum(keys, [])) == [f"a-{n:03d}" for n in range(21)]


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_keeps_its_order_with_workers(shards, workers):
    assert [b.key for b in evaluated(shards, workers=workers)] == [b.key for b in evaluated(shards)]


def test_more_ranks_than_samples(own):
    counts = [sum(map(len, evaluated(own, rank=rank, world=34))) for rank in range(34)]
    assert counts == [1] * 32 + [0] * 2


def test_sets_follow_each_other(shards, own):
    keys = sum([batch.key for batch in evaluated([str(own), str(shards)])], [])
    assert keys[0] == "own-000" and keys[-1] == "a-020" and len(keys) == 53


@pytest.mark.parametrize("limit, count", [(None, 21), (5, 5), (100, 21)])
@pytest.mark.parametrize("world", [1, 2])
def test_a_limit_counts_over_all_ranks(shards, limit, count, world):
    found = [evaluated(shards, rank=rank, world=world, limit=limit) for rank in range(world)]
    assert sum(len(batch) for rank in found for batch in rank) == count


def test_pictures_are_whole_and_cut_to_multiples_of_the_scale(tmp_path):
    root = write_set(tmp_path / "m", 3, sizes=[(19, 22)])
    for number, batch in enumerate(evaluated(root, batch_size=1)):
        image = coordinates(number, 19, 22)[:16, :20]
        np.testing.assert_array_equal(batch.hr[0].permute(1, 2, 0).numpy(), image)
        np.testing.assert_array_equal(batch.mask[0, 0].numpy(), mask_of(image))
        assert batch.distance is None and batch.hr.dtype == batch.mask.dtype == torch.uint8


def test_pictures_of_one_size_share_a_batch(tmp_path):
    root = write_set(tmp_path / "m", 10, sizes=[(16, 16)] * 4 + [(16, 20)] * 3)
    assert [(len(b), tuple(b.hr.shape[-2:])) for b in evaluated(root)] == [
        (3, (16, 16)),
        (1, (16, 16)),
        (3, (16, 20)),
        (3, (16, 16)),
    ]


def test_pictures_of_nearly_one_size_share_a_batch(tmp_path):
    """What counts is the size after the cut."""
    root = write_set(tmp_path / "m", 3, sizes=[(16, 19), (18, 16), (17, 17)])
    assert [len(b) for b in evaluated(root)] == [3]


def test_the_degradation_seed_depends_on_seed_and_key_alone(shards, own):
    def seeds(*args, **kwargs):
        return {k: s for b in evaluated(*args, **kwargs) for k, s in zip(b.key, b.seed.tolist())}

    alone = seeds(shards)
    assert len(set(alone.values())) == 21
    assert seeds([str(own), str(shards)], batch_size=2).items() >= alone.items()
    assert seeds(shards, rank=1, world=2).items() <= alone.items()
    assert alone == {key: eval_seed(0, key) for key in alone}
    assert not set(seeds(shards, seed=1).values()) & set(alone.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_in_evaluation_is_an_error(own, workers):
    spoil(own, "own-004")
    with pytest.raises(DataError, match="own-004") as caught:
        evaluated(own, workers=workers)
    one_line(caught)
