"""Cracks in photographs: `python -m cssr.predict RUN_OR_EXPORT IMAGE|FOLDER --out DIR`.

A photograph is taken as the low-resolution image: what is written is larger by the model's scale along each side.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from cssr.checkpoint import load_model
from cssr.checks import segments
from cssr.config import TILE_OVERLAP, check_tile
from cssr.models.joint import JointModel
from cssr.visualize import overlay, save_picture, to_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
TILE = 256  # LQ pixels


@dataclass
class Prediction:
    """What a model makes of one photograph of h x w pixels, at scale s."""

    sr: np.ndarray  # h*s w*s 3 uint8, super-resolved image
    prob: np.ndarray | None  # h*s w*s float32, crack probability; None from a model that finds no cracks
    kernel: np.ndarray | None  # k k float32, blur kernel that the model has estimated, if it does

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """h*s w*s bool: crack where the probability exceeds `threshold`; ValueError where there is none."""
        if self.prob is None:
            raise ValueError("there is no mask: the model only super-resolves (model.seg=none)")
        return self.prob > threshold


def predict(
    model: JointModel,
    image: Image.Image | np.ndarray | Tensor | str | Path,
    tile: int = TILE,
    overlap: int = TILE_OVERLAP,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Prediction:
    """Super-resolve a photograph and find its cracks, as far as the model does.

    Args:
        model: in evaluation mode, on any device.
        image: a file, a PIL image, H W 3 uint8, or 3 H W float 0..1.
        tile: LQ pixels a side of the tiles in which a larger image is worked; 0: the whole image at once. Tiles overlap
            by `overlap` and are blended; the normalisation and a predicted kernel are those of the whole image.
    """
    device = next(iter(model.parameters()), model.mean).device
    outputs = model.infer(_to_tensor(image).to(device), tile, overlap, progress)
    prob = outputs.logits[0, 0].float().sigmoid().cpu().numpy() if segments(model.config) else None
    kernel = None if outputs.kernel is None else outputs.kernel[0, 0].float().cpu().numpy()
    return Prediction(to_image(outputs.sr[0]), prob, kernel)


def _to_tensor(image: Image.Image | np.ndarray | Tensor | str | Path) -> Tensor:
    """1 3 H W float32, 0..1."""
    if isinstance(image, Tensor):
        return image[None].float()
    array = image if isinstance(image, np.ndarray) else read_photograph(image)
    return torch.tensor(array).permute(2, 0, 1)[None].float() / 255


def read_photograph(image: Image.Image | str | Path) -> np.ndarray:
    """A photograph as H W 3 uint8: upright by EXIF, grey and palette to RGB, alpha on white, 16 to 8 bit.

    Raises: ValueError, one line, if it cannot be read.
    """
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):  # 16-bit grey
            upright = Image.fromarray((np.asarray(upright).clip(0, 65535) / 257).round().astype(np.uint8))
        if "A" in upright.mode or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.asarray(upright.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"cannot read {image} as a photograph: {' '.join(str(error).split())}") from None


def write_prediction(found: Prediction, stem: Path, threshold: float, as_float: bool) -> None:
    """`stem_sr.png`, `_prob.png` (8 bit) or `.npy` (float32), `_mask.png` (1 bit), `_overlay.png`, `_kernel.npy`.

    What the model does not give is not written.
    """
    save_picture(found.sr, stem.with_name(f"{stem.name}_sr.png"))
    if found.prob is not None:
        _write_cracks(found, stem, threshold, as_float)
    if found.kernel is not None:
        np.save(stem.with_name(f"{stem.name}_kernel.npy"), found.kernel)
        save_picture(
            (found.kernel / found.kernel.max() * 255).clip(0, 255).astype(np.uint8),
            stem.with_name(f"{stem.name}_kernel.png"),
        )


def _write_cracks(found: Prediction, stem: Path, threshold: float, as_float: bool) -> None:
    mask = found.mask(threshold)
    save_picture(Image.fromarray(mask), stem.with_name(f"{stem.name}_mask.png"))
    save_picture(overlay(found.sr, mask), stem.with_name(f"{stem.name}_overlay.png"))
    if as_float:
        np.save(stem.with_name(f"{stem.name}_prob.npy"), found.prob)
    else:
        save_picture((found.prob * 255).round().astype(np.uint8), stem.with_name(f"{stem.name}_prob.png"))


def photographs(source: Path) -> dict[str, Path]:
    """The photographs of a file or folder (with its subfolders) by the stem under which their results are written."""
    if source.is_file():
        return {source.stem: source}
    if not source.is_dir():
        raise ValueError(f"no photograph or folder at {source}")
    found: dict[str, Path] = {}
    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES):
        relative = path.relative_to(source)
        stem = str(relative.with_suffix(""))
        found[str(relative) if stem in found else stem] = path
    if not found:
        raise ValueError(f"no photograph in {source}: none of its files ends with {' '.join(SUFFIXES)}")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    try:
        if not 0 <= options.threshold <= 1:
            raise ValueError(f"--threshold must lie in 0..1, found {options.threshold}")
        check_tile(options.tile, "--tile")
        sources = photographs(options.source)
        model = load_model(options.model, options.checkpoint).to(_device(options.device))
        failed = _predict_all(model, sources, options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{len(sources) - len(failed)} photographs: {_written(model)} in {options.out}")
    if failed:
        sys.exit(f"error: {len(failed)} of {len(sources)} photographs could not be read: {', '.join(failed[:5])}")


def _written(model: JointModel) -> str:
    if segments(model.config):
        return "SR image, probability, mask and overlay"
    kernel = " and blur kernel" if getattr(model.sr, "predicts_kernel", False) else ""
    return f"SR image{kernel} only, as the model finds no cracks (model.seg=none),"


def _predict_all(model: JointModel, sources: dict[str, Path], options: argparse.Namespace) -> list[str]:
    failed = []
    bar = tqdm(sources.items(), unit="photo", disable=not sys.stderr.isatty())
    for stem, path in bar:
        try:
            image = read_photograph(path)
        except ValueError as error:
            tqdm.write(str(error), file=sys.stderr)
            failed.append(path.name)
            continue
        found = predict(model, image, options.tile)
        write_prediction(found, options.out / stem, options.threshold, options.float)
        crack = "" if found.prob is None else f", crack {found.mask(options.threshold).mean():.2%}"
        height, width = image.shape[:2]
        tqdm.write(f"{path}: {width}x{height} -> {found.sr.shape[1]}x{found.sr.shape[0]}{crack}")
    return failed


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.zeros(1, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cssr.predict", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="run directory or export directory")
    parser.add_argument("source", type=Path, help="a photograph, or a folder of them")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability above which a pixel is crack (0.5)")
    parser.add_argument("--float", action="store_true", help="probabilities as float32 .npy instead of 8-bit PNG")
    parser.add_argument("--tile", type=int, default=TILE, help=f"photograph pixels a side of a tile ({TILE}; 0: whole)")
    parser.add_argument("--checkpoint", default="export", help="of a run: export (default), best, last, or a step")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (auto: an accelerator where there is one)")
    return parser


if __name__ == "__main__":
    main()
