"""Which photographs are meant, and under which names their results are written."""

import cv2
import numpy as np
import pytest
from PIL import Image

from cssr import inputs
from cssr.inputs import photographs


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


def test_results_among_the_photographs_are_none(tree):
    assert set(photographs(tree, apart=tree / "pier")) == {"deck/a"}
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
    found = list(inputs.each(photographs(video), every))
    assert [source.stem for source in found] == [f"flight_{number:06d}" for number in numbers]
    assert inputs.count(photographs(video), every) == len(found)
    for source, number in zip(found, numbers):
        with source.open() as photograph:
            assert photograph.shape == (16, 32)
            assert abs(int(photograph.pixels(8, 8, 1, 1)[0, 0, 1]) - 20 * number) <= 3
        assert source.facts()["frame"] == number


def test_a_video_that_is_none_cannot_be_opened(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (source,) = inputs.each(photographs(tmp_path / "a.mp4"), 1)
    with pytest.raises(ValueError, match=r"cannot read .*a\.mp4 as a photograph"):
        source.open()
