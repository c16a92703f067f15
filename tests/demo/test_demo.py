"""The server behind the page: what it answers, refuses, ends, and keeps (nothing)."""

import asyncio
import gc
import http.client
import json
import logging
import socket
import struct
import tempfile
import threading
import time
import weakref
import zlib
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from cssr.config.schema import ModelConfig
from cssr.inference.predictor import predict
from cssr.models.joint import build_model

pytest.importorskip("starlette", reason="needs starlette and uvicorn: pip install -e '.[demo]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install -e '.[test]'")

from demo_server import Dark, Held, cracked, dark_model, encoded, serving_page, unpacked  # noqa: E402

import cssr.demo.responses  # noqa: E402
from cssr.demo import connections  # noqa: E402
from cssr.demo.__main__ import main, server  # noqa: E402

TILE = 96


@pytest.fixture(scope="module")
def page():
    """A server for all tests that need no particular one; photographs of up to 20,000 pixels and 200 kB."""
    with serving_page(dark_model(), bytes=200_000, pixels=20_000, tile=TILE) as address:
        yield address


def post(address: str, body, **options) -> httpx.Response:
    return httpx.post(f"{address}/predict", content=body, timeout=30, **options)


def refused(answer: httpx.Response) -> str:
    """The one sentence of a refusal."""
    sentence = answer.json()["error"]
    assert list(answer.json()) == ["error"] and "\n" not in sentence and sentence.endswith(".")
    return sentence


# --- answers ----------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_and_nothing_else(page):
    html = httpx.get(page)
    assert html.status_code == 200 and html.headers["content-type"].startswith("text/html")
    for name in ("demo.css", "demo.js", "demo_view.js", "demo_part.js", "demo_zip.js"):
        file = httpx.get(f"{page}/{name}")
        assert file.status_code == 200 and file.headers["content-type"].startswith(("text/css", "text/javascript"))
    for path in ("demo.html", "pages/", "demo_view", "..%2fapp.py", "%2e%2e/setup.cfg", "docs", "openapi.json"):
        assert httpx.get(f"{page}/{path}").status_code == 404


def test_every_answer_forbids_the_browser_what_the_page_does_not_need(page):
    for answer in (httpx.get(page), httpx.get(f"{page}/none"), post(page, b""), post(page, encoded(cracked()))):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


def test_facts_tell_the_page_what_the_model_does(page):
    facts = httpx.get(f"{page}/facts").json()
    expected = {"name": "wall", "scale": 2, "segments": True, "bytes": 200_000, "pixels": 20_000, "seconds": 300.0}
    assert facts == expected


def test_a_prediction_is_that_of_the_function(page):
    lines, pictures = unpacked(post(page, encoded(cracked(110, 130))).content)
    assert lines[-1]["event"] == "result" and lines[-1]["notes"] == []
    expected = predict(dark_model(), cracked(110, 130), TILE)
    assert np.array_equal(pictures["lq"], cracked(110, 130))
    assert np.array_equal(pictures["sr"], expected.sr) and pictures["sr"].format == "PNG"
    assert np.array_equal(pictures["prob"], (expected.prob * 255).round())


def test_progress_is_reported_tile_by_tile():
    held = Held()
    with serving_page(dark_model(held), tile=TILE) as address:
        body = encoded(cracked(100, 150))
        with httpx.stream("POST", f"{address}/predict", content=body, timeout=30) as answer:
            lines = (json.loads(line) for line in answer.iter_lines())
            seen = next(line for line in lines if line["done"] == 4)  # of SR, before the first of cracks
            held.go.set()
    assert seen == {"event": "progress", "began": True, "done": 4, "of": 8}


def test_a_large_sr_image_comes_as_jpeg(page, monkeypatch):
    monkeypatch.setattr(cssr.demo.responses, "PNG_PIXELS", 1000)
    _, pictures = unpacked(post(page, encoded(cracked())).content)
    assert pictures["sr"].format == "JPEG" and pictures["sr"].size == (160, 120)
    assert pictures["prob"].format == "PNG"


def test_a_kernel_comes_where_the_model_predicts_one_and_no_cracks_where_it_finds_none():
    sr = {"name": "kbpn", "stages": 1, "width": 4, "features": 4}
    model = build_model(ModelConfig(scale=4, sr=sr, seg={"name": "none"})).eval()
    with serving_page(model) as address:
        lines, pictures = unpacked(post(address, encoded(cracked(24, 24))).content)
        assert not httpx.get(f"{address}/facts").json()["segments"]
    assert list(pictures) == ["lq", "sr", "kernel"]
    assert np.asarray(pictures["kernel"]).max() == 255 and pictures["kernel"].size == (21, 21)


# --- photographs of every kind ----------------------------------------------------------------------------------


def turned() -> bytes:
    picture = Image.fromarray(cracked())
    exif = picture.getexif()
    exif[0x0112] = 6
    return encoded(picture, "JPEG", exif=exif)


ODD = {
    "cmyk": (lambda: encoded(Image.fromarray(cracked()).convert("CMYK"), "JPEG"), (80, 60), []),
    "turned by exif": (turned, (60, 80), []),
    "16 bit": (lambda: encoded(np.full((60, 80), 25700, np.uint16)), (80, 60), []),
    "alpha": (lambda: encoded(Image.fromarray(cracked()).convert("RGBA")), (80, 60), []),
    "animated": (
        lambda: encoded(Image.fromarray(cracked()), "WEBP", save_all=True, append_images=[Image.new("RGB", (80, 60))]),
        (80, 60),
        ["The file has 2 pictures; the first one is taken."],
    ),
    "one pixel": (lambda: encoded(np.zeros((1, 1, 3), np.uint8)), (1, 1), []),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_photographs_are_taken(kind, page):
    make, size, notes = ODD[kind]
    lines, pictures = unpacked(post(page, make()).content)
    assert lines[-1]["event"] == "result" and lines[-1]["notes"] == notes
    assert pictures["lq"].size == size and pictures["lq"].mode == "RGB"
    assert pictures["prob"].size == (2 * size[0], 2 * size[1])


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels, and has none."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "no bytes": (lambda: b"", 400, "The file is empty"),
    "text": (lambda: b"no picture at all", 422, "no picture of a kind that can be read"),
    "another kind": (lambda: encoded(Image.new("L", (9, 9)), "GIF"), 422, "JPEG, PNG, TIFF, WEBP, BMP"),
    "cut short": (lambda: encoded(cracked(), "JPEG")[:-400], 422, "damaged"),
    "no pixels": (lambda: bomb(90), 422, "damaged"),
    "a bomb": (lambda: bomb(60_000), 422, "far too many pixels"),
    "a smaller bomb": (lambda: bomb(10_000), 422, "10000 x 10000 = 100.0 million pixels"),
    "too many pixels": (lambda: encoded(np.zeros((150, 150, 3), np.uint8)), 422, "150 x 150"),
    "too many bytes": (lambda: bytes(200_001), 413, "at most 0.2 MB"),
    "too many bytes, unsaid": (lambda: iter([bytes(150_000)] * 2), 413, "at most 0.2 MB"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("error")
def test_what_is_no_photograph_is_one_sentence_and_the_server_lives_on(kind, page):
    make, status, sentence = BAD[kind]
    answer = post(page, make())
    assert answer.status_code == status and sentence in refused(answer)
    assert unpacked(post(page, encoded(cracked())).content)[0][-1]["event"] == "result"


def test_a_model_that_fails_is_one_sentence_and_the_reason_is_in_the_log(capfd):
    class Failing(Dark):
        def forward(self, x):
            raise RuntimeError("no such kernel image")

    with serving_page(dark_model(Failing())) as address:
        line = unpacked(post(address, encoded(cracked())).content)[0][-1]
        assert line == {"event": "error", "error": "The model failed on this photograph; the server's log says why."}
        assert httpx.get(f"{address}/facts").status_code == 200
    assert "no such kernel image" in capfd.readouterr().err


# --- who may ask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host, status", [
    ("localhost:7860", 200), ("LOCALHOST", 200), ("127.0.0.1:9", 200), ("[::1]:7860", 200), ("192.168.0.7:7860", 200),
    ("evil.example", 403), ("evil.example:7860", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example", 403),
    ("", 403), ("[::1", 403), ("localhost@evil.example", 403),
])  # fmt: skip
def test_names_that_could_be_rebound_are_refused(host, status, page):
    answer = httpx.get(page, headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or "name" in refused(answer)


@pytest.mark.parametrize("headers, status", [
    ({}, 200), ({"Origin": "SELF"}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200),
    ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
])  # fmt: skip
def test_other_pages_may_not_post(headers, status, page):
    answer = post(page, encoded(cracked()), headers={k: v.replace("SELF", page) for k, v in headers.items()})
    assert answer.status_code == status
    assert status == 200 or "own page" in refused(answer)


def test_other_methods_are_refused(page):
    assert httpx.get(f"{page}/predict").status_code == 405
    assert httpx.put(f"{page}/predict", content=b"x").status_code == 405


# --- time, turns, and leaving -----------------------------------------------------------------------------------


def test_work_beyond_its_time_is_ended_and_the_next_is_done():
    held = Held()
    with serving_page(dark_model(held), seconds=0.2, tile=TILE) as address:
        line = unpacked(post(address, encoded(cracked(100, 150))).content)[0][-1]
        assert line == {"event": "error", "error": "It took longer than 0.2 seconds, the limit here."}
        held.go.set()
        assert unpacked(post(address, encoded(cracked())).content)[0][-1]["event"] == "result"
    assert held.tiles == 2  # one of the four, and the small photograph


def test_who_leaves_ends_the_work():
    held = Held()
    with serving_page(dark_model(held), tile=TILE) as address:
        with httpx.stream("POST", f"{address}/predict", content=encoded(cracked(100, 150)), timeout=30) as answer:
            next(line for line in map(json.loads, answer.iter_lines()) if line["done"] == 4)
        time.sleep(0.6)  # for the server to see it
        held.go.set()
        assert unpacked(post(address, encoded(cracked())).content)[0][-1]["event"] == "result"
    assert held.tiles == 2


def test_as_many_wait_as_may_and_the_next_is_reported():
    held, answers = Held(), []
    with serving_page(dark_model(held), waiting=1) as address:
        ask = [threading.Thread(target=lambda: answers.append(post(address, encoded(cracked())))) for _ in range(2)]
        for thread in ask:
            thread.start()
        while not held.tiles:
            time.sleep(0.01)
        time.sleep(0.5)
        answer = post(address, encoded(cracked()))
        assert answer.status_code == 503 and answer.headers["retry-after"] and "busy" in refused(answer)
        held.go.set()
        for thread in ask:
            thread.join()
        assert [unpacked(a.content)[0][-1]["event"] for a in answers] == ["result", "result"]
        assert unpacked(post(address, encoded(cracked())).content)[0][-1]["event"] == "result"


def test_a_body_that_does_not_come_is_given_up(page, monkeypatch):
    monkeypatch.setattr("cssr.demo.server.UPLOAD", 0.2)
    connection = http.client.HTTPConnection(urlsplit(page).netloc, timeout=10)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"begin")
    answer = connection.getresponse()
    assert answer.status == 408 and "did not arrive" in json.loads(answer.read())["error"]
    connection.close()


def test_clients_that_break_off_give_their_places_back():
    with serving_page(dark_model(), waiting=0) as address:
        place = urlsplit(address)
        for _ in range(3):
            with socket.create_connection((place.hostname, place.port)) as broken:
                broken.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nhalf")
        for _ in range(40):
            answer = post(address, encoded(cracked()))
            if answer.status_code == 200:
                break
            time.sleep(0.05)
        assert answer.status_code == 200


# --- nothing is kept --------------------------------------------------------------------------------------------


def test_nothing_is_written_and_nothing_stays_in_memory(page, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    untouched, seen = tmp_path.stat().st_mtime_ns, []

    def watched(model, image, *arguments, **options):
        found = predict(model, image, *arguments, **options)
        seen.extend(weakref.ref(array) for array in (image, found.sr, found.prob))
        return found

    monkeypatch.setattr(cssr.demo.responses, "predict", watched)
    body = encoded(np.random.default_rng(0).integers(0, 255, (120, 150, 3)).astype(np.uint8), "BMP")
    assert len(body) > 50_000 and unpacked(post(page, body).content)[1]
    assert tmp_path.stat().st_mtime_ns == untouched  # a file that comes and goes changes it too
    for _ in range(40):
        gc.collect()
        if not any(ref() is not None for ref in seen):
            break
        time.sleep(0.05)
    assert [ref() for ref in seen] == [None] * 3


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, message", [
    (["nowhere"], "no run or export at nowhere"),
    (["EXPORT", "--port", "70000"], "--port must be in 0..65535"),
    (["EXPORT", "--seconds", "0"], "--seconds must be a number above 0"),
    (["EXPORT", "--max-megapixels", "-1"], "--max-megapixels must be a number above 0"),
    (["EXPORT", "--max-megabytes", "inf"], "--max-megabytes must be a number above 0"),
    (["EXPORT", "--waiting", "-1"], "--waiting must be 0 or more"),
    (["EXPORT", "--tile", "3"], "--tile must be"),
    (["EXPORT", "--host", "203.0.113.9"], "--host 203.0.113.9 --port 7860 cannot be opened"),
])  # fmt: skip
def test_mistakes_are_one_line(arguments, message, export):
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(export) if a == "EXPORT" else a for a in arguments])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "wall"
    build_model(ModelConfig(scale=2, sr={"name": "bicubic"}, seg={"name": "none"})).save_pretrained(out)
    return out


def test_a_port_that_is_taken_is_named(export):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"--port {port} cannot be opened .*in use.*: choose another"):
            main([str(export), "--port", str(port)])


@pytest.mark.parametrize("host, warned", [("127.0.0.1", False), ("0.0.0.0", True)])
def test_who_lets_others_in_is_warned(host, warned, export, capsys, monkeypatch):
    served = []
    monkeypatch.setattr("cssr.demo.__main__.serve", lambda app, listener: served.append(listener.getsockname()))
    main([str(export), "--host", host, "--port", "0", "--device", "cpu"])
    output = capsys.readouterr()
    assert served[0][0] == host and f"at http://127.0.0.1:{served[0][1]} (Ctrl-C" in output.out
    assert ("whoever reaches this machine can send photographs" in output.err) == warned


def test_without_the_extra_it_is_named(export, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"the page needs uvicorn, .*pip install 'cssr\[demo\]'"):
        main([str(export)])


# ---- connections that hold others up ----


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS", 0.5)
    monkeypatch.setattr(connections, "READING", 0.5)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: local", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET"]
)
def test_a_connection_without_a_request_is_closed_in_time(impatient, sent):
    with serving_page(dark_model()) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as silent:
            silent.sendall(sent)
            began = time.monotonic()
            with suppress(ConnectionResetError):
                while silent.recv(1 << 16):
                    pass
            assert time.monotonic() - began < 4


def test_one_address_has_some_of_the_connections_only(monkeypatch):
    monkeypatch.setattr(connections, "A_CLIENT", 3)
    with serving_page(dark_model()) as address:
        host, port = address.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port)), timeout=5) for _ in range(3)]
        time.sleep(0.2)
        with pytest.raises(httpx.HTTPError):
            httpx.get(address)
        for one in held:
            one.close()
        time.sleep(0.2)
        assert httpx.get(address).status_code == 200


def test_an_origin_that_is_none_is_refused():
    with serving_page(dark_model()) as address:
        answer = post(address, encoded(cracked()), headers={"Origin": "http://["})
        assert answer.status_code == 403 and "own page" in refused(answer)


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
REQUESTS = {
    "no name": b"GET / HTTP/1.1\r\n\r\n",
    "two names": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "a name with a bracket": b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a name that is not ASCII": "GET / HTTP/1.1\r\nHost: löcalhost\r\n\r\n".encode("latin-1"),
    "a header of no name": HEAD + b"nonsense\r\n\r\n",
    "a zero byte in a header": HEAD + b"X: a\0b\r\n\r\n",
    "a long path": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path that is not UTF-8": b"GET /%ff%fe/%2e%2e/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path out of the root": b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method that is none": b"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "a length in superscript": HEAD + b"Content-Length: \xb2\r\n\r\n",
    "a length of 30 digits": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\nhello",
    "no length": HEAD + b"\r\nhello",
    "chunks of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "chunks of a negative size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "an unknown encoding": HEAD + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "a form": HEAD + b"Content-Type: multipart/form-data\r\nContent-Length: 9\r\n\r\n--b\r\n--b-",
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_requests_that_are_none_are_refused_and_the_server_lives_on(kind, page):
    place = urlsplit(page)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(REQUESTS[kind])
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{page}/facts").status_code == 200


def test_requests_that_the_end_cuts_off_leave_no_traceback():
    server(lambda: None)
    log = logging.getLogger("uvicorn.error")
    for error, told in ((asyncio.CancelledError("at the end"), False), (ValueError("a mistake"), True)):
        record = log.makeRecord(log.name, logging.ERROR, "", 0, "Exception", (), (type(error), error, None))
        assert bool(log.filter(record)) == told
