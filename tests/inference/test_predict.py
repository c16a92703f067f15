"""Prediction on photographs as files: formats, tiles, mistakes."""

import numpy as np
import pytest
import torch
from PIL import Image

from cssr import JointModel
from cssr.config.schema import ModelConfig
from cssr.inference.predictor import predict
from cssr.inference.sources import photographs
from cssr.models.joint import build_model
from cssr.predict import main
from cssr.utils.photographs import read_photograph

SEG = {"name": "unet", "encoder": "vgg11", "depth": 2, "width": 4}
MODEL = {"scale": 4, "sr": {"name": "dbpn", "stages": 2, "width": 4, "features": 8}, "seg": SEG}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("model") / "export"
    build_model(ModelConfig(**MODEL)).save_pretrained(out)
    return out


@pytest.fixture
def photograph():
    noise = np.random.default_rng(0).integers(0, 255, (70, 45, 3))
    return noise.astype(np.uint8)


def test_files_of_a_folder(export, photograph, tmp_path, capsys):
    (tmp_path / "in" / "pier").mkdir(parents=True)
    Image.fromarray(photograph).save(tmp_path / "in" / "a.png")
    Image.fromarray(photograph).save(tmp_path / "in" / "pier" / "a.jpg")
    main([str(export), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert "2 photographs" in capsys.readouterr().out
    for stem in ("a", "pier/a"):
        sr, prob, mask = (Image.open(tmp_path / "out" / f"{stem}_{kind}.png") for kind in ("sr", "prob", "mask"))
        assert sr.size == prob.size == mask.size == (180, 280)
        assert (sr.mode, prob.mode, mask.mode) == ("RGB", "L", "1")
        assert np.array_equal(np.asarray(mask), np.asarray(prob) > 127)
        assert (tmp_path / "out" / f"{stem}_overlay.png").is_file()


def test_float_probabilities(export, photograph, tmp_path):
    Image.fromarray(photograph).save(tmp_path / "a.png")
    main([str(export), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--float", "--device", "cpu"])
    prob = np.load(tmp_path / "out" / "a_prob.npy")
    assert prob.dtype == np.float32 and prob.shape == (280, 180) and 0 <= prob.min() < prob.max() <= 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_mask.png")), prob > 0.5)


def test_tiles_equal_the_whole_image(export, photograph):
    """Instance normalisation is global: its statistics are those of the whole SR image, so tiles change nothing."""
    model = JointModel.from_pretrained(export)
    large = np.tile(photograph, (2, 3, 1))  # 140 x 135 LQ pixels
    whole, tiles = (predict(model, large, tile=tile, overlap=40) for tile in (0, 96))
    np.testing.assert_allclose(tiles.prob, whole.prob, atol=1e-4)
    assert np.abs(tiles.sr.astype(int) - whole.sr).max() <= 1


@pytest.mark.parametrize("mode, expected", [("L", (100, 100, 100)), ("P", (100, 100, 100)), ("I;16", (100, 100, 100)),
                                            ("RGBA", (100, 100, 100)), ("LA", (100, 100, 100))])  # fmt: skip
def test_every_mode_is_read(mode, expected, tmp_path):
    """Half-transparent 100 is 100, as stored; 16-bit 25700 is 100."""
    grey = Image.new("L", (6, 4), 100)
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 6), 25700, np.uint16))
    elif mode in ("RGBA", "LA"):
        picture = grey.convert(mode)
        picture.putalpha(128)
    else:
        picture = grey.convert(mode)
    picture.save(tmp_path / "a.png")
    array = read_photograph(tmp_path / "a.png")
    assert array.shape == (4, 6, 3) and array.dtype == np.uint8
    assert np.abs(array[0, 0].astype(int) - expected).max() <= 1


def test_exif_orientation_is_honoured(tmp_path):
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_photograph(tmp_path / "a.jpg").shape == (6, 4, 3)


def test_unreadable_photographs_are_named_and_the_rest_is_done(export, photograph, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(photograph).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="1 of 2 photographs could not be read or written: bad.jpg"):
        main([str(export), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert (tmp_path / "out" / "good_mask.png").is_file()


def test_equal_stems_do_not_overwrite_each_other(tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert len(photographs(tmp_path)) == 2


@pytest.mark.parametrize("arguments, message", [
    (["nowhere", "."], "no run or export at nowhere|no photograph"),
    (["EXPORT", "nowhere.jpg"], "no photograph or folder at nowhere.jpg"),
    (["EXPORT", "EMPTY"], "no photograph in"),
    (["EXPORT", "PICTURE", "--threshold", "2"], "--threshold must be in 0..1"),
    (["EXPORT", "PICTURE", "--tile", "3"], "--tile must be"),
    (["EXPORT", "PICTURE", "--device", "abacus"], "--device abacus"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, message, export, tmp_path):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    places = {"EXPORT": export, "EMPTY": tmp_path / "empty", "PICTURE": tmp_path / "p.png"}
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(places.get(a, a)) for a in arguments] + ["--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image, found", [
    (np.full((8, 9, 3), 0.5, np.float32), r"float32 \[8, 9, 3\]"), (np.zeros((8, 9), np.uint8), r"uint8 \[8, 9\]"),
    (np.zeros((8, 9, 5), np.uint8), r"uint8 \[8, 9, 5\]"), (torch.zeros(1, 3, 8, 9), r"torch.float32 \[1, 3, 8, 9\]"),
])  # fmt: skip
def test_arrays_of_another_kind_are_refused(export, image, found):
    with pytest.raises(ValueError, match=f"is needed, got {found}"):
        predict(JointModel.from_pretrained(export), image)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \[0, 5, 3\]"),
        (Image.new("RGB", (0, 5)), "the image has no pixels: 0 x 5"),
        (3, "got int"),
        ([[1, 2], [3, 4]], "got list"),
        (torch.zeros(3, 0, 5), r"got torch.float32 \[3, 0, 5\]"),
        (torch.full((3, 8, 8), 200.0), "got 200 to 200: divide those of 8 bits by 255"),
        (torch.full((3, 8, 8), float("nan")), "a tensor of values 0..1 is needed, got nan"),
    ],
)
def test_what_is_no_image_is_refused_from_python(export, image, found):
    """What has no pixels ended within a convolution; values of 0..255 and NaN were predicted without a word."""
    with pytest.raises(ValueError, match=found):
        predict(JointModel.from_pretrained(export), image)


def test_numbers_that_cannot_be_meant_are_refused_from_python(export, photograph):
    model = JointModel.from_pretrained(export)
    for count in (0, 9, -1, "8", 2.0, True):
        with pytest.raises(ValueError, match="give 1 to 8 flips"):
            model.orientations = count
    result = predict(model, photograph)
    for threshold in (-1, 50, float("nan")):
        with pytest.raises(ValueError, match="give a probability, 0 to 1"):
            result.mask(threshold)
    with pytest.raises(ValueError, match=r"B x 3 x height x width are needed, got \[3, 8, 8\]"):
        model.infer(torch.zeros(3, 8, 8))


def test_infer_takes_8_bits_with_and_without_tiles(export, photograph):
    """Without tiles, values of 0..255 were taken for 0..1."""
    model = JointModel.from_pretrained(export)
    image = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    assert torch.equal(model.infer(image).logits, model.infer(image.float() / 255).logits)
