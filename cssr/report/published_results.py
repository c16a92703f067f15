"""Figures published in the papers, which are of other data and another setting than a report's own results.

Source: Kondo and Ukita, "Joint Learning of Blind Super-Resolution and Crack Segmentation for Realistic Degraded
Images", IEEE Transactions on Instrumentation and Measurement, 2024 (CSBSR).
"""

from collections.abc import Sequence
from typing import NamedTuple

from cssr.evaluation.results import Result, component_name

SOURCE = (
    "Kondo and Ukita, Joint Learning of Blind Super-Resolution and Crack Segmentation for Realistic Degraded Images, "
    "IEEE Transactions on Instrumentation and Measurement, 2024"
)
SETTING = (
    "khanhha's test set, x4, blind anisotropic Gaussian blur with sigma 0.2 to 4.0 HR pixels, per image. The released "
    "evaluator takes the 50th percentile for HD95, this toolkit the 95th: those columns cannot be compared at all."
)
SEPARATE = (
    "CSSR's own paper (Kondo and Ukita, MVA 2021) reports 97.3 % of the HR IoU: bicubic x4 without blur, U-Net, "
    "another setting again, which is why it is not in this table."
)
_BLUR = {  # of the paper, which is what `gaussian` does by default
    "sigma": [0.2, 4.0],
    "theta": [0.0, 180.0],
    "isotropic": False,
    "size": 21,
    "method": "bicubic",
    "antialias": True,
    "padding": "zero",
}


class Figure(NamedTuple):
    """A row of the published table, per image; distances in pixels, PSNR in dB; None: not published."""

    model: str
    iou_max: float
    aiu: float
    hd95_min: float
    ahd95: float
    psnr: float | None = None
    ssim: float | None = None

    @property
    def share(self) -> float:
        """IoU_max in percent of that of the HR image's segmentation."""
        return 100 * self.iou_max / FIGURES[0].iou_max


FIGURES = (
    Figure("segmentation of the HR image (upper bound)", 0.616, 0.559, 6.20, 11.89),
    Figure("SrcNet", 0.368, 0.320, 95.16, 130.47, 27.82, 0.639),
    Figure("DSRL", 0.391, 0.285, 44.23, 148.97, 20.16, 0.501),
    Figure("KBPN then PSPNet, trained independently", 0.548, 0.524, 28.45, 31.62),
    Figure("CSSR, PSPNet, beta 0.7", 0.557, 0.539, 21.20, 24.74, 28.35, 0.656),
    Figure("CSBSR, PSPNet, beta 0.3", 0.573, 0.552, 20.92, 22.52, 28.75, 0.703),
    Figure("CSBSR, HRNet+OCR, beta 0.9", 0.553, 0.534, 17.54, 20.29, 27.66, 0.668),
    Figure("CSBSR, U-Net, beta 0.3", 0.530, 0.506, 26.33, 27.24, 28.68, 0.702),
    Figure("CSBSR, CrackFormer, beta 0.9", 0.469, 0.443, 39.37, 56.59, 25.93, 0.571),
    Figure("CSBSR, PSPNet, failure weight (m = 1)", 0.573, 0.551, 18.73, 21.70, 28.73, 0.702),
    Figure("CSBSR, PSPNet, failure weight and BlurSkip", 0.550, 0.528, 18.06, 19.10, 28.65, 0.702),
)


def same_protocol(results: Sequence[Result]) -> list[Result]:
    """The results with files that state the paper's degradation and scale, on all of what may be khanhha's test set."""
    return [result for result in results if _has_same_degradation(result) and _is_of_test_set(result)]


def _is_of_test_set(result: Result) -> bool:
    """Return whether it is of khanhha's test set, by its path, all that a file says of it."""
    path = str(result.data["data"]).lower().rstrip("/")
    return "khanhha" in path and not path.endswith(("train", "val")) and result.data.get("limit") is None


def _has_same_degradation(result: Result) -> bool:
    degradation = result.data.get("degradation")
    settings = {"name": degradation} if isinstance(degradation, str) else dict(degradation or {})
    alike = settings.pop("name", None) == "gaussian" and {**_BLUR, **settings} == _BLUR
    return result.data.get("scale") == 4 and component_name(result.data, "sr") != "none" and alike
