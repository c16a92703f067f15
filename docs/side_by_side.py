"""The picture of the results: `python docs/side_by_side.py runs/real/bicubic runs/real/csbsr_task_driven_seed0`.

A drawn photograph, as none of the real ones is in the repository, is blurred by an anisotropic Gaussian and reduced
four times; beside it the cracks that each run finds in it, and the mask. Red: found where none is; blue: missed. The
mean IoU at 0.5 is that of several such photographs.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from overview import enlarged, strip
from PIL import Image

from cssr.dataset_preparation.synthesis import render
from cssr.degradations import DEGRADATIONS
from cssr.inference.predictor import predict
from cssr.models.load import load_model

SEED, SAMPLES, SHOWN, SIDE = 9, range(20, 36), 33, 320  # of the drawn photographs
BLUR = {"name": "gaussian", "sigma": [1.6, 2.0], "theta": [0, 180], "size": 21}
NAMES = ("bicubic, then segmentation", "CSBSR trained by the task")
HIT, FALSE, MISSED = (255, 255, 255), (214, 39, 40), (90, 150, 255)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path, help="runs or exports: bicubic's, and CSBSR's")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("side_by_side.png"), help="(%(default)s)")
    options = parser.parse_args()
    models, panels, ious = [load_model(run) for run in options.runs], {}, []
    for sample in SAMPLES:
        photograph, mask = render(SEED, sample, SIDE, empty_share=0)
        hr = rearrange(torch.from_numpy(photograph), "h w c -> 1 c h w").float() / 255
        lq = DEGRADATIONS.build(BLUR, scale=4)(hr, torch.tensor([SEED]))[0][0].clamp(0, 1)
        found = [predict(model, lq, tile=0).mask() for model in models]
        ious.append([(mine & mask).sum() / (mine | mask).sum() for mine in found])
        if sample == SHOWN:
            panels[f"blurred and reduced, {SIDE // 4}x{SIDE // 4}"] = enlarged(_bytes(lq), SIDE)
            for name, mine, iou in zip(NAMES, found, ious[-1]):
                panels[f"{name}: IoU {iou:.2f}"] = _compared(mine, mask)
            panels["mask"] = Image.fromarray(mask.astype(np.uint8) * 255)
    strip(panels).save(options.out, optimize=True)
    means = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(NAMES, np.mean(ious, 0)))
    print(f"{options.out}; mean IoU of {len(SAMPLES)} photographs: {means}")


def _bytes(image: torch.Tensor) -> np.ndarray:
    return rearrange((image * 255).round().byte(), "c h w -> h w c").numpy()


def _compared(found: np.ndarray, mask: np.ndarray) -> Image.Image:
    picture = np.zeros((*mask.shape, 3), np.uint8)
    for colour, pixels in ((HIT, found & mask), (FALSE, found & ~mask), (MISSED, mask & ~found)):
        picture[pixels] = colour
    return Image.fromarray(picture)


if __name__ == "__main__":
    main()
