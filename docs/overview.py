"""The picture of the README: `python docs/overview.py demo/cssr/export`, with the export that `make demo` leaves.

A drawn photograph that training has not seen is reduced four times; beside it what the model makes of it: SR image,
crack probability, and the cracks that are measured in the mask, over the SR image.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cssr import JointModel
from cssr.cracks.measure import Crack, measure_cracks
from cssr.dataset_preparation.synthesis import render
from cssr.degradations.ops import resampler
from cssr.inference.predictor import predict

SEED, SAMPLE, SIDE = 9, 19, 320  # of the drawn photograph; training draws with seed 0
GAP, HEAD = 6, 28
LEAST = 25.0  # SR pixels: shorter cracks are not shown
LINE, TEXT = "#ff5a36", "#ffffff"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, help="export directory of the demo's run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("overview.png"), help="(%(default)s)")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability above which a pixel is crack (%(default)s)"
    )
    options = parser.parse_args()
    photograph, mask = render(SEED, SAMPLE, SIDE, empty_share=0)
    lq = reduced(photograph)
    prediction = predict(JointModel.from_pretrained(options.export), lq, tile=0)
    cracks = measure_cracks(prediction.mask(options.threshold), LEAST)
    panels = {
        f"photograph, {len(lq)}x{len(lq)}": enlarged(lq, SIDE),
        f"super-resolved, {SIDE}x{SIDE}": Image.fromarray(prediction.sr),
        "crack probability": Image.fromarray((prediction.prob * 255).round().astype(np.uint8)),
        "cracks, length and mean width": annotated(prediction.sr, cracks),
    }
    strip(panels).save(options.out, optimize=True)
    hits, either = (prediction.mask(options.threshold) & mask).sum(), (prediction.mask(options.threshold) | mask).sum()
    print(f"{options.out}: IoU {hits / either:.3f}, {options.out.stat().st_size / 1000:.0f} kB")


def reduced(photograph: np.ndarray) -> np.ndarray:
    """H W 3 uint8, four times smaller along each side, antialiased bicubic."""
    planes = torch.from_numpy(photograph).permute(2, 0, 1)[None].float()
    return resampler(4, "bicubic", True)[0](planes).clamp(0, 255).round().byte()[0].permute(1, 2, 0).numpy()


def enlarged(image: np.ndarray, side: int) -> Image.Image:
    """With its pixels as blocks."""
    return Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)


def annotated(sr: np.ndarray, cracks: list[Crack]) -> Image.Image:
    """The SR image with numbered centre lines, and the length and mean width of each, SR pixels."""
    picture = Image.fromarray(sr)
    draw = ImageDraw.Draw(picture)
    for crack in cracks:
        for line in crack.lines:
            draw.line([tuple(point) for point in line], fill=LINE, width=3)
    for row, crack in enumerate(cracks):
        text = f"{crack.number}: {crack.length:.0f} px long, {crack.mean_width:.1f} wide"
        for at, what, anchor in (((SIDE - 8, 10 + 20 * row), text, "ra"), (crack.widest, str(crack.number), "mm")):
            draw.text(at, what, TEXT, ImageFont.load_default(15), anchor, stroke_width=2, stroke_fill="black")
    return picture


def strip(panels: dict[str, Image.Image]) -> Image.Image:
    """Side by side under their captions."""
    sheet = Image.new("RGB", (len(panels) * (SIDE + GAP) + GAP, SIDE + HEAD + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, panel) in enumerate(panels.items()):
        left = GAP + number * (SIDE + GAP)
        draw.text((left, 4), caption, "black", ImageFont.load_default(17))
        sheet.paste(panel.convert("RGB"), (left, HEAD))
    return sheet


if __name__ == "__main__":
    main()
