"""Results made by hand, as `evaluate` leaves them: rows of counts, facts, samples, and names that attack."""

import json
from pathlib import Path

import torch
from PIL import Image

from cssr.data.batch import Batch, Outputs
from cssr.evaluation.calibration import expected_calibration_error, logit_histogram
from cssr.evaluation.results import compose
from cssr.evaluation.visualization import Sample, take_sample, write_samples

HOSTILE = '<script>document.title="run"</script>"\'><img src=x onerror=alert(1)> & ' + "a_long_name_" * 12
CRACK = 100  # crack pixels of every image


def rows(hits: int, psnr: float = 28.0, images: int = 3, **more) -> list[dict]:
    """Images of 32x32 that find `hits` of 100 crack pixels up to threshold 0.50 and nothing above, no false ones."""
    tp = [hits] * 50 + [0] * 49
    row = {"tp": tp, "fp": [0] * 99, "fn": [CRACK - n for n in tp], "pixels": 1024, "ssim": 0.7, "kernel_psnr": None}
    row |= {"psnr": psnr, "mse": 10 ** (-psnr / 10), **more}
    return [{"key": f"image_{i}", **row} for i in range(images)]


def facts(name: str, **more) -> dict:
    settings = {"sr": {"name": "dbpn", "stages": 4}, "seg": {"name": "unet"}}
    return {
        **{"name": name, "model": f"runs/{name}", "checkpoint": "export", "data": "shards/test", "scale": 4},
        **{"degradation": {"name": "gaussian", "sigma": [0.2, 4.0]}, "resampler": "bicubic x1/4", "seed": 0},
        **{"tile": 0, "limit": None, "model_settings": settings},
    } | more


HR = {
    **{"scale": 1, "degradation": {"name": "downsample"}, "resampler": "none (scale 1)"},
    "model_settings": {"sr": {"name": "none"}, "seg": {"name": "unet"}},
}


def write(directory: Path, of: list[dict], about: dict) -> Path:
    """An evaluation directory as `evaluate` leaves it."""
    (directory / "pictures").mkdir(parents=True)
    for kind in ("best", "median", "worst"):
        Image.new("RGB", (8, 8)).save(directory / "pictures" / f"{kind}.png")
    (directory / "results.json").write_text(json.dumps(compose(of, about)))
    return directory


def calibrated(images: int, surely: float = 1.0) -> list[dict]:
    """What rows have of calibration: logits that are too large by a factor, of masks that follow them without it."""
    random = torch.Generator().manual_seed(0)
    true = -2 + 2 * torch.randn(images, 1, 32, 32, generator=random)
    histogram = logit_histogram(surely * true, torch.rand(true.shape, generator=random) < true.sigmoid()).numpy()
    errors = expected_calibration_error(histogram).tolist()
    return [{"histogram": of_image, "ece": error} for of_image, error in zip(histogram, errors)]


def draw(height: int = 24, width: int = 32, scale: int = 4, kernel: bool = True) -> tuple[Batch, Outputs]:
    random = torch.Generator().manual_seed(0)
    hr, sr = (torch.rand(2, 3, height, width, generator=random) for _ in "ab")
    mask = torch.zeros(2, 1, height, width)
    mask[:, :, 4:6, 3:] = 1
    lq = torch.rand(2, 3, height // scale, width // scale, generator=random)
    kernels = [torch.full((2, 1, 3, 3), 1 / 9), torch.full((2, 1, 3, 3), 1 / 8)] if kernel else [None, None]
    logits = 3 * torch.randn(2, 1, height, width, generator=random)
    return Batch(hr, mask, key=["a/b", "../c"], lq=lq, kernel=kernels[0]), Outputs(sr, logits, kernels[1])


def spread(best: int) -> list[dict]:
    """Seventy images of two sources, of rising quality."""
    found = [
        {**rows(1 + best * i // 70, psnr=25 + i / 10)[0], "key": f"{'CFD' if i % 2 else 'rissbilder'}_{i}"}
        for i in range(70)
    ]
    return [{**row, "blur_sigma": 0.5 + i % 3} for i, row in enumerate(found)]


def with_samples(directory: Path) -> Path:
    batch, outputs = draw(48, 64)
    names = ["CFD_69", "rissbilder_68"]
    samples = {key: take_sample(batch, outputs, i) for i, key in enumerate(batch.key)}
    samples = {name: Sample({**s.about, "key": name}, s.files) for name, s in zip(names, samples.values())}
    write_samples(samples, {"best": names, "worst": names[:1]}, directory / "pictures" / "samples")
    return directory
