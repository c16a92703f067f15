"""Foreign JSON is checked against a shape: file and place are named, odd encodings read, and pipes do not hang."""

import json
import os
from typing import Annotated, Any

import pytest

from cssr.dataset_preparation.split import read_split
from cssr.models.load import read_best
from cssr.utils import json_files
from cssr.utils.annotations import Within
from cssr.utils.json_files import misfit, parse_json, read_json, read_text

SHAPE = {"images": [{"id": int | str, "?name": str | None, "size": Annotated[int, Within(1, 9)]}], "?more": Any}


@pytest.mark.parametrize(
    "value, fault",
    [
        ([], "the whole must be an object, got []"),
        ({}, "the whole has no images"),
        ({"images": {}}, "images must be a list, got {}"),
        ({"images": [3]}, "images[0] must be an object, got 3"),
        ({"images": [{"id": 1, "size": 1}, {"id": 1}]}, "images[1] has no size"),
        ({"images": [{"id": None, "size": 1}]}, "images[0].id must be a whole number or a word, got None"),
        ({"images": [{"id": "a", "size": 10}]}, "images[0].size must be a whole number of 1 to 9, got 10"),
        ({"images": [{"id": 1, "size": True}]}, "images[0].size must be a whole number of 1 to 9, got True"),
        ({"images": [{"id": 1, "size": 2, "name": [1]}]}, "images[0].name must be a word or null, got [1]"),
        ({"images": [{"id": "a", "size": 9, "name": None}], "more": [{}]}, None),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(value, fault):
    assert misfit(value, SHAPE) == fault
    if fault:
        with pytest.raises(ValueError, match="^x.json is damaged.*; mend it$") as caught:
            parse_json(json.dumps(value).encode(), "x.json", SHAPE, "mend it")
        assert fault in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_encodings_are_recognised(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"name": "Brücke"}, ensure_ascii=False).encode(encoding))
    assert read_json(path, {"name": str}) == {"name": "Brücke"}
    path.write_bytes("old,new\nBrücke,b\n".encode(encoding))
    assert read_text(path) == "old,new\nBrücke,b\n"


@pytest.mark.parametrize("data", [b'{"a": {"b": 1, "c": 2, "b": 1}}', b'{"b": 1, "\\u0062": 2}'])
def test_a_key_that_is_there_twice_is_named(data):
    """Of two values Python keeps the last: annotations that were joined by hand would be lost without a word."""
    with pytest.raises(ValueError, match="^x.json is damaged, no JSON: 'b' is there twice in one object; mend it$"):
        parse_json(data, "x.json", remedy="mend it")


@pytest.mark.parametrize(
    "data, said", [(b"", "no JSON"), (b"{", "no JSON"), (b"[" * 100_000, "nested too deeply"), (b"1" * 5000, "no JSON")]
)
def test_what_is_no_json(data, said):
    with pytest.raises(ValueError, match=said):
        parse_json(data, "x.json")


def test_much_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(json_files, "_MAX_VALUES", 4)
    assert parse_json(b"[1, 2, {}]", "x.json") == [1, 2, {}]
    with pytest.raises(ValueError, match="x.json has some 5 values, more than 4: cut it into several"):
        parse_json(b"[1, 2, {}, 3]", "x.json")


def test_pipes_folders_and_absent_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "no regular file"), (".", "no regular file|Is a directory"), ("none", "No such file")):
        with pytest.raises(ValueError, match=said):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", '{"checkpoint": 3}', '{"checkpoint": "a", "measure": "b", "value": null}']
)
def test_a_damaged_best_json_is_named(tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text(text)
    with pytest.raises(ValueError, match="best.json is damaged.*delete it"):
        read_best(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"format": 1}', '{"format": "cssr-split-1", "seed": "x"}', "\xff"])
def test_a_damaged_split_is_named(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match="--split-file: .*split.json is damaged"):
        read_split(tmp_path / "split.json")
