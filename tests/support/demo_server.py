"""The page's server on a free port, with a model that is quick and takes dark pixels for cracks."""

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from helpers import SMALL_MODEL
from PIL import Image
from torch import Tensor, nn

from cssr.config.schema import ModelConfig
from cssr.demo.__main__ import listen, server
from cssr.demo.jobs import Limits
from cssr.demo.server import create_app
from cssr.models.joint import JointModel, build_model


class Dark(nn.Module):
    """Logits that are positive where an image (0..1) is darker than a third."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return ((1 / 3 - x.mean(1, keepdim=True)) * 40,)


class Held(Dark):
    """As slow as the test wants: a tile begins, and waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.tiles, self.go = 0, threading.Event()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.tiles += 1
        self.go.wait(20)
        return super().forward(x)


def dark_model(seg: nn.Module | None = None, **settings) -> JointModel:
    """Bicubic SR by 2, and `Dark` (or another network) on the SR image."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**SMALL_MODEL, "sr": {"name": "bicubic"}, "normalize": "none", **settings}))
    model.seg = seg or Dark()
    return model.eval()


def cracked(height: int = 60, width: int = 80) -> np.ndarray:
    """A grey wall with a black crack, 5 pixels wide, from side to side, and a short thin one: H W 3 uint8."""
    wall = np.full((height, width, 3), 200, np.uint8)
    wall[20:25] = 0
    wall[40:42, 10:40] = 0
    return wall


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """A picture file's bytes."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@contextmanager
def serving_page(model: JointModel, **limits) -> Iterator[str]:
    """The address of a server, until the end of the block."""
    listener, app = listen("127.0.0.1", 0), create_app(model, Limits(**limits), "wall")
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
        app.state.queue.close()


def unpacked(body: bytes) -> tuple[list[dict], dict[str, Image.Image]]:
    """The lines of an answer to /predict, and its pictures by name."""
    lines, rest = [], body
    while rest and (not lines or lines[-1]["event"] == "progress"):
        line, rest = rest.split(b"\n", 1)
        lines.append(json.loads(line))
    pictures = {}
    for part in lines[-1].get("parts", []):
        pictures[part["name"]] = Image.open(io.BytesIO(rest[: part["bytes"]]))
        rest = rest[part["bytes"] :]
    assert rest == b""
    return lines, pictures
