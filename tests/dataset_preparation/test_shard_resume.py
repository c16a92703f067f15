"""make_shards.py killed, out of disk, out of processes: what is finished stays, nothing half-written ever counts."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from shard_helpers import draw, draw_mask, make_tree, run, same_bytes, shard

from cssr.cracks.masks import MaskFile, decide_by_levels
from cssr.dataset_preparation import workspace, writer
from cssr.dataset_preparation.encode import _mask_and_valid
from cssr.dataset_preparation.parallel import imap, imap_unordered
from cssr.dataset_preparation.sources import SOURCES

WORDS = ("synthetic", "--count", 60, "--size", 64, "--shard-size", 3, "--ratio", "train=0.7", "val=0.3")


def finished(folder: Path) -> int:
    journal = folder / "out.partial/journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


HANGING = """
import sys, time
from cssr.dataset_preparation import make as make_shards
from cssr.dataset_preparation import writer

def hanging(file, samples, write=writer._write_tar):
    if int(file.file.name[-18:-12]) >= {shards}:
        file.write(b"half of a tar")
        file.file.flush()
        time.sleep(600)
    write(file, samples)

writer._write_tar = hanging
sys.exit(make_shards.main(sys.argv[1:]))
"""


def kill_after(folder: Path, shards: int) -> None:
    """Run until so many shards are finished and two half-written, then kill the parent; its processes follow it."""
    script = HANGING.format(shards=shards)
    command = [sys.executable, "-c", script, *WORDS, "--out", "out", "--workers", 2]
    process = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=subprocess.DEVNULL)
    while finished(folder) < shards or len(list(folder.glob("out.partial/tree/*/*.partial"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL and not (folder / "out").exists()


def fail_at(monkeypatch, name: str, problem: Exception | None) -> None:
    """A shard of this name is written in part only, then comes `problem`, or the process is killed."""
    write = writer._write_tar

    def failing(file, samples):
        if file.file.name.endswith(f"{name}.tar.partial"):
            file.write(b"half of a tar")
            if problem is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise problem
        write(file, samples)

    monkeypatch.setattr(writer, "_write_tar", failing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an undisturbed run makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(*WORDS, "--out", out, "--workers", 1) == 0
    return out


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder in which a run was stopped by a full disk."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000003", OSError(errno.ENOSPC, "No space left on device"))
        assert run(*WORDS, "--out", folder / "out", "--workers", 1) == 2
    return folder


@pytest.mark.slow
def test_a_killed_run_continues_from_what_was_finished(tmp_path, whole, capsys):
    kill_after(tmp_path, 3)
    kill_after(tmp_path, 8)
    assert finished(tmp_path) == 8
    kept = tmp_path / "out.partial/tree/train/shard-000001.tar"
    before = kept.stat()
    assert run(*WORDS, "--out", tmp_path / "out") == 0
    assert "8 of 20 shards were finished before, and are kept" in capsys.readouterr().out
    after = shard(tmp_path / "out/train", 1).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert same_bytes(tmp_path / "out", whole) and not (tmp_path / "out.partial").exists()


@pytest.mark.slow
def test_what_a_kill_leaves_is_believed_only_by_its_hash(tmp_path, whole, capsys):
    kill_after(tmp_path, 4)
    tree, journal = tmp_path / "out.partial/tree/train", tmp_path / "out.partial/journal.jsonl"
    with (tree / "shard-000000.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"!")
    (tree / "shard-000001.tar").unlink()
    os.truncate(tree / "shard-000002.tar", 1000)
    (tree / "shard-000013.tar").write_bytes(b"half")
    with journal.open("ab") as file:
        file.write(b'{"part": "train", "num')
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000012", OSError(errno.ENOSPC, "No space left on device"))
        assert run(*WORDS, "--out", tmp_path / "out", "--workers", 1) == 2
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 4 + 3 + 8
    capsys.readouterr()
    assert run(*WORDS, "--out", tmp_path / "out") == 0
    assert "12 of 20 shards were finished" in capsys.readouterr().out
    assert same_bytes(tmp_path / "out", whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--count", 91), "--count was 60 and is now 91"),
        (("--seed", 3), "--seed was 0 and is now 3"),
        (("--shard-size", 4), "--shard-size was 3 and is now 4"),
        (("--ratio", "train=0.6", "val=0.4"), "--ratio was"),
        (("--tile", 48), "--tile was null and is now 48"),
        (("--licence", "CC0"), "--licence was null and is now CC0"),
    ],
)
def test_another_command_is_refused_by_what_differs(begun, capsys, change, says):
    before = sorted(path.name for path in begun.rglob("*"))
    at = WORDS.index(change[0]) if change[0] in WORDS else len(WORDS)
    assert run(*WORDS[:at], *change, *WORDS[at + len(change) :], "--out", begun / "out") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and says in message and f"remove {begun / 'out.partial'}" in message
    assert sorted(path.name for path in begun.rglob("*")) == before


@pytest.mark.parametrize("changed", ["masks/p1.png", "images/p1.jpg"])
def test_data_corrected_meanwhile_gives_the_corrected_sample(tmp_path, capsys, monkeypatch, changed):
    tree = make_tree(tmp_path / "root", 8)
    words = ("folder", "--root", tree, "--shard-size", 2, "--workers", 1, "--out", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000003", OSError(errno.ENOSPC, "No space left on device"))
        assert run(*words) == 2
    assert finished(tmp_path) == 3
    path, times = tree / changed, (tree / changed).stat()
    path.unlink()
    (draw if path.suffix == ".jpg" else draw_mask)(
        path, **({"seed": 77} if path.suffix == ".jpg" else {"levels": (255, 0)})
    )
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as unpacking an archive does
    capsys.readouterr()
    assert run(*words) == 0
    output = capsys.readouterr().out
    assert f"1 of 4 shards were finished before, but are written anew: {path} changed since" in output
    assert "2 of 4 shards were finished before, and are kept" in output
    assert run(*words[:-1], tmp_path / "fresh") == 0 and same_bytes(tmp_path / "out", tmp_path / "fresh")


def test_an_annotation_file_belongs_to_all_shards(tmp_path, capsys):
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 16, "width": 20} for n in range(6)]
    shape = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]]}
    for image in images:
        draw(tmp_path / "root/images" / image["file_name"], seed=image["id"])
    path = tmp_path / "root/annotations.json"
    words = ("coco", "--root", tmp_path / "root", "--shard-size", 2, "--workers", 1, "--out", tmp_path / "out")

    def annotate(left: int) -> None:
        shape["segmentation"][0][0] = shape["segmentation"][0][6] = left
        categories = [{"id": 1, "name": "crack"}]
        path.write_text(json.dumps({"images": images, "annotations": [shape], "categories": categories}))

    annotate(2)
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000002", OSError(errno.ENOSPC, "No space left on device"))
        assert run(*words) == 2
    annotate(4)
    capsys.readouterr()
    assert run(*words) == 0
    output = capsys.readouterr().out
    assert f"2 of 3 shards were finished before, but are written anew: {path} changed since" in output
    assert run(*words[:-1], tmp_path / "fresh") == 0 and same_bytes(tmp_path / "out", tmp_path / "fresh")


def test_a_source_that_does_not_name_its_files_is_written_anew(tmp_path, capsys, monkeypatch):
    tree = make_tree(tmp_path / "root", 4)
    build = SOURCES.build

    def silent(*arguments, **options):
        source = build(*arguments, **options)
        return replace(source, items=[replace(item, files=None) for item in source.items])

    monkeypatch.setattr(SOURCES, "build", silent)
    words = ("folder", "--root", tree, "--shard-size", 2, "--workers", 1, "--out", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000001", OSError(errno.ENOSPC, "No space left on device"))
        assert run(*words) == 2
    assert run(*words) == 0
    assert "written anew: the source does not say which files it reads" in capsys.readouterr().out


def test_another_list_of_images_is_refused(tmp_path, capsys, monkeypatch):
    words = ("folder", "--root", make_tree(tmp_path / "root", 4), "--images-only", "--shard-size", 1, "--keep")
    fail_at(monkeypatch, "shard-000002", OSError(errno.EIO, "broken"))
    assert run(*words, "--out", tmp_path / "out", "--workers", 1) == 2
    assert "2 finished shards are kept" in capsys.readouterr().err
    draw(tmp_path / "root/images/p9.jpg")
    assert run(*words, "--out", tmp_path / "out") == 2
    assert "the list of samples was 4" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_only_what_is_whole(tmp_path, whole, capsys, monkeypatch, workers):
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000006", OSError(errno.ENOSPC, "No space left on device"))
        assert run(*WORDS, "--out", tmp_path / "out", "--workers", workers) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: No space left on device while writing") and message.count("\n") == 1
    assert "run the same command again" in message
    assert finished(tmp_path) >= 5 and not (tmp_path / "out").exists()
    left = {path.name for path in (tmp_path / "out.partial/tree/train").iterdir()}
    assert all(name.endswith(".tar") for name in left) and "shard-000006.tar" not in left
    assert run(*WORDS, "--out", tmp_path / "out") == 0
    assert same_bytes(tmp_path / "out", whole)


def test_a_full_disk_from_the_start_leaves_nothing(tmp_path, capsys, monkeypatch):
    fail_at(monkeypatch, "shard-000000", OSError(errno.ENOSPC, "No space left on device"))
    assert run(*WORDS, "--out", tmp_path / "new/out", "--workers", 1) == 2
    assert "nothing was written" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_process_that_dies_is_named_and_costs_its_shard_only(tmp_path, whole, capsys):
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, "shard-000006", None)
        assert run(*WORDS, "--out", tmp_path / "out", "--workers", 2) == 2
    message = capsys.readouterr().err
    assert "fewer --workers" in message and "kept in" in message and message.count("\n") == 1
    assert run(*WORDS, "--out", tmp_path / "out") == 0
    assert same_bytes(tmp_path / "out", whole)


def test_keep_keeps_when_interrupted_and_later_mistakes_do_not_lose_it(tmp_path, capsys, monkeypatch):
    words = ("folder", "--root", make_tree(tmp_path / "root"), "--shard-size", 2, "--out", tmp_path / "out")
    fail_at(monkeypatch, "shard-000002", KeyboardInterrupt())
    monkeypatch.setattr("cssr.dataset_preparation.make.imap_unordered", _in_this_process)
    assert run(*words, "--keep") == 130
    assert "interrupted; 2 finished shards are kept" in capsys.readouterr().err
    assert run(*words) == 130  # what an earlier run has left is not this one's to remove
    assert "interrupted; 2 finished shards are kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(*words) == 0 and "2 of 5 shards were finished" in capsys.readouterr().out


def _in_this_process(work, count, workers, step):
    for task in range(count):
        yield task, work(task, step)


def test_a_folder_that_came_in_the_way_meanwhile_costs_nothing(tmp_path, whole, capsys):
    def late(*args):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/thesis.tex").write_text("years")
        return writer.write_index(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cssr.dataset_preparation.make.write_index", late)
        assert run(*WORDS, "--out", tmp_path / "out") == 2
    assert "20 finished shards are kept" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert run(*WORDS, "--out", tmp_path / "out") == 0
    assert "20 of 20 shards were finished" in capsys.readouterr().out and same_bytes(tmp_path / "out", whole)


def test_two_runs_do_not_write_to_one_place(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workspace, "_PATIENCE", 0.2)
    (tmp_path / "out.partial").mkdir()
    with (tmp_path / "out.partial/lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(*WORDS, "--out", tmp_path / "out") == 2
    assert "another run is writing" in capsys.readouterr().err
    assert run(*WORDS, "--out", tmp_path / "out") == 0  # the folder alone is no obstacle


def test_a_foreign_folder_in_the_way_is_left_alone(tmp_path, capsys):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.tex").write_text("years")
    assert run(*WORDS, "--out", tmp_path / "out") == 2
    assert "not from this command" in capsys.readouterr().err
    assert (tmp_path / "out.partial/thesis.tex").exists()


def test_what_another_plan_left_in_the_tree_is_not_delivered(tmp_path, whole):
    """A kill while the place was cleared up: the plan is gone, shards and journal are not."""
    tree = tmp_path / "out.partial/tree/train"
    tree.mkdir(parents=True)
    (tree / "shard-000099.tar").write_bytes(b"old")
    record = {"part": "train", "number": 0, "name": "shard-000099.tar", "bytes": 3, "sha256": "", "tally": {}}
    (tmp_path / "out.partial/journal.jsonl").write_text(json.dumps(record) + "\n")
    assert run(*WORDS, "--out", tmp_path / "out") == 0
    assert same_bytes(tmp_path / "out", whole)


# ---- the worker pool


def test_results_in_order_whatever_takes_long():
    def work(task):
        time.sleep(0.02 * (task % 3 == 0))
        return task, os.getpid()

    found = list(imap(work, 12, 3))
    assert [task for task, _ in found] == list(range(12)) and len({pid for _, pid in found}) == 3


def test_the_first_error_in_order_is_raised():
    def work(task):
        time.sleep(0.1 * (task == 2))
        if task in (2, 3):
            raise ValueError(f"task {task}")
        return task

    found = []
    with pytest.raises(ValueError, match="task 2"):
        found.extend(imap(work, 9, 3))
    assert multiprocessing.active_children() == []


def test_a_fault_of_the_program_says_where():
    with pytest.raises(RuntimeError, match="in work_wrongly"):
        list(imap_unordered(work_wrongly, 3, 2))


def work_wrongly(task, tell):
    return [][task]


def test_no_task_runs_far_ahead_of_the_earliest(tmp_path):
    def work(task):
        (tmp_path / str(task)).touch()
        time.sleep(0.4 * (task == 0))
        return task

    results = imap(work, 50, 2)
    next(results)
    assert len(list(tmp_path.iterdir())) <= 2 * 2
    results.close()


def test_a_few_more_workers_than_tasks():
    assert sorted(imap_unordered(lambda task, tell: task * task, 2, 9)) == [(0, 0), (1, 1)]


def test_a_mask_that_is_replaced_while_others_are_written_is_named():
    """Values that no mask held when the rule was chosen are no crack by it: the mask came out empty."""
    rule = decide_by_levels([MaskFile("a", np.array([[0, 255]], np.uint8))])
    changed = SimpleNamespace(origin="p1.jpg", valid=None, mask=lambda: np.array([[0, 7]], np.uint8))
    with pytest.raises(ValueError, match=r"p1.jpg: its mask was changed since the rule was chosen \(values \{0, 255\}"):
        _mask_and_valid(changed, SimpleNamespace(rule=rule), 2, 1, None)
