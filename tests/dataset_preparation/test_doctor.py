"""doctor.py: every planted fault is found, and nothing else; the figures; the command line."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from sick_trees import SIZE, fill, found, photograph, put, run

from cssr.dataset_preparation import make as make_shards
from cssr.dataset_preparation.audit import run as doctor
from cssr.dataset_preparation.audit.examine import crack_widths, inspect_files
from cssr.dataset_preparation.sources import SOURCES


def test_a_clean_set_may_be_sharded(tmp_path, capsys):
    root = fill(tmp_path / "root", 0)
    status, report = run(tmp_path / "out", "folder", "--root", root)
    assert status == 0 and report["findings"] == [] and report["may_be_sharded"]
    masks = report["parts"][""]["masks"]
    shares = [photograph(index)[1].mean() for index in range(4)]
    assert masks["crack_share"]["mean"] == pytest.approx(np.mean(shares), abs=1e-6) and masks["empty"] == 0
    assert masks["rule"] == "values {0, 255}: crack = 255"
    assert masks["values"]["255"] == {"share": pytest.approx(np.mean(shares), abs=1e-6), "masks": 4}
    assert report["parts"][""]["sizes"] == {f"{SIZE}x{SIZE}": 4}
    output = capsys.readouterr().out
    assert "may be sharded" in output and "crack width" in output
    with Image.open(tmp_path / "out/doctor.png") as sheet:
        assert sheet.width > 1000


def spoil_files(root: Path) -> None:
    """Faults of single files, one each, beside four sound pairs."""
    image, mask = photograph(10)
    put(root, "no_mask.jpg", image)
    put(root, "odd_size.jpg", photograph(11)[0], mask[:48, :48])
    put(root, "turned.jpg", photograph(12)[0].crop((0, 0, 96, 64)), photograph(12)[1][:64].T)
    put(root, "coloured.jpg", photograph(13)[0], mask)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(
        root / "masks/coloured.png"
    )
    for number, name in enumerate(("cut.jpg", "hollow.jpg", "zero.jpg", "bad_mask.jpg", "zero_mask.jpg", "cut.png")):
        put(root, name if name != "cut.png" else "open.png", *photograph(20 + number))
    data = (root / "images/cut.jpg").read_bytes()
    (root / "images/cut.jpg").write_bytes(data[: len(data) // 2])
    data = bytearray((root / "images/hollow.jpg").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    (root / "images/hollow.jpg").write_bytes(data)
    data = (root / "images/open.png").read_bytes()
    (root / "images/open.png").write_bytes(data[:-12])  # without its end: Pillow reads it, training does not
    (root / "images/zero.jpg").write_bytes(b"")
    (root / "masks/bad_mask.png").write_bytes(b"\x89PNG no more")
    (root / "masks/zero_mask.png").write_bytes(b"")
    shutil.copy(root / "masks/p0.png", root / "masks/no_image.png")


def test_damage_is_found_whole(tmp_path, capsys):
    root = fill(tmp_path / "root", 0)
    spoil_files(root)
    status, report = run(tmp_path / "out", "folder", "--root", root)
    assert status == 1 and not report["may_be_sharded"]
    findings = found(report)
    assert findings.pop("note files of no sample") == ["images/no_mask.jpg", "masks/no_image.png"]
    assert findings.pop("note source") == []
    assert findings == {
        "error listing": [],
        "error zero-byte files": ["images/zero.jpg", "images/zero_mask.jpg"],
        "error damaged images": ["images/cut.jpg", "images/open.png"],
        "error damaged masks": ["images/bad_mask.jpg"],
        "error masks that cannot be used": ["images/coloured.jpg"],
        "error sizes that differ": ["images/odd_size.jpg", "images/turned.jpg"],
        "warning faulty JPEG data": ["images/hollow.jpg"],
    }
    text = json.dumps(report)
    assert "96x96 and 48x48: the same shape, --resize-masks mends it" in text
    assert "96x64 and 64x96: turned by 90 degrees" in text
    assert "1 of 14 images have none" in text and "missing mask" in text
    assert str(tmp_path) not in text
    assert "must not be sharded: 6 kinds of errors, 1 of warnings" in capsys.readouterr().out


def spoil_pictures(root: Path) -> None:
    """Pictures that can be read, but should be looked at."""
    exif = Image.Exif()
    exif[0x0112] = 3
    put(root, "lying.jpg", *photograph(30), exif=exif)
    put(root, "grey.png", photograph(31)[0].convert("L"), photograph(31)[1])
    put(root, "alpha.png", photograph(32)[0].convert("RGBA"), photograph(32)[1])
    deep = np.asarray(photograph(33)[0].convert("L")).astype(np.uint16) * 257
    put(root, "deep.png", Image.fromarray(deep), photograph(33)[1])
    put(root, "blank.jpg", Image.new("RGB", (SIZE, SIZE), (90, 90, 90)), photograph(34)[1])
    put(root, "none.jpg", photograph(35)[0], np.zeros((SIZE, SIZE), bool))
    put(root, "all.jpg", photograph(36)[0], np.ones((SIZE, SIZE), bool))
    put(root, "inverted.jpg", photograph(37)[0], ~photograph(37)[1])


def test_remarkable_pictures_are_named(tmp_path):
    root = fill(tmp_path / "root", 0)
    spoil_pictures(root)
    status, report = run(tmp_path / "out", "folder", "--root", root)
    assert status == 0
    assert found(report) == {
        "warning EXIF orientation": ["images/lying.jpg"],
        "warning blank images": ["images/blank.jpg"],
        "warning full masks": ["images/all.jpg"],
        "warning mostly crack": ["images/inverted.jpg"],
        "note empty masks": ["images/none.jpg"],
        # several findings of one kind: the last stands here
        "note will be converted": ["images/grey.png"],
    }
    reasons = {f["message"]: f["count"] for f in report["findings"] if f["kind"] == "will be converted"}
    assert reasons == {"16-bit to 8-bit RGB": 1, "EXIF orientation applied": 1, "RGBA to RGB": 1, "grey to RGB": 1}
    assert report["parts"][""]["modes"]["RGB"] == 9


def test_values_of_the_masks(tmp_path):
    root = fill(tmp_path / "mixed", 0)
    put(root, "dark.jpg", *photograph(9), levels=(0, 1))
    status, report = run(tmp_path / "out", "folder", "--root", root)
    findings = found(report)
    assert status == 1 and findings["warning mixed mask values"] == ["images/dark.jpg"]
    assert "error mask values" in findings and set(findings) == {"error mask values", "warning mixed mask values"}
    status, report = run(tmp_path / "out", "folder", "--root", root, "--threshold", 127)
    assert status == 0
    assert found(report)["warning faint masks"] == ["images/dark.jpg"]

    root = fill(tmp_path / "soft", 0)
    blurred = cv2.GaussianBlur(np.where(photograph(9)[1], 255, 0).astype(np.uint8), (0, 0), 2)
    put(root, "soft.jpg", photograph(9)[0], blurred)
    status, report = run(tmp_path / "out", "folder", "--root", root)
    assert status == 0 and found(report) == {"note soft edges": ["images/soft.jpg"]}
    assert "crack = value > 127" in report["parts"][""]["masks"]["rule"]

    root = fill(tmp_path / "classes", 0)
    labels = np.where(photograph(9)[1], 255, 0).astype(np.uint8)
    labels[:10] = 204
    put(root, "three.jpg", photograph(9)[0], labels)
    status, report = run(tmp_path / "out", "folder", "--root", root, "--crack-values", 255)
    assert status == 0 and found(report) == {"note classes": []}

    root = tmp_path / "empty"
    for index in range(3):
        put(root, f"{index}.jpg", photograph(index)[0], np.zeros((SIZE, SIZE), bool))
    assert "warning no cracks" in found(run(tmp_path / "out", "folder", "--root", root)[1])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 10])
def test_widths_of_straight_cracks_are_exact(width):
    mask = np.zeros((60, 80), bool)
    mask[20 : 20 + width] = True
    widths = crack_widths(mask)
    assert set(widths.tolist()) == {float(width)} and set(crack_widths(mask.T).tolist()) == {float(width)}
    # lying at 45 degrees, within half a pixel and a bit
    rows, columns = np.mgrid[:120, :120]
    slanted = np.abs(rows - columns) / np.sqrt(2) <= width / 2
    assert np.median(crack_widths(slanted)) == pytest.approx(width, abs=0.8)


def test_widths_of_nothing_and_of_everything():
    assert crack_widths(np.zeros((8, 8), bool)).size == 0 and crack_widths(np.ones((8, 8), bool)).size == 0
    dot = np.zeros((8, 8), bool)
    dot[4, 4] = True
    assert set(crack_widths(dot).tolist()) == {1.0}
    assert set(crack_widths(np.roll(dot, 3, 0)).tolist()) == {1.0}  # at the border, beyond which nothing is known


def test_a_missing_library_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    root = fill(tmp_path / "root", 0, 2)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert doctor.main(["folder", "--root", str(root)]) == 2
    message = capsys.readouterr().err
    assert "pip install" in message and message.count("\n") == 1
    assert doctor.main(["folder", "--root", str(root), "--near", "-1", "--workers", "1"]) == 0


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path):
    root = fill(tmp_path / "root", 0, 5)
    spoil_files(root)
    reports = []
    for workers in ("1", "3"):
        doctor.main(["folder", "--root", str(root), "--out", str(tmp_path / workers), "--workers", workers])
        reports.append((tmp_path / workers / "doctor.json").read_bytes())
    assert reports[0] == reports[1]


def test_a_layout_that_cannot_pass_over_pairs_is_reported_and_left(tmp_path):
    root = tmp_path / "root"
    fill(root / "train", 0)
    fill(root / "test", 10)
    (root / "test/masks/p11.png").unlink()
    status, report = run(tmp_path / "out", "khanhha", "--root", root)
    assert status == 1 and list(report["parts"]) == ["train"]
    message = next(f["message"] for f in report["findings"] if f["kind"] == "listing")
    assert message.startswith("missing mask: 1 of 4 images have none, the first is test/images/p11.jpg")


@pytest.mark.slow
def test_a_cut_takes_the_related_images_from_the_report(tmp_path):
    """A copy turned by a quarter goes where its original goes, whatever the seed."""
    root = fill(tmp_path / "root", 0, 6)
    image, mask = photograph(2)
    put(root, "z_turned.jpg", image.rotate(90, expand=True), np.rot90(mask))
    _, report = run(tmp_path / "out", "folder", "--root", root)
    assert [[one["key"] for one in group] for group in report["related"]] == [["p2", "z_turned"]]
    for seed in ("0", "1", "2", "3"):
        words = ["folder", "--root", root, "--ratio", "a=0.5", "b=0.5", "--seed", seed, "--workers", "1"]
        words += ["--groups", tmp_path / "out/doctor.json", "--out", tmp_path / seed]
        assert make_shards.main([str(word) for word in words]) == 0
        parts = json.loads((tmp_path / seed / "split.json").read_text())["parts"]
        assert len(parts["a"] + parts["b"]) == 6 and "p2" in parts["a"] + parts["b"]


def test_names_that_become_one(tmp_path):
    root = tmp_path / "root"
    for number, name in enumerate(("a.b.jpg", "a_b.jpg")):
        put(root, name, *photograph(number))
    shutil.move(root / "masks/a.b.png", root / "masks/a.b.png")
    status, report = run(tmp_path / "out", "folder", "--root", root)
    assert status == 1 and "duplicate key 'a_b'" in json.dumps(report)


def test_pairs_of_two_resolutions(tmp_path):
    root = tmp_path / "root"
    for index, side in enumerate((24, 24, 24, 48, 25)):
        image = photograph(index)[0]
        for folder, picture in (("hr", image), ("lq", image.resize((side, side)))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{index}.png")
    status, report = run(tmp_path / "out", "pairs", "--root", root)
    assert status == 1
    assert found(report) == {
        "error several scales": ["hr/3.png"],
        "error LQ images that cannot be used": ["hr/4.png"],
    }


def test_images_without_masks(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for index in range(3):
        photograph(index)[0].save(root / f"{index}.png")
    (root / "3.png").write_bytes(b"nothing")
    status, report = run(tmp_path / "out", "folder", "--root", root, "--images-only")
    assert status == 1 and found(report) == {"error damaged images": ["3.png"]}
    assert report["parts"][""]["masks"] is None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "give a source"),
        (("foldr",), "did you mean folder?"),
        (("folder",), "--root"),
        (("folder", "--root", "nowhere"), "is not a folder"),
        (("folder", "--root", ".", "--near", "100"), "--near is 100"),
        (("folder", "--root", ".", "--workers", "0"), "--workers is 0"),
        (("synthetic", "--count", "2", "--size", "32", "--against", "val"), "--against val"),
        (("synthetic", "--count", "2", "--out", __file__), "is no folder"),
    ],
)
def test_refuses_a_wrong_command_line(capsys, words, part):
    assert doctor.main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and part in message and message.count("\n") == 1


def test_every_source_has_its_command_line(capsys):
    for name in SOURCES.names():
        with pytest.raises(SystemExit):
            doctor.main([name, "--help"])
    assert "--against" in capsys.readouterr().out


def test_items_tell_their_files(tmp_path):
    root = fill(tmp_path / "root", 0, 1)
    item = SOURCES.build("folder", root=root).items[0]
    assert item.files == (root / "images/p0.jpg", root / "masks/p0.png")
    assert inspect_files(item, f"{root}/", True, True).faults == {}
