"""Which photographs are meant, and under which names their results are written."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cssr.inference import sources
from cssr.inference.sources import photographs


@pytest.fixture
def tree(tmp_path):
    """pier/a.jpg, pier/b.png, deck/a.jpg, notes.txt"""
    for name in ("pier/a.jpg", "pier/b.png", "deck/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_with_its_subfolders(tree):
    found = photographs(tree)
    assert found == {"deck/a": tree / "deck/a.jpg", "pier/a": tree / "pier/a.jpg", "pier/b": tree / "pier/b.png"}


def test_a_pattern_names_results_by_what_it_leaves_open(tree):
    assert set(photographs(tree / "*" / "a.*")) == {"deck/a", "pier/a"}
    assert set(photographs(tree / "**" / "*.png")) == {"pier/b"}
    assert set(photographs([tree / "pier" / "*.jpg", tree / "deck" / "a.jpg"])) == {"a", "a.jpg"}


def test_files_of_equal_names_take_their_folders(tree):
    assert set(photographs([tree / "deck/a.jpg", tree / "pier/a.jpg"])) == {"deck/a", "pier/a"}
    assert set(photographs([tree / "deck/a.jpg", tree / "pier/b.png"])) == {"a", "b"}


def test_folders_and_patterns_of_equal_names_lose_none(tmp_path):
    """Cameras count from 1 again on each day."""
    days = [tmp_path / f"day{day}" for day in (1, 2, 3)]
    for day in days:
        day.mkdir()
        Image.new("RGB", (4, 4)).save(day / "DJI_0001.jpg")
    wanted = {f"{day.name}/DJI_0001": day / "DJI_0001.jpg" for day in days}
    assert photographs(days) == wanted == photographs([day / "*" for day in days])
    assert photographs([days[0], days[0] / "*.jpg", days[0] / "DJI_0001.jpg"]) == {"DJI_0001": days[0] / "DJI_0001.jpg"}
    Image.new("RGB", (4, 4)).save(tmp_path / "DJI_0001.jpg")
    found = photographs([days[0], days[1] / "DJI_0001.jpg", tmp_path / "DJI_0001.jpg"])
    assert sorted(found.values()) == sorted([*list(wanted.values())[:2], tmp_path / "DJI_0001.jpg"])


def test_names_of_results_never_lead_out_of_their_folder(tree, monkeypatch):
    monkeypatch.chdir(tree / "pier")
    assert set(photographs([Path("../deck"), Path(".")])) == {"deck/a", "pier/a", "pier/b"}
    assert set(photographs([Path("../deck/a.jpg"), Path("a.jpg")])) == {"deck/a", "pier/a"}


def test_results_among_the_photographs_are_none(tree):
    assert set(photographs(tree, apart=tree / "pier")) == {"deck/a"}
    assert set(photographs([tree / "pier/a.jpg", tree / "deck"], apart=tree / "pier")) == {"a", "a.jpg"}  # named itself
    with pytest.raises(ValueError, match="no photograph in .*pier"):
        photographs(tree / "pier", apart=tree / "pier")


@pytest.mark.parametrize(
    "source, message",
    [
        ("notes.txt/x", "no photograph or folder at"),
        ("nowhere", "no photograph or folder at"),
        ("*.tif", "none of its files"),
        ("empty", "none of its files"),
    ],
)
def test_where_there_is_none(tree, source, message):
    (tree / "empty").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        photographs(tree / source)
    assert "\n" not in str(caught.value)


@pytest.fixture
def video(tmp_path):
    """Seven frames, frame n all of grey 20 n."""
    path = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 16))
    for number in range(7):
        writer.write(np.full((16, 32, 3), 20 * number, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("every, numbers", [(1, range(7)), (3, (0, 3, 6)), (10, (0,))])
def test_frames_of_a_video(video, every, numbers):
    found = list(sources.iterate_sources(photographs(video), every))
    assert [source.stem for source in found] == [f"flight_{number:06d}" for number in numbers]
    assert sources.count_photographs(photographs(video), every) == len(found)
    for source, number in zip(found, numbers):
        with source.open() as photograph:
            assert photograph.shape == (16, 32)
            assert abs(int(photograph.pixels(8, 8, 1, 1)[0, 0, 1]) - 20 * number) <= 3
        assert source.facts()["frame"] == number


def test_a_video_that_is_none_cannot_be_opened(tmp_path, capfd):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (source,) = sources.iterate_sources(photographs(tmp_path / "a.mp4"), 1)
    with pytest.raises(ValueError, match=r"cannot read .*a\.mp4 as a photograph"):
        source.open()
    assert capfd.readouterr().err == ""  # of FFmpeg


def test_a_video_that_breaks_off_is_reported_after_its_frames(video):
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 95 // 100])
    *frames, last = sources.iterate_sources(photographs(video), 1)
    assert 0 < len(frames) < 7
    with pytest.raises(ValueError, match=rf"breaks off after {len(frames)} of 7 frames"):
        last.open()


def test_a_photograph_called_like_a_frame_is_refused(video, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "flight_000000.jpg")
    with pytest.raises(ValueError, match="of a frame of .*flight.avi would have one name"):
        photographs([video, tmp_path / "photos"])


def test_a_folder_of_videos_alone_says_how_they_are_given(video):
    with pytest.raises(ValueError, match="videos are given by name or pattern"):
        photographs(video.parent)
