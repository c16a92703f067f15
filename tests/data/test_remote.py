"""Sets that lie elsewhere: the same stream as from a directory, through servers that fail, by a bounded cache."""

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hand_made import write_pairs
from serving import serving

import cssr.data.remote
import cssr.data.shards
from cssr.config.schema import DataConfig
from cssr.data.cache import Cache, Entry, Prefetcher
from cssr.data.checks import open_train_sets
from cssr.data.dataset import read_sample
from cssr.data.loader import Damage, eval_stream, train_stream
from cssr.data.remote import DataError, Remote, Unreachable, is_remote
from cssr.data.shards import ShardSet, open_sets

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
GIB = 2**30


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eighteen samples in five uneven shards."""
    return write_pairs(tmp_path_factory.mktemp("remote") / "set", [5, 1, 4, 6, 2])


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No index is remembered, no wait is long, and nothing is kept at home."""
    cssr.data.shards._fetch_index.cache_clear()
    monkeypatch.setattr(cssr.data.remote, "_wait", lambda number, error: 0.01)
    monkeypatch.setenv("CSSR_CACHE", "/nowhere")


def settings(address: str, cache: Path, **changes) -> DataConfig:
    defaults = {"crop": 12, "lanes": 4, "workers": 0, "cache": str(cache), "retries": 3, "timeout": 10.0}
    return DataConfig(**{"train": address, **defaults, **changes})


def batches(data: DataConfig, count: int = 6, start: int = 0, **options) -> list:
    stream = train_stream(open_train_sets(data), data, 3, start, 4, **options)
    with contextlib.closing(stream):
        return list(itertools.islice(stream, count))


def assert_same(found: list, expected: list) -> None:
    assert [batch.key for batch in found] == [batch.key for batch in expected]
    for one, other in zip(found, expected):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("hr", "mask", "distance", "seed"))


def one_line(caught) -> str:
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- where a set may lie ----


@pytest.mark.parametrize("text, remote", [
    ("data/train", False), ("/data", False), ("file:///data", False), ("a:b", False), ("C:/data", False),
    ("http://h/d", True), ("https://h/d", True), ("s3://b/d", True), ("gs://b", True), ("pipe:cat {name}", True),
])  # fmt: skip
def test_what_is_elsewhere(text, remote):
    assert is_remote(text) == remote


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_over_http_is_that_of_the_directory(root, tmp_path, workers):
    with serving(root) as server:
        found = batches(settings(server.address, tmp_path, workers=workers))
    assert_same(found, batches(settings(str(root), tmp_path)))
    assert sorted(name for name, _ in server.requests) == ["index.json", *(f"s{n}.tar" for n in range(5))]


def test_from_a_command_from_fsspec_and_by_file_address(root, tmp_path):
    expected = batches(settings(str(root), tmp_path))
    fsspec = pytest.importorskip("fsspec").filesystem("memory")
    for path in root.iterdir():
        fsspec.pipe(f"/somewhere/{path.name}", path.read_bytes())
    for n, address in enumerate((f"pipe:cat {root}/{{name}}", "memory://somewhere", f"file://{root}")):
        assert_same(batches(settings(address, tmp_path / str(n))), expected)


def test_evaluation_over_http(root, tmp_path):
    with serving(root) as server:
        data = settings("", tmp_path)
        found = [k for b in eval_stream(open_sets(server.address, "data.val", data), 2, 3, 0, workers=2) for k in b.key]
    assert found == [f"k-{n:03d}" for n in range(18)]


def test_sets_here_and_elsewhere_mix(root, tmp_path):
    with serving(root) as server:
        mixed = batches(settings({server.address: 1, str(root): 3}, tmp_path))
    assert_same(mixed, batches(settings({str(root) + "/": 1, str(root): 3}, tmp_path)))


def test_what_is_in_the_cache_needs_no_server(root, tmp_path):
    with serving(root) as server:
        data = settings(server.address, tmp_path)
        expected = batches(data)
    assert_same(batches(data), expected)


def test_the_default_cache_is_set_by_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.setenv("CSSR_CACHE", str(tmp_path / "env"))
    with serving(root) as server:
        assert len(ShardSet.open(server.address, "x")) == 18
        read_sample(ShardSet.open(server.address, "x"), 0, 0)
    assert len(list((tmp_path / "env").glob("*.tar"))) == 1


def test_passwords_and_tokens_are_not_reported():
    address = Remote("https://user:secret@host:8080/a/b/?token=secret").address("s.tar")
    assert address == "https://host:8080/a/b/s.tar"


# ---- servers that fail ----

FAULTS = (500, 429, "cut", "short", "hang", "spoil", "all")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_third_request_fails_and_the_stream_is_the_same(root, tmp_path, fault):
    with serving(root, lambda count, name: fault if count % 3 == 0 else None) as server:
        damage, output = Damage(), []
        data = settings(server.address, tmp_path, timeout=0.4 if fault == "hang" else 10.0)
        found = batches(data, damage=damage, report=output.append)
    assert_same(found, batches(settings(str(root), tmp_path)))
    if fault != "all":  # it serves the whole, which is no fault
        assert output and all("\n" not in line and ".tar" in line for line in output)
        assert sum(damage.notices.values()) >= len(output) and not damage.messages


def test_a_broken_transfer_continues_where_it_broke(root, tmp_path):
    with serving(root, lambda count, name: "cut" if count in (2, 3) else None) as server:
        shards = ShardSet.open(server.address, "x", settings("", tmp_path))
        read_sample(shards, 3, 0)
    size = (root / "s3.tar").stat().st_size
    assert server.requests[1:] == [("s3.tar", 0), ("s3.tar", size // 2), ("s3.tar", size - size // 4)]


def test_a_server_that_sends_the_whole_again(root, tmp_path):
    with serving(root, lambda count, name: {2: "cut", 3: "all"}.get(count)) as server:
        read = read_sample(ShardSet.open(server.address, "x", settings("", tmp_path)), 3, 0)
    assert read.key == read_sample(ShardSet.open(root, "x", settings("", tmp_path)), 3, 0).key
    assert [name for name, _ in server.requests[1:]] == ["s3.tar"] * len(server.requests[1:])


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_a_slow_server_is_reported_a_stalled_one_given_up(tmp_path, fault, monkeypatch):
    monkeypatch.setattr("cssr.data.remote._STALLED", 64)
    root = write_pairs(tmp_path / "set", [60])
    with serving(root, lambda count, name: fault if count == 2 else None) as server:
        output: list[str] = []
        read_sample(
            ShardSet.open(server.address, "x", settings("", tmp_path / "cache", timeout=0.2)), 0, 0, output.append
        )
    assert len(output) == 1 and "s0.tar" in output[0]
    assert ("is slow: " if fault == "slow" else "only ") in output[0]


@pytest.mark.parametrize("fault", ["headers", "chunks"])
def test_a_server_that_drips_for_ever_is_given_up(root, tmp_path, fault):
    """A socket's timeout begins anew with every byte: the deadline is that of connection, headers or block together."""
    with serving(root, lambda count, name: fault) as server, pytest.raises(Unreachable, match="no answer in 0.4 s"):
        began = time.monotonic()
        ShardSet.open(server.address, "x", settings("", tmp_path, timeout=0.4, retries=1))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("fault, tries, reason", [
    (404, 1, "404"), (403, 1, "403"), (503, 4, "503"), ("spoil", 4, "sha256"), ("short", 4, "ended after"),
    ("hang", 4, "cannot be fetched (tried 4 times)"),
])  # fmt: skip
def test_after_its_retries_a_shard_stops_the_run_in_one_line(root, tmp_path, fault, tries, reason, monkeypatch):
    monkeypatch.setattr(Prefetcher, "request", lambda *_: None)  # which would try for itself
    with serving(root, lambda count, name: fault if name == "s3.tar" else None) as server:
        with pytest.raises(Unreachable, match="s3.tar cannot be fetched") as caught:
            data = settings(server.address, tmp_path, timeout=0.4 if fault == "hang" else 10.0)
            batches(data, report=lambda _: None)
        names = [name for name, _ in server.requests]
    assert reason in one_line(caught) and names.count("s3.tar") == tries
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("workers", [0, 2])
def test_no_server(tmp_path, workers):
    with pytest.raises(Unreachable, match="refused.*the same command again") as caught:
        batches(settings("http://127.0.0.1:9/set", tmp_path, workers=workers, retries=1))
    one_line(caught)


def test_a_server_that_goes_away_stops_workers_too(root, tmp_path):
    with serving(root) as server:
        data = settings(server.address, tmp_path, workers=2)
        ShardSet.open(server.address, "x", data)
    with pytest.raises(Unreachable, match="s[0-4].tar cannot be fetched") as caught:
        batches(data, report=lambda _: None)
    one_line(caught)


@pytest.mark.parametrize("command, reason", [
    ("cat {root}/gone-{{name}}", "status 1"), ("echo out of order >&2; exit 3 # {{name}}", "status 3: out of order"),
    ("sleep 9; cat {root}/{{name}}", "gave nothing for"), ("head -c 700 {root}/{{name}}", "ended after|damaged"),
    ("cat {root}/{{name}} {root}/s0.tar", "more than its|damaged"),
])  # fmt: skip
def test_commands_that_fail(root, tmp_path, command, reason):
    with pytest.raises(DataError, match=reason) as caught:
        batches(settings(f"pipe:{command.format(root=root)}", tmp_path, retries=1, timeout=0.4), report=lambda _: None)
    one_line(caught)


def test_a_command_gets_the_name_as_one_word(tmp_path):
    """A name in an index is anybody's: it must not become part of the command."""
    name = "a;touch hacked $(touch hacked) `touch hacked`'.tar"
    root = write_pairs(tmp_path / "set", [3])
    (root / "s0.tar").rename(root / name)
    (root / "index.json").write_text((root / "index.json").read_text().replace("s0.tar", name))
    shards = ShardSet.open(f"pipe:cd {root} && cat {{name}}", "x", settings("", tmp_path / "cache"))
    assert read_sample(shards, 0, 0).key == "k-000" and not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize("address, message", [
    ("pipe:cat /data", "needs {name}"), ("nowhere://x/y", "cannot be fetched: .*nowhere"), ("http://", "cannot be"),
])  # fmt: skip
def test_addresses_that_are_none(address, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        batches(settings(address, tmp_path))
    one_line(caught)


def test_an_index_without_checksums_is_refused(root, tmp_path):
    (tmp_path / "set").mkdir()
    text = (root / "index.json").read_text()
    (tmp_path / "set" / "index.json").write_text(text.replace('"sha256"', '"md5"'))
    with serving(tmp_path / "set") as server, pytest.raises(DataError, match="has no sha256 of s0.tar"):
        batches(settings(server.address, tmp_path))


# ---- waits ----


def test_waits_double_are_scattered_and_end(monkeypatch):
    monkeypatch.undo()
    waits = [[cssr.data.remote._wait(number, OSError()) for _ in range(20)] for number in range(12)]
    assert all(0.25 * 2**n <= min(w) and max(w) <= 0.5 * 2**n for n, w in enumerate(waits[:7]))
    assert len(set(waits[3])) > 10 and max(waits[11]) == 60


def test_a_server_may_say_how_long_to_wait(monkeypatch):
    monkeypatch.undo()
    error = cssr.data.remote.urllib.error.HTTPError("", 503, "busy", {"Retry-After": "7"}, None)
    assert cssr.data.remote._wait(0, error) == 7


# ---- the cache ----


def cache_of(root: Path, directory: Path, capacity: float = GIB) -> tuple[Cache, list[Entry]]:
    index = json.loads((root / "index.json").read_text())
    entries = [Entry(s["name"], s["bytes"], s["sha256"]) for s in index["shards"]]
    return Cache(Remote(f"pipe:cat {root}/{{name}}", 1, 5.0), directory, int(capacity)), entries


def use(cache: Cache, entry: Entry) -> bytes:
    with cache.use(entry, print) as file:
        return file.read()


def held(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*.*")}


def test_the_cache_keeps_within_its_bounds_and_drops_what_was_used_longest_ago(root, tmp_path):
    _, entries = cache_of(root, tmp_path)
    cache, _ = cache_of(root, tmp_path, entries[0].size + entries[2].size + entries[4].size)
    for n in (0, 2, 4, 0):
        use(cache, entries[n])
        time.sleep(0.02)
    use(cache, entries[1])  # room for it is made by dropping 2, not 0, which was used since
    assert held(tmp_path) == {f"{entries[n].sha256}.tar" for n in (0, 4, 1)}
    for entry in entries * 2:
        if entry.size <= cache.capacity:
            assert use(cache, entry) == (root / entry.name).read_bytes()
        assert sum(path.stat().st_size for path in tmp_path.glob("*.*")) <= cache.capacity


def test_what_is_in_use_is_not_dropped(root, tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.data.cache._PATIENCE", 0.3)
    _, entries = cache_of(root, tmp_path)
    cache, _ = cache_of(root, tmp_path, entries[0].size + entries[1].size)
    with cache.use(entries[0], print) as file:
        use(cache, entries[1])
        with pytest.raises(Unreachable, match="every shard in .* is in use; raise it") as caught:
            use(cache, entries[3])
        one_line(caught)
        assert file.read() == (root / "s0.tar").read_bytes() and f"{entries[0].sha256}.tar" in held(tmp_path)
    use(cache, entries[3])


def test_other_files_in_the_directory_are_left_alone(root, tmp_path):
    (tmp_path / "mine.tar").write_bytes(bytes(10**6))
    cache, entries = cache_of(root, tmp_path, 40_000)
    for entry in entries:
        if entry.size <= 40_000:
            use(cache, entry)
    assert (tmp_path / "mine.tar").stat().st_size == 10**6


def test_a_shard_that_does_not_fit_is_refused(root, tmp_path):
    cache, entries = cache_of(root, tmp_path, 1000)
    with pytest.raises(Unreachable, match="data.cache_gib=.* holds no s0.tar"):
        use(cache, entries[0])


def test_a_cache_smaller_than_what_is_read_at_a_time_is_refused(root, tmp_path):
    """Else each sample would be a download. A set larger than the window needs the shards of its lanes' windows."""
    with serving(root) as server:
        for window, fits in ((16384, False), (4, False), (1, True)):
            data = settings(server.address, tmp_path, cache_gib=60_000 / GIB, lanes=1, shuffle_window=window)
            with contextlib.nullcontext() if fits else pytest.raises(DataError, match="data.cache_gib=.* raise it, or"):
                batches(data, 1)


def test_a_damaged_file_in_the_cache_is_fetched_again(root, tmp_path):
    cache, entries = cache_of(root, tmp_path)
    use(cache, entries[0])
    path = tmp_path / f"{entries[0].sha256}.tar"
    path.write_bytes(path.read_bytes()[:-512])
    assert use(cache, entries[0]) == (root / "s0.tar").read_bytes()


@pytest.mark.parametrize("fault", ["a file", "read-only", "full"])
def test_a_cache_that_cannot_be_written(root, tmp_path, fault, monkeypatch):
    directory = tmp_path / "cache"
    if fault == "a file":
        directory.write_text("")
    if fault == "read-only":
        directory = Path("/proc/cssr")
    if fault == "full":
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    cache, entries = cache_of(root, directory)
    with pytest.raises(Unreachable, match="data.cache: .*(cannot be written|has no room)") as caught:
        use(cache, entries[0])
    one_line(caught)


def test_many_processes_download_a_shard_once(root, tmp_path):
    with serving(root, lambda count, name: "slow" if count > 1 else None) as server:
        shards = ShardSet.open(server.address, "x", settings("", tmp_path, timeout=5))
        context = multiprocessing.get_context("fork")
        readers = [context.Process(target=read_all, args=(shards,)) for _ in range(4)]
        for process in readers:
            process.start()
        for process in readers:
            process.join(90)
        assert [process.exitcode for process in readers] == [0] * 4
    assert sorted(name for name, _ in server.requests) == ["index.json", *(f"s{n}.tar" for n in range(5))]


def read_all(shards: ShardSet) -> None:
    for shard, count in enumerate(shards.counts):
        for index in range(count):
            read_sample(shards, shard, index)


def test_many_processes_in_a_small_cache(root, tmp_path):
    """Each drops what others have just used; all read what they should."""
    cache, entries = cache_of(root, tmp_path, 70_000)
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=read_shards, args=(cache, entries, root, n)) for n in range(3)]
    for process in readers:
        process.start()
    for process in readers:
        process.join(90)
    assert [process.exitcode for process in readers] == [0] * 3
    assert not list(tmp_path.glob("*.partial"))


def read_shards(cache: Cache, entries: list[Entry], root: Path, seed: int) -> None:
    for n in range(12):
        entry = entries[(n * (seed + 1) + seed) % 5]
        assert use(cache, entry) == (root / entry.name).read_bytes()


FILLER = """
import sys
from pathlib import Path
from cssr.data.cache import Cache, Entry
from cssr.data.remote import Remote
cache = Cache(Remote("pipe:head -c 600 %s/{name}; sleep 60", 0, 60.0), Path(sys.argv[1]), 10**9)
with cache.use(Entry("s0.tar", int(sys.argv[2]), sys.argv[3]), print):
    pass
"""


def test_a_download_that_was_killed_leaves_nothing_in_the_way(root, tmp_path):
    """Neither its lock nor its partial file, which counts against the bound only until somebody needs the room."""
    cache, entries = cache_of(root, tmp_path)
    command = [sys.executable, "-c", FILLER % root, tmp_path, str(entries[0].size), entries[0].sha256]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until(lambda: list(tmp_path.glob("*.partial")))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    small, _ = cache_of(root, tmp_path, entries[0].size + 10)
    assert use(small, entries[1]) and not list(tmp_path.glob("*.partial"))
    assert use(cache, entries[0]) == (root / "s0.tar").read_bytes()


def until(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_reader_waits_for_whoever_fills(root, tmp_path):
    cache, entries = cache_of(root, tmp_path)
    context = multiprocessing.get_context("fork")
    begin = context.Event()
    reader = context.Process(target=read_after, args=(begin, cache, entries[:1] * 5, root, 0))
    reader.start()  # before the lock, which it would have as well
    with (tmp_path / f"{entries[0].sha256}.partial").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begin.set()
        time.sleep(0.3)
        assert reader.is_alive() and not list(tmp_path.glob("*.tar"))
    reader.join(60)
    assert reader.exitcode == 0


def read_after(begin, *arguments) -> None:
    begin.wait(60)
    read_shards(*arguments)


def test_shards_are_fetched_before_they_are_needed(root, tmp_path):
    cache, entries = cache_of(root, tmp_path)
    ahead, threads = Prefetcher(print), threading.active_count()
    for entry in entries[:3]:
        ahead.request(cache, entry)
    until(lambda: all(cache.holds(entry) for entry in entries[:3]))
    assert not cache.holds(entries[3])
    broken = Cache(Remote("pipe:false {name}", 0, 1.0), tmp_path, GIB)
    ahead.request(broken, entries[3])  # is reported when it is used, not here
    ahead.request(cache, entries[4])
    until(lambda: cache.holds(entries[4]))
    ahead.close()
    until(lambda: threading.active_count() == threads)
