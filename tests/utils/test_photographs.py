"""Photographs as files: every kind of them, upright, by windows."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from cssr.cracks.masks import read_mask
from cssr.utils import geotiff, photographs
from cssr.utils.photographs import open_photograph, read_photograph, read_with_valid

ORIENTATION = 0x0112
WINDOW = (3, 5, 20, 11)
needs_rasterio = pytest.mark.skipif(not geotiff.installed(), reason="needs rasterio: pip install 'cssr[large]'")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)


@pytest.fixture(params=["png", "tif", pytest.param("windows", marks=needs_rasterio)])
def ending(request, monkeypatch):
    """Decoded PNG and TIFF, and a TIFF that is read by windows."""
    if request.param == "windows":
        monkeypatch.setattr(photographs, "_SMALL", 0)
    return "png" if request.param == "png" else "tif"


def window(array: np.ndarray) -> np.ndarray:
    top, left, height, width = WINDOW
    return array[top : top + height, left : left + width]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright_as_a_whole_and_by_windows(orientation, ending, pixels, tmp_path):
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    picture.save(tmp_path / f"a.{ending}", exif=exif)
    with Image.open(tmp_path / f"a.{ending}") as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    assert np.array_equal(read_photograph(tmp_path / f"a.{ending}"), expected)
    with open_photograph(tmp_path / f"a.{ending}") as photograph:
        assert photograph.shape == expected.shape[:2]
        assert np.array_equal(photograph.pixels(*WINDOW), window(expected))
        tensor = photograph.read(*WINDOW)
        assert np.array_equal(tensor[0].permute(1, 2, 0), window(expected)) and tensor.shape[:2] == (1, 3)


@needs_rasterio
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_by_windows_is_what_pillow_makes_of_it(mode, compression, pixels, tmp_path, monkeypatch):
    picture = Image.fromarray(pixels).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(pixels[..., 1]))
    picture.save(tmp_path / "a.tif", compression=compression)
    expected = read_photograph(tmp_path / "a.tif")
    monkeypatch.setattr(photographs, "_SMALL", 0)
    with open_photograph(tmp_path / "a.tif") as photograph:
        assert isinstance(photograph._source, geotiff.TiffFile)
        assert np.array_equal(photograph.pixels(*WINDOW), window(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_is_scaled_to_8(channels, ending, pixels, tmp_path):
    wide = pixels.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / f"a.{ending}"), wide if channels == 3 else wide[..., 0])
    found = read_photograph(tmp_path / f"a.{ending}")
    assert np.array_equal(
        found[..., ::-1] if channels == 3 else found[..., 0], pixels if channels == 3 else wide[..., 0] // 257
    )


def deep(path, pixels, bits: int, channels: int) -> None:
    """A picture whose values of `bits` are stored in 16, the greatest of them among them."""
    values = np.round(pixels / 255 * ((1 << bits) - 1)).astype(np.uint16)
    values[0, 0] = (1 << bits) - 1
    cv2.imwrite(str(path), values if channels == 3 else values[..., 0])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("library", ["pillow", pytest.param("rasterio", marks=needs_rasterio)])
def test_values_in_16_bits_are_scaled_by_those_that_they_have(bits, channels, library, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "installed", lambda: library == "rasterio")
    expected = pixels[..., ::-1] if channels == 3 else np.repeat(pixels[..., :1], 3, 2)
    for ending in ("png", "tif"):
        path = tmp_path / f"a.{ending}"
        deep(path, pixels, bits, channels)
        for source in (path, path.read_bytes()):
            with open_photograph(source) as photograph:
                found = photograph.pixels(0, 0, *photograph.shape)
                assert photograph.bits == bits and (f"{bits} bits" in photograph.note) == (bits < 16)
            assert np.abs(found.astype(int) - expected)[1:].max() <= 1
        dark = read_photograph(path, bits=16)
        assert np.abs(dark.astype(int) - expected.astype(int) // 2 ** (16 - bits))[1:].max() <= 1


def test_the_bits_that_a_file_states_count(pixels, tmp_path):
    """A dark photograph of 12 bits shows but 10 of them."""
    dark = (pixels // 8).astype(np.uint16) * 16
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), dark)
    whole = path.read_bytes()
    chunk = b"sBIT" + bytes([12, 12, 12])
    at = 33  # behind IHDR
    path.write_bytes(whole[:at] + (3).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + whole[at:])
    with open_photograph(path) as photograph:
        assert photograph.bits == 12 and photograph.note == "values of 12 bits"
        assert np.abs(photograph.pixels(0, 0, 40, 30)[..., ::-1].astype(int) - pixels // 8).max() <= 1
    if geotiff.installed():
        import rasterio

        how = {"driver": "GTiff", "height": 40, "width": 30, "count": 3, "dtype": "uint16", "NBITS": 12}
        with rasterio.open(tmp_path / "a.tif", "w", **how) as file:
            file.write(dark.transpose(2, 0, 1))
        assert np.abs(read_photograph(tmp_path / "a.tif").astype(int) - pixels // 8).max() <= 1


def test_a_picture_of_the_caller_is_as_deep_as_its_file(pixels, tmp_path):
    deep(tmp_path / "a.png", pixels, 12, 3)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(read_photograph(picture), read_photograph(tmp_path / "a.png"))


# ---- pixels without data ----


def masked_files(folder, pixels, valid):
    """The same photograph with its missing pixels marked in every way that there is; their values differ."""
    for value in (0, 255):
        layers = np.dstack([np.where(valid[..., None], pixels, value), valid * 255]).astype(np.uint8)
        for ending in ("png", "tif", "webp"):
            how = {"lossless": True, "exact": True} if ending == "webp" else {}
            Image.fromarray(layers).save(folder / f"alpha{value}.{ending}", **how)
    if not geotiff.installed():
        return
    import rasterio

    how = {"driver": "GTiff", "height": valid.shape[0], "width": valid.shape[1], "count": 3, "dtype": "uint8"}
    for nodata in (0, 255):
        with rasterio.open(folder / f"nodata{nodata}.tif", "w", **how, nodata=nodata) as file:
            file.write(np.where(valid[..., None], pixels, nodata).astype(np.uint8).transpose(2, 0, 1))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(folder / "mask.tif", "w", **how) as file:
        file.write(np.where(valid[..., None], pixels, 77).astype(np.uint8).transpose(2, 0, 1))
        file.write_mask(valid)


@pytest.mark.parametrize("library", ["pillow", pytest.param("rasterio", marks=needs_rasterio)])
def test_pixels_without_data_are_black_and_distinguished(library, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(1, 255, (40, 30, 3)).astype(np.uint8)
    valid = np.zeros((40, 30), bool)
    valid[5:35, 4:20] = valid[10:20, 20:27] = True
    masked_files(tmp_path, pixels, valid)
    monkeypatch.setattr(geotiff, "installed", lambda: library == "rasterio")
    for path in sorted(tmp_path.iterdir()):
        if path.name == "mask.tif" and library == "pillow":
            with pytest.raises(ValueError, match="its mask of missing pixels needs rasterio"):
                open_photograph(path)
            continue
        for source in (path, path.read_bytes()):
            rgb, found = read_with_valid(source)
            assert np.array_equal(found, valid) and np.array_equal(rgb, np.where(valid[..., None], pixels, 0)), path
        with open_photograph(path) as photograph:
            assert photograph.masked and photograph.extent() == (5, 4, 30, 23) and not photograph.note, path
            assert np.array_equal(photograph.valid(*WINDOW)[0, 0], window(valid))
            assert photograph.valid(6, 5, 10, 10) is None
            tensor = photograph.read(0, 0, 40, 30)[0].permute(1, 2, 0).numpy()
            assert np.array_equal(tensor[valid], pixels[valid])
            assert np.array_equal(tensor[0, 4:20], pixels[5, 4:20])  # the nearest continued
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "none.png")
    with open_photograph(tmp_path / "none.png") as photograph, pytest.raises(ValueError, match="none of its pixels"):
        photograph.extent()


@pytest.mark.parametrize("library", ["pillow", pytest.param("rasterio", marks=needs_rasterio)])
def test_a_mask_of_gdal_beside_the_file_counts(library, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "installed", lambda: library == "rasterio")
    valid = np.zeros((40, 30), bool)
    valid[5:35, 4:20] = True
    for name in ("a.tif", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        Image.fromarray(valid).save(tmp_path / f"{name}.msk", "TIFF")
        rgb, found = read_with_valid(tmp_path / name)
        assert np.array_equal(found, valid) and np.array_equal(rgb, np.where(valid[..., None], pixels, 0))
    Image.fromarray(valid[1:]).save(tmp_path / "b.png.msk", "TIFF")
    with pytest.raises(ValueError, match="its mask .*b.png.msk has 30 x 39 pixels"):
        open_photograph(tmp_path / "b.png")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("library", ["pillow", pytest.param("rasterio", marks=needs_rasterio)])
def test_a_tiff_in_which_0_is_white(depth, library, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "installed", lambda: library == "rasterio")
    monkeypatch.setattr(photographs, "_SMALL", 0)
    stored = pixels[..., 0] if depth == 8 else 65535 - pixels[..., 0] * np.uint16(257)  # of 8 bits, Pillow turns them
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={262: 0})
    if (depth, library) == (16, "pillow"):
        with pytest.raises(ValueError, match="count down from white"):
            read_photograph(tmp_path / "a.tif")
    else:
        assert np.array_equal(read_photograph(tmp_path / "a.tif"), np.dstack([pixels[..., 0]] * 3))


@needs_rasterio
def test_colours_of_cielab_are_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_SMALL", 0)
    colour, lab = (200, 120, 60), [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
    picture = ImageCms.profileToProfile(Image.new("RGB", (30, 40), colour), *lab, outputMode="LAB")
    picture.save(tmp_path / "a.tif")
    assert np.abs(read_photograph(tmp_path / "a.tif").astype(int) - colour).max() <= 2


def test_cmyk(pixels, tmp_path):
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_photograph(tmp_path / "a.jpg")[0, 0].astype(int) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize("ending", ["gif", "webp", "tif", "png"])
def test_of_several_frames_the_first_is_taken_and_that_is_said(ending, tmp_path):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
    with open_photograph(tmp_path / f"a.{ending}") as photograph:
        assert photograph.note == "the first of its 2 frames"
        assert np.abs(photograph.pixels(0, 0, 1, 1)[0, 0].astype(int) - (255, 0, 0)).max() < 5


def test_a_preview_beside_a_camera_s_photograph_is_no_frame(tmp_path):
    frames = [Image.new("RGB", size, "red") for size in ((20, 10), (10, 5))]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    with open_photograph(tmp_path / "a.jpg") as photograph:
        assert not photograph.note and photograph.shape == (10, 20)


def test_more_pixels_than_pillow_takes_for_a_bomb(tmp_path):
    Image.new("1", (14000, 13000), 1).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    with open_photograph(tmp_path / "a.png") as photograph:
        assert photograph.shape == (13000, 14000) and photograph.held == 182_000_000
        assert photograph.pixels(12000, 13000, 2, 2).tolist() == [[[255] * 3] * 2] * 2
    assert limit == Image.MAX_IMAGE_PIXELS  # it is other people's too


def bad(tmp_path, pixels, kind: str):
    path = tmp_path / "a.jpg"
    if kind == "floats":
        path = tmp_path / "a.tif"
        Image.fromarray(pixels[..., 0].astype(np.float32)).save(path)
        return path
    Image.fromarray(np.repeat(np.repeat(pixels, 8, 0), 8, 1)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no picture", "cut": whole[: len(whole) // 2], "whole": whole}[kind])
    return path


@pytest.mark.parametrize("kind, message", [("empty", "cannot identify"), ("text", "cannot identify"),
                                           ("cut", "truncated"), ("floats", "8 or 16 bit")])  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_line(kind, message, pixels, tmp_path):
    path = bad(tmp_path, pixels, kind)
    with pytest.raises(ValueError, match=message) as caught:
        read_photograph(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_limit_of_pixels_is_said(pixels, tmp_path):
    with pytest.raises(ValueError, match="its 240 x 320 pixels are above the limit of 1,000"):
        open_photograph(bad(tmp_path, pixels, "whole"), pixels=1000)


@needs_rasterio
def test_a_tag_that_gdal_does_not_take_costs_no_photograph(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: 99})
    with open_photograph(tmp_path / "a.tif") as photograph:
        assert photograph.note == "not by GDAL, which finds faults in it"
        assert np.array_equal(photograph.pixels(0, 0, *photograph.shape), pixels)


@needs_rasterio
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_tiff_that_ends_too_early(share, tmp_path, monkeypatch):
    """Its directory comes first, as GDAL writes it, so only a window shows it."""
    rows = np.random.default_rng(0).integers(0, 255, (600, 500, 3)).astype(np.uint8)
    written = geotiff.TiffRows(tmp_path / "a.tif", (600, 500), 3, "uint8", None)
    written.write(rows)
    written.finish()
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: int(share * len(whole))])
    monkeypatch.setattr(photographs, "_SMALL", 0)
    with pytest.raises(ValueError, match="cannot read .*a.tif as a photograph: "):
        read_photograph(tmp_path / "a.tif")


@pytest.mark.parametrize("library", ["pillow", pytest.param("rasterio", marks=needs_rasterio)])
def test_damage_within_a_tiff_is_said_once_and_with_its_place(library, pixels, tmp_path, monkeypatch, capfd):
    """libtiff writes lines of its own to stderr unless it is kept from that."""
    monkeypatch.setattr(geotiff, "installed", lambda: library == "rasterio")
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[8:40] = bytes(32)  # of the first strip
    (tmp_path / "a.tif").write_bytes(data)
    reason = "decoder error" if library == "pillow" else "IReadBlock failed at X offset 0, Y offset 0"
    for image in (tmp_path / "a.tif", bytes(data)):
        with pytest.raises(ValueError, match=f"as a photograph: .*{reason}"):
            read_photograph(image)
    with pytest.raises(ValueError, match="cannot read mask"):
        read_mask(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_damage_of_colours_in_16_bits_is_said_once(suffix, pixels, tmp_path, monkeypatch, capfd):
    """OpenCV, libpng and libtiff write of it to stderr unless they are kept from that; an odd profile is no damage."""
    monkeypatch.setattr(geotiff, "installed", lambda: False)
    data = bytearray(cv2.imencode(f".{suffix}", pixels.astype(np.uint16) * 257)[1].tobytes())
    if suffix == "png":
        profile = b"iCCPsRGB\0\0" + zlib.compress(b"too short")
        chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
        assert np.array_equal(read_photograph(bytes(data[:33] + chunk + data[33:])), pixels[..., ::-1])
    data[200:400] = b"\xff" * 200
    with pytest.raises(ValueError, match="cannot read the image as a photograph: "):
        read_photograph(bytes(data))
    assert capfd.readouterr().err == ""


def test_any_error_of_a_decoder_is_one_line(pixels, tmp_path, monkeypatch):
    """A TIFF whose directories lead nowhere raises a TypeError in Pillow."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: {}["missing"])
    with pytest.raises(ValueError, match=r"cannot read .*a\.png as a photograph: 'missing'"):
        read_photograph(tmp_path / "a.png")


def test_a_picture_of_the_caller_stays_open(pixels):
    picture = Image.fromarray(pixels)
    assert np.array_equal(read_photograph(picture), read_photograph(picture))


@needs_rasterio
def test_a_second_band_that_is_no_alpha_is_left_out(pixels, tmp_path):
    import rasterio

    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", *pixels.shape[1::-1], 2, dtype="uint8", ALPHA="NO") as file:
        file.write(pixels[..., 0], 1)
        file.write(np.zeros_like(pixels[..., 0]), 2)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.transform = rasterio.transform.from_origin(0, 0, 0.1, 0.1)
    assert np.array_equal(read_photograph(tmp_path / "a.tif")[..., 1], pixels[..., 0])
