"""Photographs side by side: the next is read and the one before written while the networks work."""

import io
import re
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import pytest
from PIL import Image

from cssr.inference import pipeline, sources, writers
from cssr.predict import main

PATIENCE = 20  # seconds


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        pixels = np.full((66, 70, 3), 160, np.uint8)
        cv2.line(pixels, (5, 10), (60, 50), (20, 20, 20), 3)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def happened(monkeypatch):
    """Events by name: opened, worked (begun), written (begun) of each photograph; `order` has them as they came."""
    events = {f"{what} {name}": Event() for what in ("opened", "worked", "written") for name in "abc"}
    order = events["order"] = []

    def tell(event):
        order.append(event)
        events[event].set()

    open_, work, save = sources.Source.open, pipeline.predict_rows, writers.png.PngRows.finish

    def opening(source, bits=None):
        tell(f"opened {source.stem}")
        return open_(source, bits)

    def working(model, photograph, files, *more):
        tell(f"worked {files._stem.name}")
        events.get("while working", lambda _: None)(files._stem.name)
        return work(model, photograph, files, *more)

    def saving(rows):
        name = Path(rows._file.name).name[0]
        tell(f"written {name}")
        events.get("while writing", lambda _: None)(name)
        return save(rows)

    monkeypatch.setattr(sources.Source, "open", opening)
    monkeypatch.setattr(pipeline, "predict_rows", working)
    monkeypatch.setattr(writers.png.PngRows, "finish", saving)
    return events


def run(export, photos, out, *more) -> None:
    main([str(export), str(photos), "--out", str(out), "--device", "cpu", "--tile", "65", "--write", "mask", *more])


def test_reading_networks_and_writing_overlap(export, photos, tmp_path, happened):
    happened["while working"] = lambda name: name == "a" and waited.append(happened["opened b"].wait(PATIENCE))
    happened["while writing"] = lambda name: name == "a" and waited.append(happened["worked b"].wait(PATIENCE))
    waited = []
    run(export, photos, tmp_path / "out")
    assert waited == [True, True]
    assert {path.name for path in (tmp_path / "out").glob("*_mask.png")} == {f"{name}_mask.png" for name in "abc"}


def test_what_memory_does_not_hold_twice_is_done_one_by_one(export, photos, tmp_path, happened, capsys):
    with pytest.raises(SystemExit):
        run(export, photos, tmp_path / "out", "--memory", "0.001")
    need = re.search(r"needs ([\d.]+) GiB", capsys.readouterr().err)[1]
    happened["order"].clear()
    happened["while writing"] = lambda name: Event().wait(0.3)
    run(export, photos, tmp_path / "out", "--memory", need)
    order = [event for event in happened["order"] if not event.startswith("opened")]
    assert order == [f"{what} {name}" for name in "abc" for what in ("worked", "written")]


def test_a_stop_waits_for_no_photograph_and_leaves_nothing_half_done(export, photos, tmp_path, happened, monkeypatch):
    stopped = Event()
    monkeypatch.setattr(pipeline, "Event", lambda: stopped)

    def stop(name):
        if name == "b":
            raise KeyboardInterrupt

    happened["while working"] = stop
    happened["while writing"] = lambda name: stopped.wait(PATIENCE)
    with pytest.raises(SystemExit, match="stopped: give the same command again to continue"):
        run(export, photos, tmp_path / "out", "--measure", "--detectable", "0")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert stopped.is_set() and not any("partial" in name for name in left)
    assert ("a_mask.png" in left) == ("a_prediction.json" in left) and not any(name[0] in "bc" for name in left)


def test_one_bar_says_how_far_the_folder_is(export, photos, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    run(export, photos / "a.png", tmp_path / "out")
    run(export, photos, tmp_path / "out")
    shown = pipeline.sys.stderr.getvalue()
    assert re.findall(r"(\d+)%\|.*?\| ([\d.]+)/(\d) photographs \[", shown)[-1] == ("100", "3.0", "3")
    assert "tile" not in shown
