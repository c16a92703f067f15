"""Export of the joint model to ONNX and torch.export files, verified against PyTorch (`cssr/deploy.py`)."""

import contextlib
import copy
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cssr import __version__
from cssr.config.schema import segments
from cssr.models.joint import JointModel
from cssr.utils.files import identity, naming_path, write_atomic

OPSET = 18  # of ONNX
MIN_SIDE = 8  # LQ pixels a side
SIZES = ((1, MIN_SIDE, 11), (1, 32, 48), (2, 37, 61), (3, 64, 24))  # images, height, width: what files are tried on
_TRACED = (2, 3, 24, 28)  # what the model is followed on; none of SIZES
_ONE_FILE = 1 << 30  # bytes of weights above which ONNX holds them in a file of their own: its limit is 2 GiB
_FILES = {"onnx": "model.onnx", "torch_export": "model.pt2"}
_Run = Callable[[Tensor], Sequence[Tensor]]

EXAMPLE = """\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
photograph = np.asarray(Image.open("photograph.jpg").convert("RGB"), np.float32) / 255  # height width 3, 0..1
lq = photograph.transpose(2, 0, 1)[None]  # 1 3 height width
outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"lq": lq})))
sr = (outputs["sr"][0].transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)
"""
_OF_CRACKS = 'mask = outputs["prob"][0, 0] > 0.5\n'


class Deployed(nn.Module):
    """Joint model with a tensor interface: lq (B 3 h w, 0..1) -> the outputs in `names`.

    sr: B 3 H W; prob: B 1 H W, crack probability, if the model segments; kernel: B 1 k k, if it predicts one.
    """

    def __init__(self, model: JointModel):
        super().__init__()
        self.model = model
        with torch.no_grad():
            kernel = model(torch.zeros(1, 3, MIN_SIDE, MIN_SIDE, device=model.mean.device)).kernel
        available = {"sr": True, "prob": segments(model.config), "kernel": kernel is not None}
        self.names = [name for name, is_available in available.items() if is_available]

    def forward(self, lq: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(lq)
        values = {"sr": outputs.sr, "prob": outputs.logits.float().sigmoid(), "kernel": outputs.kernel}
        return tuple(values[name] for name in self.names)


class GridMeans(nn.Module):
    """Adaptive average pooling as two matrix products, since the exported operator supports one image size only."""

    def __init__(self, cells: tuple[int, int]):
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_cell_weights(side, count, x) for side, count in zip(x.shape[-2:], self.cells))
        return rows @ x @ columns.mT


def _cell_weights(side: int, cells: int, like: Tensor) -> Tensor:
    """Weight of each of `side` pixels in each cell: cells side; cells overlap where `cells` does not divide `side`."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(side, device=like.device)[None]
    first, end = cell * side // cells, ((cell + 1) * side + cells - 1) // cells
    return ((pixel >= first) & (pixel < end)).to(like.dtype) / (end - first)


def capture(deployed: Deployed) -> torch.export.ExportedProgram:
    """Trace the model by torch.export, for any number of images of any size.

    Raises: ValueError, one line, for a model that cannot be traced for all sizes.
    """
    deployed = _with_grids(copy.deepcopy(deployed))
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    try:
        with torch.no_grad(), _suppress_logging(), _allow_unit_sides():
            lq = torch.rand(_TRACED, generator=torch.Generator().manual_seed(0))
            return torch.export.export(deployed, (lq,), dynamic_shapes={"lq": any_size}, strict=False)
    except Exception as error:  # of all kinds, from the depths of a network
        raise ValueError(f"torch.export cannot follow this model for any size: {_reason(error)}") from error


def _with_grids(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                cells = child.output_size if isinstance(child.output_size, tuple) else (child.output_size,) * 2
                if None not in cells and cells != (1, 1):
                    setattr(module, name, GridMeans(cells))
    return model


@contextlib.contextmanager
def _suppress_logging() -> Iterator[None]:
    """Suppress warnings and logging of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _allow_unit_sides() -> contextlib.AbstractContextManager:
    """Do not specialise on feature maps of side 1, as torch.onnx.export does; else the file refuses them."""
    try:
        from torch.fx.experimental import _config

        return _config.patch(backed_size_oblivious=True)
    except (ImportError, AttributeError):  # before torch 2.8 there are no such guards in the file
        return contextlib.nullcontext()


def write_torch_export(program: torch.export.ExportedProgram, names: Sequence[str], folder: Path) -> _Run:
    """Write `model.pt2` and return its forward function."""
    path = folder / _FILES["torch_export"]
    with _suppress_logging():
        written = io.BytesIO()  # torch says of a full disk that a file write failed
        torch.export.save(program, written)
        path.write_bytes(written.getbuffer())
        return torch.export.load(path).module()


def write_onnx(program: torch.export.ExportedProgram, names: Sequence[str], folder: Path) -> _Run:
    """Write `model.onnx` (large weights in `model.onnx.data`) and return its forward function in onnxruntime."""
    onnxruntime = check_onnx()
    path, any_size = folder / _FILES["onnx"], {"lq": {0: "batch", 2: "height", 3: "width"}}
    options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    with _suppress_logging():
        exported = torch.onnx.export(program, output_names=list(names), dynamic_shapes=any_size, **options)
        weights = sum(value.numel() * value.element_size() for value in program.state_dict.values())
        exported.save(path, external_data=weights > _ONE_FILE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda lq: [torch.from_numpy(value) for value in session.run(None, {"lq": lq.numpy()})]


def check_onnx() -> Any:
    """Import onnxruntime; ValueError if it or a package needed to write ONNX is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--format onnx needs {error.name}: pip install 'cssr[onnx]'") from None
    return onnxruntime


_WRITERS = {"onnx": write_onnx, "torch_export": write_torch_export}


def compare(deployed: Deployed, run: _Run, tolerance: float, what: str) -> dict[str, float]:
    """Largest absolute difference of each output from PyTorch's, over images of all `SIZES`.

    Raises: ValueError, one line, for a difference above `tolerance`, another shape, or a failed run.
    """
    largest = dict.fromkeys(deployed.names, 0.0)
    for count, height, width in SIZES:
        lq = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))
        size = f"{count} images of {height}x{width}"
        try:
            with torch.no_grad():
                pairs = list(zip(deployed.names, run(lq), deployed(lq), strict=True))
        except Exception as error:  # of onnxruntime, of guards in the file
            raise ValueError(f"{what} cannot compute {size}: {_reason(error)}") from error
        for name, output, expected in pairs:
            if output.shape != expected.shape:
                raise ValueError(f"{what}: {name} of {size} is {list(output.shape)}, not {list(expected.shape)}")
            difference = (output - expected).abs().max().item()
            if not difference <= tolerance:  # NaN too
                raise ValueError(f"{what}: {name} of {size} is {difference:.2g} off, more than --tolerance {tolerance}")
            largest[name] = max(largest[name], difference)
    return largest


def deploy(model: JointModel, formats: Sequence[str], out: Path, tolerance: float = 1e-3) -> dict[str, Any]:
    """Export a model to files of these formats ("onnx", "torch_export") and `model.json` in `out`.

    Test-time augmentation (`model.orientations`) is left out.
    Returns: the contents of `model.json`.
    Raises: ValueError, one line, for a model that cannot be exported, or a file that differs from PyTorch: no file is
        left.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    model.orientations = 1
    deployed = Deployed(model)
    folder, new = out / f".partial-{os.getpid()}", not out.exists()
    with naming_path(out):
        folder.mkdir(parents=True)  # before what takes long
        try:
            program = capture(deployed)
            files = [_write(form, deployed, program, folder, tolerance) for form in formats]
            for path in sorted(folder.iterdir()):
                os.replace(path, out / path.name)
        finally:
            shutil.rmtree(folder)
            if new and not any(out.iterdir()):
                out.rmdir()
    # files that are left of another model
    written = {name for file in files for name in file["written"]}
    for name in {*_FILES.values(), f"{_FILES['onnx']}.data"} - written:
        (out / name).unlink(missing_ok=True)
    facts = {**describe(deployed), "files": files, "tolerance": tolerance}
    if "onnx" in formats:
        facts["example"] = (EXAMPLE + _OF_CRACKS * ("prob" in deployed.names)).splitlines()
    write_atomic(out / "model.json", json.dumps(facts, indent=2) + "\n")
    return facts


def _write(
    form: str, deployed: Deployed, program: torch.export.ExportedProgram, folder: Path, tolerance: float
) -> dict[str, Any]:
    """Write and verify a file of one format; its entry in `model.json`."""
    before = set(folder.iterdir())
    try:
        run = _WRITERS[form](program, deployed.names, folder)
    except (ValueError, OSError):
        raise
    except Exception as error:  # an operator that the format does not have
        raise ValueError(f"the model cannot be written as {form}: {_reason(error)}") from error
    largest = compare(deployed, run, tolerance, _FILES[form])
    written = {path.name: identity(path) for path in sorted(set(folder.iterdir()) - before)}
    return {"format": form, "file": _FILES[form], "written": written, "largest_difference": largest}


def describe(deployed: Deployed) -> dict[str, Any]:
    """Description of inputs and outputs for `model.json`."""
    config, scale = deployed.model.config, deployed.model.scale
    large = [f"{scale} * height", f"{scale} * width"]
    side = getattr(deployed.model.sr, "kernel_size", "k")
    outputs = {
        "sr": {"shape": ["batch", 3, *large], "range": [0, 1] if config.clip != "never" else None, "channels": "RGB"},
        "prob": {"shape": ["batch", 1, *large], "range": [0, 1], "meaning": "crack probability, after the sigmoid"},
        "kernel": {"shape": ["batch", 1, side, side], "meaning": "estimated blur kernel in HR pixels, sums to 1"},
    }
    lq = {"shape": ["batch", 3, "height", "width"], "range": [0, 1], "channels": "RGB", "smallest_side": MIN_SIDE}
    return {
        "cssr_version": __version__,
        "torch_version": torch.__version__,
        "onnx_opset": OPSET,
        "dtype": "float32",
        "scale": scale,
        "inputs": {"lq": lq},
        "outputs": {name: outputs[name] for name in deployed.names},
        **({"threshold": 0.5} if "prob" in deployed.names else {}),
        "inside": _included_steps(deployed.model),
        "compared_with_pytorch_at": [list(size) for size in SIZES],
        "model": {"form": config.form, "sr": config.sr, "seg": config.seg},
    }


def _included_steps(model: JointModel) -> list[str]:
    """Pre- and postprocessing steps included in the file, as sentences."""
    network = model.seg if model.seg is not None else model.sr
    normalised = {
        "instance": "per image and channel",
        "dataset": f"by mean {model.config.mean}, std {model.config.std}",
    }
    temperature = model.config.temperature
    calibrated = [f"crack logits are divided by the temperature {temperature:.4g}"] if temperature != 1 else []
    return [
        f"images are padded by their edge pixels to multiples of {getattr(network, 'stride', 1)}, and the results cut",
        f"the normalisation before segmentation: {normalised.get(model.config.normalize, 'none')}",
        "it works on whole images: of tiles cut before it, the normalisation would see each by itself",
        *calibrated,
    ]


def _reason(error: Exception) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
