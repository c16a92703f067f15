"""Opening images: what headers promise, and Pillow's limit."""

import io
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from cssr.cracks.masks import read_mask
from cssr.dataset_preparation.images import size_of, store_picture
from cssr.utils.images import any_size, open_image
from cssr.utils.photographs import open_photograph


def png(width: int, height: int, colours: int = 2, depth: int = 8) -> bytes:
    """A PNG of a row, whose header says what it is given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    ending = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ending


def jpeg(width: int, height: int, **options) -> bytes:
    """A JPEG of 64 x 64 pixels, whose header says otherwise."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", **options)
    data, marker = buffer.getvalue(), b"\xff\xc2" if options else b"\xff\xc0"
    place = data.index(marker) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


PROMISES = {
    "rgb.png": png(15_000, 15_000),
    "grey.png": png(15_000, 15_000, 0),
    "deep.png": png(15_000, 15_000, 0, 16),
    "a.jpg": jpeg(15_000, 15_000),
    "progressive.jpg": jpeg(15_000, 15_000, progressive=True),
    "huge.png": png(100_000, 100_000, 6),
    "row.png": png(2**31 - 1, 1, 0),
}


@pytest.mark.parametrize("name", PROMISES)
def test_headers_that_promise_more_than_there_is_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(PROMISES[name])
    message = "above the limit" if name in ("huge.png", "row.png") else "its header says 15000 x 15000 pixels, its"
    data = PROMISES[name]
    for read in (read_mask, open_photograph, lambda _: store_picture(data), lambda _: size_of(data)):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode, options", [("1", {"format": "PNG"}), ("RGB", {"format": "PNG", "compress_level": 9}),
                                           ("L", {"format": "JPEG", "optimize": True}),
                                           ("RGB", {"format": "JPEG", "progressive": True, "quality": 1})])  # fmt: skip
def test_blank_images_hold_as_much_as_their_headers_say(mode, options):
    """They are compressed as far as it goes."""
    buffer = io.BytesIO()
    Image.new(mode, (4000, 3000)).save(buffer, **options)
    with open_image(buffer) as image:
        assert np.asarray(image).shape[:2] == (3000, 4000)


def test_the_limit_of_pillow_is_that_of_before_once_all_threads_are_done():
    limit, inside = Image.MAX_IMAGE_PIXELS, threading.Event()
    leave = threading.Event()

    def hold() -> None:
        with any_size():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    with any_size():
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS is None  # the thread still decodes
    leave.set()
    thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS is not None


def test_odd_tags_of_a_tiff_are_nothing_to_tell(tmp_path):
    """Pillow warns of them; pytest has filters of its own."""
    picture = io.BytesIO()
    Image.new("L", (9, 9), 7).save(picture, "TIFF", tiffinfo={274: 1})
    data = picture.getvalue()
    at = data.index(struct.pack("<HHI", 274, 3, 1)) + 4
    (tmp_path / "a.tif").write_bytes(data[:at] + struct.pack("<I", 2) + data[at + 4 :])  # two values
    code = "import sys; from cssr.utils.images import open_image as read; print(read(sys.argv[1]).getexif()[274])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_tiff_of_more_pixels_than_pillow_takes_is_a_mask(tmp_path):
    """Its limit holds once more when a TIFF is decoded."""
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.tif", compression="group4")
    assert read_mask(tmp_path / "a.tif").shape == (10_000, 20_000)
