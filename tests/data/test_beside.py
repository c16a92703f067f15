"""Sets whose pictures come with low-resolution images and blur kernels: real pairs, and CSBSR's own test set."""

import io

import numpy as np
import pytest
from PIL import Image
from trees import belong, crack, number_of, pair, photo, truth

from cssr.dataset_preparation.masks import read_kernel
from cssr.dataset_preparation.sources import SOURCES


def gaussian(side: int = 21, sigma: float = 2.0) -> np.ndarray:
    x = np.arange(side) - side // 2
    kernel = np.exp(-(x[:, None] ** 2 + x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def as_bytes(kernel: np.ndarray) -> np.ndarray:
    """As CSBSR stores a kernel: the maximum at 255, cut down to whole numbers."""
    return (kernel / kernel.max() * 255).astype(np.uint8)


def shown(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


# ---- kernels ----


def test_a_kernel_adds_up_to_one(tmp_path):
    kernel = gaussian()
    read = read_kernel(truth(tmp_path / "k.png", as_bytes(kernel)))
    assert read.dtype == np.float32 and read.shape == (21, 21) and read.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(read - kernel).max() < kernel.max() / 50 and (read != kernel.astype(np.float32)).any()
    np.save(tmp_path / "k.npy", 3 * kernel)
    assert np.allclose(read_kernel(tmp_path / "k.npy"), kernel, atol=1e-8)
    rgb = read_kernel(truth(tmp_path / "rgb.png", np.dstack([as_bytes(kernel)] * 3)))
    assert (rgb == read).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 4)), r"has the shape \(3, 4\)"),
        (np.ones((4, 4)), "of odd side"),
        (np.zeros((3, 3)), "adds up to 0"),
        (np.full((3, 3), np.nan), "adds up to nan"),
        (np.array(["a"]), "cannot read kernel"),
        (np.array([{}]), "cannot read kernel"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path, values, message):
    np.save(tmp_path / "k.npy", values)
    with pytest.raises(ValueError, match=message):
        read_kernel(tmp_path / "k.npy")


# ---- pairs ----


@pytest.fixture
def real(tmp_path):
    for number, key in enumerate("ab"):
        photo(tmp_path / f"hr/{key}.png", number, (12, 16))
        photo(tmp_path / f"lq/{key}.jpg", number + 10, (3, 4))
    return tmp_path


def build(root, **options):
    return SOURCES.build({"name": "pairs", **options}, root=root)


def test_pairs_without_masks(real):
    source = build(real)
    assert source.decide is None and [item.key for item in source.items] == ["a", "b"]
    for number, item in enumerate(source.items):
        assert number_of(item) == number and item.mask is None and item.kernel is None
        assert shown(item.lq()).shape == (3, 4, 3) and round(float(shown(item.lq()).mean())) == number + 10


def test_pairs_with_masks_and_kernels(real):
    for number, key in enumerate("ab"):
        truth(real / f"masks/{key}.png", (crack(number, (12, 16)) * 255).astype(np.uint8))
    (real / "kernels").mkdir()
    np.save(real / "kernels/a.npy", gaussian(5))
    truth(real / "kernels/b.png", as_bytes(gaussian(5)))
    source = build(real)
    rule = source.decide(source.items)
    for number, item in enumerate(source.items):
        assert (rule.apply(item.mask()) == crack(number, (12, 16))).all() and item.kernel().shape == (5, 5)
    (real / "kernels/b.png").unlink()
    with pytest.raises(ValueError, match="missing kernel file: 1 of 2 hr files have none, the first is .*b.png"):
        build(real)


def test_pairs_by_pattern_and_split(tmp_path):
    photo(tmp_path / "test/Canon_001_HR.png", 1, (8, 8))
    photo(tmp_path / "test/Canon_001_LR4.png", 2, (2, 2))
    patterns = {"hr_pattern": "{split}/{stem}_HR.png", "lq_pattern": "{split}/{stem}_LR4.png"}
    source = build(tmp_path, split="test", group_pattern="^[A-Za-z]+", **patterns)
    assert [(item.key, item.group) for item in source.items] == [("Canon_001", "Canon")]
    assert shown(source.items[0].lq()).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="--hr-pattern '{stem}.png' does not fit --split test; write {split}"):
        build(tmp_path, split="test", hr_pattern="{stem}.png")
    with pytest.raises(ValueError, match="--lq-pattern 'x/{split}/{stem}' does not fit --split None; name the split"):
        build(tmp_path, hr_pattern="{stem}_HR.png", lq_pattern="x/{split}/{stem}")
    with pytest.raises(ValueError, match="--lq-pattern 'lq/x.png' lacks {stem}"):
        build(tmp_path, lq_pattern="lq/x.png")


def test_a_pattern_of_masks_or_kernels_that_fits_nothing_is_refused(real):
    for kind in ("mask", "kernel"):
        with pytest.raises(ValueError, match=f"no file below .* fits --{kind}-pattern 'labels/{{stem}}.png'"):
            build(real, **{f"{kind}_pattern": "labels/{stem}.png"})


def test_pairs_that_do_not_fit_are_refused(real):
    (real / "lq/b.jpg").unlink()
    with pytest.raises(ValueError, match="missing lq file: 1 of 2 hr files .*hr/b.png; add it or remove this one"):
        build(real)
    (real / "hr/b.png").unlink()
    (real / "hr/a.png").rename(real / "hr/c.png")
    with pytest.raises(ValueError, match="missing hr file: 1 of 1 lq files .*lq/a.jpg"):
        build(real)
    (real / "lq/a.jpg").unlink()
    with pytest.raises(ValueError, match="holds no lq/NAME.*; point --root at it, or say --lq-pattern"):
        build(real)


# ---- CSBSR's test set ----


@pytest.fixture
def csbsr(tmp_path):
    for number, key in enumerate(("CFD_001", "CRACK500_20160222_080850_1_361")):
        pair(tmp_path / f"gt/images/{key}.jpg", tmp_path / f"gt/masks/{key}.jpg", number)
        for blur, sigma in (("02_40", 1.0), ("13_26", 3.0)):
            photo(tmp_path / f"{blur}/lr_images/{key}.png", number + 10, (2, 2))
            photo(tmp_path / f"{blur}/hr_images/{key}.png", number)
            truth(tmp_path / f"{blur}/kernels/{key}.png", as_bytes(gaussian(21, sigma)))
    return tmp_path


def test_csbsr_test_set(csbsr):
    source = SOURCES.build("csbsr_test", root=csbsr)
    assert [(i.key, i.group, i.extra) for i in source.items] == [
        ("CFD_001", "CFD_001", {"set": "CFD", "blur": "02_40"}),
        ("CRACK500_20160222_080850_1_361", "CRACK500_20160222_080850", {"set": "CRACK500", "blur": "02_40"}),
    ]
    assert belong(source) and "8-bit" in source.notes[0]
    for number, item in enumerate(source.items):
        assert (shown(item.lq()) == number + 10).all() and item.kernel().sum() == pytest.approx(1, abs=1e-6)
    other = SOURCES.build({"name": "csbsr_test", "blur": "13_26"}, root=csbsr)
    assert other.items[0].kernel().max() < source.items[0].kernel().max() / 5


def test_csbsr_files_without_picture_are_counted(csbsr):
    truth(csbsr / "02_40/kernels/extra.png", as_bytes(gaussian(21)))
    notes = SOURCES.build("csbsr_test", root=csbsr).notes
    assert notes[1:] == ("passed over 1 files of 02_40/kernels without picture, the first is extra",)


def test_csbsr_test_set_that_is_not_whole(csbsr):
    with pytest.raises(ValueError, match="choose with --blur from: 02_40, 13_26"):
        SOURCES.build({"name": "csbsr_test", "blur": "02"}, root=csbsr)
    (csbsr / "02_40/kernels/CFD_001.png").unlink()
    with pytest.raises(ValueError, match="missing file: 1 of 2 pictures have none in 02_40/kernels, .*CFD_001.jpg"):
        SOURCES.build("csbsr_test", root=csbsr)
