"""Other people's tars, read where they are: which members are what, the index made of them, and what is refused."""

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_tars import by_tarfile, by_webdataset, coded, mask, picture, usual
from hand_made import pair, write_index, write_pairs, write_tar
from running import logged, settings
from serving import serving

import cssr.data.remote
from cssr.config.loading import load_config
from cssr.config.schema import DataConfig
from cssr.data.checks import open_train_sets
from cssr.data.dataset import read_sample
from cssr.data.loader import Damage, eval_stream, train_stream
from cssr.data.remote import DataError
from cssr.data.shards import ShardSet, open_sets
from cssr.train import main

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
LONG = "a_folder_of_some_length/" * 5 + "photograph_{:03d}"  # more than the 100 bytes of a plain header


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No wait is long, and nothing is kept at home."""
    monkeypatch.setattr(cssr.data.remote, "_wait", lambda number, error: 0.01)
    monkeypatch.setenv("CSSR_CACHE", str(tmp_path / "cache"))


def opened(place: Path | str, **suffixes) -> ShardSet:
    return ShardSet.open(place, "data.train", DataConfig(suffixes=suffixes))


def samples(shards: ShardSet) -> list:
    return [read_sample(shards, shard, n) for shard, count in enumerate(shards.counts) for n in range(count)]


def refused(place: Path | str, **suffixes) -> str:
    with pytest.raises(DataError) as caught:
        opened(place, **suffixes)
    message = str(caught.value)
    assert message.startswith("data.train: ") and "\n" not in message
    return message


def batches(place: Path | str, cache: Path, count: int = 5, **options) -> list:
    data = DataConfig(train=str(place), crop=16, lanes=4, workers=options.pop("workers", 0), cache=str(cache))
    stream = train_stream(open_train_sets(data), data, 3, 0, options.pop("micro", 4), **options)
    with contextlib.closing(stream):
        return list(itertools.islice(stream, count))


def assert_same(found: list, expected: list) -> None:
    assert [batch.key for batch in found] == [batch.key for batch in expected]
    for one, other in zip(found, expected):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("hr", "mask", "seed"))


def jpeg_and(suffix: str, scale: int = 255, kind: str = "PNG", image: str = "jpg"):
    return lambda n: [(image, coded(picture(n), "JPEG")), (suffix, coded(mask(n) * scale, kind))]


def with_extras(number: int):
    extras = [("json", b'{"crc32": 5'), ("cls", b"7"), ("txt", "ein Riß".encode()), ("depth.npy", b"\x93NUMPY")]
    return [*usual(number), *extras, ("preview.jpg", coded(picture(0)[:4, :4], "JPEG"))]


def lossless(kind: str, suffix: str):
    return lambda n: [(suffix, coded(picture(n), kind)), (f"mask.{suffix}", coded(mask(n) * 255, kind))]


KINDS = {  # how the tars are made, and the key of the first sample
    "ShardWriter, seg.png": (lambda root: by_webdataset(root), "k000"),
    "ShardWriter, keys with dots": (lambda root: by_webdataset(root, key="v1.5m-{:03d}"), "v1.5m-000"),
    "tarfile, GNU, long names": (lambda root: by_tarfile(root, key=LONG), LONG.format(0)),
    "tarfile, PAX, long names": (lambda root: by_tarfile(root, key=LONG, form=tarfile.PAX_FORMAT), LONG.format(0)),
    "tarfile, USTAR, folders": (lambda root: by_tarfile(root, key="./a/b/{}", form=tarfile.USTAR_FORMAT), "a/b/0"),
    "capitals": (lambda root: by_tarfile(root, jpeg_and("SEG.PNG", image="JPG")), "k000"),
    "jpeg and mask.jpg": (lambda root: by_tarfile(root, jpeg_and("mask.jpg", kind="JPEG", image="jpeg")), "k000"),
    "image.jpg and label.png": (lambda root: by_tarfile(root, jpeg_and("label.png", image="image.jpg")), "k000"),
    "gt_mask.png, 0 and 1": (lambda root: by_tarfile(root, jpeg_and("gt_mask.png", 1)), "k000"),
    "masks of 0 and 128": (lambda root: by_tarfile(root, jpeg_and("mask.png", 128)), "k000"),
    "json, cls, txt and others beside": (lambda root: by_tarfile(root, with_extras), "k000"),
    "webp": (lambda root: by_tarfile(root, lossless("WEBP", "webp")), "k000"),
    "tif": (lambda root: by_tarfile(root, lossless("TIFF", "tif")), "k000"),
    "a tar in capitals": (lambda root: by_tarfile(root, name="X{}.TAR"), "k000"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_read_as_it_was_written(kind, tmp_path):
    make, first = KINDS[kind]
    shards = opened(make(tmp_path / "set"))
    found = samples(shards)
    assert len(found) == len({sample.key for sample in found}) == 12 and found[0].key == first
    for number, sample in enumerate(found):
        np.testing.assert_array_equal(sample.mask, mask(number))
        assert np.abs(sample.image.astype(int) - picture(number)).mean() < (12 if "jp" in str(shards.index) else 0.1)
    assert shards.smallest_side() == 24 and shards.masks


def test_the_index_of_wids_beside_is_no_index_of_ours(tmp_path):
    root = by_tarfile(tmp_path / "set")
    listed = [{"url": path.name, "nsamples": 4} for path in sorted(root.glob("*.tar"))]
    (root / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": listed}))
    assert len(opened(root)) == 12


@pytest.mark.parametrize("place, count", [
    ("x-{000000..000002}.tar", 12), ("x-{000000,000002}.tar", 9), ("x-000001.tar", 3), ("", 12),
])  # fmt: skip
def test_a_pattern_a_file_and_a_directory(place, count, tmp_path, monkeypatch):
    root = by_tarfile(tmp_path / "set")
    assert len(samples(opened(os.path.join(root, place)))) == count
    monkeypatch.chdir(root)
    assert len(opened(place or ".")) == count
    assert len(opened(f"file://{root}/{place}")) == count


@pytest.mark.parametrize("name", ["x-{0..999999999}.tar", "x-{00..99}{0..99999}.tar", "x-{1..-999999999..3}.tar"])
def test_a_pattern_of_too_many_is_refused_before_it_is_written_out(name, tmp_path):
    with pytest.raises(DataError, match="expands to more than 200000 tars; give fewer"):
        opened(tmp_path / name)


def test_batches_are_those_of_the_same_tars_with_an_index_of_ours(tmp_path):
    """On any number of ranks and workers."""
    ours = write_pairs(tmp_path / "ours", [5, 1, 6])
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in ours.glob("*.tar"):
        (theirs / path.name).write_bytes(path.read_bytes())
    expected = batches(ours, tmp_path)
    assert_same(batches(theirs, tmp_path), expected)
    assert_same(batches(theirs, tmp_path, workers=2), expected)
    ranks = [batches(theirs, tmp_path, micro=2, rank=rank, world=2, workers=1) for rank in range(2)]
    keys = [[key for both in zip(a.key, b.key) for key in both] for a, b in zip(*ranks)]
    assert keys == [batch.key for batch in expected]


def test_a_set_from_a_server_is_read_through_the_cache(tmp_path):
    root = by_tarfile(tmp_path / "set")
    here = batches(root, tmp_path / "other")
    with serving(root, lambda count, name: "cut" if count == 2 else None) as server:
        place = f"{server.address}/x-{{000000..000002}}.tar"
        assert_same(batches(place, tmp_path / "cache", workers=2), here)
        asked = len(server.requests)
        assert_same(batches(place, tmp_path / "cache"), here)
        assert len(server.requests) == asked + 3, "each tar is asked for its size, none is fetched again"
        assert sorted({name for name, _ in server.requests}) == [f"x-00000{n}.tar" for n in range(3)]
        assert "404" in str(pytest.raises(DataError, opened, f"{server.address}/y.tar").value)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3


def test_a_set_on_a_server_that_changes_is_indexed_again(tmp_path):
    root = by_tarfile(tmp_path / "set")
    with serving(root) as server:
        place = f"{server.address}/x-{{000000,000001}}.tar"
        assert len(samples(opened(place))) == 7
        (root / "x-000001.tar").write_bytes((root / "x-000002.tar").read_bytes())
        assert [sample.key for sample in samples(opened(place))][4:] == [f"k{n:03d}" for n in range(7, 12)]


def test_a_single_tar_of_an_object_store(tmp_path):
    import fsspec

    root = by_tarfile(tmp_path / "set")
    fsspec.filesystem("memory").pipe("/bucket/x.tar", (root / "x-000002.tar").read_bytes())
    assert len(samples(opened("memory://bucket/x.tar"))) == 5


# ---- the index ----


def kept(root: Path) -> list[Path]:
    return sorted(root.glob("cssr-index-*"))


def test_the_index_is_made_once_and_again_when_a_tar_changes(tmp_path, capsys):
    root = by_tarfile(tmp_path / "set")
    assert len(opened(root)) == 12
    output = capsys.readouterr().err
    assert "12 samples in 3 tars (jpg image, seg.png mask); masks: values {0, 255}: crack = 255" in output
    (index,) = kept(root)
    before = index.stat().st_mtime_ns
    known = opened(root).sha256
    assert index.stat().st_mtime_ns == before and not capsys.readouterr().err
    os.utime(root / "x-000000.tar")
    assert opened(root).sha256 != known and index.stat().st_mtime_ns > before
    by_tarfile(root, counts=(2, 2), name="y-{}.tar", key="other{}")
    assert len(opened(root)) == 16
    index.write_text("{")
    assert len(opened(root)) == 16 and kept(root) == [index]


def test_a_directory_that_is_read_only_has_its_index_in_the_cache(tmp_path, monkeypatch):
    root, really = by_tarfile(tmp_path / "set"), os.open

    def refuse(path, *arguments, **options):
        if Path(path).parent == root:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return really(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert len(opened(root)) == 12 and not kept(root)
    (index,) = (tmp_path / "cache").glob("index-*.json")
    before = index.stat().st_mtime_ns
    assert len(samples(opened(root))) == 12 and index.stat().st_mtime_ns == before
    monkeypatch.setenv("CSSR_CACHE", "/proc/cssr")
    assert "data.cache: /proc/cssr cannot be written" in str(pytest.raises(DataError, opened, root).value)


def open_and_say(root: Path, queue) -> None:
    queue.put(len(opened(root)))


def test_of_many_processes_one_makes_the_index(tmp_path, capfd):
    root = by_tarfile(tmp_path / "set", counts=(40, 40))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=open_and_say, args=(root, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [80] * 4
    for process in processes:
        process.join(60)
    assert capfd.readouterr().err.count("this index is kept in") == 1
    assert [path.suffix for path in kept(root)] == [".json"]


def test_keys_that_several_tars_share_are_distinguished(tmp_path):
    root = by_tarfile(tmp_path / "set", counts=(2,), name="a.tar")
    by_tarfile(root, counts=(2,), name="b.tar")
    found = [key for batch in eval_stream(open_sets(str(root), "data.val"), 2, 3, 0) for key in batch.key]
    assert found == ["a/k000", "a/k001", "b/k000", "b/k001"]


def test_a_suffix_that_was_asked_for_is_remembered(tmp_path):
    def both(number: int):
        return [*usual(number), ("label.png", coded(np.ones((24, 32), np.uint8) * 255))]

    root = by_tarfile(tmp_path / "set", both)
    assert "data.suffixes={image: jpg, mask: label.png}" in refused(root)
    assert samples(opened(root, image="jpg", mask=".SEG.png"))[0].mask.sum() == 64
    assert samples(opened(root))[0].mask.sum() == 64
    assert not opened(root, image=["jpg"]).masks
    assert not opened(root).masks


# ---- what is refused, in one line ----


def test_what_is_unclear_is_asked_for(tmp_path):
    def images(number: int):
        return usual(number)[:1]

    text = refused(by_tarfile(tmp_path / "bare", images))
    assert "no masks of known suffixes" in text and "data.suffixes={image: jpg} for the images alone" in text
    assert not samples(opened(tmp_path / "bare", image="jpg"))[0].mask.any()
    text = refused(by_tarfile(tmp_path / "png", jpeg_and("png")))
    assert "k000 has jpg, png: say data.suffixes={image: jpg, mask: png}" in text
    with pytest.raises(
        DataError, match=r"^--data: .*webdataset --root \S+ --out DIR --image-suffix jpg --mask-suffix png`"
    ):
        open_sets(str(tmp_path / "png"), "--data")
    assert samples(opened(tmp_path / "png", image="jpg", mask="png"))[1].mask.sum() == 128
    text = refused(by_tarfile(tmp_path / "strange", jpeg_and("damage.png")))
    assert "damage.png, jpg: say data.suffixes={image: jpg, mask: SUFFIX}" in text
    assert len(opened(tmp_path / "strange", image="jpg", mask="damage.png")) == 12
    assert "no sample has an image and a mask" in refused(tmp_path / "strange", image="jpg", mask="slip.png")
    assert "end in nothing that is known" in refused(by_tarfile(tmp_path / "none", lambda n: [("npy", b"x")]))


@pytest.mark.parametrize("key", ["k{}", "v1.5m-{}"])
def test_masks_that_are_not_taken_are_no_images(key, tmp_path):
    """Nor are other members whose names end as those of images do."""

    def files(number: int):
        return [("png", coded(picture(number))), *usual(number)[1:], ("preview.npy", b"")]

    root = by_tarfile(tmp_path / "set", files, key=key)
    shards = opened(root, image="png")
    assert len(samples(shards)) == 12 and not shards.masks
    shards = opened(root, image="png", mask="seg.png")
    assert len(samples(shards)) == 12 and shards.masks


def test_only_some_keys_have_dots(tmp_path):
    def files(number: int):
        return [(f"5m.{suffix}", data) for suffix, data in usual(number)] if number % 2 else usual(number)

    found = samples(opened(by_tarfile(tmp_path / "set", files)))
    assert [sample.key for sample in found[:3]] == ["k000", "k001.5m", "k002"] and len(found) == 12


def test_what_macos_adds_is_passed_over(tmp_path):
    root = by_tarfile(tmp_path / "set", lambda n: [*usual(n), ("preview.png", coded(picture(n)))])
    write_tar(root / "y.tar", [(f"{hidden}m.{suffix}", data) for hidden in ("._", "") for suffix, data in usual(0)])
    found = samples(opened(root))
    assert len(found) == 13 and found[-1].key == "m"


def test_previews_beside_are_no_samples(tmp_path):
    root = by_tarfile(tmp_path / "set", lambda n: [*usual(n), ("preview.jpg", coded(picture(0), "JPEG"))])
    assert len(samples(opened(root))) == len(samples(opened(root, image="jpg"))) == 12


def test_a_sample_without_mask_is_named(tmp_path):
    text = refused(by_tarfile(tmp_path / "set", lambda n: usual(n)[: 1 + (n != 5)]))
    assert "1 samples lack their image or mask, the first is k005" in text and "--skip-unpaired" in text
    text = refused(tmp_path / "set" / "x-{000000..000002}.tar")
    assert f"--root '{tmp_path}/set/x-{{000000..000002}}.tar' --out DIR" in text, "as bash needs it"


@pytest.mark.parametrize("name", ["x-{}.tar.gz", "x-{}.tgz", "x-{}.tar"])
def test_what_is_compressed_goes_through_make_shards(name, tmp_path):
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / name.format(0), "w:gz"):
        pass
    text = refused(tmp_path / "set")
    assert "compressed" in text and f"make_shards.py webdataset --root {tmp_path}/set --out DIR" in text
    assert "compressed" in refused(tmp_path / "set" / name.format(0))


@pytest.mark.parametrize("name", ["x-0.tar.zst", "x-0.tar"])
def test_zstandard_is_named_with_what_unpacks_it(name, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(b"\x28\xb5\x2f\xfd" + bytes(1000))
    for place in (tmp_path / "set", tmp_path / "set" / name):
        text = refused(place)
        assert f"{name} is compressed by zstandard, which is not read: unpack it with `zstd -d` first" in text
        assert "make_shards" not in text


@pytest.mark.parametrize("values, says", [
    (lambda m: 255 - m * 255, "as if inverted"),
    (lambda m: m + (m > 0) * np.eye(24, 32, dtype=np.uint8), "are crack: the masks hold values {0, 1, 2}"),
    (lambda m: np.stack([m * 200, m * 0, m * 0], 2), "is coloured"),
    (lambda m: m[:12], "the mask of x-000000.tar key k000 is 32x12, its image 32x24"),
    (lambda m: m.astype(np.uint16) * 999, "is of mode I;16"),
])  # fmt: skip
def test_masks_that_cannot_be_read_in_place(values, says, tmp_path):
    def files(number: int):
        return [("jpg", coded(picture(number), "JPEG")), ("mask.png", coded(values(mask(number))))]

    root = by_tarfile(tmp_path / "set", files)
    text = refused(root)
    assert says in text and "make_shards.py webdataset" in text
    assert len(opened(root, image="jpg")) == 12, "the images alone can be"


@pytest.mark.parametrize("image, says", [
    (lambda n: coded(np.dstack([picture(n), picture(n)[..., :1]])), "of mode RGBA"),
    (lambda n: coded(picture(n)[..., 0].astype(np.uint16) * 200), "16 bits"),
])  # fmt: skip
def test_images_that_would_not_look_as_they_are_meant(image, says, tmp_path):
    text = refused(by_tarfile(tmp_path / "set", lambda n: [("png", image(n)), ("mask.png", coded(mask(n) * 255))]))
    assert says in text and "make_shards.py webdataset" in text


def test_mistakes_in_paths(tmp_path):
    root = by_tarfile(tmp_path / "set")
    assert "x-000003.tar: No such file" in refused(root / "x-{000000..000003}.tar")
    os.mkfifo(tmp_path / "pipe.tar")  # which would be read for ever
    assert "pipe.tar is no regular file" in str(pytest.raises(DataError, opened, f"{tmp_path}/pipe.tar").value)
    assert "braces in a folder's name" in str(pytest.raises(DataError, opened, f"{tmp_path}/{{a,b}}/x.tar").value)
    (root / "x-000001.tar").write_bytes(b"no tar" * 1000)
    assert "x-000001.tar" in refused(root)
    (tmp_path / "empty").mkdir()
    assert "no shards in" in refused(tmp_path / "empty")


@pytest.mark.parametrize("value", ["{mask: seg.png}", "{image: 3}", "{image: []}", "{image: jpg, gt: png}"])
def test_settings_that_cannot_be_meant(value):
    with pytest.raises(ValueError, match=r"data\.suffixes must be as"):
        load_config(None, [f"data.suffixes={value}"])


# ---- damage ----


def test_a_member_that_is_there_twice_is_damage_reported_by_key(tmp_path):
    def files(number: int):
        return usual(number) + usual(number)[1:] * (number == 4)

    shards = opened(by_tarfile(tmp_path / "set", files))
    assert len(shards) == 12
    with pytest.raises(DataError, match=r"damaged sample: .*x-000001.tar key k004: its seg.png is there twice"):
        read_sample(shards, 1, 0)


def test_damaged_samples_are_replaced_within_the_limit(tmp_path):
    def files(number: int):
        return [("jpg", b"none" * 50), usual(number)[1]] if number == 7 else usual(number)

    data = DataConfig(train=str(by_tarfile(tmp_path / "set", files)), crop=16, lanes=4, workers=0, max_damaged=0.2)
    output, damage = [], Damage()
    with contextlib.closing(
        train_stream(open_train_sets(data), data, 0, 0, 4, damage=damage, report=output.append)
    ) as s:
        keys = [key for batch in itertools.islice(s, 9) for key in batch.key]
    assert "k007" not in keys and len(output) == 1 and "key k007" in output[0] and "replaced" in output[0]


def test_a_tar_that_grew_is_indexed_again_and_one_that_shrank_as_well(tmp_path):
    root = by_tarfile(tmp_path / "set")
    assert len(opened(root)) == 12
    write_tar(root / "x-000000.tar", [(f"n{n}.{suffix}", data) for n in range(9) for suffix, data in usual(n)])
    assert len(samples(opened(root))) == 17


def test_an_index_of_ours_with_suffixes_is_as_before(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    write_tar(root / "s0.tar", [(name.replace("mask", "seg"), data) for name, data in pair(0)])
    shards = opened(write_index(root, {"s0.tar": 1}, suffixes={"png": "png", "seg.png": "mask.png"}))
    assert samples(shards)[0].mask.any() and not kept(root)


# ---- a run ----


@pytest.mark.slow
def test_a_run_trains_validates_and_resumes_on_foreign_tars(tmp_path):
    def files(number: int):
        image = np.kron(picture(number), np.ones((3, 3, 1), np.uint8))
        return [("JPG", coded(image, "JPEG")), ("mask.png", coded(np.kron(mask(number), np.ones((3, 3), np.uint8))))]

    place = by_tarfile(tmp_path / "set", files) / "x-{000000..000002}.tar"
    main(settings(place, tmp_path / "run", "train.steps=2", "data.crop=64"))
    main(settings(place, tmp_path / "run", "train.steps=4", "data.crop=64"))
    main(settings(place, tmp_path / "straight", "train.steps=4", "data.crop=64", "data.workers=0"))
    runs = [[logged(tmp_path / name)[step]["loss"] for step in (1, 2, 3, 4)] for name in ("run", "straight")]
    assert runs[0] == runs[1]
