"""make_shards.py --check finds what is wrong with a set, by shard and key; show.py says and draws what is in one."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import png
from PIL import Image
from shard_helpers import SCRIPT, draw, draw_mask, make_tree, run, shard, write_part

from cssr.data.shards import ShardSet
from cssr.dataset_preparation import show
from cssr.dataset_preparation.sources import Item, MaskRule
from cssr.utils.files import sha256_of

DOCS = SCRIPT.parents[1] / "docs/shards.md"
RULE = MaskRule("as drawn", lambda values: values > 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ten JPEGs with structure in two parts, in shards of two."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(10):
        draw(folder / f"root/images/p{number}.jpg", seed=number, size=(64, 48), quality=95)
        draw_mask(folder / f"root/masks/p{number}.png", size=(64, 48))
    words = ("folder", "--root", folder / "root", "--out", folder / "out", "--shard-size", 2)
    assert run(*words, "--ratio", "train=0.6", "val=0.4") == 0
    return folder / "out"


@pytest.fixture
def out(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "out")


def faults(capsys, out: Path, *words) -> list[str]:
    """What --check says of `out`, one line a fault; nothing else is printed but a line at the end."""
    capsys.readouterr()
    status = run("--check", out, *words)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert all(line.startswith(f"{out}: ") for line in lines) and status == (len(lines) > 1)
    assert printed.err.startswith(f"error: faults: {len(lines) - 1}; write" if status else "")
    assert printed.err.count("\n") == status
    return [line.removeprefix(f"{out}: ") for line in lines[:-1]]


def member_of(path: Path, ending: str, number: int = 0) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return [member for member in tar if member.name.endswith(ending)][number]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def bless(path: Path) -> None:
    """Make the index believe in a shard as it is now, as if it had been damaged before it was written."""
    index = json.loads((path.parent / "index.json").read_text())
    for entry in index["shards"]:
        if entry["name"] == path.name:
            entry.update(bytes=path.stat().st_size, sha256=sha256_of(path))
    (path.parent / "index.json").write_text(json.dumps(index))


def rewrite(path: Path, change) -> None:
    """Pass the members of a tar, {name: bytes}, through `change`; the index believes in the result."""
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    change(members)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    bless(path)


@pytest.mark.parametrize("words", [(), ("--decode",), ("--workers", 1)])
def test_a_whole_set_has_no_faults(made, capsys, words):
    assert faults(capsys, made, *words) == [] == faults(capsys, made / "train", *words)


def test_a_flipped_bit_is_found_in_its_sample(out, capsys):
    path = shard(out / "train", 1)
    member = member_of(path, ".jpg", 1)
    key = member.name.removesuffix(".jpg")
    flip(path, member.offset_data + member.size * 2 // 3)
    assert faults(capsys, out) == [
        f"train/{path.name}: sha256 differs from its index",
        f"train/{path.name}: {key}: jpg: checksum differs, the bytes are damaged",
    ]


def test_a_flipped_bit_between_the_samples_is_found_too(out, capsys):
    path = shard(out / "val")
    member = member_of(path, ".json")
    flip(path, member.offset_data + member.size + 3)
    (fault,) = faults(capsys, out)
    assert fault.startswith(f"val/{path.name}: sha256 differs") and "no member that has a checksum" in fault


def test_a_truncated_a_missing_and_a_strange_shard(out, capsys):
    path = shard(out / "train")
    member = member_of(path, ".mask.png", 1)
    with path.open("r+b") as file:
        file.truncate(member.offset_data + 5)
    missing = shard(out / "train", 2)
    missing.unlink()
    shutil.copy(shard(out / "val"), out / "val/strange.tar")
    found = faults(capsys, out)
    assert any(f"{path.name}: has " in fault and "its index says" in fault for fault in found)
    assert any(f"{path.name}: cannot be read after" in fault for fault in found)
    assert f"train/{missing.name}: is missing" in found and "val/strange.tar is not in index.json" in found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.pop(next(n for n in m if n.endswith("mask.png"))), "mask: 0 members, not one"),
        (lambda m: m.pop(next(n for n in m if n.endswith(".jpg"))), "image: 0 members, not one"),
        (lambda m: m.pop(next(n for n in m if n.endswith(".json"))), "json is missing or damaged"),
        (lambda m: m.update({next(n for n in m if n.endswith(".json")): b"{"}), "json is missing or damaged"),
        (lambda m: m.update({f"{list(m)[-1].split('.')[0]}.txt": b"?"}), "txt: a member that the index does not"),
        (lambda m: [m.pop(n) for n in list(m)[:3]], "has 1 samples that can be read, its index says 2"),
    ],
)
def test_members_that_are_missing_or_too_many(out, capsys, change, says):
    rewrite(shard(out / "train"), change)
    found = faults(capsys, out / "train")
    assert any(says in fault for fault in found) and all("-000000.tar: " in fault for fault in found)


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"[" * 100_000,
        b'{"key": "k", "width": "64", "height": 48}',
        b'{"key": "k", "width": 64, "height": 48, "group": {}}',
        b'{"key": "k", "width": 64, "height": 48, "crc32": 3}',
        b'{"key": "k\\u001b[31m\\n", "width": 64, "height": 48}',
        b'{"key": "k", "width": 64, "height": 48, "crack_share": "much"}',
    ],
)
def test_a_hostile_json_is_a_fault_like_another(out, capsys, text):
    rewrite(shard(out / "val"), lambda m: m.update({next(n for n in m if n.endswith(".json")): text}))
    found = faults(capsys, out / "val", "--decode")
    assert any("json" in fault for fault in found) and all(fault.isprintable() for fault in found)


def test_a_sparse_member_is_not_expanded(out, capsys):
    part = out / "val"
    with tarfile.open(shard(part), "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0%011o\0" % (0, 0)
        header[483:495] = b"%011o\0" % 2**32  # bytes that it claims to have
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        tar.fileobj.write(header)
    bless(shard(part))
    assert any("cannot be read: a.jpg is no plain file" in fault for fault in faults(capsys, part))


def without_checksums(members: dict[str, bytes]) -> None:
    for name in members:
        if name.endswith(".json"):
            facts = json.loads(members[name])
            del facts["crc32"]
            members[name] = json.dumps(facts).encode()


def test_decoding_finds_damage_that_was_written(out, capsys):
    """Older sets carry no checksums; the decoder is strict where Pillow and OpenCV are not."""

    def spoil(members):
        without_checksums(members)
        name = next(name for name in members if name.endswith(".jpg"))
        data = bytearray(members[name])
        start = data.index(b"\xff\xda") + 14
        data[start + 300 : start + 340] = bytes(range(100, 140))
        members[name] = bytes(data)
        assert np.asarray(Image.open(write(out.parent / "a.jpg", data))).any()  # Pillow is content

    rewrite(shard(out / "val", 1), spoil)
    assert faults(capsys, out) == []
    (fault,) = faults(capsys, out, "--decode")
    assert "-000001.tar: p" in fault and ": jpg: " in fault


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("ending", "data", "says"),
    [
        (".jpg", b"no image", "jpg: cannot identify it as an image"),
        (".mask.png", png(np.full((48, 64), 7, np.uint8)), "mask.png has other values than 0 and 255"),
        (".mask.png", png(np.zeros((8, 8), bool)), "mask.png is 8x8"),
        (".mask.png", png(np.ones((48, 64), bool)), "has a crack share of 1.0"),
    ],
)
def test_decoding_holds_contents_against_the_json(out, capsys, ending, data, says):
    def spoil(members):
        without_checksums(members)
        members[next(name for name in members if name.endswith(ending))] = data

    rewrite(shard(out / "val", 1), spoil)
    assert any(says in fault for fault in faults(capsys, out, "--decode"))


def test_an_index_that_is_wrong(out, capsys):
    path = out / "train/index.json"
    index = json.loads(path.read_text())
    for change, says in (
        ({"samples": 7}, "index.json: its samples are not those of the shards"),
        ({"shardlist": index["shardlist"][:1]}, "index.json: its shardlist are not those of the shards"),
        ({"image_sizes": {"64x48": 5, "1x1": 1}}, "index.json: its image_sizes are not"),
        ({"format": "x"}, "index.json: damaged or of another format"),
        ({"shards": [{**index["shards"][0], "name": "../a.tar"}]}, "index.json: damaged or of another format"),
        ({"shards": 3}, "index.json: cannot be read"),
    ):
        path.write_text(json.dumps({**index, **change}))
        (fault,) = faults(capsys, out / "train")
        assert fault.startswith(says)


def written_by_hand(root: Path) -> Path:
    """A set as the example of docs/shards.md makes it, run as it stands there."""
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "def png" in code]
    subprocess.run([sys.executable, "-c", example], cwd=root, check=True)
    return root / "data/mine"


def test_a_set_of_another_program_is_checked_by_what_the_docs_ask_of_it(tmp_path, capsys, monkeypatch):
    mine = written_by_hand(tmp_path)
    assert faults(capsys, mine) == faults(capsys, mine, "--decode") == []
    path, index = mine / "shard-000000.tar", json.loads((mine / "index.json").read_text())
    small = {"format": index["format"], "image_sizes": index["image_sizes"], "shards": index["shards"]}
    del small["shards"][0]["sha256"]
    (mine / "index.json").write_text(json.dumps(small))
    assert faults(capsys, mine, "--decode") == []
    monkeypatch.setattr("sys.argv", ["show.py", str(mine), "--out", str(tmp_path / "sheet.png")])
    assert show.main() == 0
    output = capsys.readouterr().out
    assert "4 samples in 1 shards" in output and "another program" in output and (tmp_path / "sheet.png").is_file()

    rewrite(path, lambda m: m.update({"mine-003.txt": b"?", "mine-003.json": b'{"caption": "a wall"}'}))
    assert faults(capsys, mine, "--decode") == []  # as all other members are passed over
    rewrite(path, lambda m: m.update({"mine-003.json": b'{"crc32": {"png": 7}}'}))
    assert faults(capsys, mine) == ["shard-000000.tar: mine-003: png: checksum differs, the bytes are damaged"]
    rewrite(path, lambda m: [m.pop("mine-003.json"), m.update({"mine-002.mask.png": m["mine-002.mask.png"][:-20]})])
    (fault,) = faults(capsys, mine, "--decode")
    assert fault.startswith("shard-000000.tar: mine-002: mask.png: ")
    rewrite(path, lambda m: m.pop("mine-001.png"))
    assert "shard-000000.tar: mine-001: image or json: there is no jpg or png" in faults(capsys, mine)


def test_samples_twice_and_groups_in_two_parts(out, capsys):
    index = json.loads((out / "val/index.json").read_text())
    shutil.copy(shard(out / "val"), shard(out / "val", 1))
    index["shards"][1] = {**index["shards"][0], "name": index["shards"][1]["name"]}
    (out / "val/index.json").write_text(json.dumps(index))
    assert any("2 samples have this key" in fault for fault in faults(capsys, out / "val"))
    shutil.rmtree(out / "val")
    shutil.copytree(out / "train", out / "val")
    found = faults(capsys, out)
    assert sum(fault.endswith(": in 2 parts") for fault in found) == 6
    assert any(fault.startswith("split.json: 10 groups of val differ") for fault in found)


def test_the_command_has_its_exit_status(out, tmp_path, capsys):
    def status(*words) -> int:
        return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True).returncode

    assert status("--check", out, "--decode") == 0
    shard(out / "val").unlink()
    assert status("--check", out) == 1
    assert status("--check", tmp_path / "nowhere") == 2
    assert run("--check", out, "--workers", 0) == 2 and "--workers is 0" in capsys.readouterr().err


# ---- show.py


def shown(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["show.py", *map(str, words)])
    return show.main()


def test_show_says_what_the_index_says(made, tmp_path, capsys, monkeypatch):
    assert shown(monkeypatch, made / "train", "--count", 5, "--out", tmp_path / "deep/sheet.png") == 0
    text = capsys.readouterr().out
    for part in ("6 samples in 3 shards", "64x48 (6)", "crack pixels: 25.00 %", "part train of train=0.6 val=0.4"):
        assert part in text
    sheet = np.asarray(Image.open(tmp_path / "deep/sheet.png"))
    assert (sheet == [255, 40, 40]).all(2).sum() > 5 * 150  # the outlines
    assert shown(monkeypatch, tmp_path) == 1 and capsys.readouterr().err.startswith("error: DIR: no shards")
    for name in ("sheet", "sheet.txt"):
        assert shown(monkeypatch, made / "train", "--out", name) == 1
        assert capsys.readouterr().err == f"error: --out is {name}; name a picture: FILE.png or FILE.jpg\n"


@pytest.mark.parametrize("value", [None, 3, "abc", [], {}, {"a": "b"}, {"a": None}, [[]], True])
def test_show_takes_any_index_or_says_what_is_wrong_in_it(value, out, capsys, monkeypatch):
    path = out / "train/index.json"
    index = json.loads(path.read_text())
    for name in index:
        path.write_text(json.dumps({**index, name: value}))
        status, error = shown(monkeypatch, out / "train"), capsys.readouterr().err
        assert status == 0 and not error or status == 1 and error.count("\n") == 1 and "index" in error, name


def test_the_sheet_depends_on_its_seed_alone(made):
    shards = ShardSet.open(made / "train", "test")
    first, again, other = (np.asarray(show.draw_sheet(shards, 3, seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first.shape != other.shape or (first != other).any())
    assert show.draw_sheet(shards, 99, 0).size > show.draw_sheet(shards, 1, 0).size


def test_lq_image_and_kernel_are_beside_the_image(tmp_path):
    image = np.full((32, 48, 3), 90, np.uint8)
    items = [
        Item(
            "name " * 40,
            "a.png",
            lambda: png(image),
            lambda: np.zeros((32, 48), bool),
            lq=lambda: png(np.full((8, 12, 3), (10, 200, 30), np.uint8)),
            kernel=lambda: np.eye(5) / 5,
        )
    ]
    write_part(tmp_path / "out", items, RULE, 1, {"source": "test"})
    assert run("--check", tmp_path / "out", "--decode") == 0
    sheet = show.draw_sheet(ShardSet.open(tmp_path / "out", "test"), 1, 0)
    pixels = np.asarray(sheet)
    assert sheet.width > 2 * 256 and (pixels == (10, 200, 30)).all(2).sum() == 256 * 171
    assert (pixels[:, 540:] == 0).all(2).sum() > 1000  # the kernel's dark corners


def test_tiles_are_described(tmp_path, capsys):
    words = ("folder", "--root", make_tree(tmp_path / "root", 3), "--tile", 12, "--overlap", 2)
    assert run(*words, "--out", tmp_path / "out") == 0
    assert "tiles of 12 pixels, neighbours share 2; photographs (groups): 3" in capsys.readouterr().out
