"""The command on files: what is written, what is done already, and what goes wrong."""

import csv
import errno
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from cssr import JointModel
from cssr.cracks.measure import TooRagged
from cssr.inference import measures
from cssr.inference import resume as done
from cssr.inference import writers as rasters
from cssr.inference.predictor import predict
from cssr.predict import main


@pytest.fixture
def photos(tmp_path):
    """Two photographs of a dark line each."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(120, 200, (70, 93, 3)).astype(np.uint8)
        cv2.line(pixels, (5, 10), (80, 50 + number), (20, 20, 20), 3)
        Image.fromarray(pixels).save(folder / f"{'ab'[number]}.png")
    return folder


def run(export, *arguments) -> None:
    """The command; what is drawn to tell the least width that is found is one crack of each, not eight."""
    drawn = ["--detectable", "1"] if "--measure" in arguments and "--detectable" not in arguments else []
    main([str(export), *map(str, arguments), *drawn, "--device", "cpu", "--tile", "65"])


def names(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_masks_of_the_photograph_s_size_are_of_averaged_probabilities(export, photos, tmp_path):
    run(export, photos / "a.png", "--out", tmp_path / "out", "--size", "photo", "--float")
    found = predict(JointModel.from_pretrained(export), photos / "a.png", tile=65)
    expected = F.avg_pool2d(torch.from_numpy(found.prob)[None], 2)[0].numpy()
    prob = np.load(tmp_path / "out" / "a_prob.npy")
    np.testing.assert_allclose(prob, expected, atol=1e-6)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_mask.png")), prob > 0.5) and (prob > 0.5).any()
    photograph, overlay = (np.asarray(Image.open(p)) for p in (photos / "a.png", tmp_path / "out" / "a_overlay.png"))
    assert np.array_equal(overlay[prob <= 0.5], photograph[prob <= 0.5])
    assert (overlay[prob > 0.5] != photograph[prob > 0.5]).any(1).all()
    assert Image.open(tmp_path / "out" / "a_sr.png").size == (186, 140)


@pytest.mark.parametrize("batch", ["1", "3"])
def test_what_is_written_by_rows_is_what_is_predicted_in_memory(export, photos, tmp_path, batch):
    run(export, photos / "a.png", "--out", tmp_path / "out", "--float", "--batch", batch)
    found = predict(JointModel.from_pretrained(export), photos / "a.png", tile=65)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a_prob.npy"), found.prob, atol=1e-6)
    sr = np.asarray(Image.open(tmp_path / "out" / "a_sr.png"))
    assert np.abs(sr.astype(int) - found.sr).max() <= 1 and (sr != found.sr).mean() < 1e-3


@pytest.mark.parametrize("wanted", [["mask"], ["sr"], ["prob", "overlay"], ["kernel"]])
def test_only_what_is_wanted_is_written(export, photos, tmp_path, wanted):
    run(export, photos / "a.png", "--out", tmp_path / "out", "--write", *wanted)
    there = {f"a_{name}.png" for name in wanted if name != "kernel"}  # bicubic predicts none
    assert names(tmp_path / "out") == there | {"a_prediction.json"}


def test_frames_of_a_video_are_photographs(export, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()
    run(export, tmp_path / "v.avi", "--out", tmp_path / "out", "--every", "2", "--write", "sr")
    assert {n for n in names(tmp_path / "out") if n.endswith("png")} == {f"v_{n:06d}_sr.png" for n in (0, 2, 4)}
    assert "v.avi frame 4: 64x48 -> 128x96" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["sr", "photo"])
def test_cracks_are_measured_in_pixels_and_millimetres_of_the_photograph(export, photos, tmp_path, size, capsys):
    """The line of the first photograph: from (5, 10) to (80, 50), three pixels thick as it was drawn."""
    how = ["--measure", "--mm-per-pixel", "0.5", "--size", size, "--write", "mask"]
    run(export, photos / "a.png", "--out", tmp_path / "out", *how)
    others = {"a_outlines.geojson", "a_mask.png", "a_prediction.json"}
    written = {name for name in names(tmp_path / "out") if not name.startswith("survey/")}
    assert written == {f"a_cracks.{e}" for e in ("csv", "geojson", "png")} | others
    with open(tmp_path / "out" / "a_cracks.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    length = float(rows[0]["length_px"])
    assert length == pytest.approx(85, rel=0.05) and float(rows[0]["length_mm"]) == pytest.approx(length / 2, abs=1e-3)
    assert 2 < float(rows[0]["mean_width_px"]) < 5
    assert f"in {len(rows)} components" in capsys.readouterr().out
    prob = predict(JointModel.from_pretrained(export), photos / "a.png", tile=65).prob
    prob = prob if size == "sr" else F.avg_pool2d(torch.from_numpy(prob)[None], 2)[0].numpy()
    labels, count = ndimage.label(prob > 0.5, np.ones((3, 3)))
    confidences = sorted(ndimage.mean(prob, labels, range(1, count + 1)))
    assert sorted(float(row["confidence"]) for row in rows) == pytest.approx(confidences, abs=0.003)
    lines = json.loads((tmp_path / "out" / "a_cracks.geojson").read_text())
    assert len(lines["features"]) == len(rows) and lines["name"] == "a_cracks"


def test_short_cracks_are_left_out(export, photos, tmp_path, capsys):
    """85 pixels of the photograph are longer than 70, though not than 100."""
    for least, components in ((70, 1), (100, 0)):
        run(export, photos / "a.png", "--out", tmp_path / "out", "--measure", "--least-length", str(least))
        assert f"in {components} components" in capsys.readouterr().out


def test_masks_are_written_of_photographs_too_ragged_to_measure(export, photos, tmp_path, capsys, monkeypatch):
    measure, seen = measures.measure_cracks, []

    def refusing(mask, *more):
        seen.append(mask.shape)
        if len(seen) == 1:
            raise TooRagged("too ragged to measure: as noise")
        more[3]("left out 3 components")
        return measure(mask, *more)

    monkeypatch.setattr(measures, "measure_cracks", refusing)
    words = [export, photos, "--out", tmp_path / "out", "--measure", "--write", "mask"]
    for _ in range(2):  # the second finds all done, and does not take that for measured
        with pytest.raises(SystemExit) as ended:
            run(*words)
        output = capsys.readouterr()
        assert ended.value.code == 1 and "2 photographs: mask in " in output.out
        assert "error: 1 of 2 photographs were not measured: a.png" in output.err
    assert len(seen) == 2 and {"a_mask.png", "b_mask.png", "b_cracks.csv"} <= names(tmp_path / "out")
    assert "a_cracks.csv" not in names(tmp_path / "out")


# ---- done already ----


def test_what_is_done_is_not_done_again(export, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(export, photos / "a.png", "--out", out)
    before = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    run(export, photos, "--out", out)
    output = capsys.readouterr().out
    assert "2 photographs" in output and "(1 of them were there already)" in output
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def again(export, photos, out, capsys, *more) -> bool:
    """Whether a second run predicts the photograph anew."""
    capsys.readouterr()
    run(export, photos / "a.png", "--out", out, *more)
    return "there already" not in capsys.readouterr().out


def test_other_options_are_done_again_and_leave_no_other_result(export, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(export, photos / "a.png", "--out", out)
    assert again(export, photos, out, capsys, "--float", "--write", "prob")
    assert names(out) == {"a_prob.npy", "a_prediction.json"}
    assert not again(export, photos, out, capsys, "--float", "--write", "prob", "--batch", "2")


def test_with_test_time_augmentation_it_is_another_result(export, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(export, photos / "a.png", "--out", out, "--float")
    plain = np.load(out / "a_prob.npy")
    assert again(export, photos, out, capsys, "--float", "--tta")
    assert not again(export, photos, out, capsys, "--float", "--tta")
    np.testing.assert_allclose(np.load(out / "a_prob.npy"), plain, atol=1e-5)  # the network is the same to all sides
    assert again(export, photos, out, capsys, "--float")


def test_bfloat16_is_another_result_that_differs_little(export, photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(export, photos / "a.png", "--out", out, "--float")
    plain = np.load(out / "a_prob.npy")
    assert again(export, photos, out, capsys, "--float", "--precision", "bfloat16")
    assert not again(export, photos, out, capsys, "--float", "--precision", "bfloat16")
    assert 0 < np.abs(np.load(out / "a_prob.npy") - plain).max() < 0.05


def test_other_weights_are_done_again(export, photos, tmp_path, capsys):
    run(export, photos / "a.png", "--out", tmp_path / "out")
    model = JointModel.from_pretrained(export)
    with torch.no_grad():
        model.seg.head.bias.sub_(1)
    model.save_pretrained(tmp_path / "other")
    assert again(tmp_path / "other", photos, tmp_path / "out", capsys)


@pytest.mark.parametrize("damage", ["gone", "cut", "record", "photograph"])
def test_what_is_no_longer_whole_is_done_again(export, photos, tmp_path, capsys, damage):
    out = tmp_path / "out"
    run(export, photos / "a.png", "--out", out)
    if damage == "gone":
        (out / "a_mask.png").unlink()
    elif damage == "cut":
        (out / "a_sr.png").write_bytes((out / "a_sr.png").read_bytes()[:-5])
    elif damage == "record":
        (out / "a_prediction.json").write_text("[1]")
    else:
        Image.new("RGB", (70, 66)).save(photos / "a.png")
    assert again(export, photos, out, capsys)
    assert not again(export, photos, out, capsys)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["in the middle", "between the files", "before the record"])
def test_a_stop_leaves_nothing_that_looks_whole(export, photos, tmp_path, capsys, monkeypatch, place):
    out, calls = tmp_path / "out", []

    def stop(*_, **__):
        calls.append(1)
        if len(calls) > (1 if place == "between the files" else 0):
            raise Killed
        return original(*_, **__)

    spot = {"in the middle": (rasters.png.PngRows, "write"), "between the files": (rasters.png.PngRows, "finish"),
            "before the record": (done, "write_atomic")}[place]  # fmt: skip
    original = getattr(*spot)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*spot, stop)
        run(export, photos / "a.png", "--out", out)
    assert calls and "a_prediction.json" not in names(out) and not any("partial" in name for name in names(out))
    assert again(export, photos, out, capsys)


def test_two_runs_write_to_one_directory(export, photos, tmp_path, capsys, monkeypatch):
    """One is half through a photograph when the other does it; and what a kill has left goes."""
    with rasters.Files(tmp_path / "out" / "a") as files:
        files.new("_x.txt").write_text("whole")
        monkeypatch.setattr(rasters.os, "getpid", os.getppid)
        run(export, photos / "a.png", "--out", tmp_path / "out")
        monkeypatch.undo()
    assert {"a_x.txt", "a_sr.png", "a_prediction.json"} <= names(tmp_path / "out")
    left = tmp_path / "out" / f"{files._scratch_prefix}{2**22 + 1}"  # no process has this number
    left.mkdir()
    with rasters.Files(tmp_path / "out" / "a"):
        assert not left.exists()


def test_a_name_as_long_as_names_may_be(export, photos, tmp_path):
    (photos / "a.png").rename(photos / f"{'a' * 200}.png")
    run(export, photos / f"{'a' * 200}.png", "--out", tmp_path / "out")
    assert f"{'a' * 200}_prediction.json" in names(tmp_path / "out")


def test_a_rerun_that_was_stopped_forgets_no_file_of_the_run_before(export, photos, tmp_path, capsys, monkeypatch):
    """Nor keeps one: what another run wrote goes when the run is whole."""
    out = tmp_path / "out"
    run(export, photos / "a.png", "--out", out)

    def stop(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(rasters.png.PngRows, "write", stop)
        run(export, photos / "a.png", "--out", out, "--write", "mask", "--threshold", "0.7")
    assert "a_sr.png" in names(out) and again(export, photos, out, capsys, "--write", "mask", "--threshold", "0.7")
    assert names(out) == {"a_mask.png", "a_prediction.json"}


# ---- what goes wrong ----


def test_each_bad_file_is_one_line_and_the_rest_is_done(export, photos, tmp_path, capsys):
    whole = (photos / "a.png").read_bytes()
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("no picture")
    Image.new("RGB", (1, 1), "red").save(photos / "dot.png")
    with pytest.raises(
        SystemExit, match="error: 3 of 6 photographs could not be read or written: cut.png, empty.jpg, "
    ):
        run(export, photos, "--out", tmp_path / "out")
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 3 and all(any(name in line for line in lines) for name in ("empty", "cut", "text"))
    assert "dot.png: 1x1 -> 2x2" in output.out
    stems = {name.split("_")[0] for name in names(tmp_path / "out")}
    assert stems == {"a", "b", "dot"} and not any("partial" in name for name in names(tmp_path / "out"))


def test_a_full_disk_is_one_line_a_photograph(export, photos, tmp_path, capsys, monkeypatch):
    def full(rows, *_):
        rows._file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="2 of 2 photographs"):
        patch.setattr(rasters.png.PngRows, "write", full)
        run(export, photos, "--out", tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("No space left on device" in line for line in lines)
    assert names(tmp_path / "out") == set()


def test_too_little_memory_is_said_before_work(export, photos, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1 of 1"):
        run(export, photos / "a.png", "--out", tmp_path / "out", "--memory", "0.001")
    output = capsys.readouterr().err
    assert "beside the networks, above --memory 0.001: choose more, a --tile below 65" in output
    needed = float(re.search(r"a.png: needs ([\d.]+) GiB", output)[1])
    with pytest.raises(SystemExit, match="1 of 1"):  # what is needed is never said to be what there is
        run(export, photos / "a.png", "--out", tmp_path / "out", "--memory", str(needed - 0.01))
    assert f"needs {needed:g} GiB" in capsys.readouterr().err
    run(export, photos / "a.png", "--out", tmp_path / "out", "--memory", str(needed))


def test_no_place_to_write(export, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="error: --out: cannot write to .*file/out: Not a directory"):
        run(export, photos, "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    "more, message",
    [
        (["--batch", "0"], "--batch must be 1 or more"),
        (["--every", "-1"], "--every must be 1 or more"),
        (["--memory", "0"], "--memory must be above 0"),
        (["--mm-per-pixel", "2"], "--mm-per-pixel is for --measure"),
        (["--least-length", "2"], "--least-length is for --measure"),
        (["--measure", "--least-length", "-2"], "--least-length must be 0 or more"),
        (["--measure", "--mm-per-pixel", "-2"], "--mm-per-pixel must be mm above 0"),
        (["--measure", "--mm-per-pixel", "1e-300"], "--mm-per-pixel must be mm above 0"),
        (["--measure", "--detectable", "10000000"], "--detectable must be 0 to 1000, got 10000000"),
        (["--measure", "--known-distance", "1", "1", "1", "1", "50"], "--known-distance: two points 0 pixels"),
        (["--measure", "--known-distance", "1", "1", "99", "1", "9", "--mm-per-pixel", "1"], "give one of them"),
        (["--measure", "--marker-side", "0"], "--marker-side must be above 0"),
        (["--measure", "--marker-side", "9", "--marker-family", "qr"], "apriltag-36h11"),
        (["--measure", "--rectify"], "need --marker-side"),
        (["--measure", "--distance", "nan"], "--distance must be above 0"),
        (["--measure", "--limits", "din"], "--limits: no table din"),
        (["--measure", "--width-uncertainty", "-1"], "--width-uncertainty must be 0 or more"),
        (["--limits", "jsce"], "--limits is for --measure"),
    ],
)
def test_options_that_cannot_be_meant(export, photos, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        run(export, photos, "--out", tmp_path / "out", *more)


def test_a_damaged_export_is_one_line(export, photos, tmp_path):
    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / "config.json").write_bytes((export / "config.json").read_bytes())
    (spoiled / "model.safetensors").write_bytes((export / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(SystemExit, match="error: .*model.safetensors") as caught:
        run(spoiled, photos, "--out", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_record_says_what_was_found(export, photos, tmp_path):
    run(export, photos / "a.png", "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "a_prediction.json").read_text())
    mask = np.asarray(Image.open(tmp_path / "out" / "a_mask.png"))
    assert record["found"] == {
        "width": 186,
        "height": 140,
        "crack": pytest.approx(mask.mean()),
        "cracks": None,
        "warnings": [],
    }
    assert record["files"] == {p: (tmp_path / "out" / p).stat().st_size for p in record["files"]}


# ---- size of a pixel, survey ----


def test_a_marker_says_the_size_of_a_pixel_and_the_survey_has_all(export, tmp_path, capsys):
    """A line of 6 x 200 pixels beside a marker of 80 pixels and 40 mm; and a photograph of nothing."""
    image = np.full((256, 320, 3), 200, np.uint8)
    family = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    image[20:140, 20:140] = 255
    image[40:120, 40:120] = cv2.aruco.generateImageMarker(family, 3, 80)[..., None]
    image[30:230, 250:256] = 20
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "wall.png")
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / "in" / "plain.png")
    words = [export, tmp_path / "in", "--out", tmp_path / "out", "--measure", "--marker-side", "40", "--write", "mask"]
    for _ in range(2):  # the second finds all done, and its survey is the same
        run(*words)
        output = capsys.readouterr()
        assert "survey of 2 photographs" in output.out
        with open(tmp_path / "out" / "survey" / "cracks.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["photograph"].endswith("wall.png")]
        assert rows and all(float(row["mm_per_pixel"]) == pytest.approx(0.5, rel=0.02) for row in rows)
        assert all(row["mm_per_pixel_by"] == "a marker" and row["severity"] for row in rows)
    assert {row["number"] for row in rows} == {str(n) for n in range(1, len(rows) + 1)}


def test_what_says_nothing_about_the_size_of_a_pixel_is_reported(export, photos, tmp_path, capsys):
    run(export, photos / "a.png", "--out", tmp_path / "out", "--measure", "--marker-side", "40", "--distance", "9")
    output = capsys.readouterr().err
    assert "no marker was found in it" in output and "--distance gives no size of a pixel" in output


def test_a_rectified_photograph_is_kept_beside_its_results(export, tmp_path, monkeypatch):
    drawn_on = []

    def shapes(model, openings, *_):
        for opening in openings:
            with opening() as photograph:
                drawn_on.append(photograph.shape)

    monkeypatch.setattr("cssr.inference.detectable.detectable", shapes)
    family = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    image = np.full((200, 200, 3), 200, np.uint8)
    image[60:140, 60:140] = cv2.aruco.generateImageMarker(family, 3, 80)[..., None]
    Image.fromarray(cv2.resize(image, (120, 200), interpolation=cv2.INTER_AREA)).save(tmp_path / "a.png")
    how = ["--measure", "--marker-side", "40", "--rectify", "--write", "mask"]
    run(export, tmp_path / "a.png", "--out", tmp_path / "out", *how)
    with (
        Image.open(tmp_path / "out" / "a_rectified.png") as rectified,
        Image.open(tmp_path / "out" / "a_mask.png") as m,
    ):
        assert rectified.width == pytest.approx(rectified.height, abs=6)
        assert m.size == (2 * rectified.width, 2 * rectified.height)
    (facts,) = json.loads((tmp_path / "out" / "survey" / "survey.json").read_text())["photographs"]
    assert (facts["width"], facts["height"]) == rectified.size
    assert drawn_on == [rectified.size[::-1]]


def test_a_survey_of_frames_alone_says_nothing_of_what_is_detectable(export, tmp_path, capsys):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for number in range(2):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()
    run(export, tmp_path / "v.avi", "--out", tmp_path / "out", "--measure", "--write", "mask")
    output = capsys.readouterr().out
    assert "survey of 2 photographs" in output and "detectable:" not in output
