"""Shards that lie: nothing is written, run or loaded because of them, and no memory spent on what they claim."""

import contextlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hand_made import kernel_of, npy, pair, write_index, write_pairs, write_stored, write_tar
from helpers import coordinates, png
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from paths import ROOT, SUPPORT
from PIL import Image

from cssr.config.schema import DataConfig
from cssr.data.dataset import read_sample
from cssr.data.decode import decode_image, decode_kernel, decode_mask, image_size
from cssr.data.shards import MAX_INDEX, DataError, ShardSet, parse_index
from cssr.data.tar_reader import read_members
from cssr.utils.images import encode_image


def one_line(caught) -> str:
    message = str(caught.value)
    assert message and "\n" not in message and message.isprintable()
    return message


def opened(root: Path) -> ShardSet:
    return ShardSet.open(root, "data.train")


def a_set(root: Path, members: list, count: int = 1, form: int = tarfile.PAX_FORMAT, **facts) -> ShardSet:
    """A set of one tar."""
    root.mkdir(exist_ok=True)
    write_tar(root / "s0.tar", members, form)
    return opened(write_index(root, {"s0.tar": count}, **facts))


def assert_refused(shards: ShardSet, message: str, index: int = 0) -> None:
    with pytest.raises(DataError, match=f"damaged sample: .*{message}") as caught:
        read_sample(shards, 0, index)
    assert "s0.tar" in one_line(caught)


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for key, value in fields.items():
        setattr(found, key, value)
    return found


# ---- names and kinds of members ----

TRICKS = {
    "above": [("../k-000.png", b"x"), ("../../outside.mask.png", b"x")],
    "absolute": [("/tmp/cssr-hostile.png", b"x")],
    "folders": [(header("k-000.png", tarfile.DIRTYPE), b""), ("a/k-000.png", b"x"), ("./k-000.png", b"x")],
    "backslashes": [("..\\k-000.png", b"x")],
    "symbolic link": [(header("k-000.png", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")],
    "hard link": [(header("k-000.mask.png", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")],
    "devices": [
        (header("k-000.png", kind, devmajor=1, devminor=5), b"") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE)
    ],
    "a pipe": [(header("k-000.png", tarfile.FIFOTYPE), b"")],
    "lines": [("k\n\033[31m.png", b"x"), ("k\u202egnp.png", b"x")],
    "no key": [(".png", b"x"), (".mask.png", b"x")],
    "a pickle": [("k-000.pkl", pickle.dumps(print)), ("k-000.pyd", b"x"), ("a.pt", b"x")],
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("trick", TRICKS)
def test_members_that_are_no_plain_files_are_ignored(trick, form, tmp_path):
    shards = a_set(tmp_path / "set", [*TRICKS[trick], *pair(0), *TRICKS[trick], *pair(1)], 2, form)
    before = everything(tmp_path)
    for n in range(2):
        sample = read_sample(shards, 0, n)
        assert sample.key == f"k-{n:03d}"
        np.testing.assert_array_equal(sample.image, coordinates(n, 20, 24))
    assert everything(tmp_path) == before and not Path("/tmp/cssr-hostile.png").exists()


def everything(root: Path) -> list[str]:
    return sorted(str(path) for path in root.parent.rglob("*") if "current" not in str(path))


@pytest.mark.parametrize("name", [
    "../s0.tar", "/tmp/s0.tar", "a/s0.tar", "a\\s0.tar", "s0.tar\n", "\033[31ms0.tar", "s0.zip", ".tar", "", 3,
    None, "\ud800.tar",
])  # fmt: skip
def test_names_of_shards_are_plain(name, tmp_path):
    root = write_pairs(tmp_path / "set", [2])
    (tmp_path / "s0.tar").write_bytes((root / "s0.tar").read_bytes())
    index = json.loads((root / "index.json").read_text())
    index["shards"][0]["name"] = name
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="data.train: .* is (damaged|missing)") as caught:
        opened(root)
    one_line(caught)


# ---- headers that lie ----


def raw_header(size: bytes, name: bytes = b"k-000.png", kind: bytes = b"0") -> bytes:
    """A tar header with this size field, and a checksum that fits."""
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HEADERS = {
    "a terabyte": raw_header(b"\x80" + (1 << 40).to_bytes(11, "big")),
    "more than a number": raw_header(b"\x80" + b"\xff" * 11),
    "less than nothing": raw_header(b"\xff" * 12),
    "no digits": raw_header(b"99999999999\0"),
    "eight gigabytes": raw_header(b"77777777777\0"),
    "a pax header of a gigabyte": raw_header(b"10000000000\0", kind=b"x"),
    "a name of a gigabyte": raw_header(b"10000000000\0", kind=b"L"),
    "a pax size": raw_header(b"%011o\0" % 15, kind=b"x") + b"15 size=999999\n".ljust(512, b"\0") + raw_header(b"0\0"),
    "a pax size below 0": raw_header(b"%011o\0" % 11, kind=b"x")
    + b"11 size=-9\n".ljust(512, b"\0")
    + raw_header(b"0\0"),
    "no header": b"x" * 512,
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_header_that_lies_spoils_what_comes_after_it_alone(lie, tmp_path):
    root = write_pairs(tmp_path / "set", [3])
    data = (root / "s0.tar").read_bytes()
    with tarfile.open(root / "s0.tar") as tar:
        place = next(m.offset for m in tar if m.name == "k-001.png")
    (root / "s0.tar").write_bytes((data[:place] + HEADERS[lie] + data[place:])[: len(data)])
    shards = opened(root)
    assert read_sample(shards, 0, 0).key == "k-000"
    for n in (1, 2):
        assert_refused(shards, "its shard has 1 samples, its index says 3: ", n)


def test_a_large_pax_header_is_not_read(tmp_path):
    with pytest.raises(ValueError, match="a header of 1000448 bytes"):
        list(members_of(tmp_path, raw_header(b"%011o\0" % 10**6, kind=b"x") + bytes(10**6)))


def members_of(tmp_path: Path, data: bytes) -> list:
    path = tmp_path / "t.tar"
    path.write_bytes(data)
    with path.open("rb") as file:
        return list(read_members(file.fileno(), len(data)))


@pytest.mark.parametrize("record", [b"GNU.sparse.major=1\n", b"GNU.sparse.size=99\n", b"GNU.sparse.name=k-000.png\n"])
def test_sparse_files_are_ignored(record, tmp_path):
    text = b"%d " % (len(record) + 3) + record
    tar = (
        raw_header(b"%011o\0" % len(text), kind=b"x")
        + text.ljust(512, b"\0")
        + raw_header(b"%011o\0" % 3)
        + b"abc".ljust(512, b"\0")
    )
    assert members_of(tmp_path, tar) == []
    assert members_of(tmp_path, raw_header(b"%011o\0" % 3, kind=b"S") + b"abc".ljust(512, b"\0")) == []


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", ["a.png", "ä" * 40 + ".png", "x" * 100, "x" * 99 + ".png", "é" * 120 + ".mask.png"])
def test_headers_are_read_as_the_library_reads_them(form, name, tmp_path):
    members = [("first.png", b"1"), (name, b"x" * 700), ("empty.png", b""), ("last.png", b"y" * 512)]
    try:
        path = write_tar(tmp_path / "t.tar", members, form)
    except ValueError:
        pytest.skip("this format has no such names")
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    assert [tuple(m) for m in members_of(tmp_path, path.read_bytes())] == expected


# ---- counts ----


def test_a_shard_with_fewer_samples_than_its_index_says(tmp_path):
    shards = a_set(tmp_path / "set", [*pair(0), *pair(1)], 3)
    assert read_sample(shards, 0, 1).key == "k-001"
    assert_refused(shards, "its shard has 2 samples, its index says 3", 2)


def test_a_shard_with_more_samples_than_its_index_says_is_not_that_of_the_index(tmp_path):
    shards = a_set(tmp_path / "set", [*pair(0), *pair(1), *pair(2)], 2)
    assert_refused(shards, "its shard has more than the 2 samples of its index", 0)


def test_an_index_that_lists_a_shard_twice_is_refused(tmp_path):
    index = json.loads((write_pairs(tmp_path / "set", [3]) / "index.json").read_text())
    index["shards"] *= 2  # its images would count twice
    assert parse_index(json.dumps(index).encode()) is None


@pytest.mark.parametrize("samples", [10**18, 10**9, 50, 1.5, True, "3", -1, None])
def test_counts_that_cannot_be_are_refused(samples, tmp_path):
    root = write_pairs(tmp_path / "set", [3])
    index = json.loads((root / "index.json").read_text())
    index["shards"][0]["samples"] = samples
    assert parse_index(json.dumps(index).encode()) is None
    if samples not in (10**18, 10**9):
        index["shards"][0] |= {"samples": 3, "bytes": samples}
        assert parse_index(json.dumps(index).encode()) is None


@pytest.mark.parametrize("suffix", ["png", "mask.png"])
@pytest.mark.parametrize("place", ["beside", "later"])
def test_a_file_that_is_there_twice_is_damage(suffix, place, tmp_path):
    """Which of the two was meant nobody knows; the sample is named by its key, the others are read."""
    again = [(name, data) for name, data in pair(0) if name == f"k-000.{suffix}"]
    members = [*pair(0), *again, *pair(1)] if place == "beside" else [*pair(0), *pair(1), *again]
    shards = a_set(tmp_path / "set", members, 2)
    assert_refused(shards, f"key k-000: its {suffix} is there twice")
    assert read_sample(shards, 0, 1).key == "k-001"


# ---- what is decoded ----


def png_of(
    width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"\0" * 100, more: bytes = b""
) -> bytes:
    """A PNG file that claims this size."""
    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG file of a small picture that claims this size."""
    buffer = io.BytesIO()
    Image.fromarray(coordinates(0, 20, 24)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS = {"png": png_of(30000, 30000), "jpg": jpeg_of(30000, 30000), "mask.png": png_of(30000, 30000, 1, 0)}


@pytest.mark.parametrize("extension", BOMBS)
def test_a_picture_larger_than_the_set_knows_is_not_decoded(extension, tmp_path):
    kept = [part for part in pair(0) if not part[0].endswith(f"0.{'png' if extension == 'jpg' else extension}")]
    shards = a_set(tmp_path / "set", [(f"k-000.{extension}", BOMBS[extension]), *kept])
    assert_refused(shards, "30000 x 30000")


def test_an_lq_image_of_another_size_is_not_decoded(tmp_path):
    root = write_stored(tmp_path / "set", 1)
    members = [*pair(0), ("k-000.lq.png", BOMBS["png"]), ("k-000.kernel.npy", npy(kernel_of(0)))]
    write_tar(root / "s0.tar", members)
    shards = opened(write_index(root, {"s0.tar": 1}, lq=True, scale=2, kernel=5))
    assert_refused(shards, "30000 x 30000 pixels, not 12 x 10")


def test_a_set_of_larger_pictures_than_allowed_is_refused(tmp_path):
    root = write_pairs(tmp_path / "set", [1])
    write_index(root, {"s0.tar": 1}, ["24x20", "20000x20000"])
    with pytest.raises(DataError, match="400000000 pixels, more than data.max_pixels=100000000: raise that") as caught:
        opened(root)
    one_line(caught)
    assert len(ShardSet.open(root, "x", DataConfig(max_pixels=400_000_000))) == 1


@pytest.mark.parametrize("sizes", [["0x0"], ["-1x4"], ["9999999x1"], ["1" * 5000 + "x1"], ["axb"], [""]])
def test_sizes_that_cannot_be_are_refused(sizes, tmp_path):
    root = write_pairs(tmp_path / "set", [1])
    with pytest.raises(DataError, match="is damaged"):
        opened(write_index(root, {"s0.tar": 1}, sizes))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"BM" + bytes(60), b"II*\0" + bytes(60), b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_only_png_and_jpeg_are_images(data, tmp_path):
    assert_refused(a_set(tmp_path / "set", [("k-000.png", data), pair(0)[1]]), "")


def test_an_image_file_of_absurd_length_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cssr.data.dataset._BESIDE", 10)
    noise = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    assert_refused(a_set(tmp_path / "set", [("k-000.png", noise), pair(0)[1]]), f"its png has {len(noise)} bytes")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"{", b"\xff", b'{"crc32": {"png": "x"}}', b'{"crc32": {"png": 5}}', b" " * (1 << 22)]
)
def test_a_json_that_is_none_or_too_long(text, tmp_path):
    assert_refused(a_set(tmp_path / "set", [*pair(0), ("k-000.json", text)]), "")


@pytest.mark.parametrize("text", [b"3", b"[]", b'{"crc32": 7}', b'{"crc32": {"other": 5}}', b"{}"])
def test_a_json_without_checksums_is_fine(text, tmp_path):
    assert read_sample(a_set(tmp_path / "set", [*pair(0), ("k-000.json", text)]), 0, 0).key == "k-000"


def test_colours_subsampled_in_a_rare_way_are_left_to_the_other_decoder(monkeypatch):
    data, output = jpeg_of(24, 20), []
    expected = decode_image(data, output.append)
    for name, error in (("decode_jpeg_header", KeyError(-1)), ("decode_jpeg", ValueError("subsampling level of JPEG"))):
        monkeypatch.setattr(f"simplejpeg.{name}", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
    assert image_size(data) == (24, 20) and not output
    np.testing.assert_array_equal(decode_image(data, output.append), expected)
    assert not output


ODD_CHUNKS = chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"x" * 50)) + struct.pack(">I", 3) + b"tEXta\0b\0\0\0\5"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
def test_of_odd_chunks_of_a_png_nothing_is_written(mode, capfd):
    """A profile that is too short and a wrong checksum of a text: the pixels are those of the file without them."""
    image = Image.fromarray(coordinates(0, 20, 24))
    wide = np.arange(480, dtype=np.uint16).reshape(20, 24) * 100
    data = encode_image(wide if mode == "I;16" else image.convert(mode))
    odd = data[:33] + ODD_CHUNKS + data[33:]
    np.testing.assert_array_equal(decode_image(odd, pytest.fail), decode_image(data, pytest.fail))
    np.testing.assert_array_equal(decode_mask(odd, 3), decode_mask(data, 3))
    name = data.index(b"IDAT")
    for place in (name, name + 12):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        for decode in (lambda d: decode_image(d, pytest.fail), decode_mask):
            with pytest.raises(ValueError, match="cannot be decoded"):
                decode(flipped)
    for damaged in (data[:name], data[: name + 12]):
        for decode in (lambda d: decode_image(d, pytest.fail), decode_mask):
            with pytest.raises(ValueError, match="cannot be decoded"):
                decode(damaged)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:1:1"}])
def test_damage_within_a_jpeg_is_told_once(options, capfd):
    """As OpenCV decodes it, which writes of it by itself."""
    data = bytearray(encode_image(coordinates(0, 200, 240), "JPEG", quality=90, **options))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\xff\xd9" * 10
    output: list[str] = []
    image, mask = decode_image(bytes(data), output.append), decode_mask(bytes(data), 127)
    assert len(output) == 1 and "premature end of data segment" in output[0] and capfd.readouterr() == ("", "")
    grey, colours = (cv2.imdecode(np.frombuffer(data, np.uint8), mode) for mode in (0, 1))
    np.testing.assert_array_equal(image, colours[..., ::-1])
    np.testing.assert_array_equal(mask, grey > 127)


def test_checksums_in_the_json_are_held(tmp_path):
    """A bit that only the checksum shows, in each file."""
    members = pair(0)
    sums = {name.partition(".")[2]: zlib.crc32(data) for name, data in members}
    for wrong in ("png", "mask.png", None):
        found = {e: s + (e == wrong) for e, s in sums.items()}
        shards = a_set(tmp_path / f"set-{wrong}", [*members, ("k-000.json", json.dumps({"crc32": found}).encode())])
        if wrong:
            assert_refused(shards, f"its {wrong} is not what was written, by its checksum")
        else:
            read_sample(shards, 0, 0)


# ---- kernels ----


class Evil:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return os.system, (f"touch {os.environ['HOSTILE']}",)


def evil_arrays() -> dict[str, bytes]:
    lie = npy(np.zeros((5, 5), np.float32))
    return {
        "a pickled array": npy(np.array([Evil()], object), allow_pickle=True),
        "a pickle": pickle.dumps(Evil()),
        "another shape": npy(np.zeros((7, 7), np.float32)),
        "an absurd shape": lie.replace(b"(5, 5)", b"(9999999999, 9999999999)"),
        "a shape that is code": lie.replace(b"(5, 5), }    ", b"__import__('x')}"),
        "doubles": npy(np.zeros((5, 5))),
        "not finite": npy(np.full((5, 5), np.nan, np.float32)),
        "cut off": lie[:-3],
        "too long": lie + b"x",
        "nothing": b"",
        "an absurd header": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + b"{" * 500,
    }


LIES = ["a pickled array", "a pickle", "another shape", "an absurd shape", "a shape that is code", "doubles"]
LIES += ["not finite", "cut off", "too long", "nothing", "an absurd header"]


@pytest.mark.parametrize("lie", LIES)
def test_kernels_are_plain_numbers_of_the_right_shape(lie, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "hacked"))
    data = evil_arrays()[lie]
    if data:
        with pytest.raises(ValueError):
            decode_kernel(data, 5)
    members = [*pair(0), ("k-000.lq.png", png(coordinates(0, 10, 12))), ("k-000.kernel.npy", data)]
    shards = a_set(tmp_path / "set", members, lq=True, scale=2, kernel=5)
    assert_refused(shards, "")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("order", ["C", "F"])
def test_kernels_are_read_as_numpy_writes_them(order):
    kernel = np.asarray(kernel_of(3, 21), order=order)
    np.testing.assert_array_equal(decode_kernel(npy(kernel), 21), kernel)


@pytest.mark.parametrize("facts", [
    {"lq": True}, {"lq": True, "scale": 0}, {"lq": True, "scale": 1.5}, {"lq": True, "scale": "2"},
    {"lq": True, "scale": 2, "kernel": 10**9}, {"lq": True, "scale": 2, "kernel": "5"}, {"lq": 1, "scale": 2},
    {"lq": True, "scale": 2, "kernel": 0},
])  # fmt: skip
def test_an_index_that_says_half_of_it(facts, tmp_path):
    root = write_pairs(tmp_path / "set", [1])
    with pytest.raises(DataError, match="is damaged"):
        opened(write_index(root, {"s0.tar": 1}, **facts))


# ---- an index that is none ----


def test_an_index_of_a_gigabyte_is_refused_unread(tmp_path):
    root = write_pairs(tmp_path / "set", [1])
    with (root / "index.json").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(DataError, match="data.train: .*index.json is larger than 64 MiB"):
        opened(root)
    assert MAX_INDEX < 2**30


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "1" * 10_000, "NaN", '"' + "x" * 10**6, '{"format": "cssr-shards-1"}']
)
def test_an_index_that_is_none(text, tmp_path):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match="is damaged") as caught:
        opened(tmp_path)
    one_line(caught)


# ---- memory ----

READ_ALL = """
import sys
import cv2, numpy
from cssr.data.dataset import read_sample
from cssr.data.shards import DataError, ShardSet
from cssr.utils.machine import peak_memory
from hand_made import pair
before = peak_memory()
told = []
for root in sys.argv[1:]:
    try:
        shards = ShardSet.open(root, "x")
        for n in range(len(shards)):
            read_sample(shards, 0, n)
    except DataError as error:
        told.append(str(error))
print((peak_memory() - before) >> 20, len(told))
"""


@pytest.mark.slow
def test_no_memory_is_spent_on_lies(tmp_path):
    """Bombs of gigabytes, one after the other, in a process whose peak is measured: a few MiB."""
    side = 6000
    mask = png_of(side, side, 1, 0, bytes((side // 8 + 1) * side))  # whole and sound, as the photograph of its size
    bloated = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 26))) + chunk(
        b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 26))
    )
    roots = []
    for n, members in enumerate([
        [("k.png", png_of(side, side, data=bytes((3 * side + 1) * side))), ("k.mask.png", mask)],
        [("k.jpg", jpeg_of(side, side)), ("k.mask.png", mask)],
        [pair(0, key="k")[0], ("k.mask.png", mask)],
        [("k.png", png_of(24, 20, data=bytes(1 << 26))), pair(0, key="k")[1]],  # inflates far beyond its size
        [("k.png", png_of(24, 20, data=bytes(73 * 20), more=bloated)), pair(0, key="k")[1]],
    ]):  # fmt: skip
        roots.append(tmp_path / str(n))
        a_set(roots[-1], members)
    for name, lie in HEADERS.items():
        roots.append(tmp_path / name)
        a_set(roots[-1], pair(0))
        data = (roots[-1] / "s0.tar").read_bytes()
        (roots[-1] / "s0.tar").write_bytes((lie + data)[: len(data)])
    (tmp_path / "large").mkdir()
    with (tmp_path / "large" / "index.json").open("wb") as file:
        file.truncate(2**31)
    command = [sys.executable, "-c", READ_ALL, *roots, tmp_path / "large"]
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    growth, output = map(int, done.stdout.split())
    assert growth < 40 and output >= len(HEADERS) + 4


# ---- anything at all ----

FUZZ = hypothesis_settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WHOLE = {}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return write_stored(tmp_path_factory.mktemp("fuzz") / "set", 4)


@FUZZ
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 10**9),
)
def test_bytes_changed_anywhere_give_a_sample_or_one_line(fuzzed, changes, cut):
    path = fuzzed / "s0.tar"
    whole = WHOLE.setdefault("tar", path.read_bytes())
    data = bytearray(whole)
    for place, value in changes:
        data[place % len(data)] = value
    if cut is not None:
        data[cut % len(data) :] = bytes(len(data) - cut % len(data))
    path.write_bytes(data)
    shards = opened(fuzzed)
    for n in range(4):
        try:
            sample = read_sample(shards, 0, n)
            assert (
                sample.image.shape == (20, 24, 3) and sample.mask.shape == (20, 24) and sample.lq.shape == (10, 12, 3)
            )
        except DataError as error:
            assert "\n" not in str(error)


@FUZZ
@given(
    data=st.binary(max_size=200),
    kind=st.sampled_from([b"", b"\xff\xd8\xff", png_of(5, 5)[:33], npy(np.zeros((5, 5), np.float32))[:128]]),
)
def test_bytes_that_are_anything_are_decoded_or_refused(data, kind):
    for decode in (image_size, lambda d: decode_image(d, lambda _: None), decode_mask, lambda d: decode_kernel(d, 5)):
        with contextlib.suppress(ValueError):
            assert decode(kind + data) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(
    key=st.sampled_from(["format", "shards", "image_sizes", "masks", "lq", "scale", "kernel"]),
    value=JSON,
    inside=st.booleans(),
    name=st.sampled_from(["name", "samples", "bytes"]),
)
def test_an_index_of_anything_is_taken_or_refused(fuzzed, key, value, inside, name):
    index = json.loads((fuzzed / "index.json").read_text())
    if inside:
        index["shards"][0][name] = value
    else:
        index[key] = value
    found = parse_index(json.dumps(index).encode())
    assert found is None or (isinstance(found, dict) and found["shards"])
